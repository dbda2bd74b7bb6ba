defmodule Snex.AttachTest do
  @moduledoc "Interpreters for nodes that someone else runs."
  use Snex.Case, async: true

  setup do
    {:ok, name: :"attach-#{System.pid()}-#{System.unique_integer([:positive])}@127.0.0.1"}
  end

  # `snex-node start`, which ends with its port: the shell's input is the leash here.
  defp start_node(name) do
    script = ~S"""
    "$@" & pid=$!
    cat > /dev/null
    kill -KILL $pid
    """

    args = ["-m", "snex_runtime", "start", "--name", Atom.to_string(name)]
    path = Path.join(:code.priv_dir(:snex), "python")

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        line: 1000,
        args: ["-c", "exec 3<&0; " <> script, "sh", python() | args],
        env: [
          {~c"PYTHONPATH", to_charlist(path)},
          {~c"SNEX_COOKIE", Atom.to_charlist(Node.get_cookie())}
        ]
      ])

    assert_receive {^port, {:data, {:eol, "ready " <> _}}}, 10_000
    port
  end

  test "uses the node, and reconnects to it", %{name: name} do
    port = start_node(name)
    {:ok, interpreter} = Interpreter.start_link(node: name)
    assert Snex.pyeval(interpreter, "return 1") == {:ok, 1}
    {:ok, env} = Snex.make_env(interpreter, %{"x" => 2})
    assert Snex.pyeval(env, "return x") == {:ok, 2}

    assert Snex.pyeval(interpreter, "import os; return os.getpid()") ==
             {:ok, Interpreter.os_pid(interpreter)}

    Node.monitor(name, true)
    Port.close(port)
    assert_receive {:nodedown, ^name}
    assert {:error, %Error{code: :call_failed}} = Snex.pyeval(interpreter, "return 1")
    assert Process.alive?(interpreter)

    start_node(name)
    wait_until(fn -> Snex.pyeval(interpreter, "return 1") == {:ok, 1} end)

    wait_until(fn ->
      {:ok, Interpreter.os_pid(interpreter)} ==
        Snex.pyeval(interpreter, "import os; return os.getpid()")
    end)
  end

  test "tells that there is none", %{name: name} do
    Process.flag(:trap_exit, true)
    assert {:error, %Error{code: :call_failed}} = Interpreter.start_link(node: name)
  end

  test "refuses options about starting one", %{name: name} do
    assert_raise ArgumentError, ~r/:python does not go with :node/, fn ->
      Interpreter.start_link(node: name, python: "python3")
    end
  end
end
