defmodule Snex.Sigils do
  @moduledoc """
  Sigils for Python code that remember where the code stands.

      import Snex.Sigils

      Snex.pyeval(env, ~p"raise RuntimeError('with my file and line')")

  `~p` interpolates and takes escapes, as strings do; `~P` and `~PY` leave the code as it is.
  """

  @doc """
  Python code, interpolated.

      iex> import Snex.Sigils
      iex> to_string(~p"x = \#{1 + 1}")
      "x = 2"
  """
  defmacro sigil_p({:<<>>, meta, pieces}, _modifiers) do
    code(meta, {:<<>>, meta, unescape(pieces)}, __CALLER__)
  end

  @doc ~S"""
  Python code as it is.

      iex> import Snex.Sigils
      iex> to_string(~P"x = '\t#{1}'")
      "x = '\\t\#{1}'"
  """
  defmacro sigil_P({:<<>>, meta, [source]}, _modifiers) when is_binary(source) do
    code(meta, source, __CALLER__)
  end

  @doc "The same as `sigil_P/2`, under a name that editors know as Python's."
  defmacro sigil_PY({:<<>>, meta, [source]}, _modifiers) when is_binary(source) do
    code(meta, source, __CALLER__)
  end

  defp code(meta, source, caller) do
    # In a heredoc, which is what has an indentation, code begins on the line after the quotes.
    heredoc = if Keyword.has_key?(meta, :indentation), do: 1, else: 0
    line = Keyword.get(meta, :line, caller.line) + heredoc

    quote do
      %Snex.Code{src: unquote(source), file: unquote(caller.file), line: unquote(line)}
    end
  end

  defp unescape(pieces) do
    Enum.map(pieces, fn
      piece when is_binary(piece) -> Macro.unescape_string(piece)
      piece -> piece
    end)
  end
end
