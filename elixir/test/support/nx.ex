# Stand-ins for the functions of Nx and Explorer that Snex uses, with what these say of them, and
# nothing else: a tensor's insides are nobody's business, so they have other names here.

defprotocol Nx.LazyContainer do
  @moduledoc false
  def traverse(data, acc, fun)
end

defmodule Nx.Tensor do
  @moduledoc false
  defstruct [:inside]
end

defmodule Nx do
  @moduledoc false
  alias Nx.Tensor

  def tensor(numbers, type, shape, names \\ nil) do
    binary = for number <- List.flatten(numbers), into: <<>>, do: encode(number, type)
    binary |> from_binary(type) |> reshape(shape, names: names || nils(shape))
  end

  def from_binary(<<_, _::binary>> = binary, {_, bits} = type) when is_tuple(type) do
    size = div(byte_size(binary), div(bits, 8))
    %Tensor{inside: {binary, type, {size}, [nil]}}
  end

  def to_binary(%Tensor{inside: {binary, _, _, _}}), do: binary
  def type(%Tensor{inside: {_, type, _, _}}), do: type
  def shape(%Tensor{inside: {_, _, shape, _}}), do: shape
  def names(%Tensor{inside: {_, _, _, names}}), do: names

  def reshape(%Tensor{inside: {binary, type, old, _}}, shape, opts \\ []) do
    true = Tuple.product(old) == Tuple.product(shape)
    names = opts[:names] || nils(shape)
    true = length(names) == tuple_size(shape)
    %Tensor{inside: {binary, type, shape, names}}
  end

  def template(shape, type, opts), do: {:template, shape, type, Keyword.fetch!(opts, :names)}

  defp nils(shape), do: List.duplicate(nil, tuple_size(shape))

  defp encode(number, {:f, bits}), do: <<number::float-native-size(bits)>>
  defp encode(number, {:s, bits}), do: <<number::signed-native-size(bits)>>
  defp encode(number, {:u, bits}), do: <<number::native-size(bits)>>
end

defmodule Explorer.DataFrame do
  @moduledoc false
  defstruct [:inside]

  def load_ipc_stream!(<<_, _::binary>> = bytes), do: %__MODULE__{inside: bytes}
  def dump_ipc_stream!(%__MODULE__{inside: bytes}), do: bytes
end
