defmodule Snex.Runtimes do
  @moduledoc false
  # Where the Python of each interpreter of this node takes its requests, so that callers need not
  # ask the interpreter; which interpreters are members of pools; why interpreters ended; and the start
  # of distribution, which is one for all.
  use GenServer

  alias Snex.Pool.Places

  @table __MODULE__
  @members Snex.Pool.Members

  # Whether any interpreter was told to.
  @sharing {Snex.Shared, :default}

  # For how long it is known why an interpreter has ended. Callers ask within milliseconds.
  @remembered 30_000

  # ms within which it is known.
  @obituary 1_000

  @type target :: pid() | {atom(), node()}

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc """
  Make known that the calling process is an interpreter whose Python is at `target`; after how many ms it
  kills what goes over its time; and whether its calls share memory that do not say.
  """
  @spec register(target(), pos_integer() | nil, boolean()) :: :ok
  def register(target, kill_after \\ nil, shared? \\ false),
    do: GenServer.call(__MODULE__, {:register, self(), target, kill_after, shared?}, :infinity)

  @doc "Whether calls to an interpreter share memory that do not say; not so of one on another node."
  @spec shared?(pid()) :: boolean()
  def shared?(interpreter) do
    # Hardly anybody asks for it, and then nothing is looked up.
    :persistent_term.get(@sharing, false) and :ets.member(@table, {:shared, interpreter})
  rescue
    ArgumentError -> false
  end

  @doc "The `kill_after` of an interpreter, in ms; nil where it has none, or is on another node."
  @spec kill_after(pid()) :: pos_integer() | nil
  def kill_after(interpreter) do
    case :ets.lookup(@table, {:kill_after, interpreter}) do
      [{_, kill_after}] -> kill_after
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @doc "Make known that the calling process is a pool."
  @spec register_pool(Places.t()) :: :ok
  def register_pool(places), do: GenServer.call(__MODULE__, {:register_pool, places}, :infinity)

  @doc """
  The pid of an interpreter and where its Python takes requests, or why there is none; or the places
  of a pool of this node, or the pid of one of another node.
  """
  @spec find(GenServer.server()) ::
          {:ok, pid(), target()} | {:pool, Places.t() | pid()} | {:error, term()}
  def find(interpreter) do
    case whereis(interpreter) do
      nil ->
        {:error, :noproc}

      pid when is_pid(pid) ->
        case lookup(pid) do
          {:at, target} -> {:ok, pid, target}
          :pool -> pool(pid)
          nil -> ask(pid)
          _ending -> {:error, :noproc}
        end

      remote ->
        ask(remote)
    end
  end

  # It is not copied from there, as it would be from the table.
  defp pool(pid) do
    case :persistent_term.get({Snex.Pool, pid}, nil) do
      nil -> {:error, :noproc}
      places -> {:pool, places}
    end
  end

  # While this node stops the table goes before those who call: then interpreters are ending.
  defp lookup(pid) do
    case :ets.lookup(@table, pid) do
      [{_, state}] -> state
      [] -> nil
    end
  rescue
    ArgumentError -> :ending
  end

  defp whereis(pid) when is_pid(pid), do: pid
  defp whereis(server), do: GenServer.whereis(server)

  defp ask(interpreter) do
    GenServer.call(interpreter, :snex_runtime, :infinity)
  catch
    :exit, {reason, {GenServer, :call, _}} -> {:error, reason}
  end

  @doc "Whether the interpreter `pid` is known to be attached to a node that someone else runs."
  @spec attached?(pid()) :: boolean()
  def attached?(pid), do: match?({:at, {_, _}}, lookup(pid))

  @doc "Make known that the calling process, an interpreter, is ending: its Python takes no requests."
  @spec ending() :: :ok
  def ending, do: put(:ending)

  @doc "The same, where it is known why: those who wait for an answer are told."
  @spec ending(term()) :: :ok
  def ending(reason), do: put({:ended, reason})

  # One that never was ready is not known here, nor anything while this node stops.
  defp put(state) do
    if match?({:at, _}, lookup(self())) or lookup(self()) == :ending,
      do: :ets.insert(@table, {self(), state})

    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc "Make known why another process, an interpreter that is about to be killed, ends."
  @spec ending_of(pid(), term()) :: :ok
  def ending_of(pid, reason) do
    :ets.insert(@table, {pid, {:ended, reason}})
    :ok
  rescue
    ArgumentError -> :ok
  end

  # --- members of pools ---------------------------------------------------------------------------

  @doc "Make known which interpreter is the member `slot` of the calling process, a pool."
  @spec put_member(Places.t(), Places.slot(), pid(), target()) :: :ok
  def put_member(%{pool: pool}, slot, interpreter, target) do
    :ets.insert(@members, [
      {{pool, slot}, interpreter, target},
      {{:member, interpreter}, pool, slot}
    ])

    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc "Make known that an interpreter is no member any more."
  @spec delete_member(Places.t(), Places.slot(), pid()) :: :ok
  def delete_member(%{pool: pool}, slot, interpreter) do
    :ets.match_delete(@members, {{pool, slot}, interpreter, :_})
    :ets.delete(@members, {:member, interpreter})
    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc "Make a pool, the calling process, known again after this one has been restarted."
  @spec renew_pool(Places.t()) :: :ok
  def renew_pool(places) do
    if lookup(self()) == nil, do: register_pool(places)
    :ok
  catch
    # It is just being restarted, or this node stops.
    :exit, _reason -> :ok
  end

  @doc "The interpreter that is the member `slot` of a pool, and its target."
  @spec member(Places.t(), Places.slot()) :: {pid(), target()} | nil
  def member(%{pool: pool}, slot) do
    case :ets.lookup(@members, {pool, slot}) do
      [{_, interpreter, target}] -> {interpreter, target}
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @doc "The places of the pool that an interpreter is a member of, and its slot."
  @spec membership(pid()) :: {Places.t(), Places.slot()} | nil
  def membership(interpreter) do
    case :ets.lookup(@members, {:member, interpreter}) do
      [{_, pool, slot}] ->
        with {:pool, places} <- pool(pool), do: {places, slot}, else: (_ -> nil)

      [] ->
        nil
    end
  rescue
    ArgumentError -> nil
  end

  @doc "Why the interpreter `pid` is ending, where that is known already."
  @spec why_ending(pid()) :: {:ok, term()} | :error
  def why_ending(pid), do: why_ended(pid, 0)

  @doc "Why the interpreter `pid` has ended, as far as is known here."
  @spec why_ended(pid()) :: {:ok, term()} | :error
  def why_ended(pid), do: why_ended(pid, @obituary)

  # A process that is ending is no process any more to those who ask, and only then are those told
  # who watched it.
  defp why_ended(pid, left) do
    case lookup(pid) do
      {:ended, reason} ->
        {:ok, reason}

      state when state != nil and left > 0 ->
        receive do
        after
          10 -> why_ended(pid, left - 10)
        end

      _ ->
        :error
    end
  end

  @doc "True the first time it is called with `key`."
  @spec first?(term()) :: boolean()
  def first?(key) do
    :ets.insert_new(@table, {{:seen, key}})
  rescue
    ArgumentError -> false
  end

  @doc "Start distribution, unless it runs, so that `peer` can be connected to if one is given."
  @spec start_distribution(node() | nil) :: :ok | {:error, String.t()}
  def start_distribution(peer \\ nil) do
    if Node.alive?(),
      do: :ok,
      else: GenServer.call(__MODULE__, {:start_distribution, peer}, :infinity)
  end

  @impl GenServer
  def init(nil) do
    :ets.new(@table, [:named_table, :public, read_concurrency: true])
    :ets.new(@members, [:named_table, :public, read_concurrency: true])
    {:ok, nil}
  end

  @impl GenServer
  def handle_call({:register, pid, target, kill_after, shared?}, _from, state) do
    Process.monitor(pid)

    if shared? do
      :ets.insert(@table, {{:shared, pid}, true})
      :persistent_term.put(@sharing, true)
    end

    if kill_after, do: :ets.insert(@table, {{:kill_after, pid}, kill_after})
    :ets.insert(@table, {pid, {:at, target}})
    {:reply, :ok, state}
  end

  def handle_call({:register_pool, %{pool: pid} = places}, _from, state) do
    Process.monitor(pid)
    :persistent_term.put({Snex.Pool, pid}, places)
    :ets.insert(@table, {pid, :pool})
    {:reply, :ok, state}
  end

  def handle_call({:start_distribution, peer}, _from, state) do
    answer = if Node.alive?(), do: :ok, else: Snex.Distribution.start(peer)
    {:reply, answer, state}
  end

  @impl GenServer
  def handle_info({:DOWN, _, :process, pid, reason}, state) do
    # Of one that was killed because it did not answer it is known already.
    if reason != :killed or not match?({:ended, _}, lookup(pid)),
      do: :ets.insert(@table, {pid, {:ended, reason}})

    # It may have been a member, or a pool that could not clean up.
    with [{_, pool, slot}] <- :ets.take(@members, {:member, pid}),
         do: :ets.match_delete(@members, {{pool, slot}, pid, :_})

    :persistent_term.erase({Snex.Pool, pid})

    :ets.match_delete(@members, {{pid, :_}, :_, :_})
    Process.send_after(self(), {:forget, pid}, @remembered)
    {:noreply, state}
  end

  def handle_info({:forget, pid}, state) do
    :ets.delete(@table, pid)
    :ets.delete(@table, {:kill_after, pid})
    :ets.delete(@table, {:shared, pid})
    {:noreply, state}
  end

  def handle_info(_other, state), do: {:noreply, state}
end
