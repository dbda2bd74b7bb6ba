defmodule Snex.Batch do
  @moduledoc ~S'''
  Calls of many processes, brought together: one call of Python for up to `:batch_size` of them.

  That is what models and databases like: one step for 32 items takes little longer than one for one.

      children = [
        {Snex.Pool, name: MyApp.Python, interpreter: MyApp.Models, size: 2},
        {Snex.Batch,
         name: MyApp.Embed,
         interpreter: MyApp.Python,
         code: "return model.encode(items).tolist()",
         batch_size: 32,
         batch_timeout: 20,
         concurrency: 2}
      ]

      {:ok, vector} = Snex.Batch.run(MyApp.Embed, "some text")

  A batch goes out when it is full, or `:batch_timeout` milliseconds after its first item has come. The code
  finds the items in the variable `items`, a list, and returns a list with one result for each, in their
  order. Where it is something else every caller gets an error that says so.

  ## One item that fails

  Where an element of the result is an exception object (or a `%Snex.Error{}`), it is the error of that
  item's caller alone:

      results = []
      for item in items:
          try:
              results.append(parse(item))
          except ValueError as error:
              results.append(error)
      return results

  Where the code raises, or an item or a result cannot be converted, the items are run one by one, so that
  only those fail that are to blame; with `isolate: false` all of them get the error. When Python ends or
  does not answer in time all of them get the error, too: one of them may be why, and it would be again.

  ## Who does not wait any more

  An item whose caller has died, or whose time is over, is taken out of the batch that it waits for. Where
  that has gone out it goes on for the others, and is cancelled when nobody waits for any of its items.
  '''

  use GenServer

  alias Snex.{Call, Error, Limits, Options, Serde}
  alias Snex.Batch.{Groups, Work}

  @default_timeout 5_000
  @longest 4_294_967_295

  @defaults [
    batch_size: 32,
    batch_timeout: 100,
    concurrency: 1,
    max_queue: 10_000,
    isolate: true,
    variable: "items",
    vars: %{},
    encoding_opts: []
  ]

  @typedoc "A batch: its pid, or any name that a `GenServer` is called by."
  @type server :: GenServer.server()

  @typedoc """
  Options of `start_link/1`:

    * `:interpreter` - an interpreter, a pool or an environment; required
    * `:code` - what to run: code, or `{module, function}` of Python, which is called with the list, and
      awaited if it is to be; required
    * `:name` - as `GenServer.start_link/3` takes it
    * `:batch_size` - how many items a batch has at most, 1 to 100,000; default 32
    * `:batch_timeout` - milliseconds that the first item of a batch waits for others; default 100
    * `:concurrency` - how many batches are under way at a time; default 1. Meanwhile items gather; the
      size of a pool is a good value
    * `:max_queue` - how many items may wait; further ones get the error `:overloaded`. Default 10,000
    * `:batch_key` - a function of an item; those that it gives different values for are not in one batch.
      It is called by the process of the batch, so it should be quick; default: all are the same
    * `:isolate` - whether the items of a call that raises are run one by one; default true
    * `:variable` - what the code calls the list; default `"items"`
    * `:vars` - further variables of the code
    * `:encoding_opts` - as those of `Snex.pyeval/4`
  """
  @type option ::
          {:interpreter, Snex.env_or_interpreter()}
          | {:code,
             Snex.code() | {module :: String.t() | atom(), function :: String.t() | atom()}}
          | {:name, GenServer.name()}
          | {:batch_size, pos_integer()}
          | {:batch_timeout, non_neg_integer()}
          | {:concurrency, pos_integer()}
          | {:max_queue, pos_integer()}
          | {:batch_key, (item :: term() -> term())}
          | {:isolate, boolean()}
          | {:variable, String.t()}
          | {:vars, Snex.additional_vars()}
          | {:encoding_opts, Serde.encoding_opts()}

  @typedoc """
  Options of `run/3`:

    * `:timeout` - milliseconds for all of it, the waiting for other items included, or `:infinity`; default
      #{@default_timeout}. The code has as long as the most patient of its callers
    * `:batch_key` - the item's key, in the place of what the batch's function gives
  """
  @type run_option :: {:timeout, timeout()} | {:batch_key, term()}

  # --- API ------------------------------------------------------------------------------------------------

  @doc """
  Starts a batch, linked to the calling process. The interpreter need not run yet.

  Raises `ArgumentError` for options that do not exist, are missing, or have no such values.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts) do
    {genserver, opts} = opts |> checked!() |> Keyword.split([:name])
    GenServer.start_link(__MODULE__, settings(opts), genserver)
  end

  @doc "A child specification; its id is the batch's name."
  @spec child_spec([option()]) :: Supervisor.child_spec()
  def child_spec(opts) do
    %{
      id: if(Keyword.keyword?(opts), do: opts[:name]) || __MODULE__,
      # What a supervisor logs shows the arguments.
      start: {__MODULE__, :start_child, [%Options{opts: opts}]}
    }
  end

  @doc false
  @spec start_child(Options.t()) :: GenServer.on_start()
  def start_child(%Options{opts: opts}), do: start_link(opts)

  @doc """
  Has an item processed together with those of others, and returns its result.

      {:ok, vector} = Snex.Batch.run(MyApp.Embed, "some text", timeout: 1_000)

  Errors are those of `Snex.pyeval/4`. Raises `ArgumentError` for unknown options and for a `:timeout` that
  is none.
  """
  @spec run(server(), term(), [run_option()]) :: {:ok, term()} | {:error, Error.t()}
  def run(batch, item, opts \\ []) do
    for {name, _} <- opts,
        name not in [:timeout, :batch_key],
        do:
          raise(ArgumentError, "unknown option #{inspect(name)}: there are :timeout, :batch_key")

    timeout = Keyword.get(opts, :timeout, @default_timeout)

    if timeout != :infinity,
      do: Limits.check_number!(:timeout, timeout, 0, @longest, "milliseconds (or :infinity)")

    request = {:run, make_ref(), item, Keyword.take(opts, [:batch_key]), timeout}
    call(batch, request, timeout)
  end

  defp call(batch, {:run, ref, _, _, _} = request, timeout) do
    GenServer.call(batch, request, timeout)
  catch
    :exit, {:timeout, {GenServer, :call, _}} ->
      GenServer.cast(batch, {:gone, ref})
      {:error, %Error{code: :response_timeout}}

    :exit, {reason, {GenServer, :call, _}} ->
      {:error, Call.failed(reason)}
  end

  # --- options ----------------------------------------------------------------------------------------------

  defp checked!(opts) do
    if not Keyword.keyword?(opts),
      do:
        raise(
          ArgumentError,
          "options of a batch are a keyword list, got: #{inspect(opts, limit: 5)}"
        )

    known = [:name, :interpreter, :code, :batch_key | Keyword.keys(@defaults)]

    for {name, _} <- opts, name not in known do
      raise ArgumentError,
            "unknown option #{inspect(name)}: there are #{Enum.map_join(known, ", ", &inspect/1)}"
    end

    for name <- [:interpreter, :code],
        opts[name] == nil,
        do: raise(ArgumentError, "a batch needs the option #{inspect(name)}")

    opts = Keyword.merge(@defaults, opts)
    check_values!(opts)
    opts
  end

  defp check_values!(opts) do
    Limits.check_number!(:batch_size, opts[:batch_size], 1, 100_000, "a number of items")
    Limits.check_number!(:batch_timeout, opts[:batch_timeout], 0, @longest, "milliseconds")
    Limits.check_number!(:concurrency, opts[:concurrency], 1, 1_000, "a number of batches")
    Limits.check_number!(:max_queue, opts[:max_queue], 1, 10_000_000, "a number of items")
    Serde.check_options!(opts[:encoding_opts])

    if not is_boolean(opts[:isolate]),
      do: raise(ArgumentError, ":isolate is true or false, got: #{inspect(opts[:isolate])}")

    if not (is_nil(opts[:batch_key]) or is_function(opts[:batch_key], 1)),
      do:
        raise(
          ArgumentError,
          ":batch_key is a function of an item, got: #{inspect(opts[:batch_key])}"
        )

    check_variables!(opts[:variable], opts[:vars])
    Work.source!(opts[:code], opts[:variable])
  end

  defp check_variables!(variable, vars) do
    if not (is_binary(variable) and variable =~ ~r/^[^\W\d]\w*$/u),
      do: raise(ArgumentError, ":variable is the name of a variable, got: #{inspect(variable)}")

    if not is_map(vars),
      do: raise(ArgumentError, ":vars are a map of variables, got: #{inspect(vars, limit: 5)}")

    Serde.encode_vars!(vars)
  end

  defp settings(opts) do
    opts |> Map.new() |> Map.put(:source, Work.source!(opts[:code], opts[:variable]))
  end

  # --- GenServer ----------------------------------------------------------------------------------------------

  @impl GenServer
  def init(settings) do
    Process.flag(:trap_exit, true)
    {:ok, %{settings: settings, groups: Groups.new(settings.batch_size), running: %{}}}
  end

  @impl GenServer
  def handle_call({:run, ref, item, key, timeout}, from, state) do
    if Groups.size(state.groups) >= state.settings.max_queue do
      {:reply, {:error, overloaded(state)}, state}
    else
      case key(state.settings, item, key) do
        {:ok, key} -> {:noreply, state |> join(ref, from, item, key, timeout) |> go()}
        {:error, _} = error -> {:reply, error, state}
      end
    end
  end

  defp key(_settings, _item, batch_key: key), do: {:ok, key}
  defp key(%{batch_key: fun}, item, []) when is_function(fun), do: apply_key(fun, item)
  defp key(_settings, _item, []), do: {:ok, nil}

  defp apply_key(fun, item) do
    {:ok, fun.(item)}
  rescue
    error -> {:error, %Error{code: :bad_request, reason: ":batch_key failed: " <> text(error)}}
  catch
    kind, value ->
      {:error, %Error{code: :bad_request, reason: ":batch_key failed: #{inspect({kind, value})}"}}
  end

  defp text(error), do: Exception.message(error)

  defp join(state, ref, {pid, _tag} = from, item, key, timeout) do
    deadline = if timeout == :infinity, do: :infinity, else: now() + timeout
    monitor = Process.monitor(pid)
    item = %{ref: ref, from: from, item: item, monitor: monitor, deadline: deadline}
    {number, groups} = Groups.join(state.groups, key, item)
    if number, do: Process.send_after(self(), {:due, key, number}, state.settings.batch_timeout)
    %{state | groups: groups}
  end

  @impl GenServer
  def handle_cast({:gone, ref}, state), do: {:noreply, gone(state, &(&1.ref == ref))}

  @impl GenServer
  def handle_info({:due, key, number}, state),
    do: {:noreply, go(%{state | groups: Groups.due(state.groups, key, number)})}

  def handle_info({:DOWN, monitor, _, _, _}, state),
    do: {:noreply, gone(state, &(&1.monitor == monitor))}

  def handle_info({:snex_batch, pid, answers}, state) do
    case Map.pop(state.running, pid) do
      {nil, _} -> {:noreply, state}
      {items, running} -> {:noreply, go(%{answer(state, items, answers) | running: running})}
    end
  end

  def handle_info({:EXIT, pid, reason}, state) do
    case Map.pop(state.running, pid) do
      {nil, _} when reason == :normal ->
        {:noreply, state}

      # A process that is linked to this one.
      {nil, _} ->
        {:stop, reason, state}

      {items, running} ->
        error = {:error, %Error{code: :internal_error, reason: reason}}
        answers = Map.new(items, &{&1.ref, error})
        {:noreply, go(%{answer(state, items, answers) | running: running})}
    end
  end

  def handle_info(_other, state), do: {:noreply, state}

  # --- batches ------------------------------------------------------------------------------------------------

  # Send what is full, or has waited long enough, as far as there may be more under way.
  defp go(state) do
    with true <- map_size(state.running) < state.settings.concurrency,
         {items, groups} <- Groups.take(state.groups) do
      state = %{state | groups: groups}
      {late, items} = Enum.split_with(items, &(&1.deadline <= now()))
      # Their callers have stopped to wait by themselves.
      Enum.each(late, &Process.demonitor(&1.monitor, [:flush]))
      if items == [], do: go(state), else: state |> send_out(items) |> go()
    else
      _ -> state
    end
  end

  defp send_out(%{settings: settings, running: running} = state, items) do
    batch = self()
    pid = spawn_link(fn -> send(batch, {:snex_batch, self(), Work.run(settings, items)}) end)
    %{state | running: Map.put(running, pid, items)}
  end

  defp answer(state, items, answers) do
    for %{ref: ref, from: from, monitor: monitor} <- items do
      Process.demonitor(monitor, [:flush])
      GenServer.reply(from, Map.fetch!(answers, ref))
    end

    state
  end

  # Somebody waits for an item no more: it need not be run, unless it is.
  defp gone(state, item?) do
    case Groups.leave(state.groups, item?) do
      {item, groups} ->
        Process.demonitor(item.monitor, [:flush])
        %{state | groups: groups}

      nil ->
        gone_meanwhile(state, item?)
    end
  end

  defp gone_meanwhile(state, item?) do
    case Enum.find(state.running, fn {_pid, items} -> Enum.any?(items, item?) end) do
      nil ->
        state

      {pid, items} ->
        {gone, left} = Enum.split_with(items, item?)
        Enum.each(gone, &Process.demonitor(&1.monitor, [:flush]))
        if left == [], do: cancel(state, pid), else: put_in(state.running[pid], left)
    end
  end

  # Python cancels what it does for a process that has ended.
  defp cancel(state, pid) do
    Process.unlink(pid)
    Process.exit(pid, :kill)
    receive(do: ({:EXIT, ^pid, _} -> :ok), after: (0 -> :ok))
    go(%{state | running: Map.delete(state.running, pid)})
  end

  defp overloaded(state) do
    %Error{
      code: :overloaded,
      reason:
        "#{state.settings.max_queue} items wait already, the :max_queue of this batch: call later, or give " <>
          "it a larger :batch_size or :concurrency"
    }
  end

  defp now, do: System.monotonic_time(:millisecond)

  # Items are not for logs. (Elixir knows the callback from 1.17 on.)
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(GenServer)
  @doc false
  def format_status(status) do
    hide = fn _ -> :hidden end

    status
    |> Map.replace_lazy(:message, hide)
    |> Map.replace_lazy(:log, fn _ -> [] end)
    |> Map.replace_lazy(:state, hide)
  end
end
