defmodule Snex.PoolNodesTest do
  @moduledoc "Pools of one name on several nodes."
  use Snex.Case, async: true

  import Snex.PoolCase

  alias Snex.Pool

  describe "on two nodes, with one name" do
    setup do
      name = :"snex-pool-#{System.unique_integer([:positive])}"
      {peer, node} = Snex.Peer.start()
      on_exit(fn -> Snex.Peer.stop(peer) end)
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
      pid = spawn(fn -> Snex.pyeval(pool, hold_code(), vars, timeout: :infinity) end)
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
end
