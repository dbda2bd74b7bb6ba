defmodule Snex.PoolFailureTest do
  @moduledoc "What the end of a pool's member costs, and one that does not answer."
  use Snex.Case, async: true

  import Snex.PoolCase

  alias Snex.Pool

  # Crowds of callers, while one member ends in some way. The others notice nothing.
  describe "while 500 others call" do
    setup do
      interpreter = [max_memory: 300 * 1024 * 1024]
      {:ok, pool: start_pool!(size: 3, restart_after: 500, interpreter: interpreter)}
    end

    defp crowd(pool) do
      code = "import time; time.sleep(0.001); return n"

      for n <- 1..500 do
        Task.async(fn -> {n, Snex.pyeval(pool, code, %{"n" => n}, timeout: 30_000)} end)
      end
    end

    defp assert_served(pool, crowd, before) do
      for {n, answer} <- Task.await_many(crowd, 40_000), do: assert(answer == {:ok, n})
      wait_until(fn -> match?(:ok, Pool.await_ready(pool, 100)) end, 20_000)
      wait_until(fn -> busy(pool) == [0, 0, 0] end)
      assert %{queue: 0, restarts: 1} = Pool.info(pool)
      assert length(os_pids(pool) -- before) == 1
      refute_received {[:alias | _], _}
    end

    for {name, code, status} <- [
          {"crashes", "import ctypes; ctypes.string_at(0)", 139},
          {"exits", "import os; os._exit(3)", 3}
        ] do
      @code code
      @status status
      test "a member that #{name} fails one call", %{pool: pool} do
        before = os_pids(pool)
        crowd = crowd(pool)
        {time, answer} = :timer.tc(fn -> Snex.pyeval(pool, @code) end)
        assert {:error, %Error{code: :call_failed, reason: %Error{reason: reason}}} = answer
        assert reason == {:exit_status, @status}
        # Its waiting among 500 others is in it.
        assert time < 3_000_000
        assert_served(pool, crowd, before)
      end
    end

    # The time in which the code ends it, and in which its turn comes, among so many others.
    for {name, code, expected, timeout} <- [
          {"takes too much memory", "x = []\nwhile True: x.append(bytearray(b'1') * 8_000_000)",
           :memory_limit, 15_000},
          {"cannot be interrupted", "import re; re.match('(a+)+$', 'a' * 60 + 'b')", :killed,
           3_000},
          {"stops itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", :killed,
           3_000}
        ] do
      @code code
      @expected expected
      @time_limit timeout
      test "a member that #{name} is killed, and fails one call", %{pool: pool} do
        before = os_pids(pool)
        crowd = crowd(pool)
        opts = [timeout: @time_limit, kill_after: 300]
        {time, answer} = :timer.tc(fn -> Snex.pyeval(pool, @code, %{}, opts) end)
        assert {:error, %Error{code: @expected}} = answer
        assert time < (@time_limit + 300 + 1_000) * 1_000
        assert_served(pool, crowd, before)
      end
    end

    test "a member that is killed fails one call, within a second", %{pool: pool} do
      before = os_pids(pool)
      code = "import os, asyncio; await snex.send(test, os.getpid()); await asyncio.sleep(60)"
      vars = %{"test" => self()}
      victim = Task.async(fn -> Snex.pyeval(pool, code, vars, timeout: :infinity) end)
      assert_receive os_pid when is_integer(os_pid)
      crowd = crowd(pool)
      kill("KILL", os_pid)
      {time, answer} = :timer.tc(fn -> Task.await(victim) end)
      assert {:error, %Error{reason: %Error{reason: {:exit_status, 137}}}} = answer
      assert time < 1_000_000
      assert_served(pool, crowd, before)
    end

    test "a member that is stopped fails one call, gets no more, and is replaced", %{pool: pool} do
      before = os_pids(pool)
      code = "import os, asyncio; await snex.send(test, os.getpid()); await asyncio.sleep(60)"
      vars = %{"test" => self()}
      victim = Task.async(fn -> Snex.pyeval(pool, code, vars, timeout: 700) end)
      assert_receive os_pid when is_integer(os_pid)
      kill("STOP", os_pid)
      crowd = crowd(pool)
      assert {:error, %Error{code: :response_timeout}} = Task.await(victim)
      crowd = crowd ++ crowd(pool)
      assert_served(pool, crowd, before)
      wait_until(fn -> not running?(os_pid) end, 10_000)
    end
  end

  test "a member that answers again is one as before" do
    pool = start_pool!(size: 1)
    [os_pid] = os_pids(pool)
    kill("STOP", os_pid)
    assert {:error, %Error{code: :response_timeout}} = Snex.pyeval(pool, "return 1", timeout: 100)
    assert [%{state: :suspect}] = Pool.info(pool).members
    assert {:error, %Error{code: :response_timeout}} = Snex.pyeval(pool, "return 1", timeout: 100)
    kill("CONT", os_pid)
    assert Snex.pyeval(pool, "return 1") == {:ok, 1}
    assert os_pids(pool) == [os_pid]
  end

  test "a member is not ended because it works for somebody who has time" do
    pool = start_pool!(size: 1, restart_after: 0)
    {:ok, env} = Snex.make_env(pool)
    {:ok, other} = Snex.make_env(pool)
    code = "await snex.send(test, 'began'); import time; time.sleep(4); return 'done'"
    vars = %{"test" => self()}
    long = Task.async(fn -> Snex.pyeval(env, code, vars, timeout: :infinity) end)
    assert_receive "began"

    assert {:error, %Error{code: :response_timeout}} =
             Snex.pyeval(other, "return 1", timeout: 100)

    assert [%{state: :suspect}] = Pool.info(pool).members
    assert Task.await(long, 10_000) == {:ok, "done"}
    assert Snex.pyeval(pool, "return 1") == {:ok, 1}
    assert Pool.info(pool).restarts == 0
  end

  test "logs name the member, and show no options" do
    log =
      ExUnit.CaptureLog.capture_log(fn ->
        pool =
          start_pool!(name: :snex_logged, interpreter: [environment: %{"SECRET" => "geheim"}])

        assert {:error, _} = Snex.pyeval(pool, "import os; os._exit(3)")
        assert Snex.pyeval(pool, "return 1") == {:ok, 1}
        assert Pool.await_ready(pool) == :ok
      end)

    assert log =~ "snex_logged.Member1"
    refute log =~ "geheim"
  end
end
