defmodule Snex.SerdeTest do
  use Snex.Case, async: true
  doctest Snex.Code
  doctest Snex.Error
  doctest Snex.Sigils

  defmodule Plain do
    defstruct [:a]
  end

  defmodule Encoded do
    defstruct [:a]
  end

  defmodule ToItself do
    defstruct [:a]
  end

  defmodule ToAnother do
    defstruct [:a]
  end

  defimpl Snex.Serde.Encoder, for: Encoded do
    def encode(struct), do: {"encoded", struct.a}
  end

  defimpl Snex.Serde.Encoder, for: ToItself do
    def encode(struct), do: %{struct | a: {"wrapped", struct.a}}
  end

  defimpl Snex.Serde.Encoder, for: ToAnother do
    def encode(struct), do: [%Encoded{a: struct.a}]
  end

  defmodule Answers do
    def encoded(value), do: %Encoded{a: value}
    def plain(value), do: %Plain{a: value}
    def to_itself(value), do: %ToItself{a: value}
    def raises(value), do: raise(ArgumentError, "no #{value}")
    def throws(value), do: throw(value)
    def exits(value), do: exit(value)
    def callers, do: Process.get(:"$callers")
    def tell(pid), do: send(pid, {:callers, Process.get(:"$callers")})
  end

  setup_all do
    {:ok, interpreter: start_supervised!({Interpreter, python: python()})}
  end

  defp repr(interpreter, value, opts \\ []),
    do: Snex.pyeval(interpreter, "return repr(x)", %{"x" => value}, opts)

  defp there_and_back(interpreter, value),
    do: Snex.pyeval(interpreter, "return x", %{"x" => value})

  test "converts by the table", %{interpreter: i} do
    for {term, repr} <- [
          {nil, "None"},
          {true, "True"},
          {:foo, "snex.Atom('foo')"},
          {12, "12"},
          {1.5, "1.5"},
          {2 ** 100, "1267650600228229401496703205376"},
          {"text", "'text'"},
          {Serde.binary("b"), "b'b'"},
          {Serde.binary(["b", "c"], :bytearray), "bytearray(b'bc')"},
          {Serde.binary("b", :str), "'b'"},
          {Serde.float(:inf), "inf"},
          {Serde.float(:"-inf"), "-inf"},
          {Serde.float(:nan), "nan"},
          {Serde.float(0.5), "0.5"},
          {Serde.object("datetime", "date", [2025, 12, 28]), "datetime.date(2025, 12, 28)"},
          {Serde.object("builtins", "list", [[Serde.binary("x")]]), "[b'x']"},
          {MapSet.new([1]), "{1}"},
          {MapSet.new([Serde.binary("x")]), "{b'x'}"},
          {[1, {2, "3"}], "[1, (2, '3')]"},
          {%{"k" => %{1 => []}}, "{'k': {1: []}}"}
        ] do
      assert repr(i, term) == {:ok, repr}
    end

    for {value, back} <- [inf: :inf, "-inf": :"-inf", nan: :nan] do
      assert there_and_back(i, Serde.float(value)) == {:ok, back}
    end
  end

  test "brings everything back", %{interpreter: i} do
    for term <- [
          self(),
          make_ref(),
          &String.length/1,
          <<5::3>>,
          [1 | 2],
          %{:a => MapSet.new([1, "x"]), 2 => [nil, true, :atom, {}]},
          ~T[12:00:00],
          1..10
        ] do
      assert there_and_back(i, term) == {:ok, term}
      assert there_and_back(i, Serde.term(term)) == {:ok, term}
    end

    assert {:ok, fun} = there_and_back(i, fn x -> x * 2 end)
    assert fun.(21) == 42
  end

  test "takes encoding options", %{interpreter: i} do
    assert repr(i, "b", encoding_opts: [binary_as: :bytes]) == {:ok, "b'b'"}
    assert repr(i, "b", encoding_opts: [binary_as: :bytearray]) == {:ok, "bytearray(b'b')"}
    assert repr(i, MapSet.new(), encoding_opts: [set_as: :frozenset]) == {:ok, "frozenset()"}

    assert repr(i, :a, encoding_opts: [atom_as: :distinct_atom]) ==
             {:ok, "snex.DistinctAtom('a')"}
  end

  test "has dates, numbers and the like as Python's own where that is asked for", %{
    interpreter: i
  } do
    native = [encoding_opts: [structs_as: :native]]

    for {term, repr} <- [{~D[2026-02-28], "datetime.date(2026, 2, 28)"}, {1..3, "range(1, 4)"}] do
      assert repr(i, term, native) == {:ok, repr}
      many = "[" <> Enum.map_join(1..200, ", ", fn _ -> repr end) <> "]"
      assert repr(i, List.duplicate(term, 200), native) == {:ok, many}
    end
  end

  test "gets what this Elixir has, in the first answer already" do
    {:ok, i} = Interpreter.start_link(python: python())

    code =
      "import datetime\nreturn [datetime.timedelta(seconds=1.5), {1}, datetime.date(2026, 2, 28)]"

    assert {:ok, [length, set, ~D[2026-02-28]]} = Snex.pyeval(i, code)
    assert set == MapSet.new([1])

    if Code.ensure_loaded?(Duration) do
      assert %{__struct__: Duration, second: 1, microsecond: {500_000, 6}} = length
    else
      assert length == 1_500_000
    end
  end

  test "encodes structs by the protocol, recursively", %{interpreter: i} do
    assert repr(i, %Encoded{a: 1}) == {:ok, "('encoded', 1)"}
    assert repr(i, [%{"k" => {%Encoded{a: 1}}}]) == {:ok, "[{'k': (('encoded', 1),)}]"}
    assert repr(i, %Encoded{a: %Encoded{a: 1}}) == {:ok, "('encoded', ('encoded', 1))"}
    assert repr(i, %ToAnother{a: 1}) == {:ok, "[('encoded', 1)]"}
    assert repr(i, %{%Encoded{a: 1} => 2}) == {:ok, "{('encoded', 1): 2}"}
    assert repr(i, MapSet.new([%Encoded{a: 1}])) == {:ok, "{('encoded', 1)}"}

    assert repr(i, Serde.object("builtins", "list", [{%Encoded{a: 1}}])) ==
             {:ok, "[('encoded', 1)]"}
  end

  test "encodes what calls return by the protocol, recursively", %{interpreter: i} do
    answer = fn function, value ->
      code = "return repr(await snex.call(module, function, [value]))"
      vars = %{"module" => Answers, "function" => function, "value" => value}
      Snex.pyeval(i, code, vars)
    end

    assert answer.(:encoded, 1) == {:ok, "('encoded', 1)"}
    assert answer.(:encoded, ["x"]) == {:ok, "('encoded', ['x'])"}
    assert {:ok, "{" <> plain} = answer.(:plain, 1)
    assert plain =~ "snex.Atom('a'): 1"
    assert plain =~ "snex.Atom('Elixir.Snex.SerdeTest.Plain')"

    # In lists, maps, sets, and as keys.
    nested = [%{"k" => {%Encoded{a: 1}}}, MapSet.new([%Encoded{a: 2}]), %{%Encoded{a: 3} => 4}]

    assert Snex.pyeval(i, "return repr(await Elixir.Function.identity(term))", %{
             "term" => Serde.term(nested)
           }) == {:ok, "[{'k': (('encoded', 1),)}, {('encoded', 2)}, {('encoded', 3): 4}]"}

    # From threads, and with options.
    code = """
    import asyncio
    def work():
        call = snex.call(module, "encoded", ["x"], result_encoding_opts={"binary_as": "bytes"})
        return repr(asyncio.run(call))
    return await asyncio.to_thread(work)
    """

    assert Snex.pyeval(i, code, %{"module" => Answers}) == {:ok, "(b'encoded', b'x')"}
  end

  test "tells of what calls raise as if nothing stood between", %{interpreter: i} do
    call = fn function, value ->
      code = """
      try:
          await snex.call(module, function, [value])
      except snex.ElixirError as error:
          return error.kind, error.reason, str(error)
      """

      vars = %{"module" => Answers, "function" => function, "value" => value}
      {:ok, answer} = Snex.pyeval(i, code, vars)
      answer
    end

    assert {"error", %ArgumentError{message: "no x"}, text} = call.(:raises, "x")

    assert text =~
             ~r/^Elixir.Snex.SerdeTest.Answers.raises\/1 failed on Elixir side:\n\*\* \(ArgumentError\) no x\n/

    assert text =~ "test/serde_test.exs:"
    refute text =~ "Snex.Remote"
    refute text =~ "erpc"
    assert {"throw", "x", "" <> _} = call.(:throws, "x")
    assert {"exit", :bye, "" <> _} = call.(:exits, :bye)
    assert {"error", :undef, text} = call.(:missing, 1)
    assert text =~ "function Snex.SerdeTest.Answers.missing/1 is undefined or private"
    refute text =~ "Snex.Remote"
  end

  test "calls functions in the name of who asks", %{interpreter: i} do
    test = self()
    callers = "return await snex.call(module, 'callers', [])"
    vars = %{"module" => Answers}
    assert Snex.pyeval(i, callers, vars) == {:ok, [test]}

    # With those in whose name that one works, as in a task.
    assert {task, {:ok, [task, ^test]}} =
             Task.async(fn -> {self(), Snex.pyeval(i, callers, vars)} end) |> Task.await()

    # In environments, casts, threads, and tasks that go on.
    {:ok, env} = Snex.make_env(i)
    assert Snex.pyeval(env, callers, vars) == {:ok, [test]}

    code = """
    import asyncio
    async def later():
        await asyncio.sleep(0.01)
        await snex.cast(module, "tell", [test])
    def thread():
        asyncio.run(snex.cast(module, "tell", [test]))
    await snex.cast(module, "tell", [test])
    await asyncio.to_thread(thread)
    task = asyncio.ensure_future(later())
    """

    assert Snex.pyeval(env, code, Map.put(vars, "test", test)) == {:ok, nil}
    for _ <- 1..3, do: assert_receive({:callers, [^test]})

    # Where nobody waits it is Python itself that asks.
    {:ok, _, python} = Snex.Runtimes.find(i)
    send(python, {:eval, "await snex.cast(module, 'tell', [test])", Map.put(vars, "test", test)})
    assert_receive {:callers, [^python]}
  end

  test "sends other structs as maps, and they come back", %{interpreter: i} do
    assert there_and_back(i, %Plain{a: [1]}) == {:ok, %Plain{a: [1]}}
    assert there_and_back(i, %Plain{a: %Encoded{a: 1}}) == {:ok, %Plain{a: {"encoded", 1}}}
    assert there_and_back(i, %ToItself{a: 1}) == {:ok, %ToItself{a: {"wrapped", 1}}}

    assert {:ok, "Elixir." <> _} =
             Snex.pyeval(i, "return str(x['__struct__']) + ''", %{"x" => %Plain{}})
  end

  test "leaves what has no structs as it is" do
    term = %{"a" => [1, {2, %{b: "c"}}, [3 | 4]], "set" => "x"}
    assert :erts_debug.same(Serde.encode_vars!(term), term)
    large = Enum.to_list(1..1000)

    assert %{"large" => ^large} =
             encoded = Serde.encode_vars!(%{"large" => large, "d" => %Encoded{a: 1}})

    assert :erts_debug.same(encoded["large"], large)
    assert encoded["d"] == {"encoded", 1}
  end

  test "says which value it cannot convert", %{interpreter: i} do
    assert {:error, %Error{code: :python_runtime_error, reason: reason}} =
             Snex.pyeval(i, "return 1", %{"good" => 1, "bad" => <<255>>})

    assert reason =~ "bad"
    assert {:error, %Error{code: :python_runtime_error}} = Snex.pyeval(i, "return object()")
  end

  test "checks what it is given" do
    # By apply, as the compiler sees the mistake otherwise.
    for {function, args} <- [
          binary: ["x", :text],
          float: [:infinity],
          object: [:datetime, "date", []]
        ] do
      assert_raise FunctionClauseError, fn -> apply(Serde, function, args) end
    end
  end
end
