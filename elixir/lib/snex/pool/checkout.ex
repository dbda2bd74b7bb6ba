defmodule Snex.Pool.Checkout do
  @moduledoc false
  # A pool as those see it who call: a place is taken, the request goes to that member, the place is
  # left. The pool's process is asked only where no place is free, or the pool is on another node.

  alias Snex.{Call, Error, Runtimes, Telemetry}
  alias Snex.Pool.{Cluster, Places}

  @typedoc "What is to be given back: a place of this node, or what another node has lent."
  @type lease ::
          {:place, Places.t(), Places.slot(), Places.place()}
          | {:lent, pool :: pid(), reference(), Places.slot()}

  @typedoc "A request to a member, which has so many ms left."
  @type work ::
          (interpreter :: pid(), Runtimes.target(), timeout() -> {Call.fate(), answer :: term()})

  @doc "Have a member do something, within `timeout` ms and the waiting for it among them."
  @spec run(Places.t() | pid(), timeout(), work()) :: term()
  def run(pool, timeout, work) do
    case checkout(pool, timeout) do
      {:ok, lease, interpreter, target, left} ->
        try do
          work.(interpreter, target, left)
        else
          {fate, answer} ->
            report(fate, lease)
            answer
        after
          checkin(lease)
        end

      {:error, _} = error ->
        error
    end
  end

  # --- in and out ---------------------------------------------------------------------------------

  defp checkout(%Places{} = places, timeout) do
    if Places.nobody_waits?(places), do: claim(places, timeout), else: wait(places, timeout)
  end

  defp checkout(pool, timeout) when is_pid(pool), do: ask(pool, timeout)

  defp claim(places, timeout) do
    with {:ok, slot, place} <- Places.claim(places, Places.own_number()) do
      case Runtimes.member(places, slot) do
        {interpreter, target} ->
          {:ok, {:place, places, slot, place}, interpreter, target, timeout}

        # It ends just now.
        nil ->
          Places.release(places, place)
          wait(places, timeout)
      end
    else
      :full -> wait(places, timeout)
    end
  end

  defp wait(places, timeout) do
    if Places.queue_full?(places) do
      Places.count_overloaded(places)
      waited({:error, overloaded()}, places.pool, System.monotonic_time())
    else
      ask(places.pool, timeout)
    end
  end

  defp ask(pool, timeout) do
    began = System.monotonic_time()

    case waited(ask_for_place(pool, timeout), pool, began) do
      {:ok, lease, {interpreter, target}} ->
        waited = System.convert_time_unit(System.monotonic_time() - began, :native, :millisecond)
        {:ok, lease, interpreter, target, left(timeout, waited)}

      {:error, _} = error ->
        error
    end
  end

  defp ask_for_place(pool, timeout) do
    GenServer.call(pool, {:checkout, timeout}, :infinity)
  catch
    :exit, {reason, {GenServer, :call, _}} -> {:error, Call.failed(reason)}
  end

  defp waited(answer, pool, began) do
    if Telemetry.on?() do
      about = Map.put(Telemetry.outcome(answer), :pool, pool)
      Telemetry.execute([:pool, :wait], %{duration: System.monotonic_time() - began}, about)
    end

    answer
  end

  defp left(:infinity, _waited), do: :infinity
  defp left(timeout, waited), do: max(0, timeout - waited)

  defp checkin({:place, places, _slot, place}), do: Places.release(places, place)
  defp checkin({:lent, pool, ref, _slot}), do: GenServer.cast(pool, {:return, ref})

  # --- members that do not answer -------------------------------------------------------------------

  # Before the place is left, or the next one would be sent to a member that is not well.
  defp report(:answered, _lease), do: :ok

  defp report(_fate, {:place, places, slot, _place}) do
    Places.suspect(places, slot)
    send(places.pool, {:snex_suspect, slot})
  end

  defp report(_fate, {:lent, pool, _ref, slot}), do: send(pool, {:snex_suspect, slot})

  # --- environments -------------------------------------------------------------------------------

  @doc """
  Have something done by the member that an environment is on. It does not wait, but counts: others
  are sent elsewhere meanwhile. Of pools on other nodes nothing is counted here.
  """
  @spec visit(pid(), (() -> {Call.fate(), answer})) :: answer when answer: term()
  def visit(interpreter, work) do
    case Runtimes.membership(interpreter) do
      nil -> elem(work.(), 1)
      {places, slot} -> visit(places, slot, work)
    end
  end

  defp visit(places, slot, work) do
    place = Places.visit(places, slot, Places.own_number())

    try do
      work.()
    else
      {fate, answer} ->
        report(fate, {:place, places, slot, place})
        answer
    after
      Places.leave(places, slot, place)
    end
  end

  @doc "Have the member with the fewest environments do something, without waiting for a place."
  @spec lodge(Places.t() | pid(), work()) :: term()
  def lodge(%Places{} = places, work) do
    with slot when slot != nil <- Places.for_environment(places),
         {interpreter, target} <- Runtimes.member(places, slot) do
      # It may have been taken down just before this was to be seen there.
      make = fn ->
        if Places.up?(places, slot),
          do: work.(interpreter, target, :infinity),
          else: {:answered, :again}
      end

      with :again <- visit(places, slot, make), do: lodge(places, work)
    else
      # None is there: the next one that comes.
      nil -> run(places, :infinity, work)
    end
  end

  def lodge(pool, work), do: run(pool, :infinity, work)

  @doc "Count an environment that was made; returns the pool of this node that it is in, if it is in one."
  @spec lodged(pid()) :: pid() | nil
  def lodged(interpreter) do
    with {places, slot} <- Runtimes.membership(interpreter) do
      Places.add_environment(places, slot)
      places.pool
    end
  end

  @doc "Whether an environment is in a pool. Of those on other nodes this is not known, and they may be."
  @spec of_pool?(Snex.Env.t(), Places.t() | pid()) :: boolean()
  def of_pool?(env, pool) do
    case Runtimes.membership(env.interpreter) do
      {%{pool: pid}, _slot} -> is_struct(pool, Places) and pool.pool == pid
      nil -> node(env.interpreter) != node()
    end
  end

  # --- pools of other nodes -------------------------------------------------------------------------

  @doc "What takes the place of a pool that is not on this node: one of that name elsewhere."
  @spec elsewhere(GenServer.server()) :: pid() | nil
  def elsewhere(name) when is_atom(name) or (is_tuple(name) and elem(name, 0) == :via),
    do: name |> Cluster.find() |> List.first()

  def elsewhere(_other), do: nil

  # --- errors -------------------------------------------------------------------------------------

  @doc "The error of a call that finds no room in the queue."
  @spec overloaded() :: Error.t()
  def overloaded do
    %Error{
      code: :overloaded,
      reason:
        "all members are busy, and as many calls wait as :max_queue allows: call later, call less, or " <>
          "give the pool a larger :size (Snex.Pool.resize/2) or :max_queue"
    }
  end
end
