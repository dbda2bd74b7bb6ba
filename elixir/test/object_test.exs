defmodule Snex.ObjectTest do
  use Snex.Case, async: true

  alias Snex.Object

  setup_all do
    interpreter = start_interpreter!()
    {:ok, nil} = Snex.pyeval(interpreter, "import numpy", %{}, timeout: 60_000)
    %{interpreter: interpreter}
  end

  defp objects(interpreter) do
    {:ok, info} = Snex.Interpreter.info(interpreter)
    info.objects
  end

  defp keep!(target, code, vars \\ %{}) do
    assert {:ok, %Object{} = object} = Snex.pyeval(target, code, vars, keep: true)
    object
  end

  @counter """
  class Counter:
      def __init__(self): self.n = 0
      def add(self, k=1, *, times=1): self.n += k * times; return self.n
      async def later(self): return self.n
      def me(self): return self
      def fail(self): raise KeyError("no")
      def __iter__(self): return iter(range(self.n))
  return Counter()
  """

  test "is called, read, and given back", %{interpreter: interpreter} do
    counter = keep!(interpreter, @counter)
    assert Object.call(counter, "add") == {:ok, 1}
    assert Object.call(counter, :add, [2], kwargs: [times: 3]) == {:ok, 7}
    assert Object.call(counter, "add", [1], kwargs: %{"times" => 0}) == {:ok, 7}
    assert Object.call(counter, "later") == {:ok, 7}
    assert Object.get(counter, "n") == {:ok, 7}
    assert Snex.pyeval(counter, "self.n += by; return self.n", %{"by" => 1}) == {:ok, 8}
    assert Snex.pyeval(interpreter, "return c.n", %{"c" => counter}) == {:ok, 8}

    assert Snex.pyeval(interpreter, "return c[0]['c'].n", %{"c" => [%{"c" => counter}]}) ==
             {:ok, 8}

    {:ok, env} = Snex.make_env(interpreter, %{"c" => counter})
    assert Snex.pyeval(env, "return c.n") == {:ok, 8}
    assert Object.call(counter, "add", [counter]) |> elem(0) == :error
  end

  test "is kept by methods and attributes, too", %{interpreter: interpreter} do
    counter = keep!(interpreter, @counter)
    assert {:ok, %Object{} = same} = Object.call(counter, "me", [], keep: true)
    assert {:ok, %Object{} = method} = Object.get(same, "add", keep: true)
    assert Object.call(method, "__call__", [5]) == {:ok, 5}
    assert Object.get(counter, "n") == {:ok, 5}
    threaded = [keep: true, executor: :thread]
    assert {:ok, %Object{} = list} = Snex.pyeval(interpreter, "return [1]", %{}, threaded)
    assert Object.value(list) == {:ok, [1]}
  end

  test "says what it is", %{interpreter: interpreter} do
    assert inspect(keep!(interpreter, "return [1, 2]")) == "#Snex.Object<list [1, 2]>"
    assert inspect(keep!(interpreter, @counter)) =~ ~r/^#Snex.Object<.*Counter.*>$/
    array = keep!(interpreter, "import numpy; return numpy.zeros((100, 3))")
    assert inspect(array) == "#Snex.Object<ndarray 100x3>"
    assert String.length(inspect(keep!(interpreter, "return 'x' * 10000"))) < 100
  end

  test "is enumerated", %{interpreter: interpreter} do
    numbers = keep!(interpreter, "return range(10)")
    assert Enum.to_list(numbers) == Enum.to_list(0..9)
    assert Enum.take(numbers, 2) == [0, 1]
    assert Enum.count(numbers) == 10
    assert 3 in numbers
    assert Enum.at(numbers, 4) == 4
    assert_raise Snex.Error, fn -> interpreter |> keep!("return 5") |> Enum.to_list() end
  end

  test "is what code that yields is about", %{interpreter: interpreter} do
    numbers = keep!(interpreter, "return range(10)")
    code = "for n in self: yield n * by"
    assert numbers |> Snex.stream(code, %{"by" => 2}) |> Enum.to_list() == Enum.to_list(0..18//2)
    opts = [encoding_opts: [binary_as: :bytes], max_demand: 2]
    assert numbers |> Snex.stream("yield by", %{"by" => "x"}, opts) |> Enum.to_list() == ["x"]
    Object.free(numbers)

    assert_raise Snex.Error, fn ->
      numbers |> Snex.stream(code, %{"by" => 2}) |> Enum.to_list()
    end
  end

  test "raises what Python raises", %{interpreter: interpreter} do
    counter = keep!(interpreter, @counter)
    assert {:error, %Snex.Error{type: "KeyError"}} = Object.call(counter, "fail")
    assert {:error, %Snex.Error{type: "AttributeError"}} = Object.get(counter, "nope")
    assert {:error, %Snex.Error{reason: reason}} = Object.value(counter)
    assert reason =~ "Cannot serialize object of"
  end

  test "is let go when it is garbage", %{interpreter: _} do
    interpreter = start_interpreter!()

    task =
      Task.async(fn ->
        kept = for n <- 1..100, do: keep!(interpreter, "return [n]", %{"n" => n})
        {length(kept), objects(interpreter)}
      end)

    assert Task.await(task) == {100, 100}
    wait_until(fn -> objects(interpreter) == 0 end)
  end

  test "is not let go while a stream or a call has it as a variable", %{interpreter: interpreter} do
    # In functions of their own, or the compiler might keep the object for longer.
    stream = stream_of_one(interpreter)
    collect()
    assert Enum.to_list(stream) == [1, 2]
    assert Enum.to_list(stream) == [1, 2]

    pool = start_supervised!({Snex.Pool, size: 1, interpreter: Snex.Interpreter})
    test = self()

    waits =
      Task.async(fn ->
        receive do: ({:object, object} -> length_of(pool, object))
      end)

    send(waits.pid, {:object, keep!(pool, "return [1, 2]")})
    :erlang.garbage_collect()

    busy =
      Task.async(fn ->
        code = "import asyncio; await snex.send(test, 1); await asyncio.Event().wait()"
        Snex.pyeval(pool, code, %{"test" => test}, timeout: 1_000)
      end)

    assert_receive 1, 5_000
    send(waits.pid, :go)
    wait_until(fn -> Snex.Pool.info(pool).queue == 1 end)
    :erlang.garbage_collect(waits.pid)
    assert {:error, _} = Task.await(busy)
    assert Task.await(waits) == {:ok, 2}
  end

  defp stream_of_one(interpreter),
    do: Snex.stream(interpreter, "return it", %{"it" => keep!(interpreter, "return [1, 2]")})

  defp length_of(pool, object) do
    receive do: (:go -> :ok)
    Snex.pyeval(pool, "return len(o)", %{"o" => object})
  end

  defp collect do
    :erlang.garbage_collect()
    # What is let go is so in its order: this comes behind it.
    Process.sleep(50)
  end

  test "is let go by free, and when it is stopped", %{interpreter: interpreter} do
    one = keep!(interpreter, "return [1]")
    ref = Process.monitor(one.id)
    assert Object.free(one) == :ok
    assert Object.free(one) == :ok
    assert_receive {:DOWN, ^ref, _, _, :normal}
    assert {:error, %Snex.Error{code: :env_not_found}} = Object.get(one, "n")

    assert {:error, %Snex.Error{reason: reason}} =
             Snex.pyeval(interpreter, "return o", %{"o" => one})

    assert reason =~ "is no object of this node"
    two = keep!(interpreter, "return [1]")
    assert GenServer.stop(two.id) == :ok
  end

  test "of another Python is an error that says so", %{interpreter: interpreter} do
    other = keep!(start_interpreter!(), "return [1]")
    assert {:error, error} = Snex.pyeval(interpreter, "return o", %{"o" => other})
    assert error.reason =~ "belongs to another Python"
  end

  test "checks its arguments", %{interpreter: interpreter} do
    one = keep!(interpreter, "return [1]")
    assert_raise ArgumentError, ~r/is a string or an atom/, fn -> Object.call(one, 1) end
    assert_raise ArgumentError, ~r/unknown option :nope/, fn -> Object.get(one, "x", nope: 1) end

    assert_raise ArgumentError, ~r/:keep is true or false/, fn ->
      Snex.pyeval(interpreter, "return 1", %{}, keep: 1)
    end
  end

  test "of a pool stays on its member" do
    pool = start_supervised!({Snex.Pool, size: 2, interpreter: Snex.Interpreter})
    one = keep!(pool, "return [1]")
    assert Object.call(one, "append", [2]) == {:ok, nil}
    assert Object.value(one) == {:ok, [1, 2]}
    assert Enum.to_list(one) == [1, 2]
  end
end
