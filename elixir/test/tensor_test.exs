defmodule Snex.TensorTest do
  use Snex.Case, async: true

  alias Snex.{Arrow, Tensor}

  setup_all do
    interpreter = start_interpreter!()
    # To load them for the first time may take longer than a call.
    {:ok, nil} = Snex.pyeval(interpreter, "import numpy, pyarrow", %{}, timeout: 60_000)
    %{interpreter: interpreter}
  end

  # As what `defn` compiles takes its arguments.
  defp traversed(tensor) do
    {{template, build}, :acc} =
      Nx.LazyContainer.traverse(tensor, :acc, fn template, build, acc ->
        {{template, build}, acc}
      end)

    {template, build.()}
  end

  describe "tensors of Nx" do
    test "go to Python and come back", %{interpreter: interpreter} do
      tensor = Nx.tensor([0, 1, 2, 3, 4, 5], {:s, 64}, {2, 3})
      assert {:ok, transposed} = Snex.pyeval(interpreter, "return x.T", %{"x" => tensor})
      assert %Tensor{type: {:s, 64}, shape: {3, 2}, names: nil} = transposed
      assert Tensor.to_nx(transposed) == Nx.tensor([0, 3, 1, 4, 2, 5], {:s, 64}, {3, 2})
    end

    test "go in whatever they are nested in", %{interpreter: interpreter} do
      code = "return [float(x[0].sum()), int(x[1]['a'][1])], [x[0] * 2]"
      one = Nx.tensor([1.5, 2.5], {:f, 32}, {2})
      two = Nx.tensor([1, 200], {:u, 8}, {2})

      assert {:ok, {[4.0, 200], [doubled]}} =
               Snex.pyeval(interpreter, code, %{"x" => [one, %{"a" => two}]})

      assert Tensor.to_nx(doubled) == Nx.tensor([3.0, 5.0], {:f, 32}, {2})
    end

    for type <- [{:s, 8}, {:s, 16}, {:s, 32}, {:u, 16}, {:u, 32}, {:u, 64}, {:f, 64}] do
      test "of type #{inspect(type)}", %{interpreter: interpreter} do
        tensor = Nx.tensor([1, 2, 3, 4], unquote(type), {2, 2})
        assert {:ok, back} = Snex.pyeval(interpreter, "return x", %{"x" => tensor})
        assert Tensor.to_nx(back) == tensor
      end
    end

    test "keep their names where they are not looked into", %{interpreter: interpreter} do
      tensor = Nx.tensor([1, 2], {:u, 8}, {2, 1}, [:x, nil])
      options = [encoding_opts: [tensor_as: :term]]
      assert {:ok, back} = Snex.pyeval(interpreter, "return x", %{"x" => tensor}, options)
      assert back == %Tensor{type: {:u, 8}, shape: {2, 1}, names: [:x, nil], data: <<1, 2>>}
      assert Tensor.to_nx(back) == tensor
    end

    test "of a number without axes", %{interpreter: interpreter} do
      tensor = Nx.tensor([2.5], {:f, 64}, {})
      assert {:ok, back} = Snex.pyeval(interpreter, "return x * 2", %{"x" => tensor})
      # One number is no array.
      assert back == 5.0
      assert {:ok, %Tensor{shape: {}}} = Snex.pyeval(interpreter, "return x", %{"x" => tensor})
    end

    test "of types that Python has not got are an error" do
      assert_raise ArgumentError,
                   ~r/no numbers of type {:u, 4}; convert them with Nx.as_type/,
                   fn ->
                     Tensor.from_nx(%Nx.Tensor{inside: {<<1>>, {:u, 4}, {2}, [nil]}})
                   end
    end
  end

  describe "a tensor" do
    test "may have no numbers, but not in Nx", %{interpreter: interpreter} do
      code = "import numpy; return numpy.zeros((0, 3))"
      assert {:ok, %Tensor{shape: {0, 3}, data: ""} = empty} = Snex.pyeval(interpreter, code)
      assert_raise ArgumentError, ~r/without numbers/, fn -> Tensor.to_nx(empty) end
    end

    test "is what defn takes, names included" do
      tensor = %Tensor{type: {:u, 8}, shape: {1, 2}, names: [:a, nil], data: <<1, 2>>}
      expected = Nx.tensor([1, 2], {:u, 8}, {1, 2}, [:a, nil])
      assert traversed(tensor) == {{:template, {1, 2}, {:u, 8}, [:a, nil]}, expected}
      unnamed = %{tensor | names: nil}
      assert {{:template, {1, 2}, {:u, 8}, [nil, nil]}, _} = traversed(unnamed)
    end

    test "is that in a release, too, where protocols are consolidated" do
      paths = [to_charlist(Application.app_dir(:snex, "ebin"))]
      assert Protocol.extract_impls(Nx.LazyContainer, paths) == [Snex.Tensor]
      assert {:ok, _} = Protocol.consolidate(Nx.LazyContainer, [Snex.Tensor])
    end

    test "shows its type and shape, and no numbers" do
      tensor = %Tensor{type: {:f, 32}, shape: {2, 3}, data: <<0::192>>}
      assert inspect(tensor) == "#Snex.Tensor<f32[2][3] 24 bytes>"
      named = %{tensor | names: [:rows, nil]}
      assert inspect(named) == "#Snex.Tensor<f32[rows: 2][3] 24 bytes>"
      assert inspect(%{tensor | shape: 7, data: nil}) =~ "#Snex.Tensor<%{data: nil"
    end

    test "that contradicts itself is an error that says so", %{interpreter: interpreter} do
      tensor = %Tensor{type: {:f, 32}, shape: {2, 3}, data: <<0::160>>}
      assert {:error, error} = Snex.pyeval(interpreter, "return 1", %{"x" => tensor})
      assert error.code == :python_runtime_error

      assert error.reason =~
               ~s(type {:f, 32} and shape {2, 3} has 24 bytes of data, and here are 20)
    end

    test "may be one of megabytes", %{interpreter: interpreter} do
      data = :crypto.strong_rand_bytes(8 * 1024 * 1024)
      tensor = %Tensor{type: {:u, 8}, shape: {8 * 1024, 1024}, data: data}
      code = "return x, x.flags.aligned, x.flags.writeable, x.__array_interface__['data'][0] % 16"
      assert {:ok, {back, true, false, 0}} = Snex.pyeval(interpreter, code, %{"x" => tensor})
      assert back == tensor
    end
  end

  describe "tables" do
    @rows "import pyarrow; return pyarrow.table({'a': [1, None], 'b': ['x', 'y']})"

    test "come from Python and go back", %{interpreter: interpreter} do
      assert {:ok, %Arrow{data: <<_, _::binary>>} = table} = Snex.pyeval(interpreter, @rows)
      code = "return t.to_pylist()"
      expected = {:ok, [%{"a" => 1, "b" => "x"}, %{"a" => nil, "b" => "y"}]}
      assert Snex.pyeval(interpreter, code, %{"t" => table}) == expected
      assert Snex.pyeval(interpreter, code, %{"t" => Arrow.to_explorer(table)}) == expected
      assert Arrow.from_explorer(Arrow.to_explorer(table)) == table
      assert inspect(table) == "#Snex.Arrow<#{byte_size(table.data)} bytes>"
      assert inspect(%Arrow{data: 1}) == "#Snex.Arrow<1>"
    end

    test "that are none are an error that says so", %{interpreter: interpreter} do
      assert {:error, error} =
               Snex.pyeval(interpreter, "return 1", %{"t" => %Arrow{data: "nothing"}})

      assert error.code == :python_runtime_error
      assert error.reason =~ "the data of a Snex.Arrow is no Arrow IPC stream"
    end
  end
end
