defmodule Snex.Pool do
  @moduledoc ~S'''
  Several Pythons behind one name.

      children = [
        {Snex.Pool, name: MyApp.Python, interpreter: MyApp.Numpy, size: 4}
      ]

      {:ok, 42} = Snex.pyeval(MyApp.Python, "return 6 * x", %{"x" => 7})

  Each member is an interpreter (`Snex.Interpreter`) with a Python of its own, so that `size` calls
  compute at the same time. A pool is taken wherever an interpreter is: its pid, or any name that a
  `GenServer` is called by.

  ## Calls

  A call goes to the member that has least to do, without a process in between. One Python runs code
  that does not await for one caller at a time, so by default a member gets one call at a time
  (`concurrency: 1`), and none waits behind another's while a member is idle. Where the code awaits most
  of its time (HTTP requests, `snex.call`), or Python runs it in threads (`executor: :thread`), a larger
  `:concurrency` lets calls overlap.

  When all members are busy calls wait, and are served in the order in which they came: at most
  `:max_queue` of them, each for `:queue_timeout` at most. Others get
  `{:error, %Snex.Error{code: :overloaded}}`; nothing of them has run. The `:timeout` of a call includes
  its waiting.

  ## Environments

  An environment stays on the member that it was made on, the one that had the fewest. Calls to it go
  straight there: they do not wait in the queue, but count, so that other calls go elsewhere meanwhile
  (up to 16 per member are counted). When its Python ends the environment is gone.

      {:ok, env} = Snex.make_env(MyApp.Python, %{"x" => 1})
      {:ok, 1} = Snex.pyeval(env, "return x")

  ## When things go wrong

  When a member's Python ends, the calls that it was working for get an error, and all others notice
  nothing: the member is started again while the others serve. A call that gets no answer within its
  `:timeout`, as from a Python that hangs or was stopped by a signal, makes its member a suspect, which
  gets no further calls until it answers a ping. When it does not for `:restart_after` ms, and no other call
  is under way on it, it is killed and started again.

  When members fail more often than `:max_restarts` within `:max_seconds`, the pool itself ends, and
  its supervisor decides. Code that ends Python takes one member per call, so the default allows five
  for each member, in five seconds.

  ## Several nodes

  Pools of the same name on connected nodes are one, found through `:pg`. A call prefers the members of
  its own node; when these are all busy, or gone, and a pool elsewhere has room, it goes there. Where
  all are busy it waits on its own node. A node that has no pool of that name uses those of the others.
  Environments are made on the own node where it has a pool.

  Nodes must be visible to each other, as those of a cluster are, and a Python that speaks through its standard
  input and output (`:use_stdio`) can be used by its own node only, so pools of these do not take part.

  ## Maintenance

  `info/1` tells how a pool is doing, `drain/2` replaces its members one after the other without losing
  a call, `resize/2` changes their number.
  '''

  alias Snex.{Error, Interpreter, Limits, Options}
  alias Snex.Pool.{Checkout, Cluster, Server}

  @defaults [
    size: 1,
    concurrency: 1,
    max_queue: 1_000,
    queue_timeout: 5_000,
    max_seconds: 5,
    restart_after: 10_000,
    sync_start?: true,
    cluster?: true
  ]

  # How many members a pool can be resized to, at least.
  @least_capacity 64

  @largest_size 1_024
  @largest_concurrency 1_000
  @longest 4_294_967_295

  @typedoc "A pool: its pid, or any name that a `GenServer` is called by."
  @type server :: GenServer.server()

  @typedoc "A module that says `use Snex.Interpreter`, options of `Snex.Interpreter.start_link/1`, or both."
  @type interpreter ::
          module() | [Interpreter.option()] | {module(), [Interpreter.option()]}

  @typedoc """
  Options of `start_link/1`:

    * `:interpreter` - what each member is; required. The options must not have a `:name`,
      `:sync_start?` or `:node`
    * `:name` - the pool's name, as `GenServer.start_link/3` takes it. Members are called by it in logs:
      `MyApp.Python.Member1` is that of the first
    * `:size` - how many members there are; default 1
    * `:concurrency` - how many calls a member gets at a time, 1 to #{@largest_concurrency}; default 1
    * `:max_queue` - how many calls may wait; default 1,000. With 0 a call that finds no room is refused
    * `:queue_timeout` - milliseconds that one may wait, or `:infinity`; default 5,000
    * `:max_restarts`, `:max_seconds` - how often members may fail before the pool ends; default five times
      for each member, in 5 seconds
    * `:restart_after` - milliseconds after which a member that does not answer is ended by force, or
      `:infinity`; default 10,000
    * `:sync_start?` - whether `start_link/1` returns only when all members are ready; default true.
      Otherwise calls wait in the queue for the first
    * `:cluster?` - whether pools of the same name on other nodes are used, and this one by them;
      default true
  """
  @type option ::
          {:interpreter, interpreter()}
          | {:name, GenServer.name()}
          | {:size, pos_integer()}
          | {:concurrency, pos_integer()}
          | {:max_queue, non_neg_integer()}
          | {:queue_timeout, timeout()}
          | {:max_restarts, non_neg_integer()}
          | {:max_seconds, pos_integer()}
          | {:restart_after, timeout()}
          | {:sync_start?, boolean()}
          | {:cluster?, boolean()}

  @typedoc """
  A member: `state` is `:up`, `:starting`, `:restarting`, `:failed` (it could not be started, which is tried
  again), `:suspect` (it did not answer) or `:draining`. `busy` counts the calls that it works for.
  """
  @type member_info :: %{
          slot: pos_integer(),
          node: node(),
          pid: pid() | nil,
          os_pid: non_neg_integer() | nil,
          state: :up | :starting | :restarting | :failed | :suspect | :draining,
          busy: non_neg_integer(),
          environments: non_neg_integer(),
          restarts: non_neg_integer()
        }

  @typedoc "What `info/1` returns. `members` are those of all nodes, all else is of one pool."
  @type info :: %{
          name: term(),
          size: pos_integer(),
          concurrency: pos_integer(),
          members: [member_info()],
          queue: non_neg_integer(),
          calls: non_neg_integer(),
          overloaded: non_neg_integer(),
          restarts: non_neg_integer()
        }

  # --- start --------------------------------------------------------------------------------------------

  @doc """
  Starts a pool, linked to the calling process.

  It returns when all members are ready, or `{:error, reason}` with the reason of the first that fails, a
  `Snex.Error` as `Snex.Interpreter.start_link/1` returns it; with `sync_start?: false` at once.

  Raises `ArgumentError` for options that do not exist or have no such values, and for an `:interpreter`
  that is none.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts) do
    settings = settings!(opts)
    genserver = if opts[:name], do: [name: opts[:name]], else: []

    with {:ok, pool} <- Server.start_link(settings, genserver),
         do: if(settings.sync_start?, do: await_start(pool), else: {:ok, pool})
  end

  defp await_start(pool) do
    case GenServer.call(pool, {:await_ready, true}, :infinity) do
      :ok ->
        {:ok, pool}

      {:error, reason} ->
        Process.unlink(pool)
        GenServer.stop(pool, :shutdown)
        # It may have ended before.
        receive(do: ({:EXIT, ^pool, _} -> {:error, reason}), after: (0 -> {:error, reason}))
    end
  catch
    :exit, {reason, {GenServer, _, _}} -> {:error, reason}
  end

  @doc "A child specification; its id is the pool's name."
  @spec child_spec([option()]) :: Supervisor.child_spec()
  def child_spec(opts) do
    %{
      id: if(Keyword.keyword?(opts), do: opts[:name]) || __MODULE__,
      # What a supervisor logs shows the arguments.
      start: {__MODULE__, :start_child, [%Options{opts: opts}]},
      type: :supervisor,
      shutdown: :infinity
    }
  end

  @doc false
  @spec start_child(Options.t()) :: GenServer.on_start()
  def start_child(%Options{opts: opts}), do: start_link(opts)

  defp settings!(opts) do
    check_names!(opts)
    opts = Keyword.merge(@defaults, opts)
    check_values!(opts)
    {module, interpreter} = interpreter!(opts[:interpreter])
    stdio? = :use_stdio in (interpreter[:port_opts] || [])

    opts
    |> Map.new()
    |> Map.merge(%{
      name: opts[:name],
      module: module,
      opts: %Options{opts: interpreter},
      capacity: max(@least_capacity, 2 * opts[:size]),
      max_restarts: opts[:max_restarts] || 5 * opts[:size],
      cluster?: opts[:cluster?] and not stdio? and not match?({:global, _}, opts[:name])
    })
    |> Map.delete(:interpreter)
  end

  defp check_names!(opts) do
    known = [:name, :interpreter, :max_restarts | Keyword.keys(@defaults)]

    if not Keyword.keyword?(opts),
      do:
        raise(
          ArgumentError,
          "options of a pool are a keyword list, got: #{inspect(opts, limit: 5)}"
        )

    for {name, _} <- opts, name not in known do
      raise ArgumentError,
            "unknown option #{inspect(name)}: there are #{Enum.map_join(known, ", ", &inspect/1)}. " <>
              "Those of interpreters go into :interpreter, as {module, options} or options alone"
    end
  end

  defp check_values!(opts) do
    Limits.check_number!(:size, opts[:size], 1, @largest_size, "a number of members")

    Limits.check_number!(
      :concurrency,
      opts[:concurrency],
      1,
      @largest_concurrency,
      "a number of calls"
    )

    Limits.check_number!(:max_queue, opts[:max_queue], 0, 1_000_000, "a number of calls")
    Limits.check_number!(:max_restarts, opts[:max_restarts] || 0, 0, 1_000_000, "a number")
    Limits.check_number!(:max_seconds, opts[:max_seconds], 1, 1_000_000, "seconds")

    for name <- [:queue_timeout, :restart_after],
        opts[name] != :infinity,
        do: Limits.check_number!(name, opts[name], 0, @longest, "milliseconds (or :infinity)")

    for name <- [:sync_start?, :cluster?],
        not is_boolean(opts[name]),
        do: raise(ArgumentError, "#{inspect(name)} is true or false, got: #{inspect(opts[name])}")
  end

  # --- what the members are -----------------------------------------------------------------------------

  defp interpreter!(nil) do
    raise ArgumentError,
          "a pool needs :interpreter, what its members are: a module that says `use Snex.Interpreter`, " <>
            "{module, options}, or options of Snex.Interpreter.start_link/1"
  end

  defp interpreter!(module) when is_atom(module), do: interpreter!({module, []})

  defp interpreter!(options) when is_list(options), do: interpreter!({Interpreter, options})

  defp interpreter!({module, options}) when is_atom(module) and is_list(options) do
    check_module!(module)
    check_options!(options)
    if module == Interpreter, do: Interpreter.check_options!(options)
    {module, options}
  end

  defp interpreter!(other) do
    raise ArgumentError,
          ":interpreter is a module that says `use Snex.Interpreter`, {module, options}, or options, " <>
            "got: #{inspect(other, limit: 5)}"
  end

  defp check_module!(Interpreter), do: :ok

  defp check_module!(module) do
    case Code.ensure_loaded(module) do
      {:module, _} ->
        if not function_exported?(module, :__snex_project__, 0) do
          raise ArgumentError,
                "#{inspect(module)}, the :interpreter of a pool, is no interpreter: it does not say " <>
                  "`use Snex.Interpreter`"
        end

      {:error, reason} ->
        raise ArgumentError,
              "#{inspect(module)}, the :interpreter of a pool, cannot be loaded (#{inspect(reason)}): is " <>
                "there such a module?"
    end
  end

  defp check_options!(options) do
    if not Keyword.keyword?(options),
      do: raise(ArgumentError, "options of an interpreter are a keyword list")

    for name <- [:name, :sync_start?],
        Keyword.has_key?(options, name),
        do:
          raise(
            ArgumentError,
            "the option #{inspect(name)} is the pool's, not that of its members"
          )

    if options[:node] do
      raise ArgumentError,
            "members of a pool are started by it, and :node is a Python that runs already: use " <>
              "Snex.Interpreter.start_link(node: ..) for that one"
    end
  end

  # --- while it runs ------------------------------------------------------------------------------------

  @doc """
  How a pool is doing.

      %{size: 2, queue: 0, members: [%{state: :up, busy: 0}, %{state: :up}]} = Snex.Pool.info(MyApp.Python)

  `members` are those of the pools of that name on all nodes; all else is of the own node's, where it has
  one. How many environments a member has is asked once a second.
  """
  @spec info(server()) :: info()
  def info(pool) do
    pool = pid!(pool)
    info = GenServer.call(pool, :info)
    name = GenServer.call(pool, :name)

    others =
      for other <- Cluster.others(name), other != pool, member <- members_of(other), do: member

    %{info | members: info.members ++ others}
  end

  # One that is gone, or does not answer, is left out.
  defp members_of(pool) do
    GenServer.call(pool, :info, 1_000).members
  catch
    :exit, _reason -> []
  end

  @doc """
  Waits until all members of a pool are ready, at most `timeout` ms.

      :ok = Snex.Pool.await_ready(MyApp.Python, 60_000)

  Returns `{:error, %Snex.Error{code: :response_timeout}}` when they are not.
  """
  @spec await_ready(server(), timeout()) :: :ok | {:error, Error.t()}
  def await_ready(pool, timeout \\ 60_000) do
    GenServer.call(pid!(pool), {:await_ready, false}, timeout)
  catch
    :exit, {:timeout, _} ->
      details = "not all members were ready in #{timeout} ms: Snex.Pool.info/1 tells which are"
      {:error, %Error{code: :response_timeout, details: details}}
  end

  @doc """
  Replaces all members, one after the other: a rolling restart.

      :ok = Snex.Pool.drain(MyApp.Python, timeout: 60_000)

  A member gets no new calls; when those under way have ended, and the environments on it have been
  freed, its Python is stopped and another one started. The other members serve meanwhile. Options:

    * `:timeout` - milliseconds to wait for the calls and environments of each member; then it is
      replaced all the same, and they end with it. Default 60,000, or `:infinity`
    * `:environments` - `:wait` (default) until they are freed, or `:end` them with their Python

  Returns `{:error, reason}` when a new member fails to start, and then leaves those that follow as they are; or
  when the pool is being drained or made smaller already. On a pool of several nodes it is that of
  one node.
  """
  @spec drain(server(), timeout: timeout(), environments: :wait | :end) :: :ok | {:error, term()}
  def drain(pool, opts \\ []),
    do: GenServer.call(pid!(pool), {:overhaul, {:drain, overhaul!(opts)}}, :infinity)

  @doc """
  Changes the number of members.

      :ok = Snex.Pool.resize(MyApp.Python, 8)

  New ones are started; `await_ready/2` waits for them. Those that are too many get no new calls, and
  are stopped when their work has ended, as by `drain/2`, whose options it takes; it returns when they are gone.

  Returns `{:error, %Snex.Error{}}` while the pool is being drained or made smaller. Raises
  `ArgumentError` for a size that is none, or larger than this pool can become: 64, or twice what it was
  started with.
  """
  @spec resize(server(), pos_integer(), timeout: timeout(), environments: :wait | :end) ::
          :ok | {:error, term()}
  def resize(pool, size, opts \\ []) do
    pool = pid!(pool)
    Limits.check_number!(:size, size, 1, GenServer.call(pool, :capacity), "a number of members")
    GenServer.call(pool, {:overhaul, {:resize, size, overhaul!(opts)}}, :infinity)
  end

  defp overhaul!(opts) do
    for {name, _} <- opts,
        name not in [:timeout, :environments],
        do:
          raise(
            ArgumentError,
            "unknown option #{inspect(name)}: there are :timeout, :environments"
          )

    timeout = Keyword.get(opts, :timeout, 60_000)
    environments = Keyword.get(opts, :environments, :wait)

    if timeout != :infinity,
      do: Limits.check_number!(:timeout, timeout, 0, @longest, "milliseconds (or :infinity)")

    if environments not in [:wait, :end],
      do: raise(ArgumentError, ":environments is :wait or :end, got: #{inspect(environments)}")

    %{timeout: timeout, environments: environments}
  end

  defp pid!(pool) do
    case GenServer.whereis(pool) || Checkout.elsewhere(pool) do
      nil -> exit({:noproc, {__MODULE__, :info, [pool]}})
      found -> found
    end
  end
end
