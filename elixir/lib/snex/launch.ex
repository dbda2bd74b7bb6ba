defmodule Snex.Launch do
  @moduledoc false
  # The start of a Python and its end, in the process of its interpreter, whose state this is.
  #
  # While it starts the process takes what concerns the start, and whatever would end it; all else
  # waits in its mailbox. What blocks is done by a task.

  alias Snex.{Call, Distribution, Error, Limits, OSProcess, Port, Relay, Runtimes, Serde}

  @default_timeout 60_000

  # What is left of the five seconds that Python has is up to Python itself; see snex_runtime.child.
  @stop_timeout 5_500

  @connect_timeout 500
  @connect_again 100
  @start_attempts 5

  @typedoc """
  The state of an interpreter. `os_pid` is the number that is told; `process` is what there is to end,
  `server` the monitor of the process that takes requests, `lost` tells that it is gone. `began` is when
  it began to start, or was ready, in native units of time.
  """
  @type state :: %{
          opts: keyword(),
          program: String.t() | nil,
          port: port() | nil,
          relay: pid() | nil,
          process: OSProcess.t() | nil,
          os_pid: non_neg_integer() | nil,
          target: Runtimes.target() | nil,
          server: reference() | nil,
          task: Task.t() | nil,
          timer: reference() | nil,
          deadline: integer() | :infinity,
          output: binary(),
          lost: map() | nil,
          began: integer(),
          ready?: boolean()
        }

  @type result :: {:ok, state()} | {:error, reason :: term(), state()}

  @spec default_timeout() :: pos_integer()
  def default_timeout, do: @default_timeout

  @doc "ms after which Python that does not end is killed."
  @spec stop_timeout() :: pos_integer()
  def stop_timeout, do: @stop_timeout

  @doc "The state of an interpreter that has not started yet. Its time begins now."
  @spec new(keyword()) :: state()
  def new(opts) do
    timeout = Keyword.get(opts, :init_script_timeout, @default_timeout)
    timed? = timeout != :infinity and opts[:node] == nil

    %{
      opts: opts,
      program: nil,
      port: nil,
      relay: nil,
      process: nil,
      os_pid: nil,
      target: nil,
      server: nil,
      task: nil,
      timer: if(timed?, do: Process.send_after(self(), :snex_start_timeout, timeout)),
      deadline: if(timed?, do: now() + timeout, else: :infinity),
      output: "",
      lost: nil,
      began: System.monotonic_time(),
      ready?: false
    }
  end

  # --- starting -----------------------------------------------------------------------------------

  @doc "Start Python and run the init script; its output is shown as it comes."
  @spec run(state()) :: result()
  def run(state) do
    with :ok <- distribute(state),
         {:ok, state} <- start_python(state, @start_attempts),
         {:ok, state} <- init_script(state) do
      if state.timer, do: Process.cancel_timer(state.timer)
      {:ok, %{state | timer: nil}}
    end
  end

  defp distribute(state) do
    with :ok <- if(stdio?(state), do: :ok, else: Distribution.check()),
         :ok <- Runtimes.start_distribution() do
      :ok
    else
      {:error, reason} -> {:error, internal(reason), state}
    end
  end

  defp start_python(state, attempts) do
    {name, cookie} = Distribution.invent()

    configuration = configuration(state.opts, name, cookie)
    configuration = if stdio?(state), do: Relay.configure(configuration), else: configuration

    with {:ok, state} <- open(state, configuration),
         {:ok, state} <- await_ready(state),
         {:ok, state} <- connect(state, name) do
      {:ok, %{state | server: Process.monitor(state.target)}}
    else
      # The epmd that knows Python's port may be in another Python that ends right now. Others take
      # its place within some seconds, a Python that starts now at once: so another one is started.
      {:unreachable, _reason, state} when attempts > 1 ->
        start_python(abandon(state), attempts - 1)

      {:unreachable, reason, state} ->
        {:error, internal(reason), state}

      {:error, _reason, _state} = error ->
        error
    end
  end

  @doc "What Python is told of what it is to be."
  @spec configuration(keyword(), node(), String.t()) :: map()
  def configuration(opts, name, cookie) do
    opts
    |> Limits.configuration()
    |> Map.merge(%{
      name: Atom.to_string(name),
      cookie: cookie,
      encoding_opts: opts[:encoding_opts] || [],
      structs: structs()
    })
  end

  # Python asks other nodes; what this one has it is to know for its first answer.
  defp structs do
    for module <- [MapSet, Duration], Code.ensure_loaded?(module), do: module.__struct__()
  end

  defp stdio?(%{opts: opts}), do: :use_stdio in Keyword.get(opts, :port_opts, [])

  defp open(state, configuration) do
    case Port.open(state.opts) do
      {:ok, port, program} ->
        # At once: writing to a program that has ended closes the port without its exit status.
        Port.send_configuration(port, configuration)
        process = OSProcess.of(port)
        # This process may be killed, and Python may not read its input.
        OSProcess.guard(process, @stop_timeout)
        state = %{state | port: port, program: program, process: process}
        {:ok, join(%{state | os_pid: process && process.pid})}

      {:error, error} ->
        {:error, error, state}
    end
  end

  defp join(state) do
    if stdio?(state) do
      {:ok, relay} = Relay.start_link()
      Relay.take(relay, state.port)
      %{state | relay: relay}
    else
      state
    end
  end

  defp await_ready(state) do
    case next(state) do
      # Through the relay it is the first message.
      {:ready, target} -> {:ok, %{state | target: target}}
      {:data, data} -> read_told(state, Port.find_told(state.output <> data))
      failure -> failed(failure, state)
    end
  end

  defp read_told(state, {:more, output}), do: await_ready(%{state | output: output})

  defp read_told(state, {:told, {:ready, _name, _listening, server}, rest}),
    do: {:ok, %{state | target: server, output: Port.print(rest)}}

  defp read_told(state, {:told, {:error, reason}, _rest}), do: {:error, internal(reason), state}

  defp read_told(state, {:told, {:unregistered, reason}, _rest}),
    do: {:unreachable, reason, state}

  defp connect(%{relay: relay} = state, _name) when relay != nil, do: {:ok, state}

  defp connect(state, name) do
    case await_task(state, fn -> connect_within(name, @connect_timeout) end) do
      {:answer, true, state} ->
        {:ok, state}

      {:answer, false, state} ->
        {:unreachable, "Python runs as #{name}, but #{node()} cannot connect to it", state}

      error ->
        error
    end
  end

  defp connect_within(name, left) do
    cond do
      Node.connect(name) ->
        true

      left > 0 ->
        receive do
        after
          @connect_again -> connect_within(name, left - @connect_again)
        end

      true ->
        false
    end
  end

  defp init_script(%{opts: opts} = state) do
    case opts[:init_script] do
      nil -> {:ok, state}
      {code, vars} -> run_init_script(state, code, vars)
      code -> run_init_script(state, code, %{})
    end
  end

  defp run_init_script(state, code, vars) do
    # Python interrupts what blocks; what does not even take that is left to itself below.
    left = if state.deadline == :infinity, do: :infinity, else: max(0, state.deadline - now())
    request = {:init, code, Serde.encode_vars!(vars), [timeout: left]}
    interpreter = self()

    case await_task(state, fn -> Call.request(state.target, interpreter, request, left) end) do
      {:answer, {:ok, _}, state} -> {:ok, state}
      {:answer, {:error, %Error{code: :response_timeout}}, state} -> failed(:timeout, state)
      {:answer, {:error, error}, state} -> {:error, error, state}
      error -> error
    end
  end

  @doc "Have a task do something, and take what comes meanwhile."
  @spec await_task(state(), (() -> answer)) ::
          {:answer, answer, state()} | {:error, term(), state()}
        when answer: term()
  def await_task(state, fun), do: await_answer(%{state | task: Task.async(fun)})

  defp await_answer(state) do
    case next(state) do
      {:answer, answer} ->
        {:answer, answer, %{state | task: nil}}

      {:data, data} ->
        await_answer(%{state | output: Port.print(state.output <> data)})

      failure ->
        Task.shutdown(state.task, :brutal_kill)
        failed(failure, %{state | task: nil})
    end
  end

  defp next(%{port: port, relay: relay, task: task}) do
    ref = task && task.ref
    parent = parent()

    receive do
      {^port, {:data, data}} ->
        {:data, data}

      {^port, {:exit_status, status}} ->
        {:exit_status, status}

      {:snex_ready, target} when ref == nil ->
        {:ready, target}

      {^ref, answer} ->
        Process.demonitor(ref, [:flush])
        {:answer, answer}

      :snex_start_timeout ->
        :timeout

      {:EXIT, ^relay, reason} ->
        {:relay_ended, reason}

      {:EXIT, ^port, reason} when reason != :normal ->
        {:port_closed, reason}

      # `GenServer.stop/3`, and what ends a GenServer that does not trap exits.
      {:system, from, {:terminate, reason}} ->
        :gen.reply(from, :ok)
        {:stop, reason}

      {:EXIT, ^parent, reason} ->
        {:stop, reason}

      {:EXIT, pid, reason} when is_pid(pid) and reason != :normal ->
        {:stop, reason}
    end
  end

  defp parent do
    case Process.get(:"$ancestors") do
      [name | _] when is_atom(name) -> Process.whereis(name)
      [pid | _] -> pid
      _ -> nil
    end
  end

  defp failed(:timeout, state),
    do: {:error, %Error{code: :init_script_timeout}, abandon(state)}

  defp failed({:stop, reason}, state), do: {:error, reason, state}

  defp failed({:exit_status, status}, %{target: nil} = state) do
    details = "#{state.program} ended before it was ready; it may have printed why"
    error = %Error{code: :interpreter_exited, reason: {:exit_status, status}, details: details}
    {:error, error, state}
  end

  defp failed({:exit_status, status}, state) do
    reason = {:exit_status, status}
    error = %Error{code: :interpreter_exited, reason: reason, details: Call.why_killed(reason)}
    {:error, error, state}
  end

  defp failed({:port_closed, reason}, state),
    do: {:error, %Error{code: :interpreter_exited, reason: reason}, state}

  defp failed({:relay_ended, reason}, state) do
    error = internal("the connection to Python ended: #{inspect(reason, limit: 5)}")
    {:error, error, %{state | relay: nil}}
  end

  defp internal(reason), do: %Error{code: :internal_error, reason: reason}

  # --- the end ------------------------------------------------------------------------------------

  @doc "Tell Python that it may go."
  @spec let_go(state()) :: :ok
  def let_go(%{relay: nil, port: port}) do
    send(port, {self(), {:command, "stop\n"}})
    :ok
  end

  # It learns that from its connection, which has gone.
  def let_go(_state), do: :ok

  @doc "End Python, and wait until it has gone. What is not ready has nothing to clean up."
  @spec stop(state()) :: :ok
  def stop(%{relay: nil, port: port} = state),
    do: Port.stop(port, state.process, state.output, state.server, time_to_end(state))

  def stop(%{relay: relay, process: process} = state) do
    Relay.stop(relay)
    OSProcess.await_end(process, time_to_end(state))
  end

  # Leaves Python to a process that ends it: this one has no time.
  # What is not ready has nothing to clean up, and may be something that does not read its input.
  defp abandon(%{process: nil} = state), do: state

  defp abandon(%{relay: nil} = state) do
    if state.target == nil, do: OSProcess.kill(state.process)
    Port.finish(state.port, state.process, state.output, @stop_timeout)
    forget(state)
  end

  defp abandon(%{process: process} = state) do
    Relay.stop(state.relay)
    if state.target == nil, do: OSProcess.kill(process)
    spawn(fn -> OSProcess.await_end(process, @stop_timeout) end)
    forget(state)
  end

  defp forget(state) do
    if state.server, do: Process.demonitor(state.server, [:flush])
    %{state | port: nil, relay: nil, process: nil, target: nil, server: nil, output: ""}
  end

  defp time_to_end(%{target: nil}), do: 0
  defp time_to_end(_state), do: @stop_timeout

  defp now, do: System.monotonic_time(:millisecond)
end
