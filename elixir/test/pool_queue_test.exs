defmodule Snex.PoolQueueTest do
  @moduledoc "Calls that wait for a member of a pool."
  use Snex.Case, async: true

  import Snex.PoolCase

  alias Snex.Pool

  describe "who finds no room" do
    test "waits, and is served in the order of coming" do
      pool = start_pool!(size: 1)
      gate = gate()
      held = hold(pool, gate)
      test = self()

      waiting =
        for n <- 1..5 do
          queue_up(pool, fn ->
            Snex.pyeval(pool, "await snex.send(test, n)", %{"test" => test, "n" => n})
          end)
        end

      open(gate)
      Task.await_many([held | waiting])
      assert for(_ <- 1..5, do: receive(do: (n when is_integer(n) -> n))) == [1, 2, 3, 4, 5]
      assert waiting(pool) == 0
    end

    test "is refused at once when the queue is full, and after its time" do
      pool = start_pool!(size: 1, max_queue: 1, queue_timeout: 300)
      gate = gate()
      held = hold(pool, gate)
      first = queue_up(pool, fn -> :timer.tc(fn -> Snex.pyeval(pool, "return 1") end) end)
      {time, {:error, error}} = :timer.tc(fn -> Snex.pyeval(pool, "return 2") end)
      assert %Error{code: :overloaded, reason: reason} = error
      assert reason =~ "Snex.Pool.resize/2"
      assert time < 200_000
      assert {time, {:error, %Error{code: :overloaded, reason: reason}}} = Task.await(first)
      assert reason =~ ":queue_timeout"
      assert time in 300_000..1_500_000
      open(gate)
      Task.await(held)
      assert Snex.pyeval(pool, "return 3") == {:ok, 3}
      assert %{overloaded: 2, queue: 0} = Pool.info(pool)
    end

    test "is refused without a queue" do
      pool = start_pool!(size: 1, max_queue: 0)
      gate = gate()
      held = hold(pool, gate)
      assert {:error, %Error{code: :overloaded}} = Snex.pyeval(pool, "return 1")
      open(gate)
      Task.await(held)
      assert Snex.pyeval(pool, "return 1") == {:ok, 1}
    end

    test "waits within the time of the call" do
      pool = start_pool!(size: 1)
      gate = gate()
      held = hold(pool, gate)
      assert {:error, error} = Snex.pyeval(pool, "return 1", timeout: 100)
      assert %Error{code: :response_timeout, details: details} = error
      assert details =~ "nothing has run"
      # What is left when a place is free is the time of the code.
      code = "import asyncio; await asyncio.sleep(60)"

      waiting =
        queue_up(pool, fn -> :timer.tc(fn -> Snex.pyeval(pool, code, timeout: 600) end) end)

      open(gate)
      Task.await(held)
      assert {time, {:error, %Error{code: :response_timeout}}} = Task.await(waiting)
      assert time in 550_000..1_500_000
      assert Snex.pyeval(pool, "return 1") == {:ok, 1}
    end

    test "gives up its place when it dies" do
      pool = start_pool!(size: 1)
      gate = gate()
      held = hold(pool, gate)
      pid = spawn(fn -> Snex.pyeval(pool, "return 1") end)
      wait_until(fn -> waiting(pool) == 1 end)
      after_it = queue_up(pool, fn -> Snex.pyeval(pool, "return 2") end)
      Process.exit(pid, :kill)
      wait_until(fn -> waiting(pool) == 1 end)
      open(gate)
      Task.await(held)
      assert Task.await(after_it) == {:ok, 2}
    end

    test "overlaps where the code awaits, with a concurrency" do
      pool = start_pool!(size: 1, concurrency: 3)
      gate = gate()
      held = for _ <- 1..3, do: hold(pool, gate)
      assert busy(pool) == [3]
      waiting = queue_up(pool, fn -> Snex.pyeval(pool, "return 1") end)
      open(gate)
      assert Task.await_many(held) == List.duplicate({:ok, "held"}, 3)
      assert Task.await(waiting) == {:ok, 1}
    end
  end
end
