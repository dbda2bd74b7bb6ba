# Loaded into the BEAM that is called: the yardstick.

defmodule Benchmark.Server do
  @moduledoc """
  Answers what a Python node answers, to the same messages; environments are processes here too.
  """
  use GenServer

  alias Benchmark.{Requests, Together}

  @multiply Requests.multiply()
  @await Requests.await()
  @fetch Requests.fetch()
  @store Requests.store()
  @sends Requests.sends()
  @calls_back Requests.calls_back()

  @doc "Start it under the name that a Python node has for it; not linked to who asks for that."
  def start, do: GenServer.start(__MODULE__, nil, name: :snex)

  # An environment is freed when its handle ends, as in Python.
  @impl true
  def init(handle) do
    if handle, do: Process.monitor(handle)
    {:ok, nil}
  end

  @impl true
  def handle_call(:ping, _from, data), do: {:reply, :pong, data}

  def handle_call({:eval, code, variables, _options}, from, data),
    do: eval(code, variables, from, data)

  def handle_call({:eval, code, variables}, from, data), do: eval(code, variables, from, data)

  def handle_call({:make_env, _variables, options}, {caller, _tag}, data) do
    handle = Keyword.get(options, :handle, caller)
    {:reply, GenServer.start(__MODULE__, handle), data}
  end

  def handle_call({:destroy_env, env}, _from, data), do: {:reply, GenServer.stop(env), data}

  @impl true
  def handle_info({:DOWN, _, :process, _, _}, data), do: {:stop, :normal, data}

  defp eval(@multiply, %{"x" => x}, _from, data), do: {:reply, {:ok, 6 * x}, data}
  defp eval(@fetch, _variables, _from, data), do: {:reply, {:ok, data}, data}
  defp eval(@store, %{"data" => data}, _from, _data), do: {:reply, {:ok, nil}, data}

  defp eval(@sends, %{"pid" => pid, "count" => count}, _from, data) do
    for n <- 0..(count - 1), do: send(pid, n)
    {:reply, {:ok, nil}, data}
  end

  # What suspends in Python is a task there; here it is a process.
  defp eval(@await, %{"x" => x}, from, data), do: later(from, data, fn -> 6 * x end)

  defp eval(@calls_back, %{"callers" => callers, "calls" => calls}, {caller, _} = from, data) do
    later(from, data, fn ->
      Together.measure(callers, calls, fn ->
        42 = :erpc.call(node(caller), Requests, :answer, [7])
      end)
    end)
  end

  defp later(from, data, work) do
    spawn(fn -> GenServer.reply(from, {:ok, work.()}) end)
    {:noreply, data}
  end
end
