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

  ## Distribution

  Python is a hidden node of the cluster. Where this node is not distributed, starting an
  interpreter makes it so, on 127.0.0.1, hidden, and without listening for others. A node that is to
  be part of a cluster has to be made so before (`Node.start/2`, `--name`).
  '''

  use GenServer

  alias Snex.{Call, Distribution, Error, Port, Relay, Runtimes, Serde}

  @default_init_script_timeout 60_000

  # What is left of the five seconds that Python has is up to Python itself; see snex_runtime.child.
  @stop_timeout 5_500

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

    * `:python` - path of the interpreter, or its name on the `PATH`; default `"python"`
    * `:wrap_exec` - a function of `(python, args)`, or a module, function and arguments to which
      these two are appended, that returns `{executable, args}` to run instead
    * `:cd` - the directory to run in
    * `:environment` - a map of environment variables; our Python packages come before its
      `PYTHONPATH`
    * `:init_script` - code to run first, or `{code, vars}`; what it defines is in every environment
    * `:init_script_timeout` - milliseconds it may take, or `:infinity`; default
      #{@default_init_script_timeout}
    * `:sync_start?` - whether `start_link/1` returns only when Python and the init script are ready;
      default true. Otherwise failures end the process later
    * `:label` - the process label, where Erlang/OTP has them (27 and later)
    * `:encoding_opts` - how terms are converted (`t:Snex.Serde.encoding_opts/0`)
    * `:port_opts` - further options of the port: `{:parallelism, boolean}`, `{:busy_limits_port, _}`,
      and `:use_stdio`: then all there is between this node and Python runs through Python's standard
      input and output, so that it may be in a container or behind SSH, without a network. `sys.stdin`
      and `sys.stdout` are `None` then. This node has to take connections; it does where it was not
      distributed before
    * `:node` - the name of a Python node that someone else runs (`snex-node start`), with this
      node's cookie. None is started then, and of the options above only `:sync_start?` and `:label`
      apply. While the node is away calls fail, and connecting is tried again

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
          | {:node, node()}
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
    :eager_polyfill?
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
            start: {__MODULE__, :start_link, [opts]}
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

  @attach_options [:node, :label, :sync_start?, :eager_polyfill?]
  @reconnect_after 500

  @connect_timeout 500
  @connect_again 100
  @start_attempts 5

  # --- API ----------------------------------------------------------------------------------------

  @doc """
  Starts an interpreter, linked to the calling process.

  Returns `{:error, %Snex.Error{}}` when Python cannot be started (`:interpreter_exited`, with exit
  status 127 where there is no such program), when the init script fails or takes too long. Before
  Erlang/OTP 26 the calling process also gets an exit signal with that reason, as from every process
  that fails to start.

  Raises `ArgumentError` for unknown options.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts \\ []) do
    {genserver, own} = Keyword.split(opts, @genserver_options)

    for {name, _} <- own, name not in @own_options do
      known = Enum.map_join(@own_options ++ @genserver_options, ", ", &inspect/1)
      raise ArgumentError, "unknown option #{inspect(name)}: there are #{known}"
    end

    for {name, _} <- own, own[:node] != nil, name not in @attach_options do
      raise ArgumentError,
            "the option #{inspect(name)} does not go with :node, which is running already"
    end

    Serde.check_options!(own[:encoding_opts] || [])
    GenServer.start_link(__MODULE__, own, genserver)
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

  @doc false
  def child_spec(opts) do
    # One second more than Python has.
    %{id: __MODULE__, start: {__MODULE__, :start_link, [opts]}, shutdown: @stop_timeout + 500}
  end

  # --- GenServer ----------------------------------------------------------------------------------

  @impl GenServer
  def init(opts) do
    Process.flag(:trap_exit, true)
    set_label(opts[:label])
    state = %{opts: opts, port: nil, relay: nil, target: nil, os_pid: nil, output: ""}

    if Keyword.get(opts, :sync_start?, true) do
      case start(state) do
        {:ok, state} -> {:ok, state}
        {:error, error} -> {:stop, error}
      end
    else
      {:ok, state, {:continue, :start}}
    end
  end

  @impl GenServer
  def handle_continue(:start, state) do
    case start(state) do
      {:ok, state} -> {:noreply, state}
      {:error, error} -> {:stop, error, state}
    end
  end

  @impl GenServer
  def handle_call(:snex_runtime, _from, state), do: {:reply, {:ok, self(), state.target}, state}
  def handle_call(:os_pid, _from, state), do: {:reply, state.os_pid, state}

  @impl GenServer
  def handle_info({port, {:data, data}}, %{port: port} = state),
    do: {:noreply, %{state | output: Port.print(state.output <> data)}}

  def handle_info({port, {:exit_status, status}}, %{port: port} = state),
    do: {:stop, exited(status), %{state | port: nil}}

  def handle_info({:nodedown, node}, state) do
    if node == state.opts[:node], do: Process.send_after(self(), :attach, @reconnect_after)
    {:noreply, state}
  end

  def handle_info(:attach, state) do
    case attach(state) do
      {:ok, state} ->
        {:noreply, state}

      {:error, _} ->
        Process.send_after(self(), :attach, @reconnect_after)
        {:noreply, state}
    end
  end

  def handle_info({:DOWN, relay, _, _, reason}, %{relay: relay} = state) when relay != nil,
    do: {:stop, %Error{code: :interpreter_exited, reason: reason}, %{state | port: nil}}

  # The parent's exit ends a GenServer by itself; others that are linked end it as they would if it
  # did not trap exits.
  def handle_info({:EXIT, port, _reason}, state) when is_port(port), do: {:noreply, state}
  def handle_info({:EXIT, _pid, :normal}, state), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}
  def handle_info(_other, state), do: {:noreply, state}

  @impl GenServer
  def terminate(_reason, %{port: nil}), do: :ok
  # The relay ends with this process, and Python with the relay.
  def terminate(_reason, %{relay: relay}) when relay != nil, do: :ok
  def terminate(_reason, state), do: Port.stop(state.port, state.output, @stop_timeout)

  defp set_label(nil), do: :ok

  defp set_label(label) do
    # credo:disable-for-next-line - unknown to the releases that lack it
    if function_exported?(:proc_lib, :set_label, 1), do: apply(:proc_lib, :set_label, [label])
    :ok
  end

  # --- starting -----------------------------------------------------------------------------------

  defp start(%{opts: opts} = state) do
    if opts[:node], do: start_attached(state), else: start_own(state)
  end

  defp start_attached(%{opts: opts} = state) do
    state = %{state | target: {:snex, opts[:node]}}

    with :ok <- distribute(state),
         {:ok, state} <- attach(state) do
      Runtimes.register(state.target)
      {:ok, state}
    end
  end

  # What is asked for is that its `snex` process answers; the system's number comes with it.
  defp attach(%{opts: opts, target: target} = state) do
    Node.monitor(opts[:node], true)

    with {:ok, info} <- GenServer.call(target, :info) do
      {:ok, %{state | os_pid: info.os_pid}}
    end
  catch
    :exit, {reason, _call} ->
      # Sent for the monitor of a node that could not be connected to.
      receive do: ({:nodedown, node} when node == :erlang.element(2, target) -> :ok),
              after: (0 -> :ok)

      {:error, Call.failed(reason)}
  end

  defp start_own(state) do
    with :ok <- distribute(state),
         {:ok, state} <- start_python(state),
         :ok <- init_script(state) do
      Runtimes.register(state.target)
      {:ok, state}
    end
  end

  defp distribute(state) do
    with {:error, reason} <- Runtimes.start_distribution(stdio?(state)) do
      {:error,
       internal("distribution cannot be started on this node: #{inspect(reason, limit: 5)}")}
    end
  end

  defp start_python(%{opts: opts} = state, attempts \\ @start_attempts) do
    {name, cookie} = Distribution.invent()

    configuration = %{
      name: Atom.to_string(name),
      cookie: cookie,
      encoding_opts: opts[:encoding_opts] || []
    }

    with {:ok, state} <- run_python(state, name, configuration) do
      {:ok, %{state | os_pid: Port.os_pid(state.port)}}
    else
      {:exit_status, status} ->
        {:error, exited(status)}

      {:error, reason} ->
        {:error, internal(reason)}

      {:unreachable, _reason} when attempts > 1 ->
        start_python(state, attempts - 1)

      {:unreachable, reason} ->
        {:error, internal(reason)}
    end
  end

  defp stdio?(%{opts: opts}), do: :use_stdio in Keyword.get(opts, :port_opts, [])

  defp run_python(state, name, configuration) do
    if stdio?(state) do
      with {:ok, relay, port} <- Relay.start(state.opts, Relay.configure(configuration)),
           do: await_relayed(%{state | relay: Process.monitor(relay), port: port})
    else
      with {:ok, port} <- Port.open(state.opts),
           {:ok, target, rest} <- Port.configure(port, configuration),
           :ok <- connect(name, port),
           do: {:ok, %{state | port: port, target: target, output: rest}}
    end
  end

  # The first thing that comes through the relay. Python ends where it cannot connect.
  defp await_relayed(%{relay: relay, port: port} = state) do
    receive do
      {:snex_ready, target} ->
        {:ok, %{state | target: target}}

      {^port, {:exit_status, status}} ->
        {:exit_status, status}

      {:DOWN, ^relay, _, _, reason} ->
        {:error, "the connection to Python ended: #{inspect(reason)}"}
    end
  end

  # The epmd that knows Python's port may be in another Python that ends right now. Others take its
  # place within some seconds, a Python that starts now at once: so another one is started.
  defp connect(name, port, left \\ @connect_timeout) do
    cond do
      Node.connect(name) ->
        :ok

      left > 0 ->
        receive do
          {^port, {:exit_status, status}} -> {:exit_status, status}
        after
          @connect_again -> connect(name, port, left - @connect_again)
        end

      true ->
        Port.stop(port, "", @stop_timeout)
        {:unreachable, "Python runs as #{name}, but #{node()} cannot connect to it"}
    end
  end

  defp init_script(%{opts: opts} = state) do
    case opts[:init_script] do
      nil -> :ok
      {code, vars} -> run_init_script(state, code, vars)
      code -> run_init_script(state, code, %{})
    end
  end

  defp run_init_script(%{opts: opts} = state, code, vars) do
    timeout = Keyword.get(opts, :init_script_timeout, @default_init_script_timeout)
    request = {:init, code, Serde.encode_vars!(vars), [timeout: timeout]}
    interpreter = self()
    task = Task.async(fn -> Call.request(state.target, interpreter, request, timeout) end)

    case await_init_script(task, state) do
      {:ok, _} -> :ok
      {:error, %Error{code: :response_timeout}} -> {:error, %Error{code: :init_script_timeout}}
      {:error, error} -> {:error, error}
    end
    |> stop_if_failed(state)
  end

  # Whatever the script prints is shown as it comes.
  defp await_init_script(%Task{ref: ref} = task, %{port: port} = state) do
    receive do
      {^ref, answer} ->
        Process.demonitor(ref, [:flush])
        answer

      {:DOWN, ^ref, _, _, reason} ->
        {:error, internal(inspect(reason))}

      {^port, {:data, data}} ->
        await_init_script(task, %{state | output: Port.print(state.output <> data)})

      {^port, {:exit_status, status}} ->
        Task.shutdown(task, :brutal_kill)
        {:error, exited(status)}
    end
  end

  defp stop_if_failed(:ok, _state), do: :ok
  defp stop_if_failed({:error, %Error{code: :interpreter_exited}} = error, _state), do: error

  defp stop_if_failed(error, %{relay: relay}) when relay != nil, do: error

  defp stop_if_failed(error, state) do
    Port.stop(state.port, state.output, @stop_timeout)
    error
  end

  defp exited(status), do: %Error{code: :interpreter_exited, reason: {:exit_status, status}}
  defp internal(reason), do: %Error{code: :internal_error, reason: reason}
end
