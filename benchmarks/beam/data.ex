# Loaded into the BEAM that calls.

defmodule Benchmark.Data do
  @moduledoc """
  What is sent back and forth. The same in every run; made when it is needed, so that none is a
  literal.
  """

  defmodule User do
    @moduledoc "A struct."
    defstruct [:id, :name, :email, :score, :active]
  end

  @states ~w(new open waiting blocked done closed failed retried moved split merged archived)a

  @doc "So many elements of a kind; of the binaries so many bytes."
  def make(kind, count) do
    :rand.seed(:exsss, {1, 2, 3})
    data(kind, count)
  end

  @doc "The bytes that a BEAM writes for it."
  def encoded(kind, count), do: :erlang.term_to_binary(make(kind, count))

  @doc "The options of requests that bring it: these bytes are no text."
  def options(kind) when kind in ["10 MB", "1,000 x 10 kB"],
    do: [encoding_opts: [binary_as: :bytes]]

  def options("64 MB shared"), do: [shared: true]
  def options(_kind), do: []

  defp data("small integers", count), do: for(_ <- 1..count, do: :rand.uniform(200) - 1)
  defp data("large integers", count), do: for(_ <- 1..count, do: :rand.uniform(0x7FFFFFFF))

  defp data("mixed integers", count) do
    for n <- 1..count do
      if rem(n, 3) == 0, do: :rand.uniform(200) - 1, else: :rand.uniform(0x7FFFFFFF)
    end
  end

  defp data("floats", count), do: for(_ <- 1..count, do: :rand.uniform())
  defp data("short strings", count), do: for(n <- 1..count, do: "value #{n}")

  defp data("unicode strings", count),
    do: for(n <- 1..count, do: "Größe #{n}: Übermaß, 東京 №#{rem(n, 7)} – ε ≤ ½")

  defp data("atoms", count), do: for(_ <- 1..count, do: Enum.random(@states))
  defp data("tuples", count), do: for(n <- 1..count, do: List.to_tuple(fields(n)))
  defp data("structs", count), do: for(n <- 1..count, do: struct(User, named(n, & &1)))

  defp data("maps of 5", count),
    do: for(n <- 1..count, do: Map.new(named(n, &Atom.to_string/1)))

  defp data("maps of 40", count) do
    for n <- 1..count, do: for(i <- 1..40, into: %{}, do: {"column_#{i}", value(n, i)})
  end

  defp data("nested maps", count) do
    for n <- 1..count do
      %{
        "id" => n,
        "user" => Map.new(named(n, &Atom.to_string/1)),
        "position" => %{"x" => n / 3, "y" => n / 11},
        "tags" => ["tag #{rem(n, 10)}", "tag #{rem(n, 13)}"]
      }
    end
  end

  defp data("10 MB", count), do: :rand.bytes(count)
  defp data("1,000 x 10 kB", count), do: for(_ <- 1..count, do: :rand.bytes(10_000))
  # Of floats: what these are costs nothing.
  defp data(kind, count) when kind in ["64 MB tensor", "64 MB shared"] do
    data = bytes(count)
    shape = {div(count, 4)}
    %{__struct__: Snex.Tensor, type: {:f, 32}, shape: shape, names: nil, data: data}
  end

  # As many bytes as Python's has: five columns of floats.
  defp data("Arrow table", count), do: bytes(5 * 8 * count)

  defp data("a request", _one), do: {:eval, Benchmark.Requests.multiply(), %{"x" => 7}}

  defp bytes(count) do
    part = :rand.bytes(min(count, 1_000_000))
    part |> :binary.copy(div(count, byte_size(part)) + 1) |> binary_part(0, count)
  end

  defp named(n, name),
    do: Enum.zip(Enum.map([:id, :name, :email, :score, :active], name), fields(n))

  defp fields(n), do: [n, "user #{n}", "user#{n}@example.com", n / 7, rem(n, 3) == 0]

  defp value(n, i) when rem(i, 3) == 0, do: n * i
  defp value(n, i) when rem(i, 3) == 1, do: n / i
  defp value(n, i), do: "text #{n + i}"
end
