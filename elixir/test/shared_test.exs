defmodule Snex.SharedTest do
  @moduledoc "Large data in memory that both sides map, and that it is gone when it is to be."
  use Snex.Case, async: false

  alias Snex.{Arrow, Shared, Tensor}
  alias Snex.Shared.Arena

  # Regions that this BEAM or a Python has, by descriptor, and how many are mapped.
  defp files(os_pid) do
    for file <- File.ls!("/proc/#{os_pid}/fd"),
        {:ok, "/memfd:snex" <> _} <- [File.read_link("/proc/#{os_pid}/fd/#{file}")],
        do: String.to_integer(file)
  end

  defp mapped(os_pid) do
    "/proc/#{os_pid}/maps"
    |> File.read!()
    |> String.split("\n")
    |> Enum.count(&String.contains?(&1, "/memfd:snex"))
  end

  defp here, do: System.pid()

  defp bytes(size), do: :crypto.strong_rand_bytes(size)

  @as_bytes [encoding_opts: [binary_as: :bytes]]
  @options [shared: true] ++ @as_bytes

  defp node_of(interpreter) do
    case Snex.Runtimes.find(interpreter) do
      {:ok, _, {:snex, node}} -> node
      {:ok, _, pid} -> node(pid)
    end
  end

  # How many regions Python has lent, and how many are free.
  defp counts_of(interpreter) do
    code = """
    import gc
    from snex_runtime.lending import Arena
    return next(each.counts for each in gc.get_objects() if isinstance(each, Arena))
    """

    {:ok, counts} = Snex.pyeval(interpreter, code)
    counts
  end

  defp pair(interpreter), do: Arena.pair(node_of(interpreter))

  # Nothing of what tests have lent, and what has been lent to them, is left.
  setup do
    before = File.ls!("/dev/shm")
    on_exit(fn -> assert File.ls!("/dev/shm") -- before == [] end)
    wait_until(fn -> match?({0, _}, Arena.counts()) and :erlang.garbage_collect() end)
  end

  # A process of its own has what comes from Python, and drops it when it ends.
  defp apart(fun), do: fun |> Task.async() |> Task.await(60_000)

  describe "both ways" do
    setup do
      %{interpreter: start_interpreter!()}
    end

    test "what is large, wherever it is", %{interpreter: interpreter} do
      [a, b, c, d] = for size <- [262_144, 300_000, 1_000_000, 262_143], do: bytes(size)
      value = %{"a" => a, "list" => [1, {b, "small"}, %{"in" => [c]}, d], :atom => nil}
      assert {:ok, ^value} = Snex.pyeval(interpreter, "return x", %{"x" => value}, @options)
      assert pair(interpreter) == {true, true}

      code = """
      a, items = x[b'a'], x[b'list']
      return [len(a)] + [type(v).__name__ for v in items], items[1][0] == y
      """

      types = [262_144, "int", "tuple", "dict", "bytes"]

      assert {:ok, {^types, true}} =
               Snex.pyeval(interpreter, code, %{"x" => value, "y" => b}, @options)
    end

    test "what it is lent in, and what is not lent", %{interpreter: interpreter} do
      code = """
      count = sum(1 for line in open('/proc/self/maps') if '/memfd:snex' in line)
      return count, x.nbytes, y.nbytes
      """

      large = %Tensor{type: {:u, 8}, shape: {262_144}, data: bytes(262_144)}
      small = %Tensor{type: {:u, 8}, shape: {262_143}, data: bytes(262_143)}
      assert {:ok, _} = Snex.pyeval(interpreter, "import numpy", shared: true)

      assert {:ok, {1, 262_144, 262_143}} =
               Snex.pyeval(interpreter, code, %{"x" => large, "y" => small}, shared: true)

      assert {:ok, {0, _, _}} =
               Snex.pyeval(interpreter, code, %{"x" => large, "y" => small}, shared: false)

      assert {:ok, {0, _, _}} = Snex.pyeval(interpreter, code, %{"x" => large, "y" => small})
      env_code = "return x.nbytes"
      assert {:ok, env} = Snex.make_env(interpreter, %{"x" => large}, shared: true)
      assert {:ok, 262_144} = Snex.pyeval(env, env_code)
      assert mapped(Interpreter.os_pid(interpreter)) >= 1
    end

    test "text, under the options that there are", %{interpreter: interpreter} do
      text = String.duplicate("é", 200_000)
      code = "return type(x).__name__, x"
      assert {:ok, {"str", ^text}} = Snex.pyeval(interpreter, code, %{"x" => text}, shared: true)

      for as <- [:bytes, :bytearray] do
        options = [shared: true, encoding_opts: [binary_as: as]]
        name = to_string(as)
        assert {:ok, {^name, ^text}} = Snex.pyeval(interpreter, code, %{"x" => text}, options)
      end

      options = [shared: true, encoding_opts: [atom_as: :distinct_atom]]
      assert {:ok, {_, ^text}} = Snex.pyeval(interpreter, code, %{"x" => text}, options)

      assert {:error, %Error{code: :python_runtime_error, reason: reason}} =
               Snex.pyeval(interpreter, code, %{"x" => <<255>> <> text}, shared: true)

      assert reason =~ "utf-8"
    end

    test "long lists that are arranged", %{interpreter: interpreter} do
      rows = for n <- 1..130, do: %{"n" => n, "data" => if(n == 7, do: bytes(300_000), else: "")}
      assert {:ok, ^rows} = Snex.pyeval(interpreter, "return x", %{"x" => rows}, @options)
    end

    test "tensors", %{interpreter: interpreter} do
      data = for n <- 1..100_000, into: "", do: <<n::float-32-little>>
      tensor = %Tensor{type: {:f, 32}, shape: {2, 50_000}, data: data}
      code = "return x.T, x.flags.writeable, x.flags.aligned, float(x[1, 0])"

      assert {:ok, {%Tensor{shape: {50_000, 2}, type: {:f, 32}}, false, true, 50_001.0}} =
               Snex.pyeval(interpreter, code, %{"x" => tensor}, shared: true)

      assert {:ok, [^tensor]} =
               Snex.pyeval(interpreter, "return [x]", %{"x" => tensor}, shared: true)

      # What Python does not look into comes back as it is.
      options = [shared: true, encoding_opts: [tensor_as: :term]]
      assert {:ok, ^tensor} = Snex.pyeval(interpreter, "return x", %{"x" => tensor}, options)
    end

    test "tables", %{interpreter: interpreter} do
      {:ok, nil} = Snex.pyeval(interpreter, "import pyarrow", %{}, timeout: 60_000)
      code = "import pyarrow; return pyarrow.table({'a': list(range(100_000))})"
      assert {:ok, %Arrow{} = table} = Snex.pyeval(interpreter, code, shared: true)
      assert byte_size(table.data) > 800_000
      code = "return type(x).__module__, x.num_rows, x['a'][99_999].as_py()"

      assert {:ok, {"pyarrow.lib", 100_000, 99_999}} =
               Snex.pyeval(interpreter, code, %{"x" => table}, shared: true)
    end

    test "what stands for itself is not touched", %{interpreter: interpreter} do
      large = bytes(300_000)
      improper = [large | large]
      vars = %{"x" => [Serde.term(large), improper, MapSet.new([large]), %{large => 1}]}

      assert {:ok, [^large, ^improper, set, %{^large => 1}]} =
               Snex.pyeval(interpreter, "return x", vars, @options)

      assert MapSet.to_list(set) == [large]
    end

    test "in a thread, and with code that awaits", %{interpreter: interpreter} do
      large = bytes(300_000)
      code = "import asyncio; await asyncio.sleep(0.001); return x"

      for code <- ["return x", code], executor <- [:loop, :thread] do
        options = [executor: executor] ++ @options
        assert {:ok, ^large} = Snex.pyeval(interpreter, code, %{"x" => large}, options)
      end
    end

    test "memory is used again when it has been dropped", %{interpreter: interpreter} do
      python = Interpreter.os_pid(interpreter)

      for _ <- 1..20 do
        large = bytes(300_000)

        apart(fn ->
          assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @options)
        end)

        # Python has dropped its view, and this node has.
        wait_until(fn ->
          match?({0, _}, Arena.counts()) and match?({0, _}, counts_of(interpreter))
        end)
      end

      # One for each way, of that size, and those of the probes.
      assert length(files(here())) <= 3
      assert length(files(python)) <= 4
    end

    test "what is kept stays as it is while other data comes", %{interpreter: interpreter} do
      kept = for _ <- 1..4, do: bytes(400_000)
      {:ok, env} = Snex.make_env(interpreter)

      view = fn data ->
        %Tensor{type: {:u, 8}, shape: {byte_size(data)}, data: data}
      end

      vars = for {data, n} <- Enum.with_index(kept), into: %{}, do: {"x#{n}", view.(data)}
      assert {:ok, nil} = Snex.pyeval(env, nil, vars, shared: true)
      code = "import numpy; y = numpy.frombuffer(x, 'u1').copy(); return y"
      {:ok, _} = Snex.pyeval(interpreter, "import numpy", shared: true)

      taken =
        for _ <- 1..10 do
          data = bytes(400_000)
          vars = %{"x" => view.(data)}
          assert {:ok, %Tensor{data: back}} = Snex.pyeval(env, code, vars, shared: true)
          {data, back}
        end

      for {data, back} <- taken, do: assert(back == data)
      code = "return [x0.tobytes(), x1.tobytes(), x2.tobytes(), x3.tobytes()]"
      assert {:ok, ^kept} = Snex.pyeval(env, code)
      :ok = Snex.destroy_env(env)
      wait_until(fn -> match?({0, _}, Arena.counts()) end)
    end

    test "a caller that is killed", %{interpreter: interpreter} do
      {:ok, env} = Snex.make_env(interpreter)
      {:ok, nil} = Snex.pyeval(interpreter, "import numpy", shared: true)
      test = self()
      tensor = %Tensor{type: {:u, 8}, shape: {300_000}, data: bytes(300_000)}

      caller =
        spawn(fn ->
          send(test, :calls)
          code = "import asyncio; await asyncio.Event().wait(); return x"
          Snex.pyeval(interpreter, code, %{"x" => tensor}, shared: true, timeout: :infinity)
        end)

      assert_receive :calls
      python = Interpreter.os_pid(interpreter)
      wait_until(fn -> mapped(python) >= 1 and match?({1, _}, Arena.counts()) end)
      Process.exit(caller, :kill)
      # Python cancels the work, and drops what it had; from 3.12 on when it collects garbage.
      wait_until(fn ->
        {:ok, nil} = Snex.pyeval(interpreter, "import gc; gc.collect()")
        match?({0, _}, Arena.counts())
      end)

      assert {:ok, nil} = Snex.pyeval(env, "x = 1", shared: true)
    end

    test "what nobody takes is closed in the end", %{interpreter: interpreter} do
      test = self()

      caller =
        spawn(fn ->
          {:ok, %Shared{id: id}} = Arena.lend(bytes(300_000), node_of(interpreter))
          send(test, {:lent, id})
          receive do: (:end -> :ok)
        end)

      assert_receive {:lent, id}
      send(caller, :end)
      assert {1, _} = Arena.counts()
      before = length(files(here()))
      # As the timer does.
      send(Arena.pid(), {:expired, id})
      assert {0, _} = Arena.counts()
      assert length(files(here())) == before - 1
    end

    test "Python that is killed" do
      {:ok, interpreter} = start_interpreter()
      python = Interpreter.os_pid(interpreter)
      large = bytes(300_000)
      {:ok, env} = Snex.make_env(interpreter)
      {:ok, nil} = Snex.pyeval(env, nil, %{"x" => tensor(large)}, shared: true)
      {:ok, %Tensor{data: taken}} = Snex.pyeval(env, "return x", shared: true)
      assert {1, _} = Arena.counts()
      assert mapped(python) >= 1
      node = node_of(interpreter)
      kill("KILL", python)
      assert_receive {:EXIT, ^interpreter, _}, 10_000
      wait_until(fn -> match?({0, _}, Arena.counts()) and Arena.pair(node) == nil end)
      # What it lent is there as long as it is needed, and nothing else.
      wait_until(fn -> {files(here()), mapped(here())} == {[], 1} end)
      assert taken == large
      assert {:error, %Error{code: :call_failed}} = Snex.pyeval(env, "return 1", shared: true)
    end
  end

  defp tensor(data), do: %Tensor{type: {:u, 8}, shape: {byte_size(data)}, data: data}

  describe "a BEAM" do
    test "that is killed leaves nothing, and Python closes what it had lent" do
      name = :"shared-#{System.pid()}-#{System.unique_integer([:positive])}@127.0.0.1"
      start_node(name)

      code = """
      {:ok, interpreter} = Snex.Interpreter.start_link(node: #{inspect(name)}, cookie: #{inspect(Node.get_cookie())})
      {:ok, env} = Snex.make_env(interpreter)
      large = :crypto.strong_rand_bytes(300_000)
      tensor = %Snex.Tensor{type: {:u, 8}, shape: {300_000}, data: large}
      {:ok, nil} = Snex.pyeval(env, nil, %{"x" => tensor}, shared: true)
      {:ok, %Snex.Tensor{data: ^large} = taken} = Snex.pyeval(env, "return x", shared: true)
      tell.({System.pid(), Snex.Interpreter.os_pid(interpreter), Snex.Shared.Arena.counts()})
      Process.sleep(:infinity)
      :erlang.phash2(taken)
      """

      port = to_charlist(System.get_env("ERL_EPMD_PORT") || "4369")
      beam = Snex.Beam.start(code, env: [{~c"ERL_EPMD_PORT", port}])
      {beam_pid, python, {1, _}} = Snex.Beam.told(beam)
      # One that it has lent, and one that it has mapped.
      assert mapped(python) == 1
      # And what it was asked with at first, if that has not been collected.
      assert mapped(beam_pid) in 1..2
      assert length(files(python)) >= 1
      Snex.Beam.kill(beam_pid)
      # Its environments have gone with it.
      wait_until(fn -> {files(python), mapped(python)} == {[], 0} end, 10_000)
      {:ok, interpreter} = Interpreter.start_link(node: name)
      large = bytes(300_000)
      assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @options)
    end

    test "shares with the environments of workers, and not with the front" do
      name = :"shared-#{System.pid()}-#{System.unique_integer([:positive])}@127.0.0.1"
      start_node(name, ["--workers", "2"])
      {:ok, interpreter} = Interpreter.start_link(node: name, shared: true)
      large = bytes(300_000)
      assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @options)
      assert pair(interpreter) == {false, false}
      {:ok, env} = Snex.make_env(interpreter)
      assert {:ok, ^large} = Snex.pyeval(env, "return x", %{"x" => large}, @options)
      assert Arena.pair(node(env.id)) == {true, true}
    end
  end

  describe "where it is not possible" do
    defp plain!(interpreter) do
      large = bytes(300_000)
      code = "return x, sum(1 for line in open('/proc/self/maps') if '/memfd:snex' in line)"
      vars = %{"x" => large}
      assert {:ok, {^large, 0}} = Snex.pyeval(interpreter, code, vars, @options)
      assert {:ok, env} = Snex.make_env(interpreter, %{"x" => large}, @options)
      assert {:ok, ^large} = Snex.pyeval(env, "return x", @options)
    end

    test "Python has no such memory" do
      script = "import snex_runtime.regions as regions\nregions.SUPPORTED = False"
      interpreter = start_interpreter!(init_script: script)
      plain!(interpreter)
      assert pair(interpreter) == {false, false}
    end

    test "the number of the process means another one there" do
      case System.cmd("unshare", ["--pid", "--fork", "--mount-proc", "true"],
             stderr_to_stdout: true
           ) do
        {_, 0} ->
          wrap = fn python, args ->
            {"unshare", ["--pid", "--fork", "--kill-child", "--mount-proc", "--", python | args]}
          end

          interpreter = start_interpreter!(wrap_exec: wrap)
          plain!(interpreter)
          assert pair(interpreter) == {false, false}

        _not_permitted ->
          :ok
      end
    end

    test "Python is older and does not know of it" do
      script = """
      import snex_runtime.lending as lending
      from snex_runtime.errors import BadRequest
      def refuse(*_):
          raise BadRequest("unknown request: shared")
      lending.Lending._probed = refuse
      """

      interpreter = start_interpreter!(init_script: script)
      plain!(interpreter)
      assert pair(interpreter) == {false, false}
    end

    test "Python does not answer in time: then it is tried again" do
      interpreter = start_interpreter!()
      large = bytes(300_000)
      blocked = Task.async(fn -> Snex.pyeval(interpreter, "import time; time.sleep(1.5)") end)
      wait_until(fn -> match?({:ok, _}, Task.yield(blocked, 0)) or busy?(interpreter) end)
      assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @options)
      Task.await(blocked)
      assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @options)
      assert pair(interpreter) == {true, true}
    end

    # It answers nobody.
    defp busy?(interpreter),
      do: match?({:error, %Error{code: :response_timeout}}, Interpreter.info(interpreter, 50))

    test "Elixir has no NIF: it reads what Python lends" do
      interpreter = start_interpreter!()
      :persistent_term.put(Snex.Nif, false)
      large = bytes(300_000)

      try do
        assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @options)
        assert pair(interpreter) == {false, true}
        code = "import numpy; return [numpy.ones(300_000, 'u1')]"
        assert {:ok, [%Tensor{data: data}]} = Snex.pyeval(interpreter, code, shared: true)
        assert data == :binary.copy(<<1>>, 300_000)
        hostile(interpreter)
        # It was copied, and Python has its own back.
        python = Interpreter.os_pid(interpreter)
        assert length(files(python)) <= 3
      after
        :persistent_term.put(Snex.Nif, true)
      end
    end
  end

  describe "handles" do
    # Python has something that it lends as what it is not.
    defp hostile(interpreter) do
      good = lent(interpreter)
      assert {:ok, ""} = Shared.open(good)
      {:ok, other} = Snex.pyeval(interpreter, "f = open('/proc/self/maps'); return f.fileno()")

      for bad <- [
            %{good | id: <<0::128>>},
            %{good | size: 1},
            %{good | size: 0xFFFFFFFFFFFF},
            %{good | size: 0xFFFFFFFFFFFFFFFFFF},
            %{good | size: -1},
            %{good | fd: 0},
            %{good | fd: other},
            %{good | fd: 1_000_000},
            %{good | fd: -1},
            %{good | fd: 0x80000000},
            %{good | os_pid: 0},
            %{good | os_pid: -1},
            %{good | os_pid: 4_194_305},
            %{good | os_pid: "1"},
            %{good | os_pid: List.to_integer(:os.getpid())},
            %{good | id: "short"},
            %{good | id: nil},
            %{good | owner: :pid}
          ] do
        assert {:error, why} = Shared.open(bad)
        assert is_atom(why)
      end
    end

    defp lent(interpreter) do
      {:ok, _, target} = Snex.Runtimes.find(interpreter)
      assert {:ok, {_, %Shared{} = handle}} = GenServer.call(target, {:shared, nil})
      handle
    end

    test "that are not good are refused" do
      hostile(start_interpreter!())
    end

    test "that are not good are an error of their call, on both sides" do
      interpreter = start_interpreter!()

      code = """
      import snex
      return [{'__struct__': snex.Atom('Elixir.Snex.Shared'), 'size': 5}]
      """

      names = ~w(os_pid fd id size owner)
      fields = Enum.map_join(names, ", ", &"snex.Atom('#{&1}'): None")

      code =
        String.replace(code, "'__struct__':", "snex.Atom('__struct__'):")
        |> String.replace("'size': 5", fields)

      assert {:error, %Error{code: :internal_error, reason: reason}} =
               Snex.pyeval(interpreter, code, shared: true)

      assert reason =~ "shared memory of Python cannot be read"
      # Without the option nobody looks.
      assert {:ok, [%Shared{}]} = Snex.pyeval(interpreter, code)

      handle = %{lent(interpreter) | id: <<1::128>>}

      assert {:error, %Error{code: :python_runtime_error, reason: reason}} =
               Snex.pyeval(interpreter, "return x", %{"x" => [handle]})

      assert reason == "shared data of 0 bytes cannot be read: it holds something else by now"
      assert {:ok, 1} = Snex.pyeval(interpreter, "return 1")
    end

    test "do not show their ids" do
      handle = lent(start_interpreter!())
      assert inspect(handle) == "#Snex.Shared<size: 0, ...>"
    end
  end

  describe "the option" do
    test "of an interpreter is the default of its calls" do
      interpreter = start_interpreter!(shared: true)
      large = bytes(300_000)
      assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @as_bytes)
      assert pair(interpreter) == {true, true}
      {:ok, env} = Snex.make_env(interpreter, %{"x" => tensor(large)})
      assert mapped(Interpreter.os_pid(interpreter)) >= 1
      assert {:ok, %Tensor{data: ^large}} = Snex.pyeval(env, "return x")
    end

    test "goes through standard input and output" do
      interpreter = start_interpreter!(shared: true, port_opts: [:use_stdio])
      large = bytes(300_000)
      assert {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, @as_bytes)
      assert pair(interpreter) == {true, true}
      wait_until(fn -> match?({0, _}, Arena.counts()) end)
    end

    test "of an interpreter can be taken back by a call" do
      interpreter = start_interpreter!(shared: true)
      options = [shared: false] ++ @as_bytes
      assert {:ok, _} = Snex.pyeval(interpreter, "return x", %{"x" => bytes(300_000)}, options)
      assert pair(interpreter) == nil
    end

    test "of the members of a pool" do
      options = [size: 2, interpreter: [python: python(), shared: true]]
      pool = start_supervised!({Snex.Pool, options})

      large = bytes(300_000)

      tasks =
        for _ <- 1..8 do
          Task.async(fn -> Snex.pyeval(pool, "return x", %{"x" => large}, @as_bytes) end)
        end

      for task <- tasks, do: assert({:ok, ^large} = Task.await(task))
      {:ok, env} = Snex.make_env(pool, %{"x" => large}, @options)
      assert {:ok, ^large} = Snex.pyeval(env, "return x", shared: true)
      assert Arena.pair(node(env.id)) == {true, true}
    end

    test "takes true or false" do
      message = ~r/:shared takes true or false, got: :yes/
      interpreter = start_interpreter!()

      assert_raise ArgumentError, message, fn ->
        Snex.pyeval(interpreter, "return 1", shared: :yes)
      end

      assert_raise ArgumentError, message, fn -> Snex.make_env(interpreter, shared: :yes) end
      assert_raise ArgumentError, message, fn -> Interpreter.start_link(shared: :yes) end
    end

    test "goes with timeouts, and with encoding_opts in front" do
      interpreter = start_interpreter!()
      options = [timeout: 50] ++ @options
      code = "import asyncio; await asyncio.Event().wait(); return x"

      assert {:ok, nil} = Snex.pyeval(interpreter, "return None", shared: true)

      assert {:error, %Error{code: :response_timeout}} =
               Snex.pyeval(interpreter, code, %{"x" => bytes(300_000)}, options)

      wait_until(fn -> match?({0, _}, Arena.counts()) end)
    end
  end

  describe "memory" do
    defp status(os_pid, name) do
      status = File.read!("/proc/#{os_pid}/status")
      [_, kib] = Regex.run(~r/^#{name}:\s+(\d+) kB/m, status)
      String.to_integer(kib) * 1024
    end

    # By how many bytes what the processes have resident rises at the most, while `fun` runs.
    defp rise(os_pids, fun) do
      :erlang.garbage_collect()
      for os_pid <- os_pids, do: File.write!("/proc/#{os_pid}/clear_refs", "5")
      before = for os_pid <- os_pids, do: status(os_pid, "VmRSS")
      apart(fun)
      for {os_pid, had} <- Enum.zip(os_pids, before), do: status(os_pid, "VmHWM") - had
    end

    test "of large data is held twice by who makes it, and once by who gets it" do
      interpreter = start_interpreter!(shared: true)
      {:ok, nil} = Snex.pyeval(interpreter, "import numpy, pyarrow")
      {:ok, nil} = Snex.pyeval(interpreter, "import pyarrow.ipc; pyarrow.table({'a': [1]})")
      pids = [here(), Interpreter.os_pid(interpreter)]
      size = 64 * 1024 * 1024
      # Both lend something before, so that what is used again is seen as well.
      for _ <- 1..2 do
        [beam, python] =
          rise(pids, fn ->
            x = tensor(:binary.copy(<<7>>, size))
            code = "return int(x.max()) + x.nbytes"
            assert {:ok, n} = Snex.pyeval(interpreter, code, %{"x" => x})
            assert n == size + 7
          end)

        assert beam < 2.2 * size
        assert python < 1.2 * size

        for made <- ["y", "pyarrow.table({'a': y})"] do
          code = "import numpy, pyarrow; y = numpy.full(#{size}, 7, 'u1'); return #{made}"

          [beam, python] =
            rise(pids, fn ->
              assert {:ok, %{data: data}} = Snex.pyeval(interpreter, code)
              assert :binary.last(data) in [7, 0]
              :crypto.hash(:md5, data)
            end)

          assert beam < 1.2 * size
          assert python < 2.2 * size
        end
      end
    end
  end

  test "regions are bounded, and what is beyond is sent" do
    interpreter = start_interpreter!()
    parts = for _ <- 1..140, do: bytes(262_144)
    assert {:ok, ^parts} = Snex.pyeval(interpreter, "return x", %{"x" => parts}, @options)
    assert length(files(here())) <= 128
    wait_until(fn -> match?({0, _}, Arena.counts()) end)
  end
end
