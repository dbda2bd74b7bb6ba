defmodule Snex.PoolTest do
  @moduledoc "Several Pythons behind one name: where calls go, and how it starts."
  use Snex.Case, async: true

  import Snex.PoolCase

  alias Snex.Pool
  alias Snex.Pool.Places

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

    @tag :uv
    test "runs the Python of a module" do
      pool =
        start_supervised!(
          {Pool, interpreter: {SnexTest.PlainProject, init_script: "x = 1"}, size: 2}
        )

      assert Snex.pyeval(pool, "return x") == {:ok, 1}
    end
  end
end
