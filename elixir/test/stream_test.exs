defmodule Snex.StreamTest do
  use Snex.Case, async: true

  setup_all do
    %{interpreter: start_interpreter!()}
  end

  setup %{interpreter: interpreter} do
    {:ok, env} = Snex.make_env(interpreter)
    %{env: env}
  end

  defp streams(interpreter) do
    {:ok, info} = Snex.Interpreter.info(interpreter)
    info.streams
  end

  defp wait_for_none(interpreter), do: wait_until(fn -> streams(interpreter) == 0 end)

  defp mailbox, do: elem(Process.info(self(), :messages), 1)

  test "gives what is yielded", %{interpreter: interpreter, env: env} do
    code = "for n in range(stop): yield n * n"
    stream = Snex.stream(env, code, %{"stop" => 5})
    assert Enum.to_list(stream) == [0, 1, 4, 9, 16]
    assert Enum.to_list(stream) == [0, 1, 4, 9, 16]
    assert Snex.pyeval(env, "return stop, n") == {:ok, {5, 4}}
    assert interpreter |> Snex.stream(code, %{"stop" => 3}) |> Enum.sum() == 5
    assert interpreter |> Snex.stream("yield 1; yield [2]") |> Enum.to_list() == [1, [2]]
  end

  test "runs nothing before it is enumerated", %{env: env} do
    stream = Snex.stream(env, "ran = True\nyield 1")
    assert {:error, _} = Snex.pyeval(env, "return ran")
    assert Enum.to_list(stream) == [1]
    assert Snex.pyeval(env, "return ran") == {:ok, true}
  end

  test "gives what is returned, if that can be iterated", %{interpreter: interpreter} do
    assert interpreter |> Snex.stream("return {'a': 1}.items()") |> Enum.to_list() == [{"a", 1}]
    code = "import asyncio; await asyncio.sleep(0); return [1, 2]"
    assert interpreter |> Snex.stream(code) |> Enum.to_list() == [1, 2]

    assert_raise Snex.Error, ~r/the code returned an object of <class 'int'>/, fn ->
      interpreter |> Snex.stream("return 5") |> Enum.to_list()
    end
  end

  test "may await", %{interpreter: interpreter} do
    code = """
    import asyncio
    for n in range(5):
        await asyncio.sleep(0.001)
        yield n
    """

    assert interpreter |> Snex.stream(code) |> Enum.to_list() == [0, 1, 2, 3, 4]
  end

  test "may block, in a thread", %{interpreter: interpreter} do
    code =
      "import time, threading\nfor n in range(4): time.sleep(0.01); yield threading.main_thread() is not threading.current_thread()"

    stream = Snex.stream(interpreter, code, %{}, executor: :thread)
    assert Enum.to_list(stream) == [true, true, true, true]
  end

  test "is lazy, and is closed when no more is wanted", %{interpreter: interpreter, env: env} do
    {:ok, nil} = Snex.pyeval(env, "made = []; closed = []")

    code = """
    try:
        n = 0
        while True:
            made.append(n)
            yield n
            n += 1
    finally:
        closed.append(True)
    """

    assert env |> Snex.stream(code, max_demand: 4, min_demand: 0) |> Enum.take(6) == [
             0,
             1,
             2,
             3,
             4,
             5
           ]

    wait_for_none(interpreter)
    wait_until(fn -> Snex.pyeval(env, "return closed") == {:ok, [true]} end)
    assert {:ok, 8} = Snex.pyeval(env, "return len(made)")
    assert mailbox() == []
  end

  test "is closed when its consumer is killed", %{interpreter: interpreter, env: env} do
    {:ok, nil} = Snex.pyeval(env, "closed = []")
    code = "try:\n  while True: yield 1\nfinally: closed.append(1)"
    test = self()

    {pid, ref} =
      spawn_monitor(fn ->
        env |> Snex.stream(code) |> Stream.each(fn _ -> send(test, :got) end) |> Stream.run()
      end)

    assert_receive :got
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^ref, _, _, :killed}
    wait_until(fn -> Snex.pyeval(env, "return closed") == {:ok, [1]} end)
    wait_for_none(interpreter)
  end

  test "raises what Python raises, behind what came before", %{interpreter: interpreter} do
    test = self()
    code = "yield 1\nyield 2\nraise KeyError('none')"

    error =
      assert_raise Snex.Error, fn ->
        interpreter |> Snex.stream(code) |> Enum.each(&send(test, {:item, &1}))
      end

    assert error.code == :python_runtime_error
    assert error.type == "KeyError"
    assert Enum.join(error.traceback) =~ ~s(line 3, in <module>)
    assert_received {:item, 1}
    assert_received {:item, 2}
    wait_for_none(interpreter)
    assert mailbox() == []
  end

  test "raises for code that does not compile, and for items that have no term",
       %{interpreter: interpreter} do
    assert_raise Snex.Error, ~r/invalid syntax/, fn ->
      interpreter |> Snex.stream("yield yield yield (") |> Enum.to_list()
    end

    error =
      assert_raise Snex.Error, ~r/Cannot serialize object of <class 'object'>/, fn ->
        interpreter |> Snex.stream("yield 1\nyield object()") |> Enum.to_list()
      end

    assert not (error.reason =~ "(at ")
    wait_for_none(interpreter)
  end

  test "works with the functions of Stream and Task", %{interpreter: interpreter} do
    numbers = Snex.stream(interpreter, "for n in range(10): yield n")
    letters = Snex.stream(interpreter, "for c in 'abcdefghij': yield c")
    assert numbers |> Stream.zip(letters) |> Enum.at(9) == {9, "j"}
    assert numbers |> Stream.chunk_every(4) |> Enum.map(&Enum.sum/1) == [6, 22, 17]
    doubled = numbers |> Task.async_stream(&(2 * &1)) |> Enum.map(&elem(&1, 1))
    assert doubled == Enum.map(0..9, &(2 * &1))
    wait_for_none(interpreter)
    assert mailbox() == []
  end

  test "waits for each item as long as it is told", %{interpreter: interpreter} do
    code = "import asyncio\nyield 1\nawait asyncio.sleep(60)\nyield 2"
    stream = Snex.stream(interpreter, code, %{}, timeout: 100)
    error = assert_raise Snex.Error, fn -> Enum.to_list(stream) end
    assert error.code == :response_timeout
    wait_for_none(interpreter)
  end

  test "has large items in messages of their own", %{interpreter: interpreter} do
    code = "for n in range(20): yield 'x' * 100_000"
    stream = Snex.stream(interpreter, code, %{}, max_chunk_bytes: 250_000)
    assert stream |> Enum.map(&byte_size/1) |> Enum.sum() == 2_000_000
  end

  test "runs on a member of a pool" do
    pool = start_supervised!({Snex.Pool, size: 2, interpreter: Snex.Interpreter, name: nil})
    assert pool |> Snex.stream("for n in range(3): yield n") |> Enum.to_list() == [0, 1, 2]
  end

  test "tells of a Python that ends" do
    interpreter = start_interpreter!()

    error =
      assert_raise Snex.Error, fn ->
        interpreter
        |> Snex.stream("yield 1\nimport os; os._exit(3)", max_demand: 1)
        |> Enum.to_list()
      end

    assert error.code == :call_failed
  end

  test "checks its options", %{interpreter: interpreter} do
    for {opts, told} <- [
          {[nope: 1], ~r/unknown option :nope/},
          {[max_demand: 0], ~r/:max_demand is an integer of at least 1/},
          {[min_demand: 5, max_demand: 5], ~r/:min_demand is less than :max_demand/},
          {[executor: :here], ~r/:executor takes/},
          {[timeout: -1], ~r/:timeout takes/}
        ] do
      assert_raise ArgumentError, told, fn -> Snex.stream(interpreter, "yield 1", %{}, opts) end
    end

    assert_raise ArgumentError, ~r/code is a string/, fn ->
      Snex.stream(interpreter, ~c"yield 1")
    end
  end
end
