defmodule Snex.Arrangement do
  @moduledoc false
  # Long lists, arranged so that Python takes them in bulk: its decoder has to look at each element
  # of a list, and the BEAM can bring them together at the speed of C.
  #
  #   * short binaries become one, with a zero byte between them (`Snex.Serde.Texts`)
  #   * integers of several sizes become 64-bit words (`Snex.Serde.Integers`)
  #   * atoms, booleans and nil among them, become a byte for each and a list of them (`Atoms`)
  #   * maps with the same keys, and tuples of one size, become a list for each key or element
  #     (`Snex.Serde.Columns`), which is arranged in turn
  #
  # `snex_runtime.arrangement` makes lists of them again. What is not worth it stays as it is.

  defmodule Texts do
    @moduledoc false
    # A bitstring of whole bytes and one bit, which Python does not take for a text.
    @enforce_keys [:joined]
    defstruct [:joined]
  end

  defmodule Integers do
    @moduledoc false
    # 64-bit words, little end first, and one bit.
    @enforce_keys [:words]
    defstruct [:words]
  end

  defmodule Atoms do
    @moduledoc false
    # `indexes` has a byte for each element, its place in `names`, and one bit.
    @enforce_keys [:names, :indexes]
    defstruct [:names, :indexes]
  end

  defmodule Columns do
    @moduledoc false
    # `keys` is nil for tuples. An atom in place of a column is what all elements have.
    @enforce_keys [:keys, :columns]
    defstruct [:keys, :columns]
  end

  @typedoc "What stands for a list."
  @type t :: %Texts{} | %Integers{} | %Atoms{} | %Columns{}

  # Structs that Python makes something else of have to reach it one by one.
  @not_in_columns [MapSet, Texts, Integers, Atoms, Columns] ++
                    for(
                      name <- [:Binary, :Float, :Object, :Term],
                      do: Module.concat(Snex.Serde, name)
                    ) ++ [Snex.Arrow, Snex.Object, Snex.Source, Snex.Tensor]

  # Of a shorter list Python takes each element in the time that looking at a struct costs.
  @min_elements 128

  # Longer binaries cost more to be joined, on average, than looking at each.
  @max_bytes 256

  # Integers that are looked at to see whether Python takes the list in bulk as it is.
  @sample 64

  @max_columns 64

  # Different atoms of which each has a byte.
  @max_atoms 256

  # What a BEAM has no large integers for; comparing with those takes longer.
  @min_small -0x0800_0000_0000_0000
  @max_small 0x07FF_FFFF_FFFF_FFFF

  @min_word -0x8000_0000_0000_0000
  @max_word 0x7FFF_FFFF_FFFF_FFFF

  @doc "Whether it may be worth it to arrange the list."
  @spec candidate?(list()) :: boolean()
  def candidate?([head | _] = list)
      when (is_binary(head) and byte_size(head) <= @max_bytes) or is_atom(head) or
             is_tuple(head) or is_map(head),
      do: long?(list, @min_elements)

  def candidate?([head | _] = list) when is_integer(head),
    do: long?(list, @min_elements) and mixed?(list, @sample, size_of(head))

  def candidate?(_list), do: false

  defp long?(_list, 0), do: true
  defp long?([_ | tail], n), do: long?(tail, n - 1)
  defp long?(_tail, _n), do: false

  # Python takes runs of one size in bulk. (Of a BEAM's integers some are large ones to Python.)
  defp mixed?(_list, 0, _size), do: false
  defp mixed?(_list, _left, :large), do: true

  defp mixed?([number | tail], left, size) when is_integer(number),
    do: size_of(number) != size or mixed?(tail, left - 1, size)

  defp mixed?(_tail, _left, _size), do: false

  defp size_of(number) when number in 0..255, do: :byte
  defp size_of(number) when number in -0x8000_0000..0x7FFF_FFFF, do: :word
  defp size_of(_number), do: :large

  @doc """
  What stands for the list; nil if it is to be sent as it is. Its elements are what is to be sent,
  and `encode` is what to do with a column of them.
  """
  @spec arrange(list(), (list() -> term())) :: t() | nil
  def arrange([head | _] = list, _encode) when is_binary(head), do: texts(list)
  def arrange([head | _] = list, _encode) when is_integer(head), do: integers(list)
  def arrange([head | _] = list, _encode) when is_atom(head), do: atoms(list)
  def arrange([head | _] = list, encode) when is_tuple(head), do: tuples(list, head, encode)
  def arrange([head | _] = list, encode) when is_map(head), do: maps(list, head, encode)

  # --- texts --------------------------------------------------------------------------------------

  defp texts(list) do
    if short_binaries?(list, 0, 0) and
         :binary.match(IO.iodata_to_binary(list), <<0>>) == :nomatch,
       do: %Texts{joined: join(list, <<>>)}
  end

  defp short_binaries?([binary | tail], count, bytes) when is_binary(binary),
    do: short_binaries?(tail, count + 1, bytes + byte_size(binary))

  defp short_binaries?([], count, bytes), do: bytes <= count * @max_bytes
  defp short_binaries?(_other, _count, _bytes), do: false

  # By fours: a third of the time.
  defp join([a, b, c, d, e | tail], joined) do
    join([e | tail], <<joined::binary, a::binary, 0, b::binary, 0, c::binary, 0, d::binary, 0>>)
  end

  defp join([last], joined), do: <<joined::binary, last::binary, 0::1>>
  defp join([a | tail], joined), do: join(tail, <<joined::binary, a::binary, 0>>)

  # --- integers -----------------------------------------------------------------------------------

  defp integers(list), do: if(words?(list), do: %Integers{words: words(list, <<>>)})

  defp words?([number | tail])
       when is_integer(number) and number >= @min_small and number <= @max_small,
       do: words?(tail)

  defp words?([number | tail])
       when is_integer(number) and number >= @min_word and number <= @max_word,
       do: words?(tail)

  defp words?(tail), do: tail == []

  defp words([a, b, c, d | tail], words) do
    words(tail, <<words::binary, a::little-64, b::little-64, c::little-64, d::little-64>>)
  end

  defp words([a | tail], words), do: words(tail, <<words::binary, a::little-64>>)
  defp words([], words), do: <<words::binary, 0::1>>

  # --- atoms --------------------------------------------------------------------------------------

  defp atoms(list) do
    with places when places != nil <- places(list, %{}) do
      names = places |> Enum.sort_by(fn {_, place} -> place end) |> Enum.map(&elem(&1, 0))
      %Atoms{names: names, indexes: indexes(list, places, <<>>)}
    end
  end

  defp places([atom | tail], places) when is_map_key(places, atom), do: places(tail, places)

  defp places([atom | tail], places) when is_atom(atom) and map_size(places) < @max_atoms,
    do: places(tail, Map.put(places, atom, map_size(places)))

  defp places([], places), do: places
  defp places(_other, _places), do: nil

  defp indexes([a, b, c, d | tail], places, indexes) do
    %{^a => a, ^b => b, ^c => c, ^d => d} = places
    indexes(tail, places, <<indexes::binary, a, b, c, d>>)
  end

  defp indexes([a | tail], places, indexes),
    do: indexes(tail, places, <<indexes::binary, :erlang.map_get(a, places)>>)

  defp indexes([], _places, indexes), do: <<indexes::binary, 0::1>>

  # --- columns ------------------------------------------------------------------------------------

  defp tuples(list, head, encode) do
    size = tuple_size(head)

    if size in 1..@max_columns and tuples?(list, size) do
      columns = for index <- 1..size, do: encode.(Enum.map(list, &:erlang.element(index, &1)))
      %Columns{keys: nil, columns: columns}
    end
  end

  defp tuples?([tuple | tail], size) when is_tuple(tuple) and tuple_size(tuple) == size,
    do: tuples?(tail, size)

  defp tuples?(tail, _size), do: tail == []

  defp maps(list, head, encode) do
    keys = Map.keys(head)

    if length(keys) <= @max_columns and keys -- [:__struct__] != [] and of_one_type?(keys) and
         maps?(list, map_size(head), struct_of(head)) do
      with columns when columns != nil <- columns(keys, list, length(list)) do
        columns = Enum.map(columns, &if(is_list(&1), do: encode.(&1), else: &1))
        %Columns{keys: keys, columns: columns}
      end
    end
  end

  # Others may be one key to Python.
  defp of_one_type?(keys), do: Enum.all?(keys, &is_binary/1) or Enum.all?(keys, &plain_atom?/1)
  defp plain_atom?(key), do: is_atom(key) and key not in [nil, true, false]

  defp maps?([map | tail], size, struct) when is_map(map) and map_size(map) == size,
    do: struct_of(map) == struct and maps?(tail, size, struct)

  defp maps?(tail, _size, _struct), do: tail == []

  defp struct_of(%{__struct__: module}) when is_atom(module) and module not in @not_in_columns,
    do: {:struct, module}

  defp struct_of(%{__struct__: _}), do: make_ref()
  defp struct_of(_map), do: nil

  # The values of each key; nil where an element lacks one. All structs are of one module.
  defp columns([], _list, _count), do: []

  defp columns([:__struct__ | keys], [%{__struct__: module} | _] = list, count) do
    with others when others != nil <- columns(keys, list, count), do: [module | others]
  end

  defp columns([key | keys], list, count) do
    column = for %{^key => value} <- list, do: value

    with true <- length(column) == count,
         others when others != nil <- columns(keys, list, count) do
      [column | others]
    else
      _ -> nil
    end
  end
end
