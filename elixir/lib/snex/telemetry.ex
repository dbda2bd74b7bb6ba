defmodule Snex.Telemetry do
  @moduledoc """
  Events for [`:telemetry`](https://hexdocs.pm/telemetry), where an application has it.

  `Snex` does not depend on it. When the application `:snex` starts it looks whether there is a
  module `:telemetry`; where there is none nothing is measured, and a call costs what it did.

      :telemetry.attach_many(
        "my-app-python",
        [[:snex, :call, :stop], [:snex, :call, :exception], [:snex, :python, :exit]],
        &MyApp.Metrics.handle_event/4,
        nil
      )

  No event carries code, variables or values. All times are in native units of time: see
  `System.convert_time_unit/3`.

  ## Calls

  Each `Snex.pyeval/4`, in the process that calls:

    * `[:snex, :call, :start]`: measurements `:system_time`, `:monotonic_time`
    * `[:snex, :call, :stop]`: `:duration`, `:monotonic_time`; it has been answered, by a value or by an error
    * `[:snex, :call, :exception]`: `:duration`, `:monotonic_time`; it has raised (for options that do not
      exist, or values that cannot be encoded, say)

  Metadata of all three: `:interpreter`, what was called: an interpreter or a pool, as it was given, or the
  interpreter's pid of an environment; `:env`, the pid of the environment, `nil` where there is none; and
  `:telemetry_span_context`, a reference that they share. `:stop` has `:result` as well, which is `:ok` or
  `:error`, and `:error`, the `Snex.Error` or `nil`. `:exception` has `:kind`, `:reason` and `:stacktrace`.

  ## Pythons

  In the process of the interpreter:

    * `[:snex, :python, :ready]`: it takes calls. `:duration`: what the start has taken, its init script included.
    * `[:snex, :python, :exit]`: the interpreter ends, or the node that it is attached to is away. `:duration`:
      how long it was ready, or 0. There is none for an interpreter that is killed.

  Metadata: `:interpreter`, its pid; `:os_pid`; `:node`, Python's node; `:label`, the option of that name.
  `:exit` has `:reason` as well: for a Python that has ended by itself this is a `Snex.Error` whose `reason` is
  its exit status.

    * `[:snex, :python, :restart]`: a member of a pool has failed and is started again, in the process of the
      pool. Measurement `:count`: how often this member has been by now. Metadata: `:pool`, its pid; `:name`,
      its name; `:slot`, the member's number; `:reason`.

  ## Traces

  Where an application has OpenTelemetry, a call carries the trace that its process is in to Python:
  `snex.traceparent()` gives it there, and it is the context of OpenTelemetry's where that is installed. The
  option `:traceparent` of `Snex.pyeval/4` gives another one. What Python calls by `snex.call` and `snex.cast` belongs
  to the trace as well.

  ## Pools

    * `[:snex, :pool, :wait]`: a call found no free member. `:duration`: how long it has waited for one, 0 where
      the queue was full. Metadata: `:pool`, the pool's pid; `:result`, `:ok` when it got one, or `:error`;
      `:error`, the `Snex.Error` (`:overloaded`, `:response_timeout`, ...) or `nil`. In the process that calls.
  """

  @key {__MODULE__, :on?}
  @tracing {__MODULE__, :tracing?}

  @doc false
  # Whether there is somebody to tell, looked up once.
  @spec detect() :: :ok
  def detect do
    :persistent_term.put(@key, Code.ensure_loaded?(:telemetry))
    :persistent_term.put(@tracing, Code.ensure_loaded?(:otel_propagator_text_map))
  end

  @doc false
  @spec on?() :: boolean()
  def on?, do: :persistent_term.get(@key, false)

  @doc false
  # The trace that the calling process is in, as W3C's header of that name has it.
  @spec traceparent() :: String.t() | nil
  def traceparent do
    if :persistent_term.get(@tracing, false) do
      # The module may be none that this one is compiled with.
      carried = apply(:otel_propagator_text_map, :inject, [[]])

      case List.keyfind(carried, "traceparent", 0) do
        {_, traceparent} -> traceparent
        nil -> nil
      end
    end
  end

  @doc false
  # What the calling process, which ends with that, does belongs to the trace.
  @spec continue(String.t()) :: :ok
  def continue(traceparent) do
    if :persistent_term.get(@tracing, false),
      do: apply(:otel_propagator_text_map, :extract, [[{"traceparent", traceparent}]])

    :ok
  end

  @doc false
  @spec execute([atom()], map(), map()) :: :ok
  def execute(event, measurements, metadata) do
    if on?(), do: tell(event, measurements, metadata)
    :ok
  end

  # The module may be none that this one is compiled with.
  defp tell(event, measurements, metadata),
    do: apply(:telemetry, :execute, [[:snex | event], measurements, metadata])

  @doc false
  # A call, told of at its begin and its end.
  @spec call(GenServer.server() | Snex.Env.t(), (() -> answer)) :: answer
        when answer: {:ok, term()} | {:error, Snex.Error.t()}
  def call(target, fun) do
    metadata = Map.put(about(target), :telemetry_span_context, make_ref())
    began = System.monotonic_time()
    tell([:call, :start], %{monotonic_time: began, system_time: System.system_time()}, metadata)

    try do
      fun.()
    catch
      kind, reason ->
        failure = %{kind: kind, reason: reason, stacktrace: __STACKTRACE__}
        tell([:call, :exception], since(began), Map.merge(metadata, failure))
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      answer ->
        tell([:call, :stop], since(began), Map.merge(metadata, outcome(answer)))
        answer
    end
  end

  defp about(%Snex.Env{id: id, interpreter: interpreter}),
    do: %{interpreter: interpreter, env: id}

  defp about(interpreter), do: %{interpreter: interpreter, env: nil}

  @doc false
  # How the answer to a call is told of: without its value.
  @spec outcome({:error, term()} | term()) :: %{result: :ok | :error, error: term()}
  def outcome({:error, error}), do: %{result: :error, error: error}
  def outcome(_ok), do: %{result: :ok, error: nil}

  @doc false
  @spec since(integer()) :: %{duration: integer(), monotonic_time: integer()}
  def since(began) do
    now = System.monotonic_time()
    %{duration: now - began, monotonic_time: now}
  end

  @doc false
  # An interpreter's Python takes calls; returns the state that `gone/2` takes.
  @spec ready(Snex.Launch.state()) :: Snex.Launch.state()
  def ready(state) do
    execute([:python, :ready], since(state.began), python(state))
    %{state | began: System.monotonic_time(), ready?: true}
  end

  @doc false
  @spec gone(Snex.Launch.state(), term()) :: :ok
  def gone(%{ready?: ready?} = state, reason) do
    measured = since(state.began)
    measured = if ready?, do: measured, else: %{measured | duration: 0}
    execute([:python, :exit], measured, Map.put(python(state), :reason, reason))
  end

  defp python(%{opts: opts, os_pid: os_pid, target: target}) do
    node =
      case target do
        {_name, node} -> node
        pid when is_pid(pid) -> node(pid)
        nil -> nil
      end

    %{interpreter: self(), os_pid: os_pid, node: node, label: opts[:label]}
  end
end
