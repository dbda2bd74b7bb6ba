defmodule Snex.ReadmeTest do
  @moduledoc "Every Elixir example of the README, in its words."
  use Snex.Case, async: true

  import ExUnit.CaptureLog
  import Snex.Sigils

  defimpl Snex.Serde.Encoder, for: Date do
    def encode(%Date{} = d),
      do: Snex.Serde.object("datetime", "date", [d.year, d.month, d.day])
  end

  describe "with NumPy" do
    @describetag :uv

    test "quick example" do
      inp = start_supervised!({SnexTest.NumpyInterpreter, init_script: "import numpy as np"})

      assert {:ok, 6.0} =
               Snex.pyeval(
                 inp,
                 """
                 width, height = await Elixir.Enum.map([3, 3], mapper)
                 matrix = np.fromfunction(lambda i, j: (-1) ** (i + j), (width, height), dtype=int)

                 return np.linalg.norm(matrix)
                 """,
                 %{"mapper" => &(&1 * 2)}
               )
    end

    test "custom interpreter, pyeval" do
      {:ok, interpreter} = SnexTest.NumpyInterpreter.start_link()
      assert {:ok, "hello world!"} = Snex.pyeval(interpreter, "return 'hello world!'")

      assert {:ok, 6.0} =
               Snex.pyeval(interpreter, """
               import numpy as np
               matrix = np.fromfunction(lambda i, j: (-1) ** (i + j), (6, 6), dtype=int)
               return np.linalg.norm(matrix)
               """)

      assert SnexTest.NumpyInterpreter.os_pid(interpreter) == Interpreter.os_pid(interpreter)
      assert SnexTest.NumpyInterpreter.stop(interpreter) == :ok
    end

    test "initialization script" do
      inp =
        start_supervised!(
          {SnexTest.NumpyInterpreter,
           init_script: """
           import numpy as np
           my_var = 42
           """}
        )

      {:ok, env} = Snex.make_env(inp)
      assert {:ok, 42} = Snex.pyeval(env, "return int(np.array([my_var])[0])")
    end
  end

  @tag :uv
  test "use your in-repo project" do
    inp = start_supervised!(SnexTest.MyProject)
    {:ok, env} = Snex.make_env(inp)

    assert {:ok, "hi from bar"} =
             Snex.pyeval(env, """
             import foo
             return foo.bar()
             """)
  end

  test "environments" do
    inp = start_interpreter!()
    {:ok, env} = Snex.make_env(inp)
    assert {:ok, nil} = Snex.pyeval(env, "x = 10")
    assert {:ok, nil} = Snex.pyeval(env, "y = x * z", %{"z" => 2})
    assert {:ok, {10, 20, 2}} = Snex.pyeval(env, "return (x, y, z)")

    assert {:ok, copy} = Snex.make_env(inp, from: env)
    assert {:ok, 10} = Snex.pyeval(copy, "return x")
    assert {:ok, copy} = Snex.make_env(from: env)
    assert {:ok, 10} = Snex.pyeval(copy, "return x")
    from = [env, {copy, only: ["x"]}, {env, except: ["x"]}]
    assert {:ok, copy} = Snex.make_env(inp, from: from)
    assert {:ok, {10, 20}} = Snex.pyeval(copy, "return (x, y)")
    assert {:ok, copy} = Snex.make_env(inp, %{"hello" => 42.0}, from: {env, only: ["y"]})
    assert {:ok, {42.0, 20}} = Snex.pyeval(copy, "return (hello, y)")
  end

  test "round trip of a struct" do
    inp =
      start_interpreter!(
        init_script: """
        import datetime

        def custom_encoder(obj):
          if isinstance(obj, datetime.date):
            return {
              snex.Atom("__struct__"): snex.Atom("Elixir.Date"),
              snex.Atom("day"): obj.day,
              snex.Atom("month"): obj.month,
              snex.Atom("year"): obj.year,
              snex.Atom("calendar"): snex.Atom("Elixir.Calendar.ISO"),
            }

          raise TypeError(f"Cannot serialize object of {type(obj)}")

        snex.set_custom_encoder(custom_encoder)
        """
      )

    assert {:ok, {{"datetime", "date"}, %Date{year: 2026, month: 12, day: 27}}} =
             Snex.pyeval(
               inp,
               """
               typ = type(date)
               next_date = date + datetime.timedelta(days=364)

               return ((typ.__module__, typ.__name__), next_date)
               """,
               %{"date" => ~D[2025-12-28]}
             )
  end

  test "run async code" do
    assert {:ok, "hello"} =
             Snex.pyeval(start_interpreter!(), """
             import asyncio
             async def do_thing():
                 await asyncio.sleep(0.01)
                 return "hello"

             return await do_thing()
             """)
  end

  test "run blocking code" do
    inp = start_interpreter!()
    {:ok, pool_env} = Snex.make_env(inp)

    assert {:ok, nil} =
             Snex.pyeval(
               pool_env,
               """
               import asyncio
               from concurrent.futures import ThreadPoolExecutor

               pool = ThreadPoolExecutor(max_workers=cnt)
               loop = asyncio.get_running_loop()
               """,
               %{"cnt" => 5}
             )

    {:ok, env} = Snex.make_env(inp, from: {pool_env, only: ["pool", "loop"]})

    assert {:ok, "world!"} =
             Snex.pyeval(env, """
             def blocking_io():
                 return "world!"

             return await loop.run_in_executor(pool, blocking_io)
             """)
  end

  test "send messages from Python code" do
    {:ok, env} = Snex.make_env(start_interpreter!())

    Snex.pyeval(
      env,
      """
      await snex.send(self, b'hello from snex!')
      # insert long computation here
      """,
      %{"self" => self()}
    )

    assert "hello from snex!" = receive(do: (val -> val))

    Process.register(self(), :myname)

    Snex.pyeval(
      env,
      """
      await snex.send((snex.Atom('myname'), node), b'hello from snex (again!)')
      """,
      %{"node" => node()}
    )

    assert "hello from snex (again!)" = receive(do: (val -> val))
  end

  test "cast and call Elixir code from Python" do
    inp = start_interpreter!()
    agent = start_supervised!({Agent, fn -> 42 end})

    assert {:ok, 42} =
             Snex.pyeval(
               inp,
               "return await snex.call('Elixir.Agent', 'get', [agent, identity])",
               %{"agent" => agent, "identity" => & &1}
             )

    assert {:ok, %{"a" => 3, "b" => 2, "d" => 1}} =
             Snex.pyeval(
               inp,
               "return await Elixir.Enum.frequencies(['a', 'b', 'a', 'a', 'd', 'b'])"
             )

    Snex.pyeval(inp, "await snex.cast('erlang', 'send', [self, 'cast'])", %{"self" => self()})
    assert_receive "cast"

    assert {:error, %Error{code: :python_runtime_error, reason: reason}} =
             Snex.pyeval(inp, "return await Elixir.Enum.fetch([1], 'x')")

    assert reason =~ "failed on Elixir side"
    assert reason =~ "FunctionClauseError"
  end

  test "accurate code locations" do
    inp = start_interpreter!()
    {:error, %Snex.Error{} = reason} = Snex.pyeval(inp, "raise RuntimeError('nolocation')")
    assert ~s'  File "<Snex.Code>", line 1, in <module>\n' = Enum.at(reason.traceback, -2)

    {:error, %Snex.Error{} = reason} = Snex.pyeval(inp, ~p"raise RuntimeError('nolocation')")
    # Where the file can be read, Python shows the line.
    assert Enum.at(reason.traceback, -2) =~
             ~s'  File "#{__ENV__.file}", line #{__ENV__.line - 3}, in <module>\n'

    assert "#{~p"12\t#{34}"}" == "12\t34"
    assert "#{~P"12\t#{34}"}" == ~S"12\t#{34}"

    # Sigils of several letters came with Elixir 1.15.
    if Version.match?(System.version(), ">= 1.15.0") do
      {code, _} = Code.eval_string(~S[import Snex.Sigils; ~PY"12\t#{34}"])
      assert to_string(code) == ~S"12\t#{34}"
    end
  end

  test "using Elixir's Logger" do
    inp = start_interpreter!()

    log =
      capture_log([metadata: [:application, :foo, :python_module]], fn ->
        {:ok, nil} =
          Snex.pyeval(inp, """
          import asyncio, logging

          logger = logging.getLogger("readme")
          logger.setLevel(logging.INFO)
          logger.addHandler(
            snex.LoggingHandler(
              default_metadata={"application": "my_app"},
              extra_metadata_keys={"foo"}
            ),
          )

          logger.info("hello from Python", extra={"foo": "bar"})
          """)
      end)

    assert log =~ "hello from Python"
    assert log =~ "application=my_app"
    assert log =~ "foo=bar"
  end

  test "send and call from other Python processes" do
    assert {:ok, 6} =
             Snex.pyeval(start_interpreter!(), """
             import asyncio, os, sys, tempfile

             child = '''
             import asyncio, sys, snex
             async def main():
                 async with snex.serve(*await asyncio.open_unix_connection(sys.argv[1])):
                     print(await snex.call("Elixir.Enum", "sum", [[1, 2, 3]]))
             asyncio.run(main())
             '''
             with tempfile.TemporaryDirectory() as folder:
                 path = os.path.join(folder, "socket")
                 async with await asyncio.start_unix_server(snex.io_loop_for_connection, path):
                     process = await asyncio.create_subprocess_exec(
                         sys.executable, "-c", child, path, stdout=asyncio.subprocess.PIPE)
                     printed, _ = await process.communicate()
             return int(printed)
             """)
  end

  describe "on several nodes" do
    setup do
      {peer, node} = Snex.Peer.start()
      on_exit(fn -> Snex.Peer.stop(peer) end)
      {:ok, node: node}
    end

    test "an Agent shares an environment", %{node: node} do
      {:ok, interpreter} = start_interpreter()

      {:ok, env_agent} =
        Agent.start_link(fn ->
          {:ok, env} = Snex.make_env(interpreter, %{"hello" => "hello from a@localhost!"})
          env
        end)

      assert {:ok, "hello from a@localhost!"} =
               :erpc.call(node, Snex.Peer, :use_shared, [env_agent, "return hello"])
    end

    test "interpreters are used, and environments made and kept, by other nodes", %{node: node} do
      {:ok, interpreter} = start_interpreter()
      assert {:ok, 1} = :erpc.call(node, Snex, :pyeval, [interpreter, "return 1"])

      remote = Node.spawn_link(node, Snex.Peer, :hold, [interpreter, self(), 1])
      assert_receive {:made, [env]}
      assert Snex.pyeval(env, "x = 5; return x") == {:ok, 5}
      # Only where it was made can it be kept, and there it can be used again.
      assert_raise ArgumentError, ~r/was made on/, fn -> Env.disable_gc(env) end
      assert :erpc.call(node, Snex, :pyeval, [env, "return x"]) == {:ok, 5}
      assert environments(interpreter) == 1
      send(remote, :end)
      wait_until(fn -> environments(interpreter) == 0 end)
    end

    test "environments made by a node go with it", %{node: node} do
      {:ok, interpreter} = start_interpreter()
      Node.spawn(node, Snex.Peer, :hold, [interpreter, self(), 2])
      assert_receive {:made, [env, _other]}
      kept = :erpc.call(node, Env, :disable_gc, [env])
      assert environments(interpreter) == 2
      Node.spawn(node, :erlang, :halt, [0])
      wait_until(fn -> environments(interpreter) == 1 end)
      assert Snex.pyeval(kept, "return 1") == {:ok, 1}
      assert Snex.destroy_env(kept) == :ok
      wait_until(fn -> environments(interpreter) == 0 end)
    end
  end
end
