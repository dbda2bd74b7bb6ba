defmodule Snex.InterpreterTest do
  use Snex.Case, async: true

  import ExUnit.CaptureIO
  import Snex.Sigils

  describe "start_link" do
    test "tells at once that there is no such program" do
      assert {:error, %Error{code: :interpreter_exited, reason: {:exit_status, 127}}} =
               start_interpreter(python: "no-such-python")
    end

    test "tells at once that Python does not start" do
      printed =
        capture_io(fn ->
          assert {:error, %Error{code: :interpreter_exited, reason: {:exit_status, 1}}} =
                   start_interpreter(environment: %{"PYTHONHOME" => "/nonexistent"})
        end)

      assert printed =~ "No module named 'encodings'"
    end

    test "tells at once that what is wrapped around Python fails" do
      assert {:error, %Error{code: :interpreter_exited, reason: {:exit_status, 7}} = error} =
               start_interpreter(wrap_exec: fn _, _ -> {"sh", ["-c", "exit 7"]} end)

      assert Exception.message(error) =~ "/sh ended before it was ready"
    end

    test "refuses options that it does not know" do
      assert_raise ArgumentError, ~r/unknown option :pyton/, fn ->
        Interpreter.start_link(pyton: "")
      end

      assert_raise ArgumentError, ~r/unknown encoding option/, fn ->
        Interpreter.start_link(encoding_opts: [a: 1])
      end
    end

    test "runs in a directory, with an environment, before the PYTHONPATH that is given" do
      dir = Path.join(System.tmp_dir!(), "snex-#{System.unique_integer([:positive])}")
      File.mkdir_p!(dir)
      on_exit(fn -> File.rm_rf!(dir) end)
      File.write!(Path.join(dir, "its_own_module.py"), "value = 42")
      File.write!(Path.join(dir, "snex_runtime.py"), "raise RuntimeError('the wrong one')")
      interpreter = start_interpreter!(cd: "/", environment: %{"PYTHONPATH" => dir, "IT" => "is"})
      code = "import os, its_own_module as m; return os.getcwd(), os.environ['IT'], m.value"
      assert Snex.pyeval(interpreter, code) == {:ok, {"/", "is", 42}}
    end

    test "starts with its own modules, whatever those in its directory are called" do
      dir = Path.join(System.tmp_dir!(), "snex-#{System.unique_integer([:positive])}")
      File.mkdir_p!(dir)
      on_exit(fn -> File.rm_rf!(dir) end)
      # Python 3.10 itself imports `types` from there, before anything of ours can prevent it.
      {version, 0} =
        System.cmd("python", ["-c", "import sys; print(sys.version_info >= (3, 11))"])

      early = if version =~ "True", do: ["types", "snex", "snex_runtime"], else: []

      for name <- ["logging", "asyncio", "uvloop", "enum", "stringprep" | early],
          do: File.write!(Path.join(dir, name <> ".py"), "raise RuntimeError('the wrong one')")

      File.write!(Path.join(dir, "of_mine.py"), "value = 42")
      interpreter = start_interpreter!(cd: dir)
      assert Snex.pyeval(interpreter, "import of_mine; return of_mine.value") == {:ok, 42}
      # Programs that users start find their modules as ever.
      code = "import os; return os.environ.get('PYTHONSAFEPATH')"
      assert Snex.pyeval(interpreter, code) == {:ok, nil}
    end

    test "runs what wrap_exec makes of the command" do
      wrap = fn python, args -> {"env", ["WRAPPED=yes", python | args]} end
      code = "import os; return os.environ['WRAPPED']"
      assert Snex.pyeval(start_interpreter!(wrap_exec: wrap), code) == {:ok, "yes"}
      interpreter = start_interpreter!(wrap_exec: {__MODULE__, :wrap, ["mfa"]})
      assert Snex.pyeval(interpreter, code) == {:ok, "mfa"}
    end

    test "starts several at once" do
      1..3
      |> Enum.map(fn _ -> Task.async(fn -> Snex.pyeval(start_quietly(), "return 1") end) end)
      |> Task.await_many(20_000)
      |> Enum.each(&assert &1 == {:ok, 1})
    end

    test "sets the encoding for all requests" do
      interpreter = start_interpreter!(encoding_opts: [binary_as: :bytes])
      code = "return type(x).__name__"
      assert Snex.pyeval(interpreter, code, %{"x" => "x"}) == {:ok, "bytes"}
      {:ok, env} = Snex.make_env(interpreter, %{"x" => "x"})
      assert Snex.pyeval(env, code) == {:ok, "bytes"}

      assert Snex.pyeval(env, code, %{"x" => "x"}, encoding_opts: [binary_as: :str]) ==
               {:ok, "str"}
    end
  end

  def wrap(word, python, args), do: {"env", ["WRAPPED=#{word}", python | args]}

  defp start_quietly do
    {:ok, interpreter} = start_interpreter()
    interpreter
  end

  describe "the init script" do
    test "prepares all environments" do
      interpreter = start_interpreter!(init_script: {~p"import math\ny = x + 1", %{"x" => 41}})
      assert Snex.pyeval(interpreter, "return y, math.pi > 3") == {:ok, {42, true}}
      {:ok, env} = Snex.make_env(interpreter)
      assert Snex.pyeval(env, "return y") == {:ok, 42}
    end

    test "may await, and call Elixir" do
      script = "total = await Elixir.Enum.sum([1, 2, 3])"
      assert Snex.pyeval(start_interpreter!(init_script: script), "return total") == {:ok, 6}
    end

    test "that raises is an error with its traceback" do
      assert {:error, %Error{code: :python_runtime_error, reason: "bad", traceback: [_ | _]}} =
               start_interpreter(init_script: "raise ValueError('bad')")
    end

    test "that takes too long is one too, whether it waits or blocks" do
      for script <- ["import asyncio; await asyncio.sleep(60)", "import time; time.sleep(60)"] do
        assert start_interpreter(init_script: script, init_script_timeout: 100) ==
                 {:error, %Error{code: :init_script_timeout}}
      end
    end

    test "that ends Python is one too" do
      assert start_interpreter(init_script: "import os; os._exit(5)") ==
               {:error, %Error{code: :interpreter_exited, reason: {:exit_status, 5}}}
    end

    test "prints as it goes" do
      assert capture_io(fn -> start_quietly_with("print('été')") end) == "été\n"
    end

    defp start_quietly_with(script) do
      {:ok, interpreter} = start_interpreter(init_script: script)
      Interpreter.stop(interpreter)
    end
  end

  describe "sync_start?: false" do
    test "returns early; requests wait" do
      script = "import asyncio; await asyncio.sleep(0.3); ready = True"

      {time, interpreter} =
        :timer.tc(fn -> start_interpreter!(sync_start?: false, init_script: script) end)

      assert time < 300_000
      assert Snex.pyeval(interpreter, "return ready") == {:ok, true}
    end

    test "fails later" do
      {:ok, interpreter} = start_interpreter(sync_start?: false, python: "no-such-python")
      assert_receive {:EXIT, ^interpreter, %Error{reason: {:exit_status, 127}}}
    end
  end

  describe "the end of Python" do
    test "is the end of the interpreter, and of calls" do
      {:ok, interpreter} = start_interpreter()
      {:ok, env} = Snex.make_env(interpreter)
      test = self()
      code = "import asyncio\nawait snex.send(test, 'began')\nawait asyncio.sleep(60)"
      task = Task.async(fn -> Snex.pyeval(env, code, %{"test" => test}) end)
      assert_receive "began"
      {_, 0} = System.cmd("kill", [to_string(Interpreter.os_pid(interpreter))])
      error = %Error{code: :interpreter_exited, reason: {:exit_status, 143}}
      assert_receive {:EXIT, ^interpreter, ^error}
      assert Task.await(task) == {:error, %Error{code: :call_failed, reason: error}}
      noproc = {:error, %Error{code: :call_failed, reason: :noproc}}
      assert Snex.pyeval(env, "return 1") == noproc
      assert Snex.pyeval(interpreter, "return 1") == noproc
      assert Snex.make_env(interpreter) == noproc
      assert Snex.destroy_env(env) == :ok
    end

    test "by SIGKILL is told, and its child processes go with it" do
      {:ok, interpreter} = start_interpreter()

      {:ok, child} =
        Snex.pyeval(
          interpreter,
          "import subprocess; return subprocess.Popen(['sleep', '60']).pid"
        )

      System.cmd("kill", ["-KILL", to_string(Interpreter.os_pid(interpreter))])
      assert_receive {:EXIT, ^interpreter, %Error{reason: {:exit_status, 137}}}
      wait_until(fn -> not running?(child) end)
    end

    test "has its supervisor start another one" do
      child = {Interpreter, python: python(), name: :snex_test_restarted}
      {:ok, _} = Supervisor.start_link([child], strategy: :one_for_one)
      before = Process.whereis(:snex_test_restarted)
      assert {:error, %Error{code: :call_failed}} = Snex.pyeval(before, "import os; os._exit(1)")
      wait_until(fn -> Process.whereis(:snex_test_restarted) not in [nil, before] end)
      assert Snex.pyeval(:snex_test_restarted, "return 1") == {:ok, 1}
    end
  end

  describe "stop" do
    test "lets Python clean up, and tells callers why" do
      {:ok, interpreter} = start_interpreter()
      os_pid = Interpreter.os_pid(interpreter)
      file = Path.join(System.tmp_dir!(), "snex-#{System.unique_integer([:positive])}")
      on_exit(fn -> File.rm(file) end)
      test = self()

      code = """
      import asyncio, atexit
      atexit.register(lambda: open(file, 'w').write('cleaned up'))
      await snex.send(test, 'began')
      await asyncio.sleep(60)
      """

      task =
        Task.async(fn -> Snex.pyeval(interpreter, code, %{"test" => test, "file" => file}) end)

      assert_receive "began"
      assert Interpreter.stop(interpreter, :enough) == :ok
      assert Task.await(task) == {:error, %Error{code: :call_failed, reason: :enough}}
      assert File.read!(file) == "cleaned up"
      refute running?(os_pid)
    end

    test "ends Python that does not want to, within five seconds" do
      {:ok, interpreter} = start_interpreter()
      os_pid = Interpreter.os_pid(interpreter)
      test = self()
      code = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
      {:ok, nil} = Snex.pyeval(interpreter, code)

      spin = """
      def spin():
        while True: pass
      await snex.send(test, 'began')
      while True:
        try:
          spin()
        except BaseException: pass
      """

      Task.async(fn -> Snex.pyeval(interpreter, spin, %{"test" => test}, timeout: :infinity) end)
      assert_receive "began"
      {time, :ok} = :timer.tc(fn -> Interpreter.stop(interpreter) end)
      refute running?(os_pid)
      assert time < 5_000_000
    end
  end

  describe "with the distribution on standard input and output" do
    @stdio [port_opts: [:use_stdio]]

    test "all else is the same" do
      interpreter = start_interpreter!(@stdio ++ [init_script: "import sys; y = 1"])
      {:ok, env} = Snex.make_env(interpreter, %{"x" => String.duplicate("x", 3_000_000)})
      assert Snex.pyeval(env, "return sys.stdin, sys.stdout, y") == {:ok, {nil, nil, 1}}
      assert Snex.pyeval(env, "print('dropped'); return len(x)") == {:ok, 3_000_000}
      assert Snex.pyeval(env, "return await Elixir.Enum.sum([1, 2])") == {:ok, 3}
      child = "import subprocess; return subprocess.run(['true']).returncode"
      assert Snex.pyeval(env, child) == {:ok, 0}

      {:ok, name} =
        Snex.pyeval(
          env,
          "from snex_runtime import interface; return interface.current_backend()._node.name"
        )

      assert :erl_epmd.port_please(
               name |> to_string() |> String.split("@") |> hd() |> to_charlist(),
               ~c"127.0.0.1"
             ) == :noport
    end

    test "it ends as others do" do
      assert {:error, %Error{code: :interpreter_exited, reason: {:exit_status, 127}}} =
               start_interpreter(@stdio ++ [python: "no-such-python"])

      {:ok, interpreter} = start_interpreter(@stdio)

      assert {:error, %Error{code: :call_failed}} =
               Snex.pyeval(interpreter, "import os; os._exit(3)")

      assert_receive {:EXIT, ^interpreter, %Error{code: :interpreter_exited}}

      for how <- [:shutdown, :kill] do
        {:ok, interpreter} = start_interpreter(@stdio)
        os_pid = Interpreter.os_pid(interpreter)
        Process.exit(interpreter, how)
        assert_receive {:EXIT, ^interpreter, _}
        wait_until(fn -> not running?(os_pid) end)
      end
    end
  end

  test "an interpreter that is killed takes Python with it" do
    {:ok, interpreter} = start_interpreter()
    os_pid = Interpreter.os_pid(interpreter)
    Process.exit(interpreter, :kill)
    wait_until(fn -> not running?(os_pid) end)
  end

  if function_exported?(:proc_lib, :get_label, 1) do
    test "label is the process label" do
      assert :proc_lib.get_label(start_interpreter!(label: "my python")) == "my python"
    end
  end

  test "os_pid is that of the process" do
    interpreter = start_interpreter!()

    assert {:ok, Interpreter.os_pid(interpreter)} ==
             Snex.pyeval(interpreter, "import os; return os.getpid()")
  end

  test "info is what Python tells of itself" do
    interpreter = start_interpreter!()
    {:ok, _env} = Snex.make_env(interpreter)
    os_pid = Interpreter.os_pid(interpreter)
    assert {:ok, %{os_pid: ^os_pid, environments: environments}} = Interpreter.info(interpreter)
    assert environments >= 1
    Interpreter.stop(interpreter)
    assert {:error, %Error{code: :call_failed, reason: :noproc}} = Interpreter.info(interpreter)
    pool = Snex.PoolCase.start_pool!(size: 1)

    assert_raise ArgumentError, ~r/is a pool: see Snex.Pool.info/, fn ->
      Interpreter.info(pool)
    end
  end

  test "what Python and its children print is shown" do
    printed =
      capture_io(fn ->
        {:ok, interpreter} = start_interpreter()
        code = "import sys, subprocess\nprint('out ☃')\nprint('err', file=sys.stderr)"
        {:ok, nil} = Snex.pyeval(interpreter, code <> "\nsubprocess.run(['echo', 'child'])")
        {:ok, nil} = Snex.pyeval(interpreter, "import sys; sys.stdout.buffer.write(b'\\xff\\n')")
        Interpreter.stop(interpreter)
      end)

    assert printed == "out ☃\nerr\nchild\n\uFFFD\n"
  end
end
