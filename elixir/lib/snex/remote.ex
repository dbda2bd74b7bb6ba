defmodule Snex.Remote do
  @moduledoc false
  # What Python calls on this node is called through here, by `:erpc`. A node without this module is
  # asked for the function itself; Python asks for `version/0` once per connection.

  alias Snex.{Serde, Telemetry}

  @spec version() :: 2
  def version, do: 2

  @doc """
  Call a function in the name of the process that sent Python its request: it is in `$callers`, as
  in a `Task`, so that what is allowed to it (a sandboxed database connection, a mock) is allowed
  here. Structs in the result pass `Snex.Serde.Encoder`.
  """
  @spec apply(module(), atom(), [term()], pid()) :: term()
  def apply(module, function, args, caller) do
    Process.put(:"$callers", [caller | callers_of(caller)])

    try do
      Kernel.apply(module, function, args)
    catch
      # As if it had been called by `:erpc` alone.
      :error, reason -> :erlang.raise(:error, reason, without_own(__STACKTRACE__))
    else
      value -> Serde.encode(value)
    end
  end

  @doc "The same, as a part of the trace that the call to Python was a part of."
  @spec apply(module(), atom(), [term()], pid(), String.t()) :: term()
  def apply(module, function, args, caller, traceparent) do
    Telemetry.continue(traceparent)
    __MODULE__.apply(module, function, args, caller)
  end

  # The caller waits for Python, most often, and so tells at once.
  defp callers_of(pid) when node(pid) == node() do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         {_, callers} when is_list(callers) <- List.keyfind(dictionary, :"$callers", 0) do
      callers
    else
      _ -> []
    end
  end

  defp callers_of(_remote), do: []

  defp without_own(stack),
    do: Enum.take_while(stack, fn frame -> elem(frame, 0) != __MODULE__ end)
end
