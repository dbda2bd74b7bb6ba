# Loaded into the BEAMs of `python -m benchmarks`, caller and called; first of all.

defmodule Benchmark.Requests do
  @moduledoc """
  What is asked of a Python node and, word for word, of the BEAM that is its yardstick.

  The BEAM knows the code by its text, and does in Elixir what it says.
  """

  @doc "Answers at once."
  def multiply, do: "return 6 * x"

  @doc "Suspends once before it answers; the init script has imported asyncio."
  def await, do: "await asyncio.sleep(0)\nreturn 6 * x"

  @doc "Takes 20 ms of a processor; the init script has imported time."
  def compute do
    """
    end = time.thread_time() + 0.020
    while time.thread_time() < end: pass
    return 6 * x
    """
  end

  @doc "Gives back what `store` was sent with."
  def fetch, do: "return data"

  @doc "Does nothing: only its variable matters, which stays."
  def store, do: ""

  @doc "A table of five columns of floats."
  def table do
    """
    import numpy, pyarrow
    return pyarrow.table({f"column {n}": numpy.random.rand(count) for n in range(5)})
    """
  end

  @doc "Yields so many items."
  def yields, do: "for n in range(count): yield n"

  @doc "Yields what comes from elsewhere."
  def passes_on, do: "async for n in snex.subscribe(source, max_demand=500): yield n"

  @doc "Sends a process so many messages."
  def sends, do: "for n in range(count): await snex.send(pid, n)"

  @doc "Calls a function of the node that asks: `callers` at a time, each `calls` times."
  def calls_back do
    """
    clock, times = time.perf_counter_ns, []

    async def caller():
        for _ in range(calls):
            start = clock()
            await snex.call("Elixir.Benchmark.Requests", "answer", [7])
            times.append(clock() - start)

    start = clock()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return clock() - start, calls * callers, times
    """
  end

  @doc "What is called back."
  def answer(x), do: 6 * x
end

defmodule Benchmark.Together do
  @moduledoc "Several processes that do something at the same time."

  @doc """
  Nanoseconds in all, how often `work` was done, and nanoseconds of each time.

  Each of `callers` processes does it `calls` times. They are all there before the clock starts.
  """
  def measure(callers, calls, work) do
    parent = self()

    pids =
      for _ <- 1..callers do
        spawn_link(fn ->
          receive do: (:go -> :ok)
          send(parent, {:done, repeat(calls, work, [])})
        end)
      end

    start = now()
    Enum.each(pids, &send(&1, :go))
    times = for _ <- pids, do: receive(do: ({:done, times} -> times))
    {now() - start, callers * calls, Enum.concat(times)}
  end

  defp repeat(0, _work, times), do: times

  defp repeat(calls, work, times) do
    start = now()
    work.()
    repeat(calls - 1, work, [now() - start | times])
  end

  @doc "The clock."
  def now, do: System.monotonic_time(:nanosecond)
end
