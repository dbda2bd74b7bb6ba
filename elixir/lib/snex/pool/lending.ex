defmodule Snex.Pool.Lending do
  @moduledoc false
  # Places that are given: to callers of this node, who are known by their places; to those of other
  # nodes, who are watched; and what pools of the same name on other nodes lend to those who wait here.
  #
  # How busy others are is known by asking them, when somebody waits here: one question at a time to
  # each. Who is full is left alone for a moment.

  alias Snex.Runtimes
  alias Snex.Pool.{Asked, Checkout, Cluster, Places, Queue, Server, Waiting}

  # ms after which a pool that was full is asked again.
  @full 50

  @enforce_keys [:leases, :asked, :full]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          leases: %{reference() => Places.place()},
          asked: %{pid() => Waiting.id()},
          full: MapSet.t(pid())
        }

  @type granted :: {:ok, Checkout.lease(), {pid(), Runtimes.target()}}

  @spec new() :: t()
  def new, do: %__MODULE__{leases: %{}, asked: %{}, full: MapSet.new()}

  # --- what is lent ---------------------------------------------------------------------------------

  @doc "A place for a process, if there is one."
  @spec lease(Server.state(), pid()) :: {granted() | :full, Server.state()}
  def lease(%{places: places} = state, pid) do
    local? = node(pid) == node()
    owner = if local?, do: Places.owner(pid), else: Places.owner(self())

    with {:ok, slot, place} <- Places.claim(places, owner) do
      case Runtimes.member(places, slot) do
        nil ->
          Places.release(places, place)
          {:full, state}

        member when local? ->
          {{:ok, {:place, places, slot, place}, member}, state}

        member ->
          {lease, state} = lease_to(state, pid, slot, place)
          {{:ok, lease, member}, state}
      end
    else
      :full -> {:full, state}
    end
  end

  defp lease_to(%{lending: lending} = state, pid, slot, place) do
    ref = Process.monitor(pid)
    lending = %{lending | leases: Map.put(lending.leases, ref, place)}
    {{:lent, self(), ref, slot}, %{state | lending: lending}}
  end

  @doc "A place for one who waits at another pool. Those who wait here come first."
  @spec lend(Server.state(), pid()) :: {granted() | :full, Server.state()}
  def lend(state, waiter),
    do: if(Waiting.size(state.queue) == 0, do: lease(state, waiter), else: {:full, state})

  @doc "What was lent comes back."
  @spec return(Server.state(), reference()) :: Server.state()
  def return(state, ref) do
    Process.demonitor(ref, [:flush])
    gone(state, ref)
  end

  @spec watched?(Server.state(), reference()) :: boolean()
  def watched?(%{lending: lending}, ref), do: is_map_key(lending.leases, ref)

  @doc "Who has borrowed a place has ended, or his node has."
  @spec gone(Server.state(), reference()) :: Server.state()
  def gone(%{lending: lending} = state, ref) do
    {place, leases} = Map.pop(lending.leases, ref)
    if place, do: Places.release(state.places, place)
    %{state | lending: %{lending | leases: leases}}
  end

  # --- what is borrowed -----------------------------------------------------------------------------

  @doc "Whether others may have room."
  @spec hope?(Server.state()) :: boolean()
  def hope?(state), do: to_ask(state) != []

  defp to_ask(%{settings: %{cluster?: false}}), do: []

  defp to_ask(%{settings: settings, lending: lending}) do
    settings.name
    |> Cluster.others()
    |> Enum.reject(&(is_map_key(lending.asked, &1) or MapSet.member?(lending.full, &1)))
  end

  @doc "Ask others for those who wait."
  @spec ask(Server.state()) :: Server.state()
  def ask(state), do: Enum.reduce(to_ask(state), state, &ask/2)

  defp ask(pool, %{lending: lending} = state) do
    case Waiting.first_but(state.queue, Map.values(lending.asked)) do
      nil ->
        state

      {id, %{from: {pid, _tag}}} ->
        asked = Asked.ask(state.asked, pool, {:lend, pid}, {:lend, pool, id})
        %{state | asked: asked, lending: %{lending | asked: Map.put(lending.asked, pool, id)}}
    end
  end

  @doc "What another pool has answered, or that it has gone."
  @spec answered(Server.state(), pid(), Waiting.id(), term()) :: Server.state()
  def answered(%{lending: lending} = state, pool, id, answer) do
    state = %{state | lending: %{lending | asked: Map.delete(lending.asked, pool)}}

    case answer do
      {:ok, {:lent, ^pool, ref, _slot}, _member} -> hand_on(state, pool, id, ref, answer)
      _full_or_gone -> state |> leave_alone(pool) |> Queue.refuse_unqueued(id)
    end
  end

  defp hand_on(state, pool, id, ref, answer) do
    case Queue.take(state, id) do
      {waiter, state} ->
        GenServer.reply(waiter.from, answer)
        state

      # He has got a place here meanwhile, or has gone.
      nil ->
        GenServer.cast(pool, {:return, ref})
        state
    end
  end

  defp leave_alone(%{lending: lending} = state, pool) do
    Process.send_after(self(), {:snex_ask_again, pool}, @full)
    %{state | lending: %{lending | full: MapSet.put(lending.full, pool)}}
  end

  @doc "A pool that was full may be asked again."
  @spec ask_again(Server.state(), pid()) :: Server.state()
  def ask_again(%{lending: lending} = state, pool),
    do: %{state | lending: %{lending | full: MapSet.delete(lending.full, pool)}}
end
