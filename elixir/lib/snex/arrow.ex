defmodule Snex.Arrow do
  @moduledoc """
  A table, as it passes between Elixir and Python: the bytes of an
  [Arrow IPC stream](https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format).

  Data frames of [Explorer](https://hexdocs.pm/explorer) go to Python as they are, and come back as
  `Snex.Arrow`:

      {:ok, table} = Snex.pyeval(interpreter, "return df.slice(1)", %{"df" => frame})
      Snex.Arrow.to_explorer(table)

  Explorer is no dependency of Snex; where it is not there, all but `from_explorer/1` and `to_explorer/1` is.

  In Python a table is a `pyarrow.Table`, or, where only Polars is installed, a `polars.DataFrame`. From
  Python come tables and record batches of pyarrow, data frames of Polars and pandas, and whatever else has an
  `__arrow_c_stream__`. Nulls, dates, times, strings, lists and structs stay what they are.
  """

  @compile {:no_warn_undefined, Explorer.DataFrame}

  @typedoc "`data` holds the bytes of the stream."
  @type t :: %__MODULE__{data: binary()}

  @enforce_keys [:data]
  defstruct [:data]

  @doc """
  The data frame as one of these. Python gets that of its own accord.

  Raises `ArgumentError` where Explorer is not there, and what Explorer raises.
  """
  @spec from_explorer(struct()) :: t()
  def from_explorer(%{__struct__: Explorer.DataFrame} = frame) do
    require_explorer!()
    %__MODULE__{data: Explorer.DataFrame.dump_ipc_stream!(frame)}
  end

  @doc """
  The same table as a data frame of Explorer.

  Raises `ArgumentError` where Explorer is not there, and what Explorer raises.
  """
  @spec to_explorer(t()) :: struct()
  def to_explorer(%__MODULE__{data: data}) do
    require_explorer!()
    Explorer.DataFrame.load_ipc_stream!(data)
  end

  defp require_explorer! do
    if not Code.ensure_loaded?(Explorer.DataFrame) do
      raise ArgumentError,
            "Explorer is not there: add {:explorer, \"~> 0.10\"} to the dependencies"
    end
  end

  defimpl Inspect do
    def inspect(%{data: data}, _opts) when is_binary(data),
      do: "#Snex.Arrow<#{byte_size(data)} bytes>"

    def inspect(%{data: data}, _opts), do: "#Snex.Arrow<#{Kernel.inspect(data, limit: 5)}>"
  end
end

defimpl Snex.Serde.Encoder, for: Explorer.DataFrame do
  def encode(frame), do: Snex.Arrow.from_explorer(frame)
end
