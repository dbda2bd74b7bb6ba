defmodule Snex.Source do
  @moduledoc """
  An enumerable of Elixir that Python code iterates over: made by `Snex.source/1`, and given as a variable.

      {:ok, 5050} =
        Snex.pyeval(interpreter, "return sum([n async for n in snex.subscribe(source)])", %{
          "source" => Snex.source(1..100)
        })

  The enumerable runs in a process of its own, as far as Python has asked for its items. It ends when Python
  has all of them, leaves its loop, or is done with the evaluation; or when the process that made it has ended
  before anybody has subscribed. What it raises is raised in Python.

  It speaks the producer's part of GenStage's protocol, for one consumer.
  """

  use GenServer, restart: :temporary

  alias Snex.Serde

  @typedoc "`pid` is the process that runs the enumerable."
  @type t :: %__MODULE__{pid: pid()}

  @enforce_keys [:pid]
  defstruct [:pid]

  # What is ready is sent after so many items, or ms.
  @most 500
  @soon 2

  @doc false
  @spec start(Enumerable.t()) :: t()
  def start(enumerable) do
    callers = [self() | Process.get(:"$callers") || []]
    {:ok, pid} = GenServer.start(__MODULE__, {enumerable, callers})
    %__MODULE__{pid: pid}
  end

  @impl true
  def init({enumerable, [maker | _] = callers}) do
    Process.put(:"$callers", callers)
    Process.monitor(maker)
    next = &Enumerable.reduce(enumerable, &1, fn item, acc -> collected(item, acc) end)
    {:ok, %{next: next, maker: maker, consumer: nil, monitor: nil, demand: 0}}
  end

  @impl true
  def handle_info({:"$gen_producer", {pid, _tag} = from, {:subscribe, _old, _opts}}, state) do
    if state.consumer do
      cancel(
        from,
        {:error, %{type: "ArgumentError", reason: "the source has a consumer already"}}
      )

      {:noreply, state}
    else
      {:noreply, %{state | consumer: from, monitor: Process.monitor(pid)}}
    end
  end

  def handle_info({:"$gen_producer", from, {:ask, demand}}, %{consumer: from} = state) do
    if state.demand == 0, do: send(self(), :go_on)
    {:noreply, %{state | demand: state.demand + demand}}
  end

  def handle_info({:"$gen_producer", from, {:ask, _}}, state) do
    cancel(from, :unknown_subscription)
    {:noreply, state}
  end

  def handle_info({:"$gen_producer", from, {:cancel, reason}}, %{consumer: from} = state) do
    cancel(from, reason)
    {:stop, :normal, state}
  end

  def handle_info(:go_on, state), do: produce(state)

  def handle_info({:DOWN, monitor, _, _, _}, %{monitor: monitor} = state),
    do: {:stop, :normal, state}

  # Its consumer has what it is to know from then on.
  def handle_info({:DOWN, _, _, maker, _}, %{maker: maker, consumer: nil} = state),
    do: {:stop, :normal, state}

  def handle_info(_, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, %{next: next}) do
    # What the enumerable has opened is closed.
    if next, do: next.({:halt, nil})
    :ok
  end

  defp produce(%{demand: 0} = state), do: {:noreply, state}

  defp produce(state) do
    most = min(state.demand, @most)
    Process.put(__MODULE__, [])

    try do
      state.next.({:cont, {most, now() + @soon, []}})
    rescue
      error -> failed(state, %{type: inspect(error.__struct__), reason: Exception.message(error)})
    catch
      kind, reason -> failed(state, %{type: nil, reason: Exception.format_banner(kind, reason)})
    else
      {:suspended, {_, _, items}, next} ->
        give(state.consumer, items)
        demand = state.demand - length(items)
        if demand > 0, do: send(self(), :go_on)
        {:noreply, %{state | next: next, demand: demand}}

      {_done, {_, _, items}} ->
        give(state.consumer, items)
        cancel(state.consumer, :normal)
        {:stop, :normal, %{state | next: nil}}

      # `Enumerable.reduce/3` of what was halted by itself.
      {_halted, nil} ->
        cancel(state.consumer, :normal)
        {:stop, :normal, %{state | next: nil}}
    end
  end

  defp failed(state, error) do
    give(state.consumer, Process.get(__MODULE__, []))
    cancel(state.consumer, {:error, error})
    {:stop, :normal, %{state | next: nil}}
  end

  defp collected(item, {left, soon, items}) do
    items = [Serde.encode(item) | items]
    # Where the enumerable raises, these are all there is of them.
    Process.put(__MODULE__, items)
    acc = {left - 1, soon, items}
    if left == 1 or now() >= soon, do: {:suspend, acc}, else: {:cont, acc}
  end

  defp give(_consumer, []), do: :ok

  defp give({pid, tag}, items),
    do: send(pid, {:"$gen_consumer", {self(), tag}, Enum.reverse(items)})

  defp cancel({pid, tag}, reason),
    do: send(pid, {:"$gen_consumer", {self(), tag}, {:cancel, reason}})

  defp now, do: System.monotonic_time(:millisecond)
end

defimpl Snex.Serde.Encoder, for: Snex.Source do
  def encode(source), do: source.pid
end
