defmodule SnexTest do
  use Snex.Case, async: true

  import ExUnit.CaptureIO
  import Snex.Sigils

  setup_all do
    {:ok,
     interpreter: start_supervised!({Interpreter, python: python(), init_script: "base = 1"})}
  end

  setup %{interpreter: interpreter} do
    {:ok, env} = Snex.make_env(interpreter)
    {:ok, env: env}
  end

  describe "pyeval" do
    test "takes every combination of arguments", %{env: env, interpreter: interpreter} do
      for target <- [env, interpreter] do
        assert Snex.pyeval(target, "return 1") == {:ok, 1}
        assert Snex.pyeval(target, ~p"return 1") == {:ok, 1}
        assert Snex.pyeval(target, "x = 1") == {:ok, nil}
        assert Snex.pyeval(target, nil) == {:ok, nil}
        assert Snex.pyeval(target, %{"x" => 2}) == {:ok, nil}
        assert Snex.pyeval(target, timeout: 1_000) == {:ok, nil}
        assert Snex.pyeval(target, "return x", %{"x" => 3}) == {:ok, 3}
        assert Snex.pyeval(target, ~p"return x", %{"x" => 3}) == {:ok, 3}
        assert Snex.pyeval(target, "return 1", timeout: 1_000) == {:ok, 1}
        assert Snex.pyeval(target, ~p"return 1", timeout: :infinity) == {:ok, 1}
        assert Snex.pyeval(target, %{"x" => 4}, timeout: 1_000) == {:ok, nil}
        assert Snex.pyeval(target, "return x", %{"x" => 5}, timeout: 1_000) == {:ok, 5}
        assert Snex.pyeval(target, nil, %{"x" => 5}, timeout: 1_000) == {:ok, nil}
      end
    end

    test "keeps variables in an environment, and none in the interpreter's", context do
      assert Snex.pyeval(context.env, "x = 10") == {:ok, nil}
      assert Snex.pyeval(context.env, "return x * base") == {:ok, 10}
      assert Snex.pyeval(context.interpreter, "base = 99; y = 1") == {:ok, nil}

      assert {:error, %Error{code: :python_runtime_error}} =
               Snex.pyeval(context.interpreter, "return y")

      assert Snex.pyeval(context.interpreter, "return base") == {:ok, 1}
    end

    test "takes interpreters by name" do
      start_interpreter!(name: :snex_test_named)
      assert Snex.pyeval(:snex_test_named, "return 1") == {:ok, 1}
      assert Snex.pyeval({:snex_test_named, node()}, "return 1") == {:ok, 1}
      assert {:ok, env} = Snex.make_env(:snex_test_named)
      assert Env.interpreter(env) == Process.whereis(:snex_test_named)
      noproc = {:error, %Error{code: :call_failed, reason: :noproc}}
      assert Snex.pyeval(:snex_test_nobody, "return 1") == noproc
      assert Snex.make_env(:snex_test_nobody) == noproc
    end

    test "returns what code raised, with its traceback", %{env: env} do
      assert {:error,
              %Error{code: :python_runtime_error, reason: "no", traceback: traceback} = error} =
               Snex.pyeval(env, "def f():\n  raise ValueError('no')\nf()")

      assert List.first(traceback) == "Traceback (most recent call last):\n"
      assert List.last(traceback) == "ValueError: no\n"

      assert Exception.message(error) =~
               ~r/python_runtime_error: no\n\nTraceback.*ValueError: no$/s

      assert Snex.pyeval(env, "return 1") == {:ok, 1}
    end

    test "names the place of code that knows it", %{env: env} do
      assert {:error, error} = Snex.pyeval(env, ~p"raise RuntimeError('here')")
      line = __ENV__.line - 1

      assert Enum.at(error.traceback, -2) =~
               ~s(File "#{__ENV__.file}", line #{line}, in <module>\n)

      code = ~P"""
      x = 1
      raise RuntimeError(x)
      """

      assert {:error, error} = Snex.pyeval(env, code)
      line = __ENV__.line - 4

      assert Enum.at(error.traceback, -2) =~
               ~s(File "#{__ENV__.file}", line #{line}, in <module>\n)

      assert {:error, error} = Snex.pyeval(env, "raise RuntimeError('somewhere')")
      assert Enum.at(error.traceback, -2) == ~s(  File "<Snex.Code>", line 1, in <module>\n)
    end

    test "cancels what takes too long, whether it waits or blocks", %{env: env} do
      for code <- [
            "import asyncio\nstate = 'began'\ntry:\n  await asyncio.sleep(60)\nfinally:\n  state = 'ended'",
            # CPython 3.11 and 3.12 do not run the `finally` around a loop's own jump.
            "def spin():\n  while True: pass\nstate = 'began'\ntry:\n  spin()\nfinally:\n  state = 'ended'",
            "import time\nstate = 'began'\ntry:\n  time.sleep(60)\nfinally:\n  state = 'ended'"
          ] do
        assert Snex.pyeval(env, code, timeout: 100) == {:error, %Error{code: :response_timeout}}
        wait_until(fn -> Snex.pyeval(env, "return state") == {:ok, "ended"} end)
      end
    end

    test "cancels the work of a caller that is gone", %{env: env} do
      code = """
      import asyncio
      await snex.send(test, "began")
      try:
        await asyncio.sleep(60)
      finally:
        await snex.send(test, "ended")
      """

      caller = spawn(fn -> Snex.pyeval(env, code, %{"test" => self_of_test()}) end)
      send(caller, {:test, self()})
      assert_receive "began"
      Process.exit(caller, :kill)
      assert_receive "ended"
    end

    test "runs code in threads, where it is told to", %{env: env, interpreter: interpreter} do
      name = "import threading\nreturn threading.current_thread().name"
      assert {:ok, "snex-thread-" <> _} = Snex.pyeval(env, name, executor: :thread)
      assert {:ok, "snex-thread-" <> _} = Snex.pyeval(interpreter, name, %{}, executor: :thread)
      encoding = [executor: :thread, encoding_opts: [binary_as: :bytes]]
      assert {:ok, "snex-thread-" <> _} = Snex.pyeval(env, name, %{"x" => "x"}, encoding)

      {:ok, threaded} = Snex.make_env(interpreter, executor: :thread)
      assert {:ok, "snex-thread-" <> _} = Snex.pyeval(threaded, name)
      assert {:ok, "MainThread"} = Snex.pyeval(threaded, name, executor: :loop)

      assert {:error, %Error{code: :response_timeout}} =
               Snex.pyeval(threaded, "while True: pass", executor: :thread, timeout: 100)

      assert_raise ArgumentError, ~r/:executor takes :loop or :thread, got: :x/, fn ->
        Snex.pyeval(env, name, executor: :x)
      end

      assert_raise ArgumentError, ~r/:executor takes/, fn ->
        Snex.make_env(interpreter, executor: :x)
      end
    end

    test "blocking code ends with its caller", %{interpreter: interpreter} do
      for wait <- [10, 600] do
        caller = spawn(fn -> Snex.pyeval(interpreter, "while True: pass", timeout: :infinity) end)
        Process.sleep(wait)
        Process.exit(caller, :kill)
        began = System.monotonic_time(:millisecond)
        assert Snex.pyeval(interpreter, "return 1", timeout: 20_000) == {:ok, 1}
        assert System.monotonic_time(:millisecond) - began < 2_000
      end
    end

    test "refuses what it does not know", %{env: env} do
      assert_raise ArgumentError, ~r/unknown option :tiemout/, fn ->
        Snex.pyeval(env, "return 1", tiemout: 1)
      end

      assert_raise ArgumentError, ~r/names of variables are strings, got: :x/, fn ->
        Snex.pyeval(env, "return x", %{x: 1})
      end

      assert_raise ArgumentError, ~r/unknown encoding option :binry_as/, fn ->
        Snex.pyeval(env, "return 1", encoding_opts: [binry_as: :bytes])
      end

      assert_raise ArgumentError, ~r/:binary_as is one of/, fn ->
        Snex.pyeval(env, "return 1", encoding_opts: [binary_as: :text])
      end
    end

    test "takes the deprecated :returning, and warns once per place", %{env: env} do
      call = fn opts -> Snex.pyeval(env, "x = 1; y = 2", %{}, opts) end
      tail = fn -> assert call.(returning: "x") == {:ok, 1} end

      warning =
        capture_io(:stderr, fn ->
          tail.()
          tail.()
        end)

      text = "`:returning` is deprecated; use plain Python `return` statements"
      assert length(String.split(warning, text)) == 2
      assert warning =~ "test/snex_test.exs"
      refute warning =~ "lib/snex.ex"

      capture_io(:stderr, fn ->
        assert call.(returning: ["x", "y", "x + y"]) == {:ok, [1, 2, 3]}
        assert Snex.pyeval(env, returning: "x") == {:ok, 1}
        assert Snex.pyeval(env, ~p"z = 3", returning: "z") == {:ok, 3}
        assert Snex.pyeval(env, "z = 3", returning: ~p"z + x") == {:ok, 4}
        assert Snex.pyeval(env, "z = 3", returning: [~p"z", "x", ~P"[y]"]) == {:ok, [3, 1, [2]]}
        assert Snex.pyeval(env, "z = 3", returning: []) == {:ok, []}

        for wrong <- [5, :x, [5], ["x", nil], %{}] do
          assert_raise ArgumentError, ~r/:returning takes a Python expression/, fn ->
            Snex.pyeval(env, "z = 3", returning: wrong)
          end
        end
      end)
    end

    test "gives the first line the number that it is told", %{env: env} do
      for {line, first} <- [{0, 1}, {1, 1}, {2, 2}, {565, 565}] do
        code = %Snex.Code{src: ["x = 1\n", 'raise RuntimeError()'], file: "a/b.ex", line: line}
        assert {:error, error} = Snex.pyeval(env, code)

        assert Enum.at(error.traceback, -2) ==
                 ~s(  File "a/b.ex", line #{first + 1}, in <module>\n)
      end
    end

    test "tells the type of an exception, and always a reason", %{env: env} do
      for {code, type, reason} <- [
            {"{}['k']", "KeyError", "'k'"},
            {"raise ValueError", "ValueError", "ValueError"},
            {"raise ValueError('')", "ValueError", "ValueError"},
            {"class Mine(Exception): pass\nraise Mine(1)", "Mine", "1"},
            {"x =", "SyntaxError", "invalid syntax (<Snex.Code>, line 1)"},
            {"return object()", "TypeError",
             "Cannot serialize object of <class 'object'>: snex.set_custom_encoder takes a " <>
               "function that knows what to send instead"}
          ] do
        assert {:error, %Error{code: :python_runtime_error} = error} = Snex.pyeval(env, code)
        assert {error.type, error.reason} == {type, reason}
      end

      :ok = Snex.destroy_env(env)
      assert {:error, %Error{code: :env_not_found, type: nil}} = Snex.pyeval(env, "return 1")
    end

    test "refuses code that is no string", context do
      for target <- [context.env, context.interpreter] do
        for code <- ['return 1', [], :code, 42, {"return 1"}] do
          assert_raise ArgumentError, ~r/code is a string/, fn ->
            Snex.pyeval(target, code, %{})
          end

          assert_raise ArgumentError, fn -> Snex.pyeval(target, code, %{}, timeout: 5) end
        end

        assert_raise ArgumentError, ~r/code is a string/, fn ->
          Snex.pyeval(target, 'return 1')
        end

        assert_raise ArgumentError, fn -> Snex.pyeval(target, ["return 1"]) end
        assert_raise ArgumentError, fn -> Snex.pyeval(target, 'return 1', timeout: 5) end

        assert {:error, %Error{code: :bad_request, reason: "code is not UTF-8" <> _}} =
                 Snex.pyeval(target, <<"x = '", 255, "'">>)
      end
    end

    test "refuses time limits that are none", %{env: env} do
      for wrong <- [Integer.pow(10, 400), 4_294_967_296, -5, "5", 1.5, nil, :never] do
        assert_raise ArgumentError, ~r/:timeout takes milliseconds/, fn ->
          Snex.pyeval(env, "return 1", timeout: wrong)
        end
      end

      assert Snex.pyeval(env, "return 1", timeout: 4_294_967_295) == {:ok, 1}
    end

    test "answers many callers at once", %{env: env} do
      1..200
      |> Enum.map(fn n -> Task.async(fn -> Snex.pyeval(env, "return n", %{"n" => n}) end) end)
      |> Task.await_many()
      |> Enum.each(&assert match?({:ok, n} when is_integer(n), &1))
    end
  end

  test "has the types that specifications of users name" do
    for {module, names} <- [
          {Snex,
           [:code, :additional_vars, :from_env, :make_env_opt, :pyeval_opt, :env_or_interpreter]},
          {Snex.Interpreter,
           [:option, :server, :wrap_exec, :environment, :init_script, :port_opts]},
          {Snex.Env, [:t, :id]},
          {Snex.Error,
           [:t, :error_code, :python_runtime_error, :internal_error, :env_not_found] ++
             [:env_key_not_found, :init_script_timeout, :response_timeout, :call_failed] ++
             [:interpreter_exited, :bad_request, :cancelled, :overloaded, :worker_exited] ++
             [:killed, :memory_limit]},
          {Snex.Serde,
           [:encoding_opt, :encoding_opts, :serde_binary, :serde_term, :serde_object] ++
             [:serde_float]}
        ] do
      {:ok, types} = Code.Typespec.fetch_types(module)
      defined = for {kind, {name, _, []}} <- types, kind in [:type, :opaque], do: name
      assert names -- defined == []
    end
  end

  describe "make_env" do
    test "takes every combination of arguments", %{env: env, interpreter: interpreter} do
      {:ok, nil} = Snex.pyeval(env, "a, b = 1, 2")

      value = fn {:ok, made}, names ->
        Snex.pyeval(made, "return [globals().get(n) for n in #{names}]")
      end

      assert value.(Snex.make_env(interpreter), "['a', 'base']") == {:ok, [nil, 1]}
      assert value.(Snex.make_env(from: env), "['a', 'base']") == {:ok, [1, 1]}
      assert value.(Snex.make_env(interpreter, %{"c" => 3}), "['a', 'c']") == {:ok, [nil, 3]}
      assert value.(Snex.make_env(interpreter, from: env), "['a', 'b']") == {:ok, [1, 2]}
      assert value.(Snex.make_env(%{"a" => 9}, from: env), "['a', 'b']") == {:ok, [9, 2]}
      from = {env, only: ["a", "missing"]}

      assert value.(Snex.make_env(interpreter, %{}, from: from), "['a', 'b', 'missing']") ==
               {:ok, [1, nil, nil]}

      from = {env, except: ["a"]}
      assert value.(Snex.make_env(interpreter, %{}, from: from), "['a', 'b']") == {:ok, [nil, 2]}

      for {which, values} <- [
            {[only: ["a"], except: []], [1, nil]},
            {[only: [], except: ["a"]], [nil, 2]},
            {[only: [], except: []], [1, 2]},
            {[except: [], only: ["b"]], [nil, 2]},
            {[only: []], [1, 2]},
            {[except: []], [1, 2]},
            {[], [1, 2]}
          ] do
        assert value.(Snex.make_env(interpreter, from: {env, which}), "['a', 'b']") ==
                 {:ok, values}

        assert value.(Snex.make_env(from: [{env, which}]), "['a', 'b']") == {:ok, values}
      end
    end

    test "copies in order", %{env: env, interpreter: interpreter} do
      {:ok, first} = Snex.make_env(interpreter, %{"a" => 1, "b" => 1, "c" => 1})
      {:ok, second} = Snex.make_env(interpreter, %{"a" => 2, "b" => 2})

      {:ok, made} =
        Snex.make_env(%{"a" => 3}, from: [env, {first, except: ["x"]}, {second, only: ["b"]}])

      assert Snex.pyeval(made, "return (a, b, c, base)") == {:ok, {3, 2, 1, 1}}
      {:ok, nil} = Snex.pyeval(made, "a = 9")
      assert Snex.pyeval(first, "return a") == {:ok, 1}
    end

    test "refuses what cannot be meant", %{env: env, interpreter: interpreter} do
      other = start_interpreter!()
      assert_raise ArgumentError, fn -> Snex.make_env([]) end
      assert_raise ArgumentError, fn -> Snex.make_env(%{}, []) end

      assert_raise ArgumentError, ~r/:only or :except of an environment, not both/, fn ->
        Snex.make_env(interpreter, from: {env, only: ["a"], except: ["b"]})
      end

      for wrong <- [[only: "a"], [except: [1]], [oly: ["a"]], ["a"], 'a'] do
        assert_raise ArgumentError, fn -> Snex.make_env(interpreter, from: {env, wrong}) end
      end

      assert_raise ArgumentError, fn -> Snex.make_env('code') end
      assert_raise ArgumentError, fn -> Snex.make_env(interpreter, 'code') end

      assert_raise ArgumentError, ~r/belongs to/, fn -> Snex.make_env(other, from: env) end
      assert_raise ArgumentError, ~r/strings/, fn -> Snex.make_env(interpreter, %{a: 1}) end

      assert_raise ArgumentError, ~r/unknown option/, fn ->
        Snex.make_env(interpreter, form: env)
      end
    end

    test "tells of a source that is gone", %{env: env, interpreter: interpreter} do
      :ok = Snex.destroy_env(env)
      assert {:error, %Error{code: :env_not_found}} = Snex.make_env(interpreter, from: env)
      assert {:error, %Error{code: :env_not_found}} = Snex.pyeval(env, "return 1")
    end

    test "encodes by its options, which do not stick", %{interpreter: interpreter} do
      {:ok, env} = Snex.make_env(interpreter, %{"b" => "x"}, encoding_opts: [binary_as: :bytes])
      assert Snex.pyeval(env, "return type(b).__name__") == {:ok, "bytes"}
      assert Snex.pyeval(env, "return type(b).__name__", %{"b" => "x"}) == {:ok, "str"}
    end
  end

  defp self_of_test do
    receive do
      {:test, pid} -> pid
    end
  end
end
