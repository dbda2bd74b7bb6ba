defmodule Snex.Pool.Asked do
  @moduledoc false
  # What a pool has asked others and waits for no longer than it has nothing else to do: the answer, or
  # `{:down, reason}`, comes as a message.

  @type t :: %{reference() => term()}

  @spec new() :: t()
  def new, do: %{}

  @doc """
  Call a process as `GenServer.call/3` does; the answer comes as `{[:alias | ref], answer}`, or as a
  `:DOWN`. `what` it is an answer to is found under that reference.
  """
  @spec ask(t(), GenServer.server(), term(), term()) :: t()
  def ask(asked, whom, request, what) do
    ref = :erlang.monitor(:process, whom, alias: :reply_demonitor)
    send(whom, {:"$gen_call", {self(), [:alias | ref]}, request})
    Map.put(asked, ref, what)
  end

  @spec asked?(t(), reference()) :: boolean()
  def asked?(asked, ref), do: is_map_key(asked, ref)

  @doc "What an answer is to."
  @spec answered(t(), reference()) :: {term(), t()} | nil
  def answered(asked, ref) do
    case Map.pop(asked, ref, :none) do
      {:none, _} -> nil
      {what, asked} -> {what, asked}
    end
  end

  @doc "Wait for no answer to what `fun` is true of."
  @spec forget(t(), (term() -> boolean())) :: t()
  def forget(asked, fun) do
    {forgotten, kept} = Enum.split_with(asked, fn {_ref, what} -> fun.(what) end)
    for {ref, _what} <- forgotten, do: Process.demonitor(ref, [:flush])
    Map.new(kept)
  end
end
