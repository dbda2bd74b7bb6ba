defmodule Snex.Shared.Arena do
  @moduledoc false
  # The memory of this node that Pythons map, and with which of them that is possible at all.
  #
  # What was lent is used for other data only when Python has told that it does not see it any more; else
  # it is closed, and the memory lives as long as somebody has it mapped. To write to new memory takes
  # three times as long as to write to what has been used already.
  use GenServer

  alias Snex.{Nif, Shared}

  @table __MODULE__

  # Regions that there may be, and bytes in all of them. Beyond that bytes are sent.
  @max_regions 128
  @max_bytes 2 * 1024 * 1024 * 1024

  # Bytes in those that are free; ms for which they are kept, and between two looks at that.
  @max_free 256 * 1024 * 1024
  @idle 30_000
  @look 10_000

  # ms after the end of a call within which what it has lent is used again when it is dropped. By then it
  # is mapped, or nobody will map it.
  @lent 60_000

  @header 4096
  @smallest 512 * 1024

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "The process that owns the memory, and that is told when what it maps is dropped."
  @spec pid() :: pid()
  def pid do
    Process.whereis(__MODULE__) ||
      raise "the application :snex is not running: start it with Application.ensure_all_started(:snex)"
  end

  @doc "Whether the Python node reads what is lent here, and the other way round; nil: not known yet."
  @spec pair(node()) :: {boolean(), boolean()} | nil
  def pair(node) do
    case :ets.lookup(@table, node) do
      [{_, pair}] -> pair
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @doc "Make that known, until the connection is lost."
  @spec put_pair(node(), {boolean(), boolean()}) :: :ok
  def put_pair(node, pair), do: GenServer.call(pid(), {:put_pair, node, pair}, :infinity)

  @doc """
  Lend data to a node, until `done/1` or the end of the calling process; `:error` where that is not
  possible.
  """
  @spec lend(binary(), node()) :: {:ok, Shared.t()} | :error
  def lend(data, node) do
    with true <- Nif.loaded?(),
         {:ok, region, fd, id} <- GenServer.call(pid(), {:lend, byte_size(data), node}, :infinity) do
      write(region, fd, id, data)
    else
      _ -> :error
    end
  end

  defp write(region, fd, id, data) do
    case Nif.region_write(region, id, data) do
      :ok ->
        os_pid = List.to_integer(:os.getpid())
        {:ok, %Shared{os_pid: os_pid, fd: fd, id: id, size: byte_size(data), owner: pid()}}

      {:error, _} ->
        GenServer.cast(pid(), {:failed, id})
        :error
    end
  end

  @doc "The call that these were lent for has ended."
  @spec done([binary()]) :: :ok
  def done(ids), do: GenServer.cast(pid(), {:done, ids})

  @doc "Tell who has lent something that it is not used here any more."
  @spec told_dropped(pid(), binary()) :: :ok
  def told_dropped(owner, id) do
    :erlang.send(owner, {:shared, {:dropped, id}}, [:noconnect])
    :ok
  end

  @doc "How many regions are lent, and how many are free."
  @spec counts() :: {non_neg_integer(), non_neg_integer()}
  def counts, do: GenServer.call(pid(), :counts)

  # --- GenServer ------------------------------------------------------------------------------------

  @impl GenServer
  def init(nil) do
    :ets.new(@table, [:named_table, read_concurrency: true])
    {:ok, %{lent: %{}, free: [], bytes: 0, monitors: %{}, looks?: false}}
  end

  @impl GenServer
  def handle_call({:lend, size, node}, {caller, _}, state) do
    case region(state, @header + size) do
      {:ok, region, state} ->
        id = :crypto.strong_rand_bytes(16)
        monitor = Process.monitor(caller)
        loan = %{region: region, node: node, monitor: monitor, timer: nil}

        state = %{
          state
          | lent: Map.put(state.lent, id, loan),
            monitors: Map.put(state.monitors, monitor, id)
        }

        {:reply, {:ok, region.ref, region.fd, id}, state}

      {:error, state} ->
        {:reply, :error, state}
    end
  end

  def handle_call({:put_pair, node, pair}, _from, state) do
    if :ets.insert_new(@table, {node, pair}), do: :erlang.monitor_node(node, true)
    {:reply, :ok, state}
  end

  def handle_call(:counts, _from, state),
    do: {:reply, {map_size(state.lent), length(state.free)}, state}

  @impl GenServer
  def handle_cast({:done, ids}, state), do: {:noreply, Enum.reduce(ids, state, &ended(&2, &1))}
  def handle_cast({:failed, id}, state), do: {:noreply, close_lent(state, id)}

  @impl GenServer
  # From Python: nobody there sees it any more.
  def handle_info({:snex_shared_dropped, id}, state) do
    case forget(state, id) do
      {nil, state} -> {:noreply, state}
      {%{region: region}, state} -> {:noreply, keep(state, region)}
    end
  end

  # From the NIF: nobody here.
  def handle_info({:snex_view_dropped, data}, state) do
    {owner, id} = :erlang.binary_to_term(data)
    told_dropped(owner, id)
    {:noreply, state}
  end

  # Who has called has ended before the answer.
  def handle_info({:DOWN, monitor, :process, _, _}, state) do
    case state.monitors do
      %{^monitor => id} -> {:noreply, ended(state, id)}
      _ -> {:noreply, state}
    end
  end

  def handle_info({:expired, id}, state), do: {:noreply, close_lent(state, id)}

  def handle_info(:look, state) do
    {idle, free} = Enum.split_with(state.free, &(&1.since + @idle <= now()))
    {:noreply, look_later(close_all(%{state | free: free, looks?: false}, idle))}
  end

  # What it has mapped it may see for long, if it is only the connection that is lost.
  def handle_info({:nodedown, node}, state) do
    :ets.delete(@table, node)
    ids = for {id, %{node: ^node}} <- state.lent, do: id
    state = Enum.reduce(ids, state, &close_lent(&2, &1))

    # Nobody is left who could use what is free.
    if :ets.info(@table, :size) == 0,
      do: {:noreply, close_all(%{state | free: []}, state.free)},
      else: {:noreply, state}
  end

  def handle_info(_other, state), do: {:noreply, state}

  # --- regions --------------------------------------------------------------------------------------

  # A free one where one fits, and does not waste it; else a new one.
  defp region(state, size) do
    fits? = &(&1.capacity >= size and &1.capacity <= max(@smallest, 8 * size))
    region = state.free |> Enum.filter(fits?) |> Enum.min_by(& &1.capacity, fn -> nil end)
    more = if region, do: max(0, size - region.filled), else: 0

    if region && state.bytes + more <= @max_bytes do
      taken = %{region | filled: region.filled + more, since: nil}
      {:ok, taken, %{state | free: List.delete(state.free, region), bytes: state.bytes + more}}
    else
      new(state, size)
    end
  end

  defp new(state, size) do
    state = make_room(state, size)
    capacity = capacity(@smallest, size)

    with true <- room?(state, size),
         {:ok, ref, fd} <- Nif.region_new(capacity) do
      region = %{ref: ref, fd: fd, capacity: capacity, filled: size, since: nil}
      {:ok, region, %{state | bytes: state.bytes + size}}
    else
      _ -> {:error, state}
    end
  end

  defp capacity(capacity, size) when capacity >= size, do: capacity
  defp capacity(capacity, size), do: capacity(2 * capacity, size)

  defp make_room(%{free: [_ | _]} = state, size) do
    if room?(state, size), do: state, else: state |> close_oldest() |> make_room(size)
  end

  defp make_room(state, _size), do: state

  defp room?(%{lent: lent, free: free, bytes: bytes}, size),
    do: map_size(lent) + length(free) < @max_regions and bytes + size <= @max_bytes

  # The oldest are the last.
  defp keep(state, region) do
    look_later(trim(%{state | free: [%{region | since: now()} | state.free]}))
  end

  defp look_later(%{free: [_ | _], looks?: false} = state) do
    Process.send_after(self(), :look, @look)
    %{state | looks?: true}
  end

  defp look_later(state), do: state

  defp trim(state) do
    if Enum.sum(Enum.map(state.free, & &1.filled)) > @max_free,
      do: state |> close_oldest() |> trim(),
      else: state
  end

  defp close_oldest(%{free: free} = state) do
    {oldest, free} = List.pop_at(free, -1)
    close_all(%{state | free: free}, [oldest])
  end

  defp close_all(state, regions) do
    Enum.each(regions, &Nif.region_close(&1.ref))
    %{state | bytes: state.bytes - Enum.sum(Enum.map(regions, & &1.filled))}
  end

  # --- what is lent ---------------------------------------------------------------------------------

  # Its call is over. Python may have it all the same, in an environment.
  defp ended(state, id) do
    case state.lent do
      %{^id => loan} ->
        loan = %{loan | timer: Process.send_after(self(), {:expired, id}, @lent)}
        %{unmonitored(state, loan) | lent: %{state.lent | id => loan}}

      _ ->
        state
    end
  end

  defp close_lent(state, id) do
    case forget(state, id) do
      {nil, state} -> state
      {%{region: region}, state} -> close_all(state, [region])
    end
  end

  defp forget(state, id) do
    case Map.pop(state.lent, id) do
      {nil, _} ->
        {nil, state}

      {loan, lent} ->
        if loan.timer, do: Process.cancel_timer(loan.timer)
        {loan, unmonitored(%{state | lent: lent}, loan)}
    end
  end

  defp unmonitored(state, %{monitor: monitor}) do
    Process.demonitor(monitor, [:flush])
    %{state | monitors: Map.delete(state.monitors, monitor)}
  end

  defp now, do: System.monotonic_time(:millisecond)
end
