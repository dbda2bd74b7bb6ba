defmodule Snex.Serde do
  @moduledoc """
  How Elixir terms become Python objects.

  See "Values" in the README of snex-node for the table. The functions here choose another Python
  type than a term's usual one.
  """

  defmodule Binary do
    @moduledoc false
    @enforce_keys [:data, :type]
    defstruct [:data, :type]
  end

  defmodule Float do
    @moduledoc false
    @enforce_keys [:value]
    defstruct [:value]
  end

  defmodule Object do
    @moduledoc false
    @enforce_keys [:module, :name, :args]
    defstruct [:module, :name, :args]
  end

  defmodule Term do
    @moduledoc false
    @enforce_keys [:term]
    defstruct [:term]
  end

  alias Snex.Arrangement
  alias Snex.Serde.Encoder

  @typedoc "Binaries become `str` by default, `bytes` or `bytearray`."
  @type binary_as :: :str | :bytes | :bytearray

  @typedoc """
  One of the options for `Snex.Interpreter.start_link/1`, `Snex.make_env/3` and `Snex.pyeval/4`:

    * `:binary_as` - what binaries become; default `:str`
    * `:set_as` - what a `MapSet` becomes; default `:set`
    * `:atom_as` - what atoms become: `:atom` (default), equal to the string of their name, or
      `:distinct_atom`, equal only to themselves
    * `:tensor_as` - what a `Snex.Tensor` becomes: a `numpy.ndarray` (`:ndarray`, the default; a
      shaped `memoryview` where NumPy is not installed), a `:memoryview`, or a `:term` that Python does
      not look into
    * `:structs_as` - what `Date`, `Time`, `NaiveDateTime`, `DateTime`, `Duration`, `Decimal` and `Range` become:
      a `:dict` (default) like all structs, or Python's own (`:native`)
  """
  @type encoding_opt ::
          {:binary_as, binary_as()}
          | {:set_as, :set | :frozenset}
          | {:atom_as, :atom | :distinct_atom}
          | {:tensor_as, :ndarray | :memoryview | :term}
          | {:structs_as, :dict | :native}

  @typedoc "See `t:encoding_opt/0`."
  @type encoding_opts :: [encoding_opt()]

  @typedoc "What `binary/2` makes."
  @opaque serde_binary :: %Binary{data: binary(), type: binary_as()}

  @typedoc "What `float/1` makes."
  @opaque serde_float :: %Float{value: float() | :inf | :"-inf" | :nan}

  @typedoc "What `object/3` makes."
  @opaque serde_object :: %Object{module: String.t(), name: String.t(), args: list()}

  @typedoc "What `term/1` makes."
  @opaque serde_term :: %Term{term: term()}

  @choices [
    binary_as: [:str, :bytes, :bytearray],
    set_as: [:set, :frozenset],
    atom_as: [:atom, :distinct_atom],
    tensor_as: [:ndarray, :memoryview, :term],
    structs_as: [:dict, :native]
  ]

  @doc """
  A binary that becomes the given Python type.

      {:ok, "bytes"} =
        Snex.pyeval(env, "return type(b).__name__", %{"b" => Snex.Serde.binary("text")})
  """
  @spec binary(iodata(), binary_as()) :: serde_binary()
  def binary(data, type \\ :bytes) when type in [:str, :bytes, :bytearray],
    do: %Binary{data: IO.iodata_to_binary(data), type: type}

  @doc """
  A float; unlike Elixir's it may be infinite, or no number.

      {:ok, true} = Snex.pyeval(env, "return x > 10 ** 300", %{"x" => Snex.Serde.float(:inf)})
  """
  @spec float(float() | :inf | :"-inf" | :nan) :: serde_float()
  def float(value) when is_float(value) or value in [:inf, :"-inf", :nan],
    do: %Float{value: value}

  @doc """
  A term that Python holds without looking into it, as `snex.Term`, and that comes back as it is.

      {:ok, %{any: "thing"}} =
        Snex.pyeval(env, "return t", %{"t" => Snex.Serde.term(%{any: "thing"})})
  """
  @spec term(term()) :: serde_term()
  def term(term), do: %Term{term: term}

  @doc """
  What calling `name` of the Python module `module` with `args` gives.

      Snex.Serde.object("datetime", "date", [2025, 12, 28])
  """
  @spec object(String.t(), String.t(), list()) :: serde_object()
  def object(module, name, args) when is_binary(module) and is_binary(name) and is_list(args),
    do: %Object{module: module, name: name, args: args}

  # --- for the library ---------------------------------------------------------------------------

  @doc false
  # Checks encoding options. ArgumentError names what is wrong.
  @spec check_options!(keyword()) :: keyword()
  def check_options!(options) when is_list(options) do
    Enum.each(options, fn
      {name, value} -> check_option!(name, value, @choices[name])
      other -> raise ArgumentError, "encoding options are a keyword list, got: #{inspect(other)}"
    end)

    options
  end

  def check_options!(options),
    do: raise(ArgumentError, "encoding options are a keyword list, got: #{inspect(options)}")

  defp check_option!(name, _value, nil) do
    known = @choices |> Keyword.keys() |> Enum.map_join(", ", &inspect/1)
    raise ArgumentError, "unknown encoding option #{inspect(name)}: there are #{known}"
  end

  defp check_option!(name, value, choices) do
    if value not in choices do
      raise ArgumentError,
            "encoding option #{inspect(name)} is one of #{inspect(choices)}, got: #{inspect(value)}"
    end
  end

  @doc false
  # The variables of a request, ready to be sent.
  @spec encode_vars!(map()) :: map()
  def encode_vars!(vars) when vars == %{}, do: vars

  def encode_vars!(vars) when is_map(vars) do
    for {name, _} <- vars, not is_binary(name) do
      raise ArgumentError,
            "names of variables are strings, got: #{inspect(name)} in #{inspect(vars)}"
    end

    if plain?(vars, true),
      do: vars,
      else: Map.new(vars, fn {name, value} -> {name, encode(value)} end)
  end

  @doc false
  # The term as it travels: structs by `Snex.Serde.Encoder`, long lists by `Snex.Arrangement`,
  # all else as it is.
  @spec encode(term()) :: term()
  def encode(term), do: encode(term, true)

  # What Python keeps whole and sends back must have nothing in it that stands for something else:
  # improper lists, keys of maps, elements of sets.
  defp encode(term, arrange?),
    do: if(plain?(term, arrange?), do: term, else: convert(term, arrange?))

  # Nothing to do, and what is large is not built anew.
  defp plain?([_ | _] = list, arrange?),
    do: not (arrange? and Arrangement.candidate?(list)) and plain_list?(list, arrange?)

  defp plain?(%{__struct__: _}, _arrange?), do: false

  defp plain?(map, arrange?) when is_map(map) do
    map
    |> :maps.to_list()
    |> Enum.all?(fn {key, value} -> plain?(key, false) and plain?(value, arrange?) end)
  end

  defp plain?(tuple, arrange?) when is_tuple(tuple),
    do: plain_tuple?(tuple, tuple_size(tuple), arrange?)

  defp plain?(_, _arrange?), do: true

  defp plain_list?([head | tail], arrange?),
    do: plain?(head, arrange?) and plain_list?(tail, arrange?)

  defp plain_list?(tail, arrange?), do: tail == [] or plain?(tail, arrange?)

  defp plain_tuple?(_tuple, 0, _arrange?), do: true

  defp plain_tuple?(tuple, size, arrange?),
    do: plain?(:erlang.element(size, tuple), arrange?) and plain_tuple?(tuple, size - 1, arrange?)

  defp convert([_ | _] = list, arrange?) do
    cond do
      not arrange? or List.improper?(list) -> convert_list(list, false)
      not Arrangement.candidate?(list) -> convert_list(list, true)
      is_struct(hd(list)) -> list |> convert_list(true) |> arrange()
      true -> Arrangement.arrange(list, &encode/1) || convert_list(list, true)
    end
  end

  defp convert(%{__struct__: _} = struct, arrange?), do: convert_struct(struct, arrange?)

  defp convert(map, arrange?) when is_map(map),
    do: Map.new(map, fn {key, value} -> {convert(key, false), convert(value, arrange?)} end)

  defp convert(tuple, arrange?) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> Enum.map(&convert(&1, arrange?)) |> List.to_tuple()

  defp convert(term, _arrange?), do: term

  defp convert_list([head | tail], arrange?),
    do: [convert(head, arrange?) | convert_list(tail, arrange?)]

  defp convert_list(tail, arrange?), do: convert(tail, arrange?)

  # What has been converted already.
  defp arrange(list) do
    if(Arrangement.candidate?(list), do: Arrangement.arrange(list, &arrange/1)) || list
  end

  defp convert_struct(%MapSet{} = set, _arrange?) do
    if Enum.all?(set, &plain?(&1, false)), do: set, else: MapSet.new(set, &convert(&1, false))
  end

  defp convert_struct(%Object{args: args} = object, arrange?),
    do: %{object | args: encode(args, arrange?)}

  defp convert_struct(%type{} = wrapper, _arrange?) when type in [Binary, Float, Term],
    do: wrapper

  defp convert_struct(%type{} = struct, arrange?) do
    case Encoder.impl_for(struct) do
      nil ->
        convert_fields(struct, arrange?)

      implementation ->
        case implementation.encode(struct) do
          %{__struct__: ^type} = same -> convert_fields(same, arrange?)
          other -> encode(other, arrange?)
        end
    end
  end

  defp convert_struct(not_a_struct, arrange?), do: convert_fields(not_a_struct, arrange?)

  defp convert_fields(struct, arrange?) do
    fields = :maps.to_list(struct)

    if Enum.all?(fields, fn {key, value} -> plain?(key, false) and plain?(value, arrange?) end),
      do: struct,
      else: Map.new(fields, fn {key, value} -> {encode(key, false), encode(value, arrange?)} end)
  end
end
