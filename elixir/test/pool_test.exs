defmodule Snex.PoolTest do
  @moduledoc "Several Pythons behind one name: where calls go, who waits, and what a member's end costs."
  use Snex.Case, async: true

  alias Snex.Pool
  alias Snex.Pool.Places

  defp start_pool!(opts) do
    {interpreter, opts} = Keyword.pop(opts, :interpreter, [])
    interpreter = Keyword.put_new(interpreter, :python, python())
    id = {Pool, make_ref()}
    opts = [interpreter: interpreter] ++ opts
    start_supervised!(Map.put(Pool.child_spec(opts), :id, id))
  end

  # What keeps code waiting until it is opened.
  defp gate do
    keeper = spawn_link(fn -> receive do: (:open -> :ok) end)

    wait = fn ->
      monitor = Process.monitor(keeper)
      receive do: ({:DOWN, ^monitor, _, _, _} -> nil)
    end

    {keeper, wait}
  end

  defp open({keeper, _wait}), do: send(keeper, :open)

  @hold "await snex.send(test, 'began')\nawait Elixir.Kernel.apply(wait, [])\nreturn 'held'"

  # Keeps what `target` stands for busy until the gate is opened.
  defp hold(target, {_keeper, wait}, opts \\ [timeout: :infinity]) do
    vars = %{"test" => self(), "wait" => wait}
    task = Task.async(fn -> Snex.pyeval(target, @hold, vars, opts) end)
    assert_receive "began"
    task
  end

  defp waiting(pool), do: Pool.info(pool).queue
  defp busy(pool), do: for(member <- Pool.info(pool).members, do: member.busy)
  defp os_pids(pool), do: for(member <- Pool.info(pool).members, do: member.os_pid)

  defp queue_up(pool, fun) do
    before = waiting(pool)
    task = Task.async(fun)
    wait_until(fn -> waiting(pool) == before + 1 end)
    task
  end

  describe "places" do
    test "are taken of the least busy, and exchanged, not overbooked" do
      places = Places.new(3, 2, 0)
      Places.put_slots(places, 2)
      assert Places.claim(places, 7) == :full
      for slot <- [1, 2], do: Places.put_state(places, slot, :up)
      claims = for _ <- 1..4, do: Places.claim(places, 7)
      assert Enum.sort(for {:ok, slot, _} <- claims, do: slot) == [1, 1, 2, 2]
      assert Enum.sort(for {:ok, slot, _} <- Enum.take(claims, 2), do: slot) == [1, 2]
      assert Places.claim(places, 7) == :full
      {:ok, slot, place} = List.last(claims)
      Places.release(places, place)
      assert {:ok, ^slot, ^place} = Places.claim(places, 7)
    end

    test "that visitors take count, and those who are too many are not refused" do
      places = Places.new(1, 1, 0)
      Places.put_slots(places, 1)
      Places.put_state(places, 1, :up)
      visits = for _ <- 1..20, do: Places.visit(places, 1, 7)
      assert Enum.count(visits, & &1) == 16
      assert Places.busy(places, 1) == 16
      assert Places.claim(places, 7) == :full
      for place <- visits, do: Places.leave(places, 1, place)
      assert Places.busy(places, 1) == 0
      assert {:ok, 1, _} = Places.claim(places, 7)
    end

    test "know their owners: those of the dead are swept, whatever else they left" do
      places = Places.new(1, 2, 0)
      Places.put_slots(places, 1)
      Places.put_state(places, 1, :up)
      assert self() |> Places.owner() |> Places.process() == self()
      {:ok, 1, _} = Places.claim(places, Places.owner(self()))

      {:ok, _} =
        Task.async(fn ->
          Places.visit(places, 1, Places.owner(self()))
          Places.visit(places, 1, Places.owner(self()))
          {:ok, self()}
        end)
        |> Task.await()

      wait_until(fn -> Places.sweep(places) == :ok and Places.busy(places, 1) == 1 end)
      assert {:ok, 1, _} = Places.claim(places, Places.owner(self()))
    end
  end

  describe "a pool" do
    setup do
      {:ok, pool: start_pool!(size: 2)}
    end

    test "is taken wherever an interpreter is", %{pool: pool} do
      assert Snex.pyeval(pool, "return 6 * x", %{"x" => 7}) == {:ok, 42}
      assert Snex.pyeval(pool, %{"x" => 7}) == {:ok, nil}
      {:ok, env} = Snex.make_env(pool, %{"x" => 1})
      assert Snex.pyeval(env, "return x") == {:ok, 1}
      {:ok, copy} = Snex.make_env(from: env)
      assert Snex.pyeval(copy, "return x") == {:ok, 1}
      assert Env.interpreter(copy) == Env.interpreter(env)
      {:ok, copy} = Snex.make_env(pool, from: env)
      assert Env.interpreter(copy) == Env.interpreter(env)
      assert Interpreter.os_pid(pool) in os_pids(pool)
      assert {:error, %Error{type: "ZeroDivisionError"}} = Snex.pyeval(pool, "1 / 0")
      assert busy(pool) == [0, 0]
      assert Interpreter.stop(pool) == :ok
      assert {:error, %Error{code: :call_failed, reason: :noproc}} = Snex.pyeval(pool, "return 1")
    end

    test "is called by any name" do
      for name <- [:snex_test_pool, {:global, {:snex_test, make_ref()}}] do
        start_pool!(name: name, interpreter: [init_script: "y = 5"])
        assert Snex.pyeval(name, "return y") == {:ok, 5}
      end

      assert Snex.pyeval({:snex_test_pool, node()}, "return y") == {:ok, 5}
      assert is_pid(Process.whereis(:"Elixir.snex_test_pool.Member1"))
    end

    test "gives each member one call at a time", %{pool: pool} do
      code = "import os, asyncio; await asyncio.sleep(0.05); return os.getpid()"
      tasks = for _ <- 1..20, do: Task.async(fn -> Snex.pyeval(pool, code) end)
      pids = for {:ok, pid} <- Task.await_many(tasks), do: pid
      assert Enum.frequencies(pids) |> Map.keys() |> Enum.sort() == Enum.sort(os_pids(pool))
      assert length(pids) == 20
      assert Pool.info(pool).calls == 20
    end

    test "sends nobody behind a call while a member is idle", %{pool: pool} do
      gate = gate()
      held = hold(pool, gate)
      for _ <- 1..10, do: assert(Snex.pyeval(pool, "return 1") == {:ok, 1})
      assert Enum.sort(busy(pool)) == [0, 1]
      open(gate)
      assert Task.await(held) == {:ok, "held"}
      assert busy(pool) == [0, 0]
    end

    test "counts calls to environments, which do not wait", %{pool: pool} do
      {:ok, env} = Snex.make_env(pool)
      {:ok, other} = Snex.make_env(pool)
      assert Env.interpreter(env) != Env.interpreter(other)
      gate = gate()
      held = for _ <- 1..2, do: hold(env, gate)
      for _ <- 1..5, do: assert(Snex.pyeval(pool, "return 1") == {:ok, 1})
      assert Enum.sort(busy(pool)) == [0, 2]
      assert Snex.pyeval(env, "return 1") == {:ok, 1}
      open(gate)
      assert Task.await_many(held) == [{:ok, "held"}, {:ok, "held"}]
      assert busy(pool) == [0, 0]
      :ok = Snex.destroy_env(env)
      :ok = Snex.destroy_env(other)
      wait_until(fn -> Enum.all?(Pool.info(pool).members, &(&1.environments == 0)) end)
    end

    test "takes an environment of another interpreter for a mistake", %{pool: pool} do
      {:ok, env} = Snex.make_env(start_interpreter!())
      assert_raise ArgumentError, ~r/belongs to/, fn -> Snex.make_env(pool, from: env) end
    end

    test "frees the place of a caller that raises", %{pool: pool} do
      assert_raise ArgumentError, fn -> Snex.pyeval(pool, "return 1", timeout: -1) end
      assert_raise ArgumentError, fn -> Snex.pyeval(pool, "return x", %{1 => 2}) end
      assert busy(pool) == [0, 0]
    end

    test "frees the places of callers that are killed, whenever that is", %{pool: pool} do
      for _ <- 1..300 do
        pid = spawn(fn -> for _ <- 1..1_000, do: Snex.pyeval(pool, "return 1") end)
        for _ <- 1..:rand.uniform(300), do: :erlang.yield()
        Process.exit(pid, :kill)
      end

      wait_until(fn -> busy(pool) == [0, 0] and waiting(pool) == 0 end)
      gate = gate()
      held = for _ <- 1..2, do: hold(pool, gate)
      open(gate)
      assert Task.await_many(held) == [{:ok, "held"}, {:ok, "held"}]
    end
  end

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

  # Crowds of callers, while one member ends in some way. The others notice nothing.
  describe "while 120 others call" do
    setup do
      {:ok, pool: start_pool!(size: 3, restart_after: 500)}
    end

    defp crowd(pool) do
      code = "import time; time.sleep(0.004); return n"

      for n <- 1..120 do
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
        # Its waiting among 120 others is in it.
        assert time < 3_000_000
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

  describe "start" do
    defp refused(opts), do: assert_raise(ArgumentError, fn -> Pool.start_link(opts) end).message

    test "refuses options that are none" do
      python = [python: python()]
      assert refused([]) =~ "needs :interpreter"

      assert refused(interpreter: NoSuch.Module) =~
               "NoSuch.Module, the :interpreter of a pool, cannot"

      assert refused(interpreter: Enum) =~ "does not say `use Snex.Interpreter`"
      assert refused(interpreter: 5) =~ ":interpreter is a module"
      assert refused(interpreter: python, size: 0) =~ ":size takes a number of members, 1 to"
      assert refused(interpreter: python, size: 1.5) =~ "got: 1.5"
      assert refused(interpreter: python, pool_size: 2) =~ "unknown option :pool_size"
      assert refused(interpreter: python, init_script: "") =~ "go into :interpreter"
      assert refused(interpreter: python, queue_timeout: -1) =~ ":queue_timeout takes"
      assert refused(interpreter: python, sync_start?: 1) =~ "true or false"
      assert refused(interpreter: [pyton: ""]) =~ "unknown option :pyton"
      assert refused(interpreter: [name: :a]) =~ ":name is the pool's"
      assert refused(interpreter: [node: :a@b]) =~ "started by it"
      assert refused(interpreter: [:python]) =~ "keyword list"
      assert refused(:size) =~ "keyword list"
    end

    test "fails with the reason of the first member that fails" do
      Process.flag(:trap_exit, true)

      assert {:error, %Error{code: :python_runtime_error, reason: "bad"}} =
               Pool.start_link(
                 size: 2,
                 interpreter: [python: python(), init_script: "raise ValueError('bad')"]
               )

      assert {:error, %Error{reason: {:exit_status, 127}}} =
               Pool.start_link(interpreter: [python: "no-such-python"])

      refute_received {:EXIT, _, _}
    end

    test "may be early; calls wait for the first member" do
      pool = start_pool!(size: 2, sync_start?: false, interpreter: [init_script: "y = 1"])
      assert {:error, %Error{code: :response_timeout}} = Pool.await_ready(pool, 0)
      assert Snex.pyeval(pool, "return y") == {:ok, 1}
      assert Pool.await_ready(pool, 10_000) == :ok
    end

    test "is early for environments, too" do
      pool = start_pool!(size: 1, sync_start?: false)
      assert {:ok, env} = Snex.make_env(pool, %{"x" => 1})
      assert Snex.pyeval(env, "return x") == {:ok, 1}
      assert [%{environments: 1}] = Pool.info(pool).members
    end

    test "is given up when members fail too often" do
      Process.flag(:trap_exit, true)

      {:ok, pool} =
        Pool.start_link(
          sync_start?: false,
          max_restarts: 1,
          max_seconds: 60,
          interpreter: [python: python(), init_script: "raise ValueError('bad')"]
        )

      assert_receive {:EXIT, ^pool, {:shutdown, {:members_fail, %Error{reason: "bad"}}}}, 20_000
    end

    test "takes modules that use Snex.Interpreter" do
      assert Snex.Case.python() && Pool.child_spec(name: MyApp.P, interpreter: Enum).id == MyApp.P
    end

    @tag :uv
    test "runs the Python of a module" do
      pool =
        start_supervised!(
          {Pool, interpreter: {SnexTest.PlainProject, init_script: "x = 1"}, size: 2}
        )

      assert Snex.pyeval(pool, "return x") == {:ok, 1}
    end
  end

  test "an end that nobody asked for is followed by a start" do
    pool = start_pool!(size: 1)
    [%{pid: pid}] = Pool.info(pool).members
    :ok = Interpreter.stop(pid)
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

  describe "on two nodes, with one name" do
    setup do
      name = :"snex-pool-#{System.unique_integer([:positive])}"
      {peer, node} = Snex.Peer.start()
      on_exit(fn -> if Process.alive?(peer), do: :peer.stop(peer) end)
      opts = [name: name, interpreter: [python: python()]]
      {:ok, name: name, node: node, peer: peer, opts: opts}
    end

    @pid "import os; return os.getpid()"

    test "calls prefer their own node, then go where there is room", %{node: node} = context do
      pool = start_pool!(name: context.name)
      [own] = os_pids(pool)
      [theirs] = :erpc.call(node, Snex.Peer, :start_pool, [context.opts])
      # Until both know of each other.
      wait_until(fn -> length(os_pids(pool)) == 2 end)
      assert Enum.sort(os_pids(pool)) == Enum.sort([own, theirs])
      assert Enum.map(Pool.info(context.name).members, & &1.node) == [node(), node]
      for _ <- 1..10, do: assert(Snex.pyeval(context.name, @pid) == {:ok, own})
      gate = gate()
      held = hold(pool, gate)
      for _ <- 1..10, do: assert(Snex.pyeval(context.name, @pid) == {:ok, theirs})
      # When all are busy calls wait at home.
      other = hold(pool, gate)
      waiting = queue_up(pool, fn -> Snex.pyeval(pool, @pid) end)
      open(gate)
      assert Task.await_many([held, other]) == [{:ok, "held"}, {:ok, "held"}]
      assert {:ok, _} = Task.await(waiting)
      wait_until(fn -> busy(pool) == [0, 0] end)
    end

    test "a borrower that is killed gives back", %{node: node} = context do
      pool = start_pool!(name: context.name)
      [_] = :erpc.call(node, Snex.Peer, :start_pool, [context.opts])
      wait_until(fn -> length(os_pids(pool)) == 2 end)
      gate = gate()
      held = hold(pool, gate)
      test = self()
      {_keeper, wait} = gate()
      vars = %{"test" => test, "wait" => wait}
      pid = spawn(fn -> Snex.pyeval(pool, @hold, vars, timeout: :infinity) end)
      assert_receive "began"
      assert busy(pool) == [1, 1]
      Process.exit(pid, :kill)
      wait_until(fn -> busy(pool) == [1, 0] end)
      open(gate)
      Task.await(held)
    end

    test "a node without a pool uses those of others", %{node: node} = context do
      assert {:error, %Error{code: :call_failed, reason: :noproc}} =
               Snex.pyeval(context.name, "return 1")

      [theirs] = :erpc.call(node, Snex.Peer, :start_pool, [context.opts])
      wait_until(fn -> Snex.pyeval(context.name, @pid) == {:ok, theirs} end)
      assert Snex.pyeval({context.name, node}, @pid) == {:ok, theirs}
      {:ok, env} = Snex.make_env(context.name, %{"x" => 1})
      assert Snex.pyeval(env, "return x") == {:ok, 1}
      {:ok, copy} = Snex.make_env(context.name, from: env)
      assert Snex.pyeval(copy, "return x") == {:ok, 1}

      assert {:error, %Error{code: :call_failed}} =
               Snex.pyeval(context.name, "import os; os._exit(3)")

      wait_until(fn -> match?({:ok, _}, Snex.pyeval(context.name, @pid)) end)
      :peer.stop(context.peer)
      assert {:error, %Error{code: :call_failed}} = Snex.pyeval(context.name, "return 1")
    end
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
