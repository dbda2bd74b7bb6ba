defmodule Snex.ArrangementTest do
  use Snex.Case, async: true

  alias Snex.{Object, Serde}
  alias Snex.Arrangement.{Atoms, Columns, Integers, Texts}

  defmodule Row do
    defstruct [:id, :name]
  end

  defmodule Empty do
    defstruct []
  end

  defmodule Wrapped do
    defstruct [:value]
  end

  defmodule Once do
    defstruct [:value]
  end

  defimpl Snex.Serde.Encoder, for: Wrapped do
    def encode(wrapped), do: %{"wrapped" => wrapped.value}
  end

  defimpl Snex.Serde.Encoder, for: Once do
    def encode(once), do: %{once | value: {:once, once.value}}
  end

  setup_all do
    {:ok, interpreter: start_supervised!({Interpreter, python: python()})}
  end

  @n 300

  defp texts, do: for(n <- 1..@n, do: "text #{n}")
  defp mixed, do: for(n <- 1..@n, do: n * 7)
  defp rows, do: for(n <- 1..@n, do: %{"id" => n, "name" => "n#{n}", "at" => {n, n / 7}})

  # What Python has when nothing is arranged.
  defp repr_of_plain(interpreter, value) do
    {:ok, _, server} = Snex.Runtimes.find(interpreter)
    GenServer.call(server, {:eval, "return repr(x)", %{"x" => value}})
  end

  defp repr(interpreter, value, opts \\ []),
    do: Snex.pyeval(interpreter, "return repr(x)", %{"x" => value}, opts)

  defp there_and_back(interpreter, value),
    do: Snex.pyeval(interpreter, "return x", %{"x" => value})

  test "arranges long lists of short texts, mixed integers, atoms, maps, tuples and structs" do
    assert %Texts{} = Serde.encode(texts())
    assert %Integers{} = Serde.encode(mixed())
    assert %Columns{keys: ["at", "id", "name"]} = Serde.encode(rows())

    assert %Columns{keys: nil, columns: [%Integers{}, %Texts{}]} =
             Serde.encode(Enum.zip(mixed(), texts()))

    assert %Columns{keys: [_, _, _], columns: columns} =
             Serde.encode(for n <- 1..@n, do: %Row{id: n, name: "n"})

    assert Row in columns
    assert %Atoms{names: [true, nil, :a]} = Serde.encode([true, nil | List.duplicate(:a, @n)])
    assert {:deep, %{"in" => %Texts{}}} = Serde.encode({:deep, %{"in" => texts()}})
    assert %{"x" => %Texts{}} = Serde.encode_vars!(%{"x" => texts()})
  end

  test "leaves alone structs that Python makes something else of", %{interpreter: i} do
    tensors = for n <- 1..@n, do: %Snex.Tensor{type: {:u, 8}, shape: {1}, data: <<rem(n, 256)>>}
    code = "return sum(int(it[0]) for it in x), type(x[0]).__name__ != 'dict'"
    assert {:ok, {sum, true}} = Snex.pyeval(i, code, %{"x" => tensors})
    assert sum == Enum.sum(for n <- 1..@n, do: rem(n, 256))

    {:ok, object} = Snex.pyeval(i, "return [1, 2]", %{}, keep: true)
    objects = List.duplicate(object, @n)
    assert Snex.pyeval(i, "return sum(len(o) for o in x)", %{"x" => objects}) == {:ok, 2 * @n}
    rows = for it <- objects, do: %{"it" => it}
    assert Snex.pyeval(i, "return sum(len(r['it']) for r in x)", %{"x" => rows}) == {:ok, 2 * @n}
    assert Object.call(object, "extend", [objects]) == {:ok, nil}
    assert Object.call(object, "__len__") == {:ok, @n + 2}

    code = "return [n async for n in snex.subscribe(x[-1])]"
    sources = List.duplicate(Snex.source([1, 2]), @n)
    assert Snex.pyeval(i, code, %{"x" => sources}) == {:ok, [1, 2]}
    tables = List.duplicate(%Snex.Arrow{data: "none"}, @n)
    assert Serde.encode(tables) == tables
  end

  test "leaves alone what Python takes in bulk as it is, and what is short" do
    for list <- [
          Enum.take(texts(), 100),
          Enum.take(rows(), 100),
          Enum.to_list(1..100),
          List.duplicate(7, 10_000),
          Enum.to_list(100_000..200_000),
          for(n <- 1..1_000, do: n / 7),
          for(_ <- 1..100, do: :atom),
          for(_ <- 1..200, do: String.duplicate("long", 100))
        ] do
      assert :erts_debug.same(Serde.encode(list), list), "of #{inspect(hd(list), limit: 1)}"
    end
  end

  test "what it arranges is what it was, in Python and back", %{interpreter: i} do
    for value <- [
          texts(),
          ["" | texts()],
          List.duplicate("", @n),
          Enum.map(texts(), &(&1 <> " Größe 東京")),
          mixed(),
          for(n <- 1..@n, do: Integer.pow(-3, rem(n, 38))),
          [0x7FFF_FFFF_FFFF_FFFF, -0x8000_0000_0000_0000 | mixed()],
          for(n <- 1..@n, do: Enum.at([true, false, nil, :ok, :Ok, Row, :größe], rem(n, 7))),
          for(n <- 1..@n, do: :"atom #{rem(n, 256)}"),
          rows(),
          for(n <- 1..@n, do: %{id: n, nested: %{"x" => n, "y" => %{z: [n]}}, tags: ["a", "b"]}),
          for(n <- 1..@n, do: {n, "n#{n}", [n], {}, %{}, rem(n, 2) == 0}),
          for(n <- 1..@n, do: %Row{id: n, name: "n#{n}"}),
          for(n <- 1..@n, do: {%Row{id: n}, %{a: %Row{name: "n#{n}"}}}),
          %{"a" => [[texts(), mixed()], rows()], "b" => {texts(), [1, 2]}},
          for(n <- 1..@n, do: %{"list" => Enum.to_list(n..(n + 200))})
        ] do
      assert Serde.encode(value) != value
      assert repr(i, value) == repr_of_plain(i, value)
      assert there_and_back(i, value) == {:ok, value}
    end
  end

  # Their keys have no order on a BEAM.
  test "maps of more than 32 keys", %{interpreter: i} do
    value = for n <- 1..@n, do: Map.new(1..40, &{"key #{&1}", n + &1})
    assert %Columns{} = Serde.encode(value)
    {:ok, env} = Snex.make_env(i)
    plain = {:eval, nil, %{"plain" => value}}
    assert GenServer.call(env.id, plain) == {:ok, nil}
    assert Snex.pyeval(env, "return x == plain", %{"x" => value}) == {:ok, true}
    assert there_and_back(i, value) == {:ok, value}
  end

  test "what is of no one kind is sent as it is", %{interpreter: i} do
    for value <- [
          texts() ++ [:atom],
          texts() ++ [<<1::3>>],
          ["zero\0" | texts()],
          mixed() ++ [1.5],
          mixed() ++ [Integer.pow(2, 63)],
          mixed() ++ [-Integer.pow(2, 63) - 1],
          for(n <- 1..@n, do: :"atom #{n}"),
          List.duplicate(nil, @n) ++ ["text"],
          rows() ++ [%{"id" => 1}],
          rows() ++ [%{"id" => 1, "name" => 2, "other" => 3}],
          rows() ++ [%{"id" => 1, "name" => 2, at: 3}],
          rows() ++ [nil],
          for(n <- 1..@n, do: %{n => n}),
          for(n <- 1..@n, do: %{nil => n}),
          for(n <- 1..@n, do: %{"a" => n, b: n}),
          for(_ <- 1..@n, do: %{}),
          for(_ <- 1..@n, do: {}),
          for(n <- 1..@n, do: List.to_tuple(Enum.to_list(1..(n + 70)))),
          List.to_tuple(Enum.to_list(1..@n))
        ] do
      assert Serde.encode(value) == value
      assert repr(i, value) == repr_of_plain(i, value)
      assert there_and_back(i, value) == {:ok, value}
    end
  end

  test "what Python keeps whole is as it was: keys, sets, improper lists", %{interpreter: i} do
    for value <- [
          %{texts() => 1, {1, mixed()} => 2},
          MapSet.new([texts(), mixed()]),
          [[texts()] | :tail],
          [texts(), mixed() | "tail"],
          texts() ++ :tail,
          List.duplicate(:a, @n) ++ :tail,
          mixed() ++ 7,
          rows() ++ %{},
          [%{texts() => [1 | 2]}, %Row{id: %{rows() => 1}}],
          for(n <- 1..@n, do: %{"k" => %{texts() => n}})
        ] do
      assert there_and_back(i, value) == {:ok, value}
    end

    term = Serde.term(%{rows: rows(), texts: texts()})
    assert there_and_back(i, term) == {:ok, %{rows: rows(), texts: texts()}}
  end

  test "structs in lists become what they become by themselves", %{interpreter: i} do
    assert there_and_back(i, for(n <- 1..@n, do: %Wrapped{value: n})) ==
             {:ok, for(n <- 1..@n, do: %{"wrapped" => n})}

    assert there_and_back(i, for(n <- 1..@n, do: %Once{value: n})) ==
             {:ok, for(n <- 1..@n, do: %Once{value: {:once, n}})}

    for value <- [
          for(n <- 1..@n, do: MapSet.new([n])),
          for(n <- 1..@n, do: %{"set" => MapSet.new([n])}),
          for(_ <- 1..@n, do: %Empty{}),
          for(n <- 1..@n, do: if(rem(n, 2) == 0, do: %Row{id: n}, else: %{id: n, name: 1, b: 2})),
          for(n <- 1..@n, do: %{__struct__: "no module", a: n})
        ] do
      assert there_and_back(i, value) == {:ok, value}
    end

    binaries = for _ <- 1..@n, do: Serde.binary("b")
    assert Snex.pyeval(i, "return x == [b'b'] * #{@n}", %{"x" => binaries}) == {:ok, true}

    numbers = for n <- 1..@n, do: Serde.object("builtins", "complex", [n, n])
    code = "return x == [complex(n, n) for n in range(1, #{@n} + 1)]"
    assert Snex.pyeval(i, code, %{"x" => numbers}) == {:ok, true}

    objects = Serde.object("builtins", "list", [texts()])
    assert there_and_back(i, objects) == {:ok, texts()}
  end

  test "encoding options are followed", %{interpreter: i} do
    for binary_as <- [:str, :bytes, :bytearray], atom_as <- [:atom, :distinct_atom] do
      opts = [encoding_opts: [binary_as: binary_as, atom_as: atom_as]]
      {:ok, _, server} = Snex.Runtimes.find(i)

      for value <- [texts(), rows(), for(n <- 1..@n, do: %Row{id: n, name: :n})] do
        request = {:eval, "return repr(x)", %{"x" => value}, opts}
        assert repr(i, value, opts) == GenServer.call(server, request)
      end
    end
  end

  test "a binary that is no text is told by its place", %{interpreter: i} do
    vars = %{"good" => texts(), "bad" => %{"in" => texts() ++ [<<255>>]}}
    assert {:error, %Snex.Error{reason: reason}} = Snex.pyeval(i, "return 1", vars)
    assert reason =~ "bad"
    assert reason =~ "binary #{@n} of a list is not UTF-8"
    assert reason =~ "binary_as"
    assert {:ok, _} = repr(i, texts() ++ [<<255>>], encoding_opts: [binary_as: :bytes])
  end

  test "results of snex.call are arranged as well", %{interpreter: i} do
    code = "return await snex.call('Elixir.Enum', 'to_list', [x]) == x"

    for value <- [texts(), mixed(), rows()] do
      assert Snex.pyeval(i, code, %{"x" => value}) == {:ok, true}
    end
  end
end
