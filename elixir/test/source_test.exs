defmodule Snex.SourceTest do
  use Snex.Case, async: true

  setup_all do
    %{interpreter: start_interpreter!()}
  end

  @all "return [item async for item in snex.subscribe(source)]"

  defp ended?(source) do
    ref = Process.monitor(source.pid)
    assert_receive {:DOWN, ^ref, _, _, _}, 2_000
    true
  end

  test "is iterated over", %{interpreter: interpreter} do
    source = Snex.source(1..1_000)
    assert {:ok, items} = Snex.pyeval(interpreter, @all, %{"source" => source})
    assert items == Enum.to_list(1..1_000)
    assert ended?(source)
  end

  test "is iterated over in a thread", %{interpreter: interpreter} do
    code = "return [item for item in snex.subscribe(source)]"
    vars = %{"source" => Snex.source(1..1_000)}
    assert {:ok, items} = Snex.pyeval(interpreter, code, vars, executor: :thread)
    assert length(items) == 1_000
    vars = %{"source" => Snex.source(1..10)}
    assert {:ok, items} = Snex.pyeval(interpreter, @all, vars, executor: :thread)
    assert items == Enum.to_list(1..10)
  end

  test "runs as far as it is asked for", %{interpreter: interpreter} do
    test = self()

    source =
      Snex.source(Stream.map(Stream.iterate(0, &(&1 + 1)), &tap(&1, fn n -> send(test, n) end)))

    code = """
    async for item in snex.subscribe(source, max_demand=4, min_demand=0):
        if item == 5: break
    return item
    """

    assert Snex.pyeval(interpreter, code, %{"source" => source}) == {:ok, 5}
    assert ended?(source)
    assert_received 7
    refute_received 8
  end

  test "is closed with the evaluation", %{interpreter: interpreter} do
    test = self()
    close = fn _ -> send(test, :closed) end
    source = Snex.source(Stream.resource(fn -> 0 end, &{[&1], &1 + 1}, close))
    {:ok, env} = Snex.make_env(interpreter)
    code = "kept = snex.subscribe(source); return await kept.__anext__()"
    assert Snex.pyeval(env, code, %{"source" => source}) == {:ok, 0}
    assert ended?(source)
    assert_receive :closed
  end

  test "that raises raises in Python", %{interpreter: interpreter} do
    source =
      Snex.source(Stream.map(1..3, &if(&1 == 3, do: raise(ArgumentError, "no three"), else: &1)))

    code = """
    seen = []
    try:
        async for item in snex.subscribe(source): seen.append(item)
    except snex.ProducerError as error:
        return seen, str(error), error.reason[1]["type"]
    """

    assert {:ok, {[1, 2], text, "ArgumentError"}} =
             Snex.pyeval(interpreter, code, %{"source" => source})

    assert text =~ "ArgumentError: no three"
  end

  test "that is killed raises in Python", %{interpreter: interpreter} do
    source = Snex.source(Stream.repeatedly(fn -> Process.sleep(:infinity) end))
    test = self()

    task =
      Task.async(fn ->
        send(test, :go)
        Snex.pyeval(interpreter, @all, %{"source" => source})
      end)

    assert_receive :go
    Process.exit(source.pid, :kill)
    assert {:error, %Snex.Error{type: "snex.ProducerError"} = error} = Task.await(task)
    assert error.reason =~ "killed" or error.reason =~ "noproc"
  end

  test "ends with the process that made it" do
    source = Task.async(fn -> Snex.source(1..3) end) |> Task.await()
    assert ended?(source)
  end

  test "gives what is slow at once", %{interpreter: interpreter} do
    source = Snex.source(Stream.interval(20))

    code = """
    async for item in snex.subscribe(source):
        if item == 2: return item
    """

    assert Snex.pyeval(interpreter, code, %{"source" => source}) == {:ok, 2}
  end

  test "and a stream are a pipeline", %{interpreter: interpreter} do
    code = "async for x in snex.subscribe(source): yield x * 2"
    stream = Snex.stream(interpreter, code, %{"source" => Snex.source(1..100_000)})
    assert Enum.sum(stream) == 100_000 * 100_001
  end

  test "may be any producer, by pid or name", %{interpreter: interpreter} do
    name = :"producer_#{System.unique_integer([:positive])}"
    Process.register(Snex.source(1..3).pid, name)
    vars = %{"source" => name}
    assert Snex.pyeval(interpreter, @all, vars) == {:ok, [1, 2, 3]}
    vars = %{"source" => {name, node()}}
    assert {:error, %Snex.Error{reason: reason}} = Snex.pyeval(interpreter, @all, vars)
    assert reason =~ "noproc"
  end

  test "structs in it are encoded", %{interpreter: interpreter} do
    vars = %{"source" => Snex.source([Snex.Serde.binary("x", :bytes)])}
    code = "return [type(item).__name__ async for item in snex.subscribe(source)]"
    assert Snex.pyeval(interpreter, code, vars) == {:ok, ["bytes"]}
  end
end
