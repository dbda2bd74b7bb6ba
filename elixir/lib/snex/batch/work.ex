defmodule Snex.Batch.Work do
  @moduledoc false
  # One batch under way, in a process of its own: the call of Python, and what becomes of its items.

  alias Snex.{Code, Error}
  alias Snex.Batch.Groups

  @function ~r/^[^\W\d]\w*(\.[^\W\d]\w*)*$/u

  @doc "The code that runs for a list of items. ArgumentError for what is no code, and no function's name."
  @spec source!(term(), String.t()) :: Snex.code()
  def source!(code, _variable) when is_binary(code) or is_struct(code, Code), do: code

  def source!({module, function} = code, variable) do
    for name <- [module, function],
        not (is_binary(name) or is_atom(name)) or not (to_string(name) =~ @function),
        do: raise(ArgumentError, no_code(code))

    # In a function, so that an environment keeps one name of it.
    """
    async def _snex_batch(items):
        import importlib, inspect
        result = importlib.import_module("#{module}").#{function}(items)
        return await result if inspect.isawaitable(result) else result
    return await _snex_batch(#{variable})
    """
  end

  def source!(other, _variable), do: raise(ArgumentError, no_code(other))

  defp no_code(code) do
    ":code is Python code, or the names of a module and a function, as in {\"math\", \"fsum\"}; " <>
      "got: #{inspect(code, limit: 5)}"
  end

  @doc "Run a batch. Returns the answer to each of its items, by their references."
  @spec run(map(), [Groups.item()]) :: %{reference() => {:ok, term()} | {:error, Error.t()}}
  def run(settings, items) do
    # What Python calls back is allowed what is allowed to those who wait.
    Process.put(:"$callers", for(%{from: {pid, _tag}} <- items, do: pid))

    case {evaluate(settings, items), items} do
      {{:ok, results}, _items} ->
        pair(items, results)

      {{:error, error}, [item]} ->
        %{item.ref => {:error, error}}

      {{:error, error}, items} ->
        if alone?(settings, error), do: one_by_one(settings, items), else: all(items, error)
    end
  end

  # When Python ends, or does not answer, it would do so again.
  defp alone?(settings, error),
    do: settings.isolate and error.code in [:python_runtime_error, :bad_request]

  defp one_by_one(settings, items),
    do: Enum.reduce(items, %{}, &Map.merge(&2, run(settings, [&1])))

  defp all(items, error), do: Map.new(items, &{&1.ref, {:error, error}})

  defp evaluate(settings, items) do
    vars = Map.put(settings.vars, settings.variable, Enum.map(items, & &1.item))
    opts = [timeout: time_left(items), encoding_opts: settings.encoding_opts]
    Snex.pyeval(settings.interpreter, settings.source, vars, opts)
  rescue
    # By an encoder of the user's, for one of the items.
    error -> {:error, %Error{code: :bad_request, reason: Exception.message(error)}}
  end

  # (A number is less than an atom.)
  defp time_left(items) do
    case items |> Enum.map(& &1.deadline) |> Enum.max() do
      :infinity -> :infinity
      deadline -> max(0, deadline - System.monotonic_time(:millisecond))
    end
  end

  defp pair(items, results) when is_list(results) and length(results) == length(items) do
    for {item, result} <- Enum.zip(items, results), into: %{}, do: {item.ref, answer(result)}
  end

  defp pair(items, results), do: all(items, wrong(items, results))

  defp answer(%Error{} = error), do: {:error, Map.merge(%Error{}, error)}
  defp answer(result), do: {:ok, result}

  defp wrong(items, results) do
    got =
      if is_list(results),
        do: "a list of #{length(results)}",
        else: inspect(results, limit: 5, printable_limit: 50)

    %Error{
      code: :python_runtime_error,
      reason:
        "the code of a batch returns a list with one result for each item; for #{length(items)} it " <>
          "returned #{got}"
    }
  end
end
