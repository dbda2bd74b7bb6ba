defmodule Snex.Pool.Members do
  @moduledoc false
  # The members of a pool: started, ready, not answering, ended; in the pool's process.
  #
  # A call that gets no answer in time, or whose Python seems to be gone, makes its member a suspect: it
  # gets no further calls, and is asked whether it answers. If it does it is a member as before; if it
  # does not for `restart_after` ms, and no other call is under way on it that might be why, it is
  # ended by force, and its supervisor starts another one.

  alias Snex.{Error, Launch, Options, Runtimes, Telemetry}
  alias Snex.Pool.{Asked, Places, Server}

  # ms that the message of an end is waited for, after the end.
  @late 1_000

  @typedoc """
  A member. `held` is what is done with it when it ends: it is replaced, or removed; `error` why it
  ended last; `idle` how many looks have found it suspect and with nothing to do.
  """
  @type member :: %{
          slot: Places.slot(),
          pid: pid() | nil,
          monitor: reference() | nil,
          state: :starting | :up | :suspect | :draining | :restarting | :failed,
          target: Runtimes.target() | nil,
          os_pid: non_neg_integer() | nil,
          since: integer(),
          idle: non_neg_integer(),
          held: :replace | :remove | nil,
          restarts: non_neg_integer(),
          error: term()
        }

  # --- start ------------------------------------------------------------------------------------------

  @doc "Have the member of a slot started; that it is comes as a message."
  @spec start(Server.state(), Places.slot()) :: Server.state()
  def start(%{settings: settings} = state, slot) do
    opts = options(settings, slot)

    child = %{
      id: {:member, slot},
      start: {__MODULE__, :start_member, [self(), slot, settings.module, %Options{opts: opts}]},
      restart: :transient,
      shutdown: Launch.stop_timeout() + 1_000
    }

    state = put(state, Map.merge(new(slot), Map.take(state.members[slot] || %{}, [:restarts])))

    case DynamicSupervisor.start_child(state.supervisor, child) do
      {:ok, _pid} ->
        state

      # What `start_link` of the module says. It is tried again by the next look.
      {:error, reason} ->
        put(%{state | first_error: state.first_error || reason}, %{
          state.members[slot]
          | state: :failed,
            error: reason
        })
    end
  end

  defp new(slot) do
    %{
      slot: slot,
      pid: nil,
      monitor: nil,
      state: :starting,
      target: nil,
      os_pid: nil,
      since: now(),
      idle: 0,
      held: nil,
      restarts: 0,
      error: nil
    }
  end

  # Logs show the name, and tools the label.
  defp options(%{name: name, opts: %Options{opts: opts}}, slot) do
    named = if is_atom(name) and name != nil, do: [name: member_name(name, slot)], else: []

    opts
    |> Keyword.put(:sync_start?, false)
    |> Keyword.put_new(:label, {name || Snex.Pool, slot})
    |> Keyword.merge(named)
  end

  defp member_name(name, slot), do: Module.concat(name, "Member#{slot}")

  @doc false
  # In the supervisor, which restarts members by itself.
  @spec start_member(pid(), Places.slot(), module(), Options.t()) :: GenServer.on_start()
  def start_member(pool, slot, module, %Options{opts: opts}) do
    with {:ok, pid} <- start_named(module, opts) do
      send(pool, {:snex_member, slot, pid})
      {:ok, pid}
    end
  end

  # After a pool that was killed its members may still be ending.
  defp start_named(module, opts) do
    with {:error, {:already_started, pid}} <- module.start_link(opts) do
      monitor = Process.monitor(pid)

      receive do
        {:DOWN, ^monitor, _, _, _} -> module.start_link(opts)
      after
        Launch.stop_timeout() + 1_000 ->
          Process.demonitor(monitor, [:flush])
          {:error, {:already_started, pid}}
      end
    end
  end

  @doc "A member has been started; it has to become ready."
  @spec started(Server.state(), Places.slot(), pid()) :: Server.state()
  def started(state, slot, pid) do
    case state.members[slot] do
      # It was to be removed while it was being restarted.
      member when member == nil or member.held == :remove ->
        spawn(fn -> Snex.Interpreter.stop(pid) end)
        %{state | members: Map.delete(state.members, slot)}

      %{pid: old} = member ->
        # The supervisor may be faster than the message of the end of the one before.
        state = if old, do: elem(ended(state, old, why_ended(member)), 1), else: state
        # The answers come in this order, both when it is ready.
        asked =
          state.asked
          |> Asked.ask(pid, :os_pid, {:os_pid, slot, pid})
          |> Asked.ask(pid, :snex_runtime, {:ready, slot, pid})

        restarts = (state.members[slot] || member).restarts
        fresh = %{new(slot) | pid: pid, monitor: Process.monitor(pid), restarts: restarts}
        put(%{state | asked: asked}, %{fresh | error: member.error})
    end
  end

  # It has ended, so the message is here, or on its way.
  defp why_ended(%{monitor: monitor}) do
    receive do
      {:DOWN, ^monitor, _, _, reason} -> reason
    after
      @late -> :killed
    end
  end

  @doc "What a member, or its Python, has answered."
  @spec answered(Server.state(), term(), term()) :: Server.state()
  def answered(state, {_what, slot, pid} = what, answer) do
    case state.members[slot] do
      %{pid: ^pid} = member -> take_answer(state, member, what, answer)
      _another -> state
    end
  end

  defp take_answer(state, member, {:ready, slot, pid}, {:ok, pid, target}) do
    Runtimes.put_member(state.places, slot, pid, target)
    Places.put_environments(state.places, slot, 0)
    Places.put_state(state.places, slot, :up)
    put(state, %{member | state: :up, target: target, error: nil})
  end

  defp take_answer(state, member, {:os_pid, _, _}, os_pid) when is_integer(os_pid),
    do: put(state, %{member | os_pid: os_pid})

  defp take_answer(state, %{state: :suspect} = member, {:ping, slot, _}, :pong) do
    Places.put_state(state.places, slot, :up)
    put(state, %{member | state: :up})
  end

  defp take_answer(state, _member, {:info, slot, _}, {:ok, %{environments: count}}) do
    Places.put_environments(state.places, slot, count)
    state
  end

  # It has ended, which is told by another message.
  defp take_answer(state, _member, _what, _answer), do: state

  # --- those that do not answer -------------------------------------------------------------------------

  @doc "A call on a member got no answer, or its Python seems to be gone."
  @spec suspected(Server.state(), Places.slot()) :: Server.state()
  def suspected(state, slot) do
    case state.members[slot] do
      %{state: :up} = member ->
        Places.put_state(state.places, slot, :suspect)
        ping(put(state, %{member | state: :suspect, since: now(), idle: 0}), slot)

      _not_up ->
        state
    end
  end

  defp ping(state, slot),
    do: ask_python(state, slot, :ping, {:ping, slot, state.members[slot].pid})

  # One question of a kind at a time: who does not answer is not asked more.
  defp ask_python(state, slot, request, what) do
    if what in Map.values(state.asked) do
      state
    else
      %{state | asked: Asked.ask(state.asked, state.members[slot].target, request, what)}
    end
  end

  @doc "Look at all members."
  @spec look(Server.state()) :: Server.state()
  def look(state), do: Enum.reduce(Map.values(state.members), state, &look_at(&2, &1))

  defp look_at(state, %{state: :up, slot: slot, pid: pid, target: target}) do
    # What tells callers where it is has been restarted.
    if Runtimes.member(state.places, slot) == nil,
      do: Runtimes.put_member(state.places, slot, pid, target)

    cond do
      # By a caller who was killed before he could tell.
      Places.suspect?(state.places, slot) ->
        suspected(state, slot)

      Places.environments(state.places, slot) > 0 ->
        ask_python(state, slot, :info, {:info, slot, pid})

      true ->
        state
    end
  end

  defp look_at(state, %{state: :suspect, slot: slot} = member) do
    idle = if Places.busy(state.places, slot) == 0, do: member.idle + 1, else: 0
    # Seen twice: its answer would have come meanwhile.
    if idle >= 2 and now() - member.since >= state.settings.restart_after,
      do: kill(member.pid, state.settings.restart_after)

    ping(put(state, %{member | idle: idle}), slot)
  end

  defp look_at(state, %{state: :failed, slot: slot}), do: start(state, slot)

  defp look_at(state, _member), do: state

  defp kill(interpreter, after_ms) do
    reason =
      "Python has not answered for more than #{after_ms} ms (:restart_after), and was ended"

    Runtimes.ending_of(interpreter, %Error{code: :interpreter_exited, reason: reason})
    Process.exit(interpreter, :kill)
  end

  # --- the end --------------------------------------------------------------------------------------------

  @doc "A member has ended; whether it has failed, or was to."
  @spec ended(Server.state(), pid(), term()) :: {:failed | :gone, Server.state()}
  def ended(state, pid, reason) do
    case Enum.find(state.members, fn {_slot, member} -> member.pid == pid end) do
      {slot, member} ->
        Places.put_state(state.places, slot, :down)
        Runtimes.delete_member(state.places, slot, pid)
        Process.demonitor(member.monitor, [:flush])
        asked = Asked.forget(state.asked, &match?({_, _, ^pid}, &1))
        follow(%{state | asked: asked}, member, reason)

      nil ->
        {:gone, state}
    end
  end

  defp follow(state, %{held: :remove, slot: slot}, _reason),
    do: {:gone, %{state | members: Map.delete(state.members, slot)}}

  defp follow(state, member, reason) do
    to_end? = reason in [:normal, :shutdown] or match?({:shutdown, _}, reason)

    if member.held == :replace and to_end? do
      {:gone, start(state, member.slot)}
    else
      state = restarting(%{state | restarts: state.restarts + 1}, member, reason)
      # What ends as it should is not started again by the supervisor.
      {:failed, if(to_end?, do: start(state, member.slot), else: state)}
    end
  end

  defp restarting(state, member, reason) do
    about = %{pool: self(), name: state.settings.name, slot: member.slot, reason: reason}
    Telemetry.execute([:python, :restart], %{count: member.restarts + 1}, about)

    put(state, %{
      new(member.slot)
      | state: :restarting,
        restarts: member.restarts + 1,
        held: if(member.held == :remove, do: :remove),
        # One that ends while it is replaced has only ended sooner.
        error: if(member.held, do: nil, else: reason)
    })
  end

  # --- what is told of them ---------------------------------------------------------------------------------

  @spec all_up?(Server.state()) :: boolean()
  def all_up?(state),
    do: Enum.all?(1..state.size, &match?(%{state: :up}, state.members[&1]))

  @spec info(Server.state()) :: [map()]
  def info(state) do
    for {slot, member} <- Enum.sort(state.members) do
      %{
        slot: slot,
        node: node(),
        pid: member.pid,
        os_pid: member.os_pid,
        state: member.state,
        busy: Places.busy(state.places, slot),
        environments: Places.environments(state.places, slot),
        restarts: member.restarts
      }
    end
  end

  @spec put(Server.state(), member()) :: Server.state()
  def put(state, member), do: %{state | members: Map.put(state.members, member.slot, member)}

  defp now, do: System.monotonic_time(:millisecond)
end
