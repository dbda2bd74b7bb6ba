defmodule Snex.Streams do
  @moduledoc false
  # What a generator of Python yields, as an enumerable: a consumer of GenStage's protocol, in the
  # process that enumerates. Messages go to an alias, so that none comes when that is over.

  alias Snex.{Call, Env, Error}

  @typedoc "Makes the stream: its process."
  @type open :: (() -> {:ok, pid()} | {:error, Error.t()})

  @doc "The items of the stream that `open` gives, which is asked whenever the result is enumerated."
  @spec items(open(), pos_integer(), non_neg_integer(), timeout(), Env.t() | nil) ::
          Enumerable.t()
  def items(open, max, min, timeout, env),
    do: Stream.resource(fn -> subscribe(open, max, min, timeout) end, &next/1, &close(&1, env))

  defp subscribe(open, max, min, timeout) do
    case open.() do
      {:ok, pid} ->
        ref = :erlang.monitor(:process, pid, alias: :explicit_unalias)
        say(pid, ref, {:subscribe, nil, max_demand: max, min_demand: min, alias: true})
        %{pid: pid, ref: ref, asked: 0, max: max, min: min, timeout: timeout}

      {:error, error} ->
        raise error
    end
  end

  # What was given last has been taken.
  defp next(%{asked: asked, min: min} = state) when asked <= min do
    say(state.pid, state.ref, {:ask, state.max - asked})
    receive_some(%{state | asked: state.max})
  end

  defp next(state), do: receive_some(state)

  defp receive_some(%{pid: pid, ref: ref} = state) do
    receive do
      {:"$gen_consumer", {^pid, ^ref}, items} when is_list(items) ->
        {items, %{state | asked: state.asked - length(items)}}

      {:"$gen_consumer", {^pid, ^ref}, {:cancel, :normal}} ->
        {:halt, state}

      {:"$gen_consumer", {^pid, ^ref}, {:cancel, {:error, %Error{} = error}}} ->
        # A Python of another version may not know all fields.
        raise Map.merge(%Error{}, error)

      {:"$gen_consumer", {^pid, ^ref}, {:cancel, reason}} ->
        raise Call.failed(reason)

      {:DOWN, ^ref, _, _, :noconnection} ->
        raise Call.failed({:nodedown, node(pid)})

      {:DOWN, ^ref, _, _, reason} ->
        raise Call.failed(reason)
    after
      state.timeout ->
        raise %Error{
          code: :response_timeout,
          reason: "the stream gave no item within #{state.timeout} ms"
        }
    end
  end

  defp close(%{pid: pid, ref: ref}, env) do
    :erlang.unalias(ref)
    Process.demonitor(ref, [:flush])
    say(pid, ref, {:cancel, :normal})
    flush(pid, ref)
    if env, do: Env.used(env)
  end

  defp say(pid, ref, what), do: send(pid, {:"$gen_producer", {self(), ref}, what})

  defp flush(pid, ref) do
    receive do
      {:"$gen_consumer", {^pid, ^ref}, _} -> flush(pid, ref)
    after
      0 -> :ok
    end
  end
end
