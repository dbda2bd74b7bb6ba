defmodule Snex.Pool.Places do
  @moduledoc false
  # Who works on which member of a pool, in one array of atomics, so that a call asks no process.
  #
  # Each member has `concurrency` places for calls, and some more for those to its environments, which
  # do not wait. A place holds 0, or the number of the process that has taken it, and is taken by
  # comparing and exchanging: there is no moment in which a place is taken and it is not known by whom,
  # so whoever is killed, whenever that is, leaves nothing that `sweep/1` cannot find. (Counters would
  # be as fast, but a caller that is killed leaves its count; a table of owners beside them costs two
  # writes per call, and there is a moment between the two.)
  #
  # To look at a place takes some 10 ns.

  @enforce_keys [:ref, :pool, :concurrency, :width]
  defstruct @enforce_keys

  @type slot :: pos_integer()
  @type place :: pos_integer()
  @type state :: :down | :up | :suspect
  @type t :: %__MODULE__{
          ref: :atomics.atomics_ref(),
          pool: pid(),
          concurrency: pos_integer(),
          width: pos_integer()
        }

  # Words of the pool.
  @waiting 1
  @max_waiting 2
  @slots 3
  @calls 4
  @overloaded 5
  @head 5

  # Words of each member; behind them its places, those of environments first.
  @state 1
  @visits 2
  @environments 3
  @member_head 3
  @visitors 16

  @states [down: 0, up: 1, suspect: 2]

  @doc "Places for `slots` members of the calling process, a pool; all members are down."
  @spec new(pos_integer(), pos_integer(), non_neg_integer()) :: t()
  def new(slots, concurrency, max_waiting) do
    width = @member_head + @visitors + concurrency
    ref = :atomics.new(@head + slots * width, signed: false)
    :atomics.put(ref, @max_waiting, max_waiting)
    %__MODULE__{ref: ref, pool: self(), concurrency: concurrency, width: width}
  end

  # --- the pool -----------------------------------------------------------------------------------

  @doc "How many members there may be: slots from 1 on are looked at."
  @spec put_slots(t(), pos_integer()) :: :ok
  def put_slots(%{ref: ref}, slots), do: :atomics.put(ref, @slots, slots)

  @spec put_waiting(t(), non_neg_integer()) :: :ok
  def put_waiting(%{ref: ref}, count), do: :atomics.put(ref, @waiting, count)

  @doc "Whether nobody waits: then a place may be taken without asking."
  @spec nobody_waits?(t()) :: boolean()
  def nobody_waits?(%{ref: ref}), do: :atomics.get(ref, @waiting) == 0

  @doc "Whether so many wait that nobody else may."
  @spec queue_full?(t()) :: boolean()
  def queue_full?(%{ref: ref}) do
    max = :atomics.get(ref, @max_waiting)
    max > 0 and :atomics.get(ref, @waiting) >= max
  end

  @spec count_overloaded(t()) :: :ok
  def count_overloaded(%{ref: ref}), do: :atomics.add(ref, @overloaded, 1)

  @spec counts(t()) :: %{calls: non_neg_integer(), overloaded: non_neg_integer()}
  def counts(%{ref: ref}),
    do: %{calls: :atomics.get(ref, @calls), overloaded: :atomics.get(ref, @overloaded)}

  # --- members ------------------------------------------------------------------------------------

  @spec put_state(t(), slot(), state()) :: :ok
  def put_state(places, slot, state),
    do: :atomics.put(places.ref, base(places, slot) + @state, @states[state])

  @doc "Nobody is to be sent to a member, until the pool knows more; it is not up then, if it was."
  @spec suspect(t(), slot()) :: :ok
  def suspect(places, slot) do
    word = base(places, slot) + @state
    :atomics.compare_exchange(places.ref, word, @states[:up], @states[:suspect])
    :ok
  end

  @doc "Whether a member takes calls."
  @spec up?(t(), slot()) :: boolean()
  def up?(places, slot), do: :atomics.get(places.ref, base(places, slot) + @state) == @states[:up]

  @spec suspect?(t(), slot()) :: boolean()
  def suspect?(places, slot),
    do: :atomics.get(places.ref, base(places, slot) + @state) == @states[:suspect]

  @doc "How many calls are under way on a member, those to its environments among them."
  @spec busy(t(), slot()) :: non_neg_integer()
  def busy(%{ref: ref} = places, slot), do: busy(ref, base(places, slot), places.width)

  @spec environments(t(), slot()) :: non_neg_integer()
  def environments(places, slot),
    do: :atomics.get(places.ref, base(places, slot) + @environments)

  @spec put_environments(t(), slot(), non_neg_integer()) :: :ok
  def put_environments(places, slot, count),
    do: :atomics.put(places.ref, base(places, slot) + @environments, count)

  @spec add_environment(t(), slot()) :: :ok
  def add_environment(places, slot),
    do: :atomics.add(places.ref, base(places, slot) + @environments, 1)

  # --- callers ------------------------------------------------------------------------------------

  @doc "Take a place of the member that has least to do, for the process with that number."
  @spec claim(t(), pos_integer()) :: {:ok, slot(), place()} | :full
  def claim(%{ref: ref} = places, owner) do
    # Of those that are equally busy the first: a Python that has just worked answers sooner, by half
    # of what a small call takes, than one that has slept.
    case least_busy(places, 1, :atomics.get(ref, @slots), nil, places.concurrency) do
      nil -> :full
      slot -> take(places, slot, owner)
    end
  end

  defp take(%{ref: ref} = places, slot, owner) do
    last = base(places, slot) + places.width

    case exchange(ref, last - places.concurrency + 1, last, owner) do
      # Somebody was faster.
      nil -> claim(places, owner)
      place -> taken(places, slot, place, owner)
    end
  end

  # Who takes a member down looks for those who work on it afterwards, and so finds this one or is found.
  defp taken(%{ref: ref} = places, slot, place, owner) do
    if up?(places, slot) do
      :atomics.add(ref, @calls, 1)
      {:ok, slot, place}
    else
      :atomics.put(ref, place, 0)
      claim(places, owner)
    end
  end

  defp least_busy(_places, slot, slots, best, _limit) when slot > slots, do: best

  defp least_busy(%{ref: ref} = places, slot, slots, best, limit) do
    base = base(places, slot)

    busy =
      if :atomics.get(ref, base + @state) == 1, do: busy(ref, base, places.width), else: limit

    cond do
      busy == 0 -> slot
      busy < limit -> least_busy(places, slot + 1, slots, slot, busy)
      true -> least_busy(places, slot + 1, slots, best, limit)
    end
  end

  # Where no visitor has been announced there is none to look for. The number of those announced may
  # be too high, when one was killed, and then is looked.
  defp busy(ref, base, width) do
    none? = :atomics.get(ref, base + @visits) == 0
    first = base + @member_head + if(none?, do: @visitors, else: 0) + 1
    count(ref, first, base + width, 0)
  end

  defp count(_ref, place, last, count) when place > last, do: count

  defp count(ref, place, last, count) do
    if :atomics.get(ref, place) == 0,
      do: count(ref, place + 1, last, count),
      else: count(ref, place + 1, last, count + 1)
  end

  defp exchange(_ref, place, last, _owner) when place > last, do: nil

  defp exchange(ref, place, last, owner) do
    case :atomics.compare_exchange(ref, place, 0, owner) do
      :ok -> place
      _taken -> exchange(ref, place + 1, last, owner)
    end
  end

  @doc "Leave a place; the pool is told when somebody waits for one."
  @spec release(t(), place()) :: :ok
  def release(%{ref: ref} = places, place) do
    :atomics.put(ref, place, 0)
    tell_of_room(places)
  end

  @doc """
  Take a place for a call to an environment of a member, which does not wait; nil where there are more
  of these than are counted.
  """
  @spec visit(t(), slot(), pos_integer()) :: place() | nil
  def visit(%{ref: ref} = places, slot, owner) do
    base = base(places, slot)
    :atomics.add(ref, @calls, 1)
    :atomics.add(ref, base + @visits, 1)
    exchange(ref, base + @member_head + 1, base + @member_head + @visitors, owner)
  end

  @spec leave(t(), slot(), place() | nil) :: :ok
  def leave(%{ref: ref} = places, slot, place) do
    if place, do: :atomics.put(ref, place, 0)
    :atomics.sub(ref, base(places, slot) + @visits, 1)
    tell_of_room(places)
  end

  defp tell_of_room(%{ref: ref, pool: pool}) do
    if :atomics.get(ref, @waiting) > 0, do: send(pool, :snex_room)
    :ok
  end

  @doc "Of those that are up, the member with the fewest environments, and of these the least busy."
  @spec for_environment(t()) :: slot() | nil
  def for_environment(%{ref: ref} = places) do
    up =
      for slot <- 1..:atomics.get(ref, @slots),
          :atomics.get(ref, base(places, slot) + @state) == @states[:up],
          do: {environments(places, slot), busy(places, slot), slot}

    if up != [], do: up |> Enum.min() |> elem(2)
  end

  # --- those who have died ------------------------------------------------------------------------

  @doc "Free the places of processes that have ended."
  @spec sweep(t()) :: :ok
  def sweep(%{ref: ref} = places) do
    for slot <- 1..:atomics.get(ref, @slots),
        base = base(places, slot),
        place <- (base + @member_head + 1)..(base + places.width),
        owner = :atomics.get(ref, place),
        owner != 0,
        not Process.alive?(process(owner)),
        do: :atomics.compare_exchange(ref, place, owner, 0)

    :ok
  end

  @doc "The number of a process of this node: what is left of its pid without the node."
  @spec owner(pid()) :: pos_integer()
  def owner(pid) do
    # Its last 12 bytes are two numbers and the creation of the node, in this form of all releases.
    external = :erlang.term_to_binary(pid)
    <<owner::64, _creation::32>> = binary_part(external, byte_size(external), -12)
    owner
  end

  @doc "The number of the calling process, which remembers it."
  @spec own_number() :: pos_integer()
  def own_number do
    with nil <- Process.get(__MODULE__) do
      number = owner(self())
      Process.put(__MODULE__, number)
      number
    end
  end

  @doc "The process that a number stands for."
  @spec process(pos_integer()) :: pid()
  def process(owner) do
    <<id::32, serial::32>> = <<owner::64>>
    :erlang.list_to_pid(~c"<0.#{id}.#{serial}>")
  end

  defp base(%{width: width}, slot), do: @head + (slot - 1) * width
end
