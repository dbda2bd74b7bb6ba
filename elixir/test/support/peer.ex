defmodule Snex.Peer do
  @moduledoc """
  Other nodes of the cluster: real BEAMs, which end with the test.

  This node has to listen for that, so it is started distributed before the first interpreter.
  """

  @doc "Make this node one that others can connect to."
  def listen do
    if not Node.alive?() do
      start_epmd()
      {:ok, _} = Node.start(:"snex-test-#{System.pid()}@127.0.0.1", :longnames)
    end

    :ok
  end

  @doc "End a node, which may be ending by itself."
  def stop(peer) do
    if Process.alive?(peer), do: :peer.stop(peer)
    :ok
  catch
    :exit, _reason -> :ok
  end

  # The nodes of OTP need one; where none runs, it ends with the calling process.
  defp start_epmd do
    if not epmd?() do
      script = "epmd >/dev/null 2>&1 & trap '' HUP; cat >/dev/null; kill $!"
      Port.open({:spawn_executable, "/bin/sh"}, [:binary, args: ["-c", script]])
      Snex.Case.wait_until(&epmd?/0)
    end
  end

  defp epmd?, do: match?({:ok, _}, :erl_epmd.names(~c"127.0.0.1"))

  @doc "Start a node that has this node's code and runs the application."
  def start do
    name = :"snex-peer-#{System.pid()}-#{System.unique_integer([:positive])}"
    args = [~c"-setcookie", Atom.to_charlist(Node.get_cookie()), ~c"-connect_all", ~c"false"]
    options = %{name: name, host: ~c"127.0.0.1", longnames: true, args: args}
    {:ok, peer, node} = :peer.start(options)
    :ok = :erpc.call(node, :code, :add_paths, [:code.get_path()])
    {:ok, _} = :erpc.call(node, :application, :ensure_all_started, [:snex])
    {peer, node}
  end

  # --- what runs on them: code that they have on disk, which test modules are not ---

  @doc "Use the environment that an agent of another node keeps."
  def use_shared(agent, code), do: agent |> Agent.get(& &1) |> Snex.pyeval(code)

  @doc "Start a pool, which lives as long as the node; returns the numbers of its processes."
  def start_pool(opts) do
    caller = self()

    spawn(fn ->
      {:ok, pool} = Snex.Pool.start_link(opts)
      send(caller, {:pool, for(%{os_pid: pid} <- GenServer.call(pool, :info).members, do: pid)})
      receive do: (:never -> :ok)
    end)

    receive do: ({:pool, pids} -> pids)
  end

  @doc "Make environments, tell of them, and keep them until told otherwise."
  def hold(interpreter, test, count) do
    envs = for _ <- 1..count, do: elem(Snex.make_env(interpreter), 1)
    send(test, {:made, envs})

    receive do
      :end -> Enum.each(envs, &Snex.Env.used/1)
    end
  end
end
