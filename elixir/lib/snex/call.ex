defmodule Snex.Call do
  @moduledoc false
  # Requests from the calling process straight to Python, and what becomes of those that fail.

  alias Snex.Error

  # How long an interpreter may take to end after its Python has. It waits for its output.
  @end_of_interpreter 2_000

  # How long an answer is waited for before the process that is to give it is monitored, in ms.
  @at_once 25

  @doc "Send a request and return its answer, `{:ok, value}` or an error."
  @spec request(Snex.Runtimes.target(), pid(), term(), timeout()) ::
          {:ok, term()} | {:error, Error.t()}
  def request(target, interpreter, request, timeout) do
    case call(target, request, timeout) do
      {:ok, {:error, %Error{code: :cancelled, reason: "timeout"}}} -> timed_out()
      # A Python of another version may not know all fields.
      {:ok, {:error, %Error{} = error}} -> {:error, Map.merge(%Error{}, error)}
      {:ok, answer} -> answer
      :timeout -> timed_out()
      {:down, reason} -> {:error, failed(target, interpreter, reason)}
    end
  end

  # A call as `GenServer.call/3` makes it, but that the process which is called is only monitored
  # when it does not answer at once. Python monitors the caller where it has to wait itself.
  defp call(target, request, timeout) do
    alias = :erlang.alias([:reply])
    send(target, {:"$gen_call", {self(), [:alias | alias]}, request})

    receive do
      {[:alias | ^alias], answer} -> {:ok, answer}
    after
      min(timeout, @at_once) -> await(target, alias, left(timeout))
    end
  end

  defp left(:infinity), do: :infinity
  defp left(timeout), do: max(0, timeout - @at_once)

  defp await(target, alias, timeout) do
    monitor = Process.monitor(target)

    receive do
      {[:alias | ^alias], answer} ->
        Process.demonitor(monitor, [:flush])
        {:ok, answer}

      {:DOWN, ^monitor, _, _, reason} ->
        given_up(alias, {:down, down(target, reason)})
    after
      timeout ->
        Process.demonitor(monitor, [:flush])
        given_up(alias, :timeout)
    end
  end

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
    if Snex.Runtimes.attached?(interpreter) do
      failed(reason)
    else
      case Snex.Runtimes.why_ending(interpreter) do
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
      @end_of_interpreter ->
        Process.demonitor(monitor, [:flush])
        # The interpreter lives on: then it was the environment that ended, or the connection.
        if is_pid(target) and not match?({:nodedown, _}, reason),
          do: %Error{code: :env_not_found, reason: "the environment ended: #{inspect(reason)}"},
          else: failed(reason)
    end
  end

  defp ended(interpreter) do
    case Snex.Runtimes.why_ended(interpreter) do
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
end
