defprotocol Snex.Serde.Encoder do
  @moduledoc """
  What structs become before they are sent to Python.

  The result of `encode/1` is converted again. A struct without an implementation, and one whose
  `encode/1` returns a struct of the same type, becomes a `dict` with a `__struct__` key.

      defimpl Snex.Serde.Encoder, for: Date do
        def encode(date),
          do: Snex.Serde.object("datetime", "date", [date.year, date.month, date.day])
      end
  """

  @doc "The term to send in place of `struct`."
  @spec encode(t()) :: term()
  def encode(struct)
end
