defmodule Snex.TelemetryTest do
  @moduledoc "What is told to `:telemetry`, here to a module of that name which sends it to the test."
  use Snex.Case, async: false

  import Snex.PoolCase

  alias Snex.Telemetry

  setup_all do
    refute Telemetry.on?()

    {:module, :telemetry, _, _} =
      Module.create(
        :telemetry,
        quote do
          def execute(event, measurements, metadata) do
            test = Process.whereis(:snex_telemetry_test)
            if test, do: send(test, {event, measurements, metadata})
            :ok
          end
        end,
        Macro.Env.location(__ENV__)
      )

    Telemetry.detect()

    on_exit(fn ->
      :code.delete(:telemetry)
      :code.purge(:telemetry)
      Telemetry.detect()
      refute Telemetry.on?()
    end)
  end

  setup do
    Process.register(self(), :snex_telemetry_test)
    :ok
  end

  describe "a call" do
    test "that is answered" do
      interpreter = start_interpreter!()
      assert {:ok, 3} = Snex.pyeval(interpreter, "return x + 1", %{"x" => 2})
      about = %{interpreter: interpreter, env: nil}
      assert_received {[:snex, :call, :start], start, %{telemetry_span_context: span} = metadata}
      assert Map.delete(metadata, :telemetry_span_context) == about
      assert %{monotonic_time: began, system_time: _} = start
      assert_received {[:snex, :call, :stop], stop, metadata}
      outcome = %{result: :ok, error: nil, telemetry_span_context: span}
      assert metadata == Map.merge(about, outcome)
      assert %{duration: duration, monotonic_time: ended} = stop
      assert duration == ended - began
      assert duration > 0
    end

    test "that fails, in an environment" do
      interpreter = start_interpreter!()
      {:ok, env} = Snex.make_env(interpreter)
      refute_received {[:snex, :call | _], _, _}
      {:error, error} = Snex.pyeval(env, "raise ValueError('no')")
      assert_received {[:snex, :call, :start], _, %{env: id, interpreter: ^interpreter}}
      assert id == env.id
      assert_received {[:snex, :call, :stop], _, %{result: :error, error: ^error, env: ^id}}
    end

    test "that raises" do
      interpreter = start_interpreter!()
      assert_raise ArgumentError, fn -> Snex.pyeval(interpreter, "return 1", unknown: 1) end
      assert_received {[:snex, :call, :start], _, %{telemetry_span_context: span}}
      assert_received {[:snex, :call, :exception], %{duration: _}, metadata}
      assert %{kind: :error, reason: %ArgumentError{}, stacktrace: [_ | _]} = metadata
      assert metadata.telemetry_span_context == span
      refute_received {[:snex, :call, :stop], _, _}
    end
  end

  describe "a Python" do
    test "that starts and stops" do
      interpreter = start_interpreter!(label: :mine)
      os_pid = Interpreter.os_pid(interpreter)
      assert_received {[:snex, :python, :ready], %{duration: took}, ready}
      assert %{interpreter: ^interpreter, os_pid: ^os_pid, label: :mine, node: node} = ready
      assert Atom.to_string(node) =~ "@"
      assert System.convert_time_unit(took, :native, :millisecond) > 10
      Interpreter.stop(interpreter)
      assert_received {[:snex, :python, :exit], %{duration: lived}, ended}
      assert lived > 0
      assert ended == Map.put(ready, :reason, :normal)
    end

    test "that ends by itself" do
      {:ok, interpreter} = start_interpreter()
      {:error, _} = Snex.pyeval(interpreter, "import os; os._exit(7)")
      assert_receive {:EXIT, ^interpreter, _}
      assert_received {[:snex, :python, :exit], _, %{reason: %Error{reason: {:exit_status, 7}}}}
    end

    test "that fails to start" do
      {:error, reason} = start_interpreter(init_script: "raise ValueError('no')")
      assert_received {[:snex, :python, :exit], %{duration: 0}, %{reason: ^reason}}
      refute_received {[:snex, :python, :ready], _, _}
    end

    test "that is attached, and away" do
      started = start_interpreter!()
      {:ok, _, target} = Snex.Runtimes.find(started)
      assert_received {[:snex, :python, :ready], _, _}
      {:ok, attached} = Interpreter.start_link(node: node(target))
      assert_received {[:snex, :python, :ready], _, %{interpreter: ^attached, node: node}}
      assert node == node(target)
      os_pid = Interpreter.os_pid(started)
      Interpreter.stop(started)
      away = %{interpreter: attached, os_pid: os_pid, node: node, label: nil, reason: :nodedown}
      assert_receive {[:snex, :python, :exit], _, ^away}
      Interpreter.stop(attached)
      refute_received {[:snex, :python, :exit], _, %{interpreter: ^attached}}
    end

    test "of a pool, that fails" do
      pool = start_pool!(size: 1, name: :snex_told)
      {:error, _} = Snex.pyeval(pool, "import os; os._exit(7)")
      :ok = Snex.Pool.await_ready(pool)
      assert_received {[:snex, :python, :restart], %{count: 1}, metadata}
      assert %{name: :snex_told, slot: 1, reason: %Error{reason: {:exit_status, 7}}} = metadata
      assert metadata.pool == Process.whereis(:snex_told)
    end
  end

  describe "a trace" do
    @trace "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    @other "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    setup do
      Module.create(
        :otel_propagator_text_map,
        quote do
          def inject(carrier) do
            case Process.get(:traceparent) do
              nil -> carrier
              traceparent -> [{"traceparent", traceparent} | carrier]
            end
          end

          def extract([{"traceparent", traceparent}]), do: Process.put(:traceparent, traceparent)
        end,
        Macro.Env.location(__ENV__)
      )

      Telemetry.detect()

      on_exit(fn ->
        :code.delete(:otel_propagator_text_map)
        :code.purge(:otel_propagator_text_map)
        Telemetry.detect()
        assert Telemetry.traceparent() == nil
      end)
    end

    test "of the process that calls is Python's, too" do
      interpreter = start_interpreter!()
      code = "import snex; return snex.traceparent()"
      assert Snex.pyeval(interpreter, code) == {:ok, nil}
      Process.put(:traceparent, @trace)
      assert Snex.pyeval(interpreter, code) == {:ok, @trace}
      assert Snex.pyeval(interpreter, code, timeout: 1_000) == {:ok, @trace}
      assert Snex.pyeval(interpreter, code, traceparent: @other) == {:ok, @other}
      {:ok, env} = Snex.make_env(interpreter)
      assert Snex.pyeval(env, code) == {:ok, @trace}
      Process.delete(:traceparent)
      assert Snex.pyeval(env, code) == {:ok, nil}
    end

    test "goes back with what Python calls" do
      interpreter = start_interpreter!()

      code =
        "import snex; return await snex.call('Elixir.Process', 'get', [snex.Atom('traceparent')])"

      assert Snex.pyeval(interpreter, code) == {:ok, nil}
      Process.put(:traceparent, @trace)
      assert Snex.pyeval(interpreter, code) == {:ok, @trace}
    end

    test "that is none" do
      interpreter = start_interpreter!()
      assert {:error, error} = Snex.pyeval(interpreter, "return 1", traceparent: "nonsense")
      assert %Error{code: :bad_request, reason: reason} = error
      assert reason =~ "traceparent"
      assert_raise ArgumentError, fn -> Snex.pyeval(interpreter, "return 1", traceparent: 1) end
    end
  end

  describe "a pool" do
    test "with a free member tells nothing" do
      pool = start_pool!(size: 1)
      assert Snex.pyeval(pool, "return 1") == {:ok, 1}
      refute_received {[:snex, :pool | _], _, _}
    end

    test "that is busy" do
      pool = start_pool!(size: 1, max_queue: 1, concurrency: 1)
      gate = gate()
      busy = hold(pool, gate)
      waiting = queue_up(pool, fn -> Snex.pyeval(pool, "return 1") end)
      assert {:error, %Error{code: :overloaded} = error} = Snex.pyeval(pool, "return 1")
      assert_received {[:snex, :pool, :wait], %{duration: none}, refused}
      assert refused == %{pool: pool, result: :error, error: error}
      open(gate)
      assert {:ok, "held"} = Task.await(busy)
      assert {:ok, 1} = Task.await(waiting)
      assert_received {[:snex, :pool, :wait], %{duration: some}, %{pool: ^pool, result: :ok}}
      assert none < some
    end
  end
end
