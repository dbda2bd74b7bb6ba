defmodule Snex.StopTest do
  @moduledoc "The end of Python: it is noticed, waited for and, where need be, brought about."
  use Snex.Case, async: true

  @modes [pipe: [], stdio: [port_opts: [:use_stdio]]]

  # A child process that holds Python's output and outlives it.
  @detached "import subprocess; return subprocess.Popen(['sleep', '600'], start_new_session=True).pid"

  defp end_with_test(os_pid) do
    on_exit(fn -> System.cmd("kill", ["-KILL", to_string(os_pid)], stderr_to_stdout: true) end)
  end

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
