defmodule Snex.Tensor do
  @moduledoc """
  An array of numbers, as it passes between Elixir and Python: all of them in one binary.

  Tensors of [Nx](https://hexdocs.pm/nx) go to Python as they are, and come back as `Snex.Tensor`:

      {:ok, %Snex.Tensor{shape: {3, 2}} = tensor} =
        Snex.pyeval(interpreter, "return x.T", %{"x" => Nx.iota({2, 3})})

      Snex.Tensor.to_nx(tensor)

  A `Snex.Tensor` may be given to functions that `Nx.Defn` compiles, too: it is an `Nx.LazyContainer`.
  Nx is no dependency of Snex; where it is not there, all but `from_nx/1` and `to_nx/1` is.

  In Python a tensor is a `numpy.ndarray`, which cannot be written to: it is a view of what was received.
  Where NumPy is not installed it is a `memoryview` of that shape. The option `:tensor_as` of
  `t:Snex.Serde.encoding_opt/0` chooses. From Python come arrays of NumPy, tensors of PyTorch and JAX, and whatever
  else has an `__array_interface__`. Names of axes do not survive Python, which has none.
  """

  @compile {:no_warn_undefined, Nx}

  @typedoc """
  The type of the numbers, as in Nx: signed and unsigned integers (`:s`, `:u`) of 8 to 64 bits, floats
  (`:f`) of 8 to 64 bits, `{:bf, 16}`, and complex numbers (`:c`) of 64 and 128 bits.
  """
  @type type ::
          {:s | :u, 8 | 16 | 32 | 64}
          | {:f, 8 | 16 | 32 | 64}
          | {:bf, 16}
          | {:c, 64 | 128}

  @typedoc """
  `data` holds the numbers row after row, the little end of each first; `names` are those of the axes,
  `nil` where none has one.
  """
  @type t :: %__MODULE__{
          type: type(),
          shape: tuple(),
          names: [atom()] | nil,
          data: binary()
        }

  @enforce_keys [:type, :shape, :data]
  defstruct [:type, :shape, :names, :data]

  @types for(kind <- [:s, :u, :f], bits <- [8, 16, 32, 64], do: {kind, bits}) ++
           [{:bf, 16}, {:c, 64}, {:c, 128}]

  @doc """
  The tensor of Nx as one of these. Python gets that of its own accord.

  Raises `ArgumentError` for a type that has none of `t:type/0`, and where Nx is not there.
  """
  @spec from_nx(struct()) :: t()
  def from_nx(%{__struct__: Nx.Tensor} = tensor) do
    require_nx!()
    type = Nx.type(tensor)

    if type not in @types do
      raise ArgumentError,
            "a Snex.Tensor has no numbers of type #{inspect(type)}; convert them with Nx.as_type/2"
    end

    names = Nx.names(tensor)

    %__MODULE__{
      type: type,
      shape: Nx.shape(tensor),
      names: if(Enum.any?(names), do: names),
      data: Nx.to_binary(tensor)
    }
  end

  @doc """
  The same tensor as one of Nx, on its default backend.

  Raises `ArgumentError` for an empty one, which Nx has not got, and where Nx is not there.
  """
  @spec to_nx(t()) :: struct()
  def to_nx(%__MODULE__{data: ""} = tensor),
    do: raise(ArgumentError, "Nx has no tensors without numbers: #{inspect(tensor)}")

  def to_nx(%__MODULE__{} = tensor) do
    require_nx!()
    flat = Nx.from_binary(tensor.data, tensor.type)

    if tensor.names,
      do: Nx.reshape(flat, tensor.shape, names: tensor.names),
      else: Nx.reshape(flat, tensor.shape)
  end

  defp require_nx! do
    if not Code.ensure_loaded?(Nx),
      do: raise(ArgumentError, "Nx is not there: add {:nx, \"~> 0.9\"} to the dependencies")
  end

  defimpl Inspect do
    def inspect(tensor, _opts) do
      "#Snex.Tensor<#{type(tensor.type)}#{shape(tensor.shape, tensor.names)} " <>
        "#{byte_size(tensor.data)} bytes>"
    rescue
      # Of fields that no tensor has.
      _ -> "#Snex.Tensor<#{Kernel.inspect(Map.from_struct(tensor), limit: 5)}>"
    end

    defp type({kind, bits}), do: "#{kind}#{bits}"

    defp shape(shape, nil), do: Enum.map_join(Tuple.to_list(shape), &"[#{&1}]")

    defp shape(shape, names) do
      shape
      |> Tuple.to_list()
      |> Enum.zip(names)
      |> Enum.map_join(fn {size, name} -> if name, do: "[#{name}: #{size}]", else: "[#{size}]" end)
    end
  end
end

defimpl Snex.Serde.Encoder, for: Nx.Tensor do
  def encode(tensor), do: Snex.Tensor.from_nx(tensor)
end

# What `defimpl Nx.LazyContainer, for: Snex.Tensor` would make, which can be compiled only after Nx.
# Snex has no dependencies, so that Mix may compile it before.
defmodule Nx.LazyContainer.Snex.Tensor do
  @moduledoc false
  @compile {:no_warn_undefined, Nx}

  Module.register_attribute(__MODULE__, :__impl__, persist: true)
  @__impl__ [protocol: Nx.LazyContainer, for: Snex.Tensor]

  @spec __impl__(:for | :target | :protocol) :: module()
  def __impl__(:for), do: Snex.Tensor
  def __impl__(:target), do: __MODULE__
  def __impl__(:protocol), do: Nx.LazyContainer

  def traverse(tensor, acc, fun) do
    names = tensor.names || List.duplicate(nil, tuple_size(tensor.shape))
    template = Nx.template(tensor.shape, tensor.type, names: names)
    fun.(template, fn -> Snex.Tensor.to_nx(tensor) end, acc)
  end
end
