defmodule Snex.Pool.Server do
  @moduledoc false
  # The process of a pool. Calls do not pass through it while there is room: `Snex.Pool.Checkout` takes
  # places in `Snex.Pool.Places`, and `Snex.Runtimes` tells where the members are. It has the members
  # started, keeps the queue, and sees to those who do not answer, leave or die.
  #
  # Members are interpreters under a DynamicSupervisor of its own, which restarts those that fail. They
  # start asynchronously, so none waits for another. One that was told to end is not restarted by the
  # supervisor, but by this process.
  use GenServer

  alias Snex.Runtimes
  alias Snex.Pool.{Asked, Cluster, Lending, Members, Overhaul, Places, Queue, Waiting}

  # ms between two looks at who has died, how many environments there are, and who does not answer.
  @look 1_000

  @typedoc """
  `ready` are those who wait until all members are, `overhaul` is the process that replaces or removes
  members, `first_error` why the first one failed that did.
  """
  @type state :: %{
          settings: map(),
          places: Places.t(),
          supervisor: pid(),
          size: pos_integer(),
          members: %{Places.slot() => Members.member()},
          asked: Asked.t(),
          queue: Waiting.t(),
          lending: Lending.t(),
          ready: [{GenServer.from(), boolean()}],
          first_error: term(),
          overhaul: Overhaul.t() | nil,
          restarts: non_neg_integer()
        }

  # --- start and end --------------------------------------------------------------------------------

  @spec start_link(map(), GenServer.options()) :: GenServer.on_start()
  def start_link(settings, options), do: GenServer.start_link(__MODULE__, settings, options)

  @impl GenServer
  def init(settings) do
    Process.flag(:trap_exit, true)
    places = Places.new(settings.capacity, settings.concurrency, settings.max_queue)
    Places.put_slots(places, settings.size)
    Runtimes.register_pool(places)

    {:ok, supervisor} =
      DynamicSupervisor.start_link(
        strategy: :one_for_one,
        max_restarts: settings.max_restarts,
        max_seconds: settings.max_seconds
      )

    if settings.cluster?, do: Cluster.join(settings.name, self())
    Process.send_after(self(), :snex_look, @look)

    state = %{
      settings: settings,
      places: places,
      supervisor: supervisor,
      size: settings.size,
      members: %{},
      asked: Asked.new(),
      queue: Waiting.new(),
      lending: Lending.new(),
      ready: [],
      first_error: nil,
      overhaul: nil,
      restarts: 0
    }

    {:ok, Enum.reduce(1..settings.size, state, &Members.start(&2, &1))}
  end

  @impl GenServer
  def terminate(_reason, %{supervisor: supervisor}) do
    # Members end at the same time, each within the time of its Python.
    if Process.alive?(supervisor), do: DynamicSupervisor.stop(supervisor, :shutdown)
    :ok
  catch
    :exit, _reason -> :ok
  end

  # --- calls ------------------------------------------------------------------------------------------

  @impl GenServer
  def handle_call({:checkout, timeout}, from, state),
    do: {:noreply, Queue.checkout(state, from, timeout)}

  def handle_call({:lend, waiter}, _from, state) do
    {answer, state} = Lending.lend(state, waiter)
    {:reply, answer, state}
  end

  def handle_call(:snex_runtime, _from, state), do: {:reply, {:pool, self()}, state}
  def handle_call(:info, _from, state), do: {:reply, info(state), state}

  def handle_call(:capacity, _from, state), do: {:reply, state.settings.capacity, state}

  def handle_call(:name, _from, state) do
    name = if state.settings.cluster?, do: state.settings.name
    {:reply, name, state}
  end

  def handle_call(:os_pid, _from, state) do
    pids =
      for slot <- 1..state.size, %{os_pid: pid} when pid != nil <- [state.members[slot]], do: pid

    {:reply, List.first(pids) || 0, state}
  end

  # The first failure of all ends a start that is waited for.
  def handle_call({:await_ready, first?}, from, state) do
    cond do
      first? and state.first_error != nil -> {:reply, {:error, state.first_error}, state}
      Members.all_up?(state) -> {:reply, :ok, state}
      true -> {:noreply, %{state | ready: [{from, first?} | state.ready]}}
    end
  end

  def handle_call({:overhaul, what}, from, state) do
    case Overhaul.begin(state, what, from) do
      {:ok, state} -> {:noreply, state}
      {:error, _} = error -> {:reply, error, state}
    end
  end

  # What an overhaul asks for, step by step.
  def handle_call({:step, step}, _from, state) do
    {answer, state} = Overhaul.step(state, step)
    {:reply, answer, settle(state)}
  end

  @impl GenServer
  def handle_cast({:return, lease}, state),
    do: {:noreply, state |> Lending.return(lease) |> settle()}

  def handle_cast(_other, state), do: {:noreply, state}

  # --- messages -----------------------------------------------------------------------------------------

  @impl GenServer
  def handle_info(:snex_room, state), do: {:noreply, settle(state)}

  def handle_info({:snex_member, slot, pid}, state),
    do: {:noreply, state |> Members.started(slot, pid) |> settle()}

  def handle_info({:snex_suspect, slot}, state), do: {:noreply, Members.suspected(state, slot)}
  def handle_info({:snex_expired, id}, state), do: {:noreply, Queue.expired(state, id)}

  def handle_info({:snex_ask_again, pool}, state),
    do: {:noreply, state |> Lending.ask_again(pool) |> settle()}

  def handle_info(:snex_look, state) do
    Process.send_after(self(), :snex_look, @look)
    Places.sweep(state.places)
    Runtimes.renew_pool(state.places)
    {:noreply, state |> Members.look() |> settle()}
  end

  # Answers to what this process has asked members and other pools.
  def handle_info({[:alias | ref], answer}, state) do
    case Asked.answered(state.asked, ref) do
      {what, asked} -> {:noreply, %{state | asked: asked} |> answered(what, answer) |> settle()}
      nil -> {:noreply, state}
    end
  end

  def handle_info({:DOWN, ref, :process, pid, reason}, state) do
    cond do
      Asked.asked?(state.asked, ref) -> handle_info({[:alias | ref], {:down, reason}}, state)
      Queue.watched?(state, ref) -> {:noreply, Queue.gone(state, ref)}
      Lending.watched?(state, ref) -> {:noreply, state |> Lending.gone(ref) |> settle()}
      true -> {:noreply, state |> member_ended(pid, reason) |> settle()}
    end
  end

  def handle_info({:EXIT, supervisor, reason}, %{supervisor: supervisor} = state),
    do: {:stop, {:shutdown, {:members_fail, state.first_error || reason}}, state}

  def handle_info({:EXIT, pid, reason}, %{overhaul: %{pid: pid}} = state),
    do: {:noreply, Overhaul.ended(state, reason)}

  def handle_info({:EXIT, _pid, :normal}, state), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}
  def handle_info(_other, state), do: {:noreply, state}

  defp answered(state, {:lend, pool, id}, answer), do: Lending.answered(state, pool, id, answer)
  defp answered(state, what, answer), do: Members.answered(state, what, answer)

  # What follows from whatever has happened: those who wait get what there is, and who waits for all
  # members to be ready is told.
  defp settle(state), do: state |> Queue.dispatch() |> tell_ready()

  defp tell_ready(%{ready: []} = state), do: state

  defp tell_ready(state) do
    if Members.all_up?(state) do
      for {from, _first?} <- state.ready, do: GenServer.reply(from, :ok)
      %{state | ready: []}
    else
      state
    end
  end

  defp member_ended(state, pid, reason) do
    case Members.ended(state, pid, reason) do
      {:failed, state} -> failed(state, reason)
      {:gone, state} -> state
    end
  end

  defp failed(state, reason) do
    {told, waiting} = Enum.split_with(state.ready, fn {_from, first?} -> first? end)
    for {from, _first?} <- told, do: GenServer.reply(from, {:error, reason})
    %{state | ready: waiting, first_error: state.first_error || reason}
  end

  # --- what is told of it ---------------------------------------------------------------------------------

  defp info(state) do
    counts = Places.counts(state.places)

    %{
      name: state.settings.name,
      size: state.size,
      concurrency: state.settings.concurrency,
      members: Members.info(state),
      queue: Waiting.size(state.queue),
      calls: counts.calls,
      overloaded: counts.overloaded,
      restarts: state.restarts
    }
  end

  # The options of interpreters, and what is asked of them, is not for logs. (Elixir knows the callback
  # from 1.17 on.)
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(GenServer)
  @doc false
  def format_status(status), do: Map.replace_lazy(status, :log, fn _ -> [] end)
end
