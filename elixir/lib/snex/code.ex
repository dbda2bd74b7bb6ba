defmodule Snex.Code do
  @moduledoc """
  Python code together with where it stands, for accurate tracebacks.

  The sigils of `Snex.Sigils` make it. All functions that take code take a `t:t/0`, or a string,
  whose place is `<Snex.Code>`.
  """

  @typedoc """
  `src` is the source, `file` the file that tracebacks name, and `line` the line of that file where
  `src` begins; 0, which is what code that does not know its place has, counts as 1.
  """
  @type t :: %__MODULE__{src: iodata(), file: String.t(), line: non_neg_integer()}

  @enforce_keys [:src]
  defstruct [:src, file: "<Snex.Code>", line: 0]

  @doc """
  Makes code of a string; leaves code, and nil, as it is.

      iex> Snex.Code.wrap("return 1")
      %Snex.Code{src: "return 1", file: "<Snex.Code>", line: 0}

      iex> Snex.Code.wrap(nil)
      nil
  """
  @spec wrap(t() | iodata()) :: t()
  @spec wrap(nil) :: nil
  def wrap(nil), do: nil
  def wrap(%__MODULE__{} = code), do: code
  def wrap(src) when is_binary(src) or is_list(src), do: %__MODULE__{src: src}

  defimpl String.Chars do
    def to_string(%{src: src}), do: IO.iodata_to_binary(src)
  end
end
