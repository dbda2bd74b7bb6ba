defmodule Snex.Interpreter do
  @moduledoc ~S'''
  A Python interpreter: a process that starts, owns and supervises a Python process.

      {:ok, interpreter} = Snex.Interpreter.start_link(init_script: "import math")
      {:ok, 4.0} = Snex.pyeval(interpreter, "return math.sqrt(16)")

  `start_link/1` starts whatever Python the option `:python` names; it needs nothing installed. With
  `use Snex.Interpreter` a module has a Python environment of its own, made with
  [uv](https://github.com/astral-sh/uv) when it is compiled.

      defmodule My.Numpy do
        use Snex.Interpreter,
          pyproject_toml: """
          [project]
          name = "my-numpy"
          version = "0.0.0"
          requires-python = "==3.12.*"
          dependencies = ["numpy>=2"]
          """
      end

  Options of `use`: either `:pyproject_toml`, the text of that file, or `:project_path`, a folder
  with a `pyproject.toml` and, if you like, a `uv.lock`; `:uv`, where uv is (default `"uv"`); and
  `:managed_python` - false takes the Pythons of the system, by default uv fetches what is required.
  What `dependencies` names is installed, dependency groups are not; the files of a `:project_path` are
  not copied (`PYTHONPATH` in `:environment` makes them importable).

  The module gets `start_link/1`, `child_spec/1`, `os_pid/1` and `stop/1,2,3`; the first two can be
  overridden.

  ## How long Python lives

  Python ends with the interpreter process, and with the BEAM, however it ends. It is told to stop
  by the end of its standard input, and has five seconds to run its clean-up (`atexit` functions
  included); then it is killed with all its child processes. When Python ends by itself, the
  interpreter stops with `%Snex.Error{code: :interpreter_exited, reason: {:exit_status, status}}`.

  It also stops when the connection to Python is lost: when Python hangs or is stopped by a signal
  for longer than `net_ticktime`, or when this node is stopped (`Node.stop/0`). Python is ended then. Where
  its exit status is not to be had, because a process that it left behind holds its output, the
  `reason` is that of the lost connection, such as `:noconnection`.

  ## Distribution

  Python is a hidden node of the cluster. Where this node is not distributed, starting an
  interpreter makes it so, on 127.0.0.1, hidden, and without listening for others. A node that is to
  be part of a cluster has to be made so before (`Node.start/2`, `--name`): afterwards `Node.start/2`
  returns `{:error, {:already_started, pid}}`. The name of the node that is made can be chosen:

      config :snex, node_name: :"my_app@127.0.0.1"
  '''

  use GenServer

  alias Snex.{Attachment, Call, Error, Launch, Limits, Options, OSProcess, Port, Runtimes, Serde}
  alias Snex.{Shared, Telemetry}

  @default_init_script_timeout Launch.default_timeout()

  @typedoc "An interpreter: its pid, or any name that a `GenServer` is called by."
  @type server :: GenServer.server()

  @typedoc "What makes the command that is run of the one that would be; see `t:option/0`."
  @type wrap_exec ::
          (python :: String.t(), args :: [String.t()] -> {String.t(), [String.t()]})
          | {module(), atom(), list()}

  @typedoc "Environment variables of the Python process."
  @type environment :: %{optional(String.t()) => String.t()}

  @typedoc "Code to run first, and variables for it."
  @type init_script :: Snex.code() | {Snex.code(), Snex.additional_vars()}

  @typedoc "Further options of the port; see `t:option/0`."
  @type port_opts :: [:use_stdio | {:parallelism, boolean()} | {:busy_limits_port, term()}]

  @typedoc """
  Options of `start_link/1`:

    * `:python` - path of the interpreter, or its name on the `PATH`; default `"python"`, or
      `"python3"` where there is no `python`
    * `:wrap_exec` - a function of `(python, args)`, or a module, function and arguments to which
      these two are appended, that returns `{executable, args}` to run instead
    * `:cd` - the directory to run in
    * `:environment` - a map of environment variables; our Python packages come before its
      `PYTHONPATH`
    * `:init_script` - code to run first, or `{code, vars}`; what it defines is in every environment
    * `:init_script_timeout` - milliseconds that the start of Python and the init script may take
      together, or `:infinity`; default #{@default_init_script_timeout}
    * `:sync_start?` - whether `start_link/1` returns only when Python and the init script are ready;
      default true. Otherwise failures end the process later. `stop/3` works meanwhile
    * `:label` - the process label, where Erlang/OTP has them (27 and later)
    * `:encoding_opts` - how terms are converted (`t:Snex.Serde.encoding_opts/0`)
    * `:port_opts` - further options of the port: `{:parallelism, boolean}`, `{:busy_limits_port, _}`,
      and `:use_stdio`: then all there is between this node and Python runs through Python's standard
      input and output, so that it may be in a container or behind SSH, without a network. `sys.stdin`
      and `sys.stdout` are `None` then
    * `:executor` - what runs the code: `:loop`, the event loop (default), or `:thread`, threads
      beside it, so that code which blocks keeps nobody waiting
    * `:threads` - how many threads run code at a time, where they do
    * `:max_time` - milliseconds that any evaluation may take, those without a `:timeout` included
    * `:max_queue` - how many evaluations may wait in Python for a thread; further ones get the error
      `:overloaded`
    * `:queue_timeout` - milliseconds that one may wait there; then it gets that error
    * `:max_memory` - bytes that Python may hold (its resident memory); beyond them it is killed,
      and calls that are under way get the error `:memory_limit`
    * `:kill_after` - milliseconds after the end of its `:timeout` in which code must have ended; else
      Python is killed, and its caller gets the error `:killed`. It is the default for evaluations that
      have a timeout; `Snex.pyeval/4` has an option of that name for one
    * `:rlimit_as`, `:rlimit_cpu`, `:rlimit_nofile` - bounds that the system holds Python to: bytes of
      address space, seconds of processor time, open files
    * `:cgroup` - the path of a cgroup that Python is put into
    * `:shared` - true has calls share large data with Python through memory, unless `Snex.pyeval/4` says
      otherwise; default false
    * `:node` - the name of a Python node that someone else runs (`snex-node start`). None is started
      then, and of the options above only `:sync_start?`, `:label` and `:shared` apply. While the node is away
      calls fail, and connecting is tried again; with `sync_start?: false` it may be away from the
      beginning
    * `:cookie` - that node's cookie, where it is not this node's
    * `:register_as` - what that node was told with `--register-as`; default `:snex`

  All other options are those of `GenServer.start_link/3`.
  """
  @type option ::
          {:python, String.t()}
          | {:wrap_exec, wrap_exec()}
          | {:cd, Path.t()}
          | {:environment, environment()}
          | {:init_script, init_script()}
          | {:init_script_timeout, timeout()}
          | {:sync_start?, boolean()}
          | {:label, term()}
          | {:encoding_opts, Serde.encoding_opts()}
          | {:port_opts, port_opts()}
          | Limits.option()
          | {:node, node()}
          | {:register_as, atom()}
          | {:cookie, String.t() | atom()}
          | {:shared, boolean()}
          | {:eager_polyfill?, boolean()}
          | GenServer.option()

  @genserver_options [:name, :timeout, :debug, :spawn_opt, :hibernate_after]
  @own_options [
    :python,
    :wrap_exec,
    :cd,
    :environment,
    :init_script,
    :init_script_timeout,
    :sync_start?,
    :label,
    :encoding_opts,
    :port_opts,
    :node,
    :register_as,
    :cookie,
    :shared,
    :eager_polyfill?
    | Limits.options()
  ]

  @doc false
  defmacro __using__(opts) do
    quote do
      @snex_project Snex.Project.build!(__MODULE__, unquote(opts))

      for file <- Snex.Project.resources(@snex_project) do
        @external_resource file
      end

      @doc "Starts an interpreter with this module's Python; see `Snex.Interpreter.start_link/1`."
      @spec start_link() :: GenServer.on_start()
      def start_link, do: start_link([])

      @doc "Starts an interpreter with this module's Python; see `Snex.Interpreter.start_link/1`."
      @spec start_link([Snex.Interpreter.option()]) :: GenServer.on_start()
      def start_link(opts),
        do: Snex.Interpreter.start_link(Snex.Project.start_options(__MODULE__, opts))

      @doc "A child specification with this module as its id."
      @spec child_spec([Snex.Interpreter.option()]) :: Supervisor.child_spec()
      def child_spec(opts) do
        %{
          Snex.Interpreter.child_spec(opts)
          | id: __MODULE__,
            start: {Snex.Interpreter, :start_child, [__MODULE__, %Snex.Options{opts: opts}]}
        }
      end

      @doc "See `Snex.Interpreter.os_pid/1`."
      @spec os_pid(GenServer.server()) :: non_neg_integer()
      defdelegate os_pid(interpreter), to: Snex.Interpreter

      @doc "See `Snex.Interpreter.stop/3`."
      @spec stop(GenServer.server(), term(), timeout()) :: :ok
      def stop(interpreter, reason \\ :normal, timeout \\ :infinity),
        do: Snex.Interpreter.stop(interpreter, reason, timeout)

      @doc false
      def __snex_project__, do: @snex_project

      @doc false
      def __mix_recompile__?, do: Snex.Project.stale?(@snex_project)

      defoverridable start_link: 1, child_spec: 1, __mix_recompile__?: 0
    end
  end

  @attach_options [:node, :register_as, :cookie, :label, :sync_start?, :shared, :eager_polyfill?]

  # ms between two looks whether Python, to which the connection is lost, has ended.
  @look_again 50

  # ms within which the exit status of a Python that is gone comes, if it does.
  @exit_status 1_000

  # --- API ----------------------------------------------------------------------------------------

  @doc """
  Starts an interpreter, linked to the calling process.

  Returns `{:error, %Snex.Error{}}` when Python cannot be started (`:interpreter_exited`, with exit
  status 127 where there is no such program and 126 where it may not be run; the error's message tells
  what was looked for), when the init script fails or takes too long. Before
  Erlang/OTP 26 the calling process also gets an exit signal with that reason, as from every process
  that fails to start.

  Raises `ArgumentError` for unknown options.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts \\ []) do
    {genserver, own} = check_options!(opts)
    GenServer.start_link(__MODULE__, own, genserver)
  end

  @doc false
  # Checks options, and splits them into those of the process and those of the interpreter.
  @spec check_options!(keyword()) :: {keyword(), keyword()}
  def check_options!(opts) do
    {genserver, own} = Keyword.split(opts, @genserver_options)

    for {name, _} <- own, name not in @own_options do
      known = Enum.map_join(@own_options ++ @genserver_options, ", ", &inspect/1)
      raise ArgumentError, "unknown option #{inspect(name)}: there are #{known}"
    end

    check_node!(own[:node])

    for {name, _} <- own, own[:node] == nil, name in [:register_as, :cookie] do
      raise ArgumentError, "the option #{inspect(name)} is for a node that runs already (:node)"
    end

    for {name, _} <- own, own[:node] != nil, name not in @attach_options do
      raise ArgumentError,
            "the option #{inspect(name)} does not go with :node, which is running already"
    end

    Serde.check_options!(own[:encoding_opts] || [])
    Limits.check!(own)
    Shared.check!(own)
    {genserver, own}
  end

  @doc """
  Stops an interpreter: Python runs its clean-up and is gone when this returns.

  Callers that still wait get `{:error, %Snex.Error{code: :call_failed, reason: reason}}`.
  """
  @spec stop(GenServer.server(), term(), timeout()) :: :ok
  def stop(interpreter, reason \\ :normal, timeout \\ :infinity),
    do: GenServer.stop(interpreter, reason, timeout)

  @doc """
  The operating system's number of the process that was started: Python's, or that of what
  `:wrap_exec` runs.
  """
  @spec os_pid(GenServer.server()) :: non_neg_integer()
  def os_pid(interpreter), do: GenServer.call(interpreter, :os_pid, :infinity)

  @doc """
  What the interpreter's Python tells of itself, a map: versions, `:os_pid`, `:uptime_ms`, `:environments`,
  `:requests_running`, `:requests_queued`, `:bytes_in`, `:bytes_out` and more. All keys are atoms.

      {:ok, %{environments: 3, python_version: "3.13.5"}} = Snex.Interpreter.info(interpreter)

  Errors are those of `Snex.pyeval/4`. Those who wait for Python that is busy wait at most `timeout` ms.
  """
  @spec info(GenServer.server(), timeout()) :: {:ok, map()} | {:error, Error.t()}
  def info(interpreter, timeout \\ 5_000) do
    case Runtimes.find(interpreter) do
      {:ok, pid, target} ->
        Call.request(target, pid, :info, timeout)

      {:pool, _pool} ->
        raise ArgumentError,
              "#{inspect(interpreter)} is a pool: see Snex.Pool.info/1, which tells its members"

      {:error, reason} ->
        {:error, Call.failed(reason)}
    end
  end

  @doc false
  def child_spec(opts) do
    # One second more than Python has.
    %{
      id: __MODULE__,
      start: {__MODULE__, :start_child, [__MODULE__, %Options{opts: opts}]},
      shutdown: Launch.stop_timeout() + 1_000
    }
  end

  @doc false
  # What a supervisor logs shows the arguments.
  @spec start_child(module(), Options.t()) :: GenServer.on_start()
  def start_child(module, %Options{opts: opts}), do: module.start_link(opts)

  defp check_node!(nil), do: :ok
  defp check_node!(node) when is_atom(node), do: :ok

  defp check_node!(node) do
    spelt = if is_binary(node), do: ", here #{inspect(String.to_atom(node))}", else: ""
    raise ArgumentError, ":node is the name of a node, an atom#{spelt}; got: #{inspect(node)}"
  end

  # --- GenServer ----------------------------------------------------------------------------------

  @impl GenServer
  def init(opts) do
    Process.flag(:trap_exit, true)
    set_label(opts[:label])
    state = Launch.new(opts)

    cond do
      not Keyword.get(opts, :sync_start?, true) -> {:ok, state, {:continue, :start}}
      opts[:node] -> start_now(state, &Attachment.await/1)
      true -> start_now(state, &Launch.run/1)
    end
  end

  defp start_now(state, start) do
    case start.(state) do
      {:ok, state} ->
        {:ok, started(state)}

      {:error, reason, state} ->
        terminate(reason, state)
        {:stop, reason}
    end
  end

  defp started(state) do
    Runtimes.register(state.target, state.opts[:kill_after], state.opts[:shared] == true)
    # A node that it is attached to may be away.
    if state.opts[:node], do: state, else: Telemetry.ready(state)
  end

  @impl GenServer
  # A node that is away now may come.
  def handle_continue(:start, %{opts: opts} = state) do
    start = if opts[:node], do: &Attachment.begin/1, else: &Launch.run/1

    case start.(state) do
      {:ok, state} -> {:noreply, started(state)}
      {:error, reason, state} -> {:stop, reason, state}
    end
  end

  @impl GenServer
  def handle_call(:snex_runtime, _from, state), do: {:reply, {:ok, self(), state.target}, state}
  def handle_call(:os_pid, _from, state), do: {:reply, state.os_pid, state}

  @impl GenServer
  def handle_info({port, {:data, data}}, %{port: port} = state),
    do: {:noreply, %{state | output: Port.print(state.output <> data)}}

  def handle_info({port, {:exit_status, status}}, %{port: port} = state),
    do: {:stop, exited(status), state}

  # --- the connection to Python is lost -----------------------------------------------------------

  def handle_info({:DOWN, server, _, _, reason}, %{server: server, opts: opts} = state) do
    if opts[:node],
      do: {:noreply, Attachment.lost(state)},
      else: {:noreply, lost(%{state | server: nil}, reason)}
  end

  def handle_info({:EXIT, relay, reason}, %{relay: relay} = state) when is_pid(relay),
    do: {:noreply, lost(%{state | relay: nil}, reason)}

  def handle_info(:snex_look, state), do: look(state)

  # --- attached nodes -----------------------------------------------------------------------------

  def handle_info(:snex_attach, state), do: {:noreply, Attachment.attempt(state)}

  def handle_info({ref, answer}, %{task: %Task{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, Attachment.answered(%{state | task: nil}, answer)}
  end

  # The parent's exit ends a GenServer by itself; others that are linked end it as they would if it
  # did not trap exits.
  def handle_info({:EXIT, port, _reason}, state) when is_port(port), do: {:noreply, state}
  def handle_info({:EXIT, _pid, :normal}, state), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}
  def handle_info(_other, state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, state) do
    if state.process != nil, do: Runtimes.ending(reason)
    # That a node is away has been told already.
    if state.ready? or state.opts[:node] == nil, do: Telemetry.gone(state, reason)
    if state.process != nil, do: Launch.stop(state), else: :ok
  end

  # What users give to Python, and what Python prints, is not for logs. (Elixir knows the callback from
  # 1.17 on.)
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(GenServer)
  @doc false
  def format_status(status) do
    status
    |> Map.replace_lazy(:message, &Options.hide_message/1)
    |> Map.replace_lazy(:log, fn _ -> [] end)
    |> Map.replace_lazy(:state, &%{&1 | opts: Options.hide(&1.opts), output: :hidden})
  end

  defp set_label(nil), do: :ok

  defp set_label(label) do
    # credo:disable-for-next-line - unknown to the releases that lack it
    if function_exported?(:proc_lib, :set_label, 1), do: apply(:proc_lib, :set_label, [label])
    :ok
  end

  # Python has ended, or is ending, or hangs. Its exit status comes in the first case, unless somebody
  # else holds its output. What lives on is told to end, and killed when its time is over; what has
  # ended is told nothing, or the port would be closed without the exit status.
  defp lost(%{lost: nil} = state, reason) do
    Runtimes.ending()
    lost = %{reason: reason, deadline: now() + Launch.stop_timeout(), gone: nil, told?: false}
    look_again(%{state | lost: lost})
  end

  defp lost(state, _reason), do: state

  defp look(%{lost: lost, process: process} = state) do
    gone? = not OSProcess.alive?(process)
    gone = if gone?, do: lost.gone || now()

    cond do
      # The exit status would have come meanwhile, on a machine with much to do as well.
      gone? and now() - gone >= @exit_status ->
        {:stop, connection_lost(state), state}

      now() >= lost.deadline and not gone? ->
        OSProcess.kill(process)

        # What the system does not end by force is not waited for.
        if OSProcess.alive?(process),
          do: {:stop, connection_lost(state), state},
          else: {:noreply, look_again(%{state | lost: %{lost | gone: gone || now()}})}

      true ->
        if not gone? and not lost.told?, do: Launch.let_go(state)
        {:noreply, look_again(%{state | lost: %{lost | gone: gone, told?: true}})}
    end
  end

  defp look_again(state) do
    Process.send_after(self(), :snex_look, @look_again)
    state
  end

  defp connection_lost(%{lost: lost}),
    do: %Error{code: :interpreter_exited, reason: lost.reason}

  defp exited(status) do
    reason = {:exit_status, status}
    %Error{code: :interpreter_exited, reason: reason, details: Call.why_killed(reason)}
  end

  defp now, do: System.monotonic_time(:millisecond)
end
