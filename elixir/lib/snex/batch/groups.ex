defmodule Snex.Batch.Groups do
  @moduledoc false
  # Items that wait, by their keys. A group is taken when it has as many as a batch may have, or when its
  # first item has waited long enough; those that were full first, then those whose first item is oldest.
  # While it may not go out a group that is due grows on.

  @enforce_keys [:limit]
  defstruct [:limit, full: :queue.new(), open: %{}, next: 0, size: 0]

  @type item :: %{
          ref: reference(),
          from: GenServer.from(),
          item: term(),
          monitor: reference(),
          deadline: integer() | :infinity
        }

  @type t :: %__MODULE__{
          limit: pos_integer(),
          full: :queue.queue([item()]),
          open: map(),
          next: non_neg_integer(),
          size: non_neg_integer()
        }

  @spec new(pos_integer()) :: t()
  def new(limit), do: %__MODULE__{limit: limit}

  @doc "How many items wait."
  @spec size(t()) :: non_neg_integer()
  def size(%{size: size}), do: size

  @doc "Put an item into its group; returns the group's number where it is the first, else nil."
  @spec join(t(), term(), item()) :: {non_neg_integer() | nil, t()}
  def join(%{limit: limit} = groups, key, item) do
    new = %{items: [], count: 0, due?: false, number: groups.next}
    group = Map.get(groups.open, key, new)
    group = %{group | items: [item | group.items], count: group.count + 1}
    groups = %{groups | size: groups.size + 1, next: groups.next + 1}

    if group.count >= limit do
      full = :queue.in(Enum.reverse(group.items), groups.full)
      {nil, %{groups | full: full, open: Map.delete(groups.open, key)}}
    else
      number = if group.number == groups.next - 1, do: group.number
      {number, %{groups | open: Map.put(groups.open, key, group)}}
    end
  end

  @doc "The time of a group has come, if it is there still."
  @spec due(t(), term(), non_neg_integer()) :: t()
  def due(%{open: open} = groups, key, number) do
    case open do
      %{^key => %{number: ^number} = group} ->
        %{groups | open: Map.put(open, key, %{group | due?: true})}

      _another ->
        groups
    end
  end

  @doc "The items of the next batch, if one is to go."
  @spec take(t()) :: {[item()], t()} | nil
  def take(%{full: full} = groups) do
    case :queue.out(full) do
      {{:value, items}, full} ->
        {items, %{groups | full: full, size: groups.size - length(items)}}

      {:empty, _} ->
        take_due(groups)
    end
  end

  defp take_due(groups) do
    due = for {key, %{due?: true} = group} <- groups.open, do: {group.number, key}

    case Enum.min(due, fn -> nil end) do
      nil ->
        nil

      {_number, key} ->
        {group, open} = Map.pop(groups.open, key)
        {Enum.reverse(group.items), %{groups | open: open, size: groups.size - group.count}}
    end
  end

  @doc "Take out the item that `item?` is true of, if it waits."
  @spec leave(t(), (item() -> boolean())) :: {item(), t()} | nil
  def leave(groups, item?), do: leave_open(groups, item?) || leave_full(groups, item?)

  defp leave_open(groups, item?) do
    found = fn {key, group} ->
      with i when i != nil <- Enum.find(group.items, item?), do: {key, group, i}
    end

    with {key, group, item} <- Enum.find_value(groups.open, found) do
      left = List.delete(group.items, item)
      group = %{group | items: left, count: group.count - 1}

      open =
        if left == [], do: Map.delete(groups.open, key), else: Map.put(groups.open, key, group)

      {item, %{groups | open: open, size: groups.size - 1}}
    end
  end

  defp leave_full(groups, item?) do
    batches = :queue.to_list(groups.full)

    with item when item != nil <- batches |> Enum.concat() |> Enum.find(item?) do
      left = batches |> Enum.map(&List.delete(&1, item)) |> Enum.reject(&(&1 == []))
      {item, %{groups | full: :queue.from_list(left), size: groups.size - 1}}
    end
  end
end
