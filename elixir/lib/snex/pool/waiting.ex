defmodule Snex.Pool.Waiting do
  @moduledoc false
  # Those who wait for a place, in the order in which they came. Any of them may leave.

  @enforce_keys [:tree]
  defstruct [:tree, next: 0, monitors: %{}]

  @type id :: non_neg_integer()

  @typedoc """
  One who waits: whom to answer, the monitor of his process, the timer of his end and what ends then,
  his patience or the time of his call.
  """
  @type waiter :: %{
          from: GenServer.from(),
          monitor: reference(),
          timer: reference() | nil,
          ends: :queue | :call,
          since: integer()
        }

  @type t :: %__MODULE__{tree: :gb_trees.tree(), next: id(), monitors: map()}

  @spec new() :: t()
  def new, do: %__MODULE__{tree: :gb_trees.empty()}

  @spec size(t()) :: non_neg_integer()
  def size(%{tree: tree}), do: :gb_trees.size(tree)

  @doc "What `id` the next one gets who joins."
  @spec next_id(t()) :: id()
  def next_id(%{next: next}), do: next

  @doc "Put somebody at the end."
  @spec join(t(), waiter()) :: t()
  def join(%{tree: tree, next: id, monitors: monitors}, waiter) do
    tree = :gb_trees.insert(id, waiter, tree)
    %__MODULE__{tree: tree, next: id + 1, monitors: Map.put(monitors, waiter.monitor, id)}
  end

  @doc "The first one."
  @spec first(t()) :: {id(), waiter()} | nil
  def first(%{tree: tree}),
    do: if(:gb_trees.is_empty(tree), do: nil, else: :gb_trees.smallest(tree))

  @doc "The first one who is not among `ids`."
  @spec first_but(t(), [id()]) :: {id(), waiter()} | nil
  def first_but(%{tree: tree}, ids),
    do: tree |> :gb_trees.iterator() |> :gb_trees.next() |> skip(ids)

  defp skip(:none, _ids), do: nil

  defp skip({id, waiter, rest}, ids),
    do: if(id in ids, do: rest |> :gb_trees.next() |> skip(ids), else: {id, waiter})

  @doc "Take somebody out, who need not be there any more."
  @spec take(t(), id()) :: {waiter(), t()} | nil
  def take(%{tree: tree} = waiting, id) do
    case :gb_trees.take_any(id, tree) do
      {waiter, tree} ->
        {waiter, %{waiting | tree: tree, monitors: Map.delete(waiting.monitors, waiter.monitor)}}

      :error ->
        nil
    end
  end

  @doc "Who is watched with that monitor."
  @spec watched(t(), reference()) :: id() | nil
  def watched(%{monitors: monitors}, monitor), do: monitors[monitor]

  @spec to_list(t()) :: [waiter()]
  def to_list(%{tree: tree}), do: :gb_trees.values(tree)
end
