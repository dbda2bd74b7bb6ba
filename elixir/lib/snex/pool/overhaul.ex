defmodule Snex.Pool.Overhaul do
  @moduledoc false
  # Replacing the members of a pool one after the other, and removing some: a process of its own waits
  # for their work to end, and has the pool do the steps.

  alias Snex.{Call, Error, Interpreter}
  alias Snex.Pool.{Members, Places, Server}

  @type t :: %{pid: pid(), from: GenServer.from()}

  @typedoc "What is to be done; `timeout` is for the work and the environments of each member."
  @type what :: {:drain, options()} | {:resize, pos_integer(), options()}
  @type options :: %{timeout: timeout(), environments: :wait | :end}

  # ms between two looks at a member that is to become idle, or ready.
  @again 20

  # ms that Python has to tell how many environments there are.
  @info_timeout 5_000

  @doc "Begin; `from` is answered when it is done."
  @spec begin(Server.state(), what(), GenServer.from()) ::
          {:ok, Server.state()} | {:error, Error.t()}
  def begin(%{overhaul: nil} = state, {:resize, size, _options}, from) when size >= state.size do
    state =
      if size > state.size,
        do: Enum.reduce((state.size + 1)..size, enlarge(state, size), &Members.start(&2, &1)),
        else: state

    GenServer.reply(from, :ok)
    {:ok, state}
  end

  def begin(%{overhaul: nil} = state, what, from) do
    pool = self()
    before = state.size
    state = with {:resize, size, _} <- what, do: %{state | size: size}, else: (_ -> state)
    pid = spawn_link(fn -> GenServer.reply(from, run(pool, state.places, what, before)) end)
    {:ok, %{state | overhaul: %{pid: pid, from: from}}}
  end

  def begin(_state, _what, _from) do
    reason = "members of the pool are being replaced or removed already: wait for that to end"
    {:error, %Error{code: :call_failed, reason: reason}}
  end

  defp enlarge(state, size) do
    Places.put_slots(state.places, size)
    %{state | size: size}
  end

  @doc "The process has ended."
  @spec ended(Server.state(), term()) :: Server.state()
  def ended(%{overhaul: %{from: from}} = state, reason) do
    if reason != :normal,
      do: GenServer.reply(from, {:error, %Error{code: :internal_error, reason: reason}})

    %{state | overhaul: nil}
  end

  # --- in the process -----------------------------------------------------------------------------------

  defp run(pool, places, {:drain, options}, size),
    do: each(1..size, &replace(pool, places, &1, options))

  defp run(pool, places, {:resize, size, options}, before) do
    held = for slot <- (size + 1)..before, do: {slot, have(pool, {:hold, slot, :remove})}
    deadline = deadline(options)

    for {slot, {:ok, pid, target}} <- held do
      await_idle(places, slot, pid, target, options, deadline)
      stop(pid)
    end

    have(pool, :removed)
  end

  defp each(slots, fun) do
    Enum.reduce_while(slots, :ok, fn slot, :ok ->
      case fun.(slot) do
        :ok -> {:cont, :ok}
        error -> {:halt, error}
      end
    end)
  end

  defp replace(pool, places, slot, options) do
    with {:ok, pid, target} <- have(pool, {:hold, slot, :replace}) do
      await_idle(places, slot, pid, target, options, deadline(options))
      stop(pid)
    end

    await_up(pool, slot)
  end

  defp have(pool, step), do: GenServer.call(pool, {:step, step}, :infinity)

  defp deadline(%{timeout: :infinity}), do: :infinity
  defp deadline(%{timeout: timeout}), do: now() + timeout

  defp await_idle(places, slot, pid, target, options, deadline) do
    idle? = Places.busy(places, slot) == 0 and empty?(pid, target, options)

    # (A number is less than an atom.)
    if not idle? and now() < deadline do
      receive do
      after
        @again -> await_idle(places, slot, pid, target, options, deadline)
      end
    end
  end

  defp empty?(_pid, target, options) when target == nil or options.environments == :end, do: true

  defp empty?(pid, target, _options) do
    case Call.request(target, pid, :info, @info_timeout) do
      {:ok, %{environments: count}} -> count == 0
      # It has ended, or does not answer: nobody uses its environments.
      {:error, _} -> true
    end
  end

  defp stop(pid) do
    Interpreter.stop(pid)
  catch
    # It has ended by itself.
    :exit, _reason -> :ok
  end

  defp await_up(pool, slot) do
    case have(pool, {:state, slot}) do
      :up ->
        :ok

      {:failed, reason} ->
        {:error, reason}

      :starting ->
        receive do
        after
          @again -> await_up(pool, slot)
        end
    end
  end

  # --- in the pool ------------------------------------------------------------------------------------------

  @doc "A step, in the process of the pool."
  @spec step(Server.state(), term()) :: {term(), Server.state()}
  def step(state, {:hold, slot, what}) do
    case state.members[slot] do
      %{pid: pid, target: target} = member when target != nil ->
        Places.put_state(state.places, slot, :down)
        {{:ok, pid, target}, Members.put(state, %{member | state: :draining, held: what})}

      # It is starting: there is nothing on it.
      %{pid: pid} = member when pid != nil and what == :remove ->
        {{:ok, pid, nil}, Members.put(state, %{member | state: :draining, held: what})}

      %{} = member ->
        {:none, Members.put(state, %{member | held: what})}
    end
  end

  def step(state, {:state, slot}) do
    case state.members[slot] do
      %{state: :up} -> {:up, state}
      %{error: nil} -> {:starting, state}
      %{error: error} -> {{:failed, error}, state}
    end
  end

  def step(state, :removed) do
    Places.put_slots(state.places, state.size)
    {:ok, %{state | members: Map.filter(state.members, fn {slot, _} -> slot <= state.size end)}}
  end

  defp now, do: System.monotonic_time(:millisecond)
end
