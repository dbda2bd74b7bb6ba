defmodule Snex.Call do
  @moduledoc false
  # Requests from the calling process straight to Python, and what becomes of those that fail.

  alias Snex.{Error, Runtimes}

  # How long an interpreter may take to end after its Python has. It waits for its output. With :shutdown
  # Python says that it is about to end, for which it has some seconds.
  @end_of_interpreter 2_000
  @end_of_python 7_000

  # How long an answer is waited for before the process that is to give it is monitored, in ms.
  @at_once 25

  # ms after which Python that was to be killed is not waited for any more.
  @killing 1_000

  # ms by which the time of a call may be measured too short.
  @inexact 50

  # How Python ends when its watcher kills it: SIGRTMAX-1 for a request that went over its
  # `kill_after`, SIGRTMAX-2 for too much memory.
  @over_time {:exit_status, 128 + 63}
  @over_memory {:exit_status, 128 + 62}

  @typedoc """
  Whether Python has answered (an environment that is gone is an answer, too), did not in time, or has
  gone, or the connection to it has.
  """
  @type fate :: :answered | :silent | :gone

  @doc "Send a request and return its answer, `{:ok, value}` or an error."
  @spec request(Runtimes.target(), pid(), term(), timeout()) ::
          {:ok, term()} | {:error, Error.t()}
  def request(target, interpreter, request, timeout),
    do: elem(attempt(target, interpreter, request, timeout), 1)

  @doc """
  The same, and what became of it.

  With `kill_after`, ms, which Python has been told with the request or is the interpreter's default, that much
  longer is waited for the end of a Python which cannot be interrupted.
  """
  @spec attempt(Runtimes.target(), pid(), term(), timeout(), pos_integer() | nil) ::
          {fate(), {:ok, term()} | {:error, Error.t()}}
  def attempt(target, interpreter, request, timeout, kill_after \\ nil) do
    case call(target, interpreter, request, timeout, kill_after) do
      {:ok, {:error, %Error{code: :cancelled, reason: "timeout"}}} -> {:answered, timed_out()}
      # A Python of another version may not know all fields.
      {:ok, {:error, %Error{} = error}} -> {:answered, {:error, Map.merge(%Error{}, error)}}
      {:ok, answer} -> {:answered, answer}
      :timeout -> {:silent, timed_out()}
      {:down, reason, over?} -> lost(failed(target, interpreter, reason), over?)
    end
  end

  # A call as `GenServer.call/3` makes it, but that the process which is called is only monitored
  # when it does not answer at once. Python monitors the caller where it has to wait itself.
  defp call(target, interpreter, request, timeout, kill_after) do
    alias = :erlang.alias([:reply])
    send(target, {:"$gen_call", {self(), [:alias | alias]}, request})

    receive do
      {[:alias | ^alias], answer} -> {:ok, answer}
    after
      min(timeout, @at_once) ->
        await(target, alias, timeout, fn -> kill_after || Runtimes.kill_after(interpreter) end)
    end
  end

  defp left(:infinity, _waited), do: :infinity
  defp left(timeout, waited), do: max(0, timeout - waited)

  defp await(target, alias, timeout, kill_after) do
    monitor = Process.monitor(target)
    began = now() - @at_once

    case await_answer(alias, monitor, left(timeout, @at_once)) do
      :timeout ->
        killing = kill_after.()
        more = if killing, do: killing + @killing, else: 0
        outcome = if more > 0, do: await_answer(alias, monitor, more), else: :timeout
        Process.demonitor(monitor, [:flush])
        outcome(outcome, target, alias, over?(began, timeout, killing))

      {:down, _} = down ->
        outcome(down, target, alias, over?(began, timeout, kill_after.()))

      answer ->
        Process.demonitor(monitor, [:flush])
        answer
    end
  end

  defp await_answer(alias, monitor, timeout) do
    receive do
      {[:alias | ^alias], answer} -> {:ok, answer}
      {:DOWN, ^monitor, _, _, reason} -> {:down, reason}
    after
      timeout -> :timeout
    end
  end

  defp outcome({:ok, _} = answer, _target, _alias, _over?), do: answer
  defp outcome(:timeout, _target, alias, _over?), do: given_up(alias, :timeout)

  defp outcome({:down, reason}, target, alias, over?),
    do: given_up(alias, {:down, down(target, reason), over?})

  # Whether the call has taken so long that Python was killed for it.
  defp over?(_began, timeout, kill_after) when timeout == :infinity or kill_after == nil,
    do: false

  defp over?(began, timeout, kill_after), do: now() - began + @inexact >= timeout + kill_after

  # The answer may have come just before nobody can answer any more.
  defp given_up(alias, outcome) do
    :erlang.unalias(alias)

    receive do
      {[:alias | ^alias], answer} -> {:ok, answer}
    after
      0 -> outcome
    end
  end

  defp down(target, :noconnection) when is_pid(target), do: {:nodedown, node(target)}
  defp down({_, node}, :noconnection), do: {:nodedown, node}
  defp down(_, reason), do: reason

  defp timed_out, do: {:error, %Error{code: :response_timeout}}

  defp lost(%Error{code: :env_not_found} = error, _over?), do: {:answered, {:error, error}}
  defp lost(error, over?), do: {:gone, {:error, limited(error, over?)}}

  # Python was killed because a limit was passed: by this call, or while it was under way.
  defp limited(%Error{reason: %Error{reason: @over_time}}, true) do
    %Error{
      code: :killed,
      reason: "the code could not be interrupted when its time was over: Python was killed for it"
    }
  end

  defp limited(%Error{reason: %Error{reason: @over_memory}}, _over?) do
    %Error{
      code: :memory_limit,
      reason:
        "Python held more memory than :max_memory allows and was killed; this call was under way, " <>
          "and may or may not be the one that took it"
    }
  end

  defp limited(error, _over?), do: error

  @doc "A sentence on an exit status by which a limit is known that Python was killed for, or nil."
  @spec why_killed(term()) :: String.t() | nil
  def why_killed(@over_time),
    do:
      "a request could not be interrupted and went over its :kill_after: Python was killed for it"

  def why_killed(@over_memory),
    do: "Python held more memory than :max_memory allows, and was killed for it"

  def why_killed(_reason), do: nil

  @doc "The error of a call to an interpreter that could not be made, or was not answered."
  @spec failed(term()) :: Error.t()
  def failed(reason), do: %Error{code: :call_failed, reason: reason}

  # The environment has gone, but the node that it was on has not.
  defp failed(target, interpreter, :noproc) when is_pid(target) do
    if ended?(interpreter),
      do: failed(:noproc),
      else: %Error{code: :env_not_found, reason: "the environment #{inspect(target)} is gone"}
  end

  defp failed(target, interpreter, reason) do
    # An interpreter that is attached to a node outlives it.
    if Runtimes.attached?(interpreter) do
      failed(reason)
    else
      case Runtimes.why_ending(interpreter) do
        {:ok, why} -> failed(why)
        :error -> failed_with(target, interpreter, reason)
      end
    end
  end

  defp failed_with(target, interpreter, reason) do
    monitor = Process.monitor(interpreter)

    receive do
      {:DOWN, ^monitor, _, _, :noproc} -> failed(ended(interpreter))
      {:DOWN, ^monitor, _, _, reason} -> failed(reason)
    after
      if(reason == :shutdown, do: @end_of_python, else: @end_of_interpreter) ->
        Process.demonitor(monitor, [:flush])
        # The interpreter lives on: then it was the environment that ended, or the connection.
        if is_pid(target) and not match?({:nodedown, _}, reason),
          do: %Error{code: :env_not_found, reason: "the environment ended: #{inspect(reason)}"},
          else: failed(reason)
    end
  end

  defp ended(interpreter) do
    case Runtimes.why_ended(interpreter) do
      {:ok, reason} -> reason
      :error -> :noproc
    end
  end

  @doc "Whether the interpreter is known to have ended: of those on other nodes that is not known."
  @spec ended?(pid()) :: boolean()
  def ended?(interpreter), do: node(interpreter) == node() and not Process.alive?(interpreter)

  @doc "Have an environment destroyed; whether it exists is not told."
  @spec destroy(pid(), [:noconnect]) :: :ok
  def destroy(env, options) do
    :erlang.send(env, {:"$gen_cast", {:destroy_env, env}}, options)
    :ok
  end

  defp now, do: System.monotonic_time(:millisecond)
end
