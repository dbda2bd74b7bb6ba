defmodule Snex.Pool.Queue do
  @moduledoc false
  # Those who wait for a place in a pool: first come, first served.

  alias Snex.Error
  alias Snex.Pool.{Checkout, Lending, Places, Server, Waiting}

  @doc "Answer who asks for a place, at once or when there is one."
  @spec checkout(Server.state(), GenServer.from(), timeout()) :: Server.state()
  def checkout(state, {pid, _tag} = from, timeout) do
    cond do
      Waiting.size(state.queue) == 0 -> at_once(state, from, timeout)
      Waiting.size(state.queue) < state.settings.max_queue -> join(state, from, timeout)
      true -> refuse(state, from, Checkout.overloaded())
    end
    |> forget_dead(pid)
  end

  defp at_once(state, {pid, _tag} = from, timeout) do
    case Lending.lease(state, pid) do
      {:full, state} -> join_or_borrow(state, from, timeout)
      {granted, state} -> answer(state, from, granted)
    end
  end

  # Without a queue there may still be room elsewhere.
  defp join_or_borrow(%{settings: %{max_queue: 0}} = state, from, timeout) do
    if Lending.hope?(state),
      do: join(state, from, timeout),
      else: refuse(state, from, Checkout.overloaded())
  end

  defp join_or_borrow(state, from, timeout), do: join(state, from, timeout)

  defp join(state, {pid, _tag} = from, timeout) do
    %{queue: queue, settings: settings} = state
    ends = if timeout < settings.queue_timeout, do: :call, else: :queue
    patience = min(timeout, settings.queue_timeout)
    message = {:snex_expired, Waiting.next_id(queue)}

    waiter = %{
      from: from,
      monitor: Process.monitor(pid),
      timer: if(patience != :infinity, do: Process.send_after(self(), message, patience)),
      ends: ends
    }

    # Whoever leaves a place after this tells; whoever did before has left it to be found now.
    %{state | queue: Waiting.join(queue, waiter)} |> announce() |> dispatch()
  end

  # A place that was given to a process which has ended meanwhile is found by the next look.
  defp forget_dead(state, pid) do
    if node(pid) == node() and not Process.alive?(pid), do: Places.sweep(state.places)
    state
  end

  defp announce(state) do
    Places.put_waiting(state.places, Waiting.size(state.queue))
    state
  end

  @doc "Give those who wait what there is, here or elsewhere."
  @spec dispatch(Server.state()) :: Server.state()
  def dispatch(state) do
    case Waiting.first(state.queue) do
      nil ->
        state

      {id, %{from: {pid, _tag}}} ->
        case Lending.lease(state, pid) do
          {:full, state} -> Lending.ask(state)
          {granted, state} -> state |> give(id, granted) |> dispatch()
        end
    end
  end

  @doc "Answer one who waits, and need not any more; whether he did."
  @spec give(Server.state(), Waiting.id(), term()) :: Server.state()
  def give(state, id, answer) do
    case take(state, id) do
      {waiter, state} -> answer(state, waiter.from, answer)
      nil -> state
    end
  end

  @doc "Take one out who waits, if he does."
  @spec take(Server.state(), Waiting.id()) :: {Waiting.waiter(), Server.state()} | nil
  def take(state, id) do
    with {waiter, queue} <- Waiting.take(state.queue, id) do
      Process.demonitor(waiter.monitor, [:flush])
      if waiter.timer, do: Process.cancel_timer(waiter.timer)
      {waiter, announce(%{state | queue: queue})}
    end
  end

  @doc "The patience of one who waits is at its end, or the time of his call."
  @spec expired(Server.state(), Waiting.id()) :: Server.state()
  def expired(state, id) do
    case take(state, id) do
      {%{ends: :call, from: from}, state} -> answer(state, from, {:error, out_of_time()})
      {%{from: from}, state} -> refuse(state, from, waited(state))
      nil -> state
    end
  end

  @doc "Refuse one who waits for what others were to lend, where there is no queue to wait in."
  @spec refuse_unqueued(Server.state(), Waiting.id()) :: Server.state()
  def refuse_unqueued(%{settings: %{max_queue: 0}} = state, id) do
    case take(state, id) do
      {%{from: from}, state} -> refuse(state, from, Checkout.overloaded())
      nil -> state
    end
  end

  def refuse_unqueued(state, _id), do: state

  @spec watched?(Server.state(), reference()) :: boolean()
  def watched?(state, monitor), do: Waiting.watched(state.queue, monitor) != nil

  @doc "One who waits has ended."
  @spec gone(Server.state(), reference()) :: Server.state()
  def gone(state, monitor) do
    {_waiter, state} = take(state, Waiting.watched(state.queue, monitor))
    state
  end

  defp refuse(state, from, error) do
    Places.count_overloaded(state.places)
    answer(state, from, {:error, error})
  end

  defp answer(state, from, answer) do
    GenServer.reply(from, answer)
    state
  end

  defp waited(state) do
    %Error{
      code: :overloaded,
      reason:
        "no member was free for #{state.settings.queue_timeout} ms (:queue_timeout): call less, or give " <>
          "the pool a larger :size (Snex.Pool.resize/2), or more patience"
    }
  end

  defp out_of_time do
    details = "no member of the pool was free in that time, and nothing has run"
    %Error{code: :response_timeout, details: details}
  end
end
