defmodule Snex.PoolMaintenanceTest do
  @moduledoc "Members of a pool replaced, added and removed; and the end of a pool."
  use Snex.Case, async: true

  import Snex.PoolCase

  alias Snex.Pool

  test "an end that nobody asked for is followed by a start" do
    pool = start_pool!(size: 1)
    [%{pid: pid}] = Pool.info(pool).members
    :ok = Interpreter.stop(pid)
    wait_until(fn -> match?([%{restarts: 1, state: :up}], Pool.info(pool).members) end)
    assert Snex.pyeval(pool, "return 1") == {:ok, 1}
    [%{pid: pid}] = Pool.info(pool).members
    Process.exit(pid, :shutdown)
    wait_until(fn -> match?([%{restarts: 2, state: :up}], Pool.info(pool).members) end)
    assert Snex.pyeval(pool, "return 1") == {:ok, 1}
  end

  test "its Pythons end with it, and calls that wait are told" do
    Process.flag(:trap_exit, true)
    {:ok, pool} = Pool.start_link(size: 1, interpreter: [python: python()])
    [os_pid] = os_pids(pool)
    held = hold(pool, gate())
    waiting = queue_up(pool, fn -> Snex.pyeval(pool, "return 1") end)
    Process.exit(pool, :shutdown)
    assert {:error, %Error{code: :call_failed}} = Task.await(held)
    assert {:error, %Error{code: :call_failed}} = Task.await(waiting, 10_000)
    assert_receive {:EXIT, ^pool, :shutdown}, 10_000
    refute running?(os_pid)
  end

  test "one that was killed is started again by its supervisor, when its Pythons have ended" do
    start_pool!(name: :snex_killed, size: 2)
    before = os_pids(:snex_killed)
    pool = Process.whereis(:snex_killed)
    Process.exit(pool, :kill)
    wait_until(fn -> Process.whereis(:snex_killed) not in [nil, pool] end, 20_000)
    assert Snex.pyeval(:snex_killed, "return 1") == {:ok, 1}
    for os_pid <- before, do: refute(running?(os_pid))
    assert {:error, %Error{code: :call_failed, reason: :noproc}} = Snex.pyeval(pool, "return 1")
  end

  test "places of a pool that has ended are forgotten" do
    {:ok, pool} = Pool.start_link(interpreter: [python: python()])
    assert {:pool, places} = Snex.Runtimes.find(pool)
    assert {_, _} = Snex.Runtimes.member(places, 1)
    :ok = Interpreter.stop(pool)
    wait_until(fn -> Snex.Runtimes.member(places, 1) == nil end)
    wait_until(fn -> :persistent_term.get({Pool, pool}, nil) == nil end)
    assert Snex.Runtimes.find(pool) == {:error, :noproc}
  end

  test "no call is lost while members are replaced all the time" do
    pool = start_pool!(size: 2)

    callers =
      for _ <- 1..8 do
        Task.async(fn -> for n <- 1..400, do: Snex.pyeval(pool, "return n", %{"n" => n}) end)
      end

    for _ <- 1..3, do: assert(Pool.drain(pool, timeout: :infinity) == :ok)

    for answers <- Task.await_many(callers, 60_000),
        do: assert(answers == for(n <- 1..400, do: {:ok, n}))

    assert busy(pool) == [0, 0]
  end

  test "a pool is found again when what knows of it was restarted" do
    beam =
      Snex.Beam.start("""
      {:ok, pool} = Snex.Pool.start_link(size: 2, interpreter: [python: #{inspect(python())}])
      {:ok, env} = Snex.make_env(pool, %{"x" => 1})
      before = Process.whereis(Snex.Runtimes)
      Process.exit(before, :kill)
      wait = fn wait ->
        if Process.whereis(Snex.Runtimes) in [nil, before], do: wait.(Process.sleep(10) && wait)
      end
      wait.(wait)
      tell.(for _ <- 1..10, do: Snex.pyeval(pool, "return 1"))
      tell.(Snex.pyeval(env, "return x"))
      {:error, _} = Snex.pyeval(pool, "import os; os._exit(3)")
      tell.({Snex.Pool.await_ready(pool), Snex.pyeval(pool, "return 1")})
      """)

    assert Snex.Beam.told(beam) == List.duplicate({:ok, 1}, 10)
    assert Snex.Beam.told(beam) == {:ok, 1}
    assert Snex.Beam.told(beam) == {:ok, {:ok, 1}}
  end

  describe "drain" do
    test "replaces the members while others serve, and waits for their work" do
      pool = start_pool!(size: 2)
      before = os_pids(pool)
      gate = gate()
      held = hold(pool, gate)
      drain = Task.async(fn -> Pool.drain(pool) end)
      wait_until(fn -> Enum.any?(Pool.info(pool).members, &(&1.state == :draining)) end)
      for n <- 1..50, do: assert(Snex.pyeval(pool, "return n", %{"n" => n}) == {:ok, n})
      assert {:error, %Error{code: :call_failed, reason: reason}} = Pool.drain(pool)
      assert reason =~ "already"
      open(gate)
      assert Task.await(held) == {:ok, "held"}
      assert Task.await(drain, 20_000) == :ok
      after_it = os_pids(pool)
      assert before -- after_it == before
      assert %{restarts: 0, members: [%{state: :up}, %{state: :up}]} = Pool.info(pool)
    end

    test "waits for environments, or does not" do
      pool = start_pool!(size: 1)
      {:ok, env} = Snex.make_env(pool, %{"x" => 1})
      drain = Task.async(fn -> Pool.drain(pool) end)
      wait_until(fn -> match?([%{state: :draining}], Pool.info(pool).members) end)
      assert Snex.pyeval(env, "return x") == {:ok, 1}
      assert Task.yield(drain, 300) == nil
      :ok = Snex.destroy_env(env)
      assert Task.await(drain, 20_000) == :ok
      {:ok, env} = Snex.make_env(pool, %{"x" => 1})
      assert Pool.drain(pool, environments: :end) == :ok
      assert {:error, %Error{code: :call_failed}} = Snex.pyeval(env, "return x")
    end

    test "ends what takes longer than its timeout" do
      pool = start_pool!(size: 1)
      held = hold(pool, gate())
      assert Pool.drain(pool, timeout: 100) == :ok
      assert {:error, %Error{code: :call_failed, reason: :normal}} = Task.await(held)
      assert Snex.pyeval(pool, "return 1") == {:ok, 1}
      assert_raise ArgumentError, ~r/:timeout takes/, fn -> Pool.drain(pool, timeout: -1) end
      assert_raise ArgumentError, ~r/unknown option/, fn -> Pool.drain(pool, tiemout: 1) end
      assert_raise ArgumentError, ~r/:wait or :end/, fn -> Pool.drain(pool, environments: 1) end
    end

    test "tells that a new member fails" do
      file = Path.join(System.tmp_dir!(), "snex-#{System.unique_integer([:positive])}")
      on_exit(fn -> File.rm(file) end)
      script = {"import os\nif os.path.exists(file): raise ValueError('bad')", %{"file" => file}}
      pool = start_pool!(size: 1, max_restarts: 100, interpreter: [init_script: script])
      File.write!(file, "")
      assert {:error, %Error{reason: "bad"}} = Pool.drain(pool)
      File.rm!(file)
      assert Snex.pyeval(pool, "return 1") == {:ok, 1}
    end
  end

  describe "resize" do
    test "starts members, and stops them when their work has ended" do
      pool = start_pool!(size: 1)
      assert Pool.resize(pool, 3) == :ok
      assert Pool.await_ready(pool, 20_000) == :ok
      gate = gate()
      held = for _ <- 1..3, do: hold(pool, gate)
      [first | surplus] = os_pids(pool)
      resize = Task.async(fn -> Pool.resize(pool, 1) end)
      wait_until(fn -> Enum.count(Pool.info(pool).members, &(&1.state == :draining)) == 2 end)
      open(gate)
      assert Task.await_many(held) == List.duplicate({:ok, "held"}, 3)
      assert Task.await(resize, 20_000) == :ok
      assert [%{os_pid: ^first, state: :up}] = Pool.info(pool).members
      for os_pid <- surplus, do: refute(running?(os_pid))
      assert Snex.pyeval(pool, "return 1") == {:ok, 1}
      assert Pool.resize(pool, 1) == :ok
      assert_raise ArgumentError, ~r/1 to 64/, fn -> Pool.resize(pool, 65) end
    end

    test "stops members that are starting" do
      pool = start_pool!(size: 1)
      assert Pool.resize(pool, 4) == :ok
      assert Pool.resize(pool, 1) == :ok
      assert [%{slot: 1, os_pid: os_pid}] = Pool.info(pool).members
      assert Snex.pyeval(pool, "import os; return os.getpid()") == {:ok, os_pid}
    end
  end
end
