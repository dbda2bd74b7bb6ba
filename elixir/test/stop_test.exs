defmodule Snex.StopTest do
  @moduledoc "The end of Python: it is noticed, waited for and, where need be, brought about."
  use Snex.Case, async: true

  import ExUnit.CaptureLog

  @modes [pipe: [], stdio: [port_opts: [:use_stdio]]]

  # A child process that holds Python's output and outlives it.
  @detached "import subprocess; return subprocess.Popen(['sleep', '600'], start_new_session=True).pid"

  # One process at a time: the program of that name may take the number of a group for "-1", which is
  # everything.
  defp kill(signal, os_pid) when os_pid > 1,
    do: {_, 0} = System.cmd("kill", ["-#{signal}", to_string(os_pid)])

  # The processes of a group: its leader, Python, and the one that watches it.
  defp group(leader) do
    for "/proc/" <> entry <- Path.wildcard("/proc/[0-9]*"),
        {:ok, stat} <- [File.read("/proc/#{entry}/stat")],
        [_state, _parent, group | _] =
          stat |> String.split(") ") |> List.last() |> String.split(),
        group == to_string(leader),
        do: String.to_integer(entry)
  end

  defp end_with_test(os_pid) do
    on_exit(fn -> System.cmd("kill", ["-KILL", to_string(os_pid)], stderr_to_stdout: true) end)
  end

  defp node_of(interpreter) do
    {:ok, _, target} = Snex.Runtimes.find(interpreter)
    node(target)
  end

  # Its connection is lost, as it is after net_ticktime.
  defp disconnect(interpreter), do: interpreter |> node_of() |> Node.disconnect()

  for {name, opts} <- @modes do
    @opts opts
    test "Python that is killed is noticed while a detached child holds its output (#{name})" do
      {:ok, interpreter} = start_interpreter(@opts)
      {:ok, child} = Snex.pyeval(interpreter, @detached)
      end_with_test(child)
      test = self()
      code = "import asyncio\nawait snex.send(test, 'began')\nawait asyncio.sleep(60)"
      task = Task.async(fn -> Snex.pyeval(interpreter, code, %{"test" => test}) end)
      assert_receive "began"
      kill("KILL", Interpreter.os_pid(interpreter))
      assert_receive {:EXIT, ^interpreter, %Error{code: :interpreter_exited} = error}
      assert Task.await(task) == {:error, %Error{code: :call_failed, reason: error}}
      assert running?(child)
    end

    test "Python that is stopped by a signal is ended when its connection is lost (#{name})" do
      {:ok, interpreter} = start_interpreter(@opts)
      os_pid = Interpreter.os_pid(interpreter)
      kill("STOP", os_pid)
      disconnect(interpreter)
      assert_receive {:EXIT, ^interpreter, %Error{code: :interpreter_exited}}, 10_000
      refute running?(os_pid)
      noproc = {:error, %Error{code: :call_failed, reason: :noproc}}
      assert Snex.pyeval(interpreter, "return 1") == noproc
    end

    test "stop returns when Python is gone, in every state (#{name})" do
      states = [
        {"idle", "pass"},
        {"sleeping", "import time; time.sleep(600)"},
        {"waiting", "import asyncio; await asyncio.sleep(600)"},
        {"keeps the interpreter", "sum(range(10 ** 12))"},
        {"has closed its output", "import os; os.close(1); os.close(2)"},
        {"cleans up for a second", "import atexit, time; atexit.register(time.sleep, 1)"},
        {"has a detached child", @detached},
        {"has a detached child, and closed its output", "import os; os.close(1); " <> @detached}
      ]

      states
      |> Enum.map(fn {state, code} -> Task.async(fn -> stop_while(state, code, @opts) end) end)
      |> Task.await_many(30_000)
      |> Enum.each(fn {state, left?, time} ->
        assert {state, left?} == {state, false}
        assert {state, time < 6_500_000} == {state, true}
      end)
    end

    test "stop returns when Python that is stopped by a signal is gone (#{name})" do
      {:ok, interpreter} = start_interpreter(@opts)
      os_pid = Interpreter.os_pid(interpreter)
      kill("STOP", os_pid)
      assert Interpreter.stop(interpreter) == :ok
      refute running?(os_pid)
    end

    test "Python that is stopped by a signal goes with an interpreter that is killed (#{name})" do
      {:ok, interpreter} = start_interpreter(@opts)
      os_pid = Interpreter.os_pid(interpreter)
      # With the process that watches it.
      assert [_, _] = group = group(os_pid)
      Enum.each(group, &kill("STOP", &1))
      Process.exit(interpreter, :kill)
      wait_until(fn -> group(os_pid) == [] end, 10_000)
    end
  end

  defp stop_while(state, code, opts) do
    {:ok, interpreter} = start_interpreter(opts)
    os_pid = Interpreter.os_pid(interpreter)
    test = self()
    # With a pause: what follows may leave Python no moment to write.
    begin = "await snex.send(test, 'began'); import asyncio; await asyncio.sleep(0.1)\n"

    eval = fn ->
      Snex.pyeval(interpreter, begin <> code, %{"test" => test}, timeout: :infinity)
    end

    task = Task.async(eval)
    receive do: ("began" -> :ok)
    child = Task.yield(task, 500)
    {time, :ok} = :timer.tc(fn -> Interpreter.stop(interpreter) end)
    left? = running?(os_pid)
    with {:ok, {:ok, child}} when is_integer(child) <- child, do: kill("KILL", child)
    Task.shutdown(task, :brutal_kill)
    {state, left?, time}
  end

  test "callers that wait are told the reason of a stop at once" do
    {:ok, interpreter} = start_interpreter()
    {:ok, nil} = Snex.pyeval(interpreter, "import atexit, time; atexit.register(time.sleep, 3)")
    test = self()

    task =
      Task.async(fn ->
        Snex.pyeval(
          interpreter,
          "import asyncio\nawait snex.send(test, 'began')\nawait asyncio.sleep(60)",
          %{"test" => test}
        )
      end)

    assert_receive "began"
    stopping = Task.async(fn -> Interpreter.stop(interpreter, :enough) end)
    assert Task.await(task) == {:error, %Error{code: :call_failed, reason: :enough}}
    noproc = {:error, %Error{code: :call_failed, reason: :noproc}}
    assert Snex.pyeval(interpreter, "return 1") == noproc
    assert Task.await(stopping) == :ok
  end

  test "a supervisor starts another one for Python that is stopped by a signal" do
    child = {Interpreter, python: python(), name: :snex_test_stopped}
    {:ok, supervisor} = Supervisor.start_link([child], strategy: :one_for_one)
    before = Process.whereis(:snex_test_stopped)
    kill("STOP", Interpreter.os_pid(before))
    disconnect(before)
    wait_until(fn -> Process.whereis(:snex_test_stopped) not in [nil, before] end, 10_000)
    assert Snex.pyeval(:snex_test_stopped, "return 1") == {:ok, 1}
    Supervisor.stop(supervisor)
  end

  test "Python that is stopped by a signal is missed after net_ticktime" do
    beam =
      Snex.Beam.start(
        """
        child = {Snex.Interpreter, python: #{inspect(python())}, name: :python}
        {:ok, _} = Supervisor.start_link([child], strategy: :one_for_one)
        before = Process.whereis(:python)
        os_pid = Snex.Interpreter.os_pid(:python)
        {_, 0} = System.cmd("kill", ["-STOP", to_string(os_pid)])
        wait = fn wait ->
          if Process.whereis(:python) in [nil, before], do: wait.(Process.sleep(50) && wait)
        end
        wait.(wait)
        tell.({os_pid, Snex.pyeval(:python, "return 1")})
        """,
        args: ["--erl", "-kernel net_ticktime 4"]
      )

    assert {os_pid, {:ok, 1}} = Snex.Beam.told(beam)
    refute running?(os_pid)
  end

  describe "a relay that is blocked by a full pipe" do
    setup do
      {:ok, interpreter} = start_interpreter(port_opts: [:use_stdio])
      os_pid = Interpreter.os_pid(interpreter)
      relay = :sys.get_state(interpreter).relay
      kill("STOP", os_pid)
      secret = String.duplicate("secret", 1_000_000)
      spawn(fn -> Snex.pyeval(interpreter, "pass", %{"x" => secret}, timeout: :infinity) end)
      wait_until(fn -> Process.info(relay, :status) == {:status, :suspended} end)
      {:ok, interpreter: interpreter, relay: relay, os_pid: os_pid}
    end

    test "ends when its interpreter is stopped", %{interpreter: interpreter} = context do
      assert Interpreter.stop(interpreter) == :ok
      refute Process.alive?(context.relay)
      refute running?(context.os_pid)
    end

    test "ends when its interpreter is killed", %{interpreter: interpreter} = context do
      Process.exit(interpreter, :kill)
      wait_until(fn -> not Process.alive?(context.relay) end)
      wait_until(fn -> not running?(context.os_pid) end, 10_000)
    end

    test "ends when the connection is lost", %{interpreter: interpreter} = context do
      log =
        capture_log(fn ->
          disconnect(interpreter)
          assert_receive {:EXIT, ^interpreter, %Error{code: :interpreter_exited}}, 10_000
          wait_until(fn -> not Process.alive?(context.relay) end)
        end)

      refute running?(context.os_pid)
      refute log =~ "secretsecret"
    end
  end

  test "a BEAM that stops gives errors to callers" do
    beam =
      Snex.Beam.start("""
      {:ok, interpreter} = Snex.Interpreter.start_link(python: #{inspect(python())})
      {:ok, env} = Snex.make_env(interpreter)
      :ok = Application.stop(:snex)
      calls = [
        fn -> Snex.pyeval(interpreter, "return 1") end,
        fn -> Snex.pyeval(interpreter, "return 1", timeout: 100, returning: "1") end,
        fn -> Snex.make_env(interpreter) end,
        fn -> Snex.pyeval(env, "import os; os._exit(1)") end,
        fn -> Snex.pyeval(env, "return 1") end
      ]
      Process.flag(:trap_exit, true)
      tell.(for call <- calls, do: (try do elem(call.(), 0) catch kind, what -> {kind, what} end))
      """)

    assert Snex.Beam.told(beam) == List.duplicate(:error, 5)
  end

  test "a BEAM that stops while others call raises nothing" do
    beam =
      Snex.Beam.start("""
      {:ok, interpreter} = Snex.Interpreter.start_link(python: #{inspect(python())})
      Process.unlink(interpreter)
      {:ok, env} = Snex.make_env(interpreter)
      defmodule Caller do
        def call(to, tell) do
          try do
            Snex.pyeval(to, "return 1")
          catch
            kind, what -> tell.({:raised, kind, what})
          end
          call(to, tell)
        end
      end
      for to <- [interpreter, env], do: spawn(fn -> Caller.call(to, tell) end)
      tell.(:calling)
      System.stop(0)
      """)

    assert Snex.Beam.told(beam) == :calling
    refute Snex.Beam.printed(beam) =~ "told"
  end
end
