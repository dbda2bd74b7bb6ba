defmodule Snex.AttachTest do
  @moduledoc "Interpreters for nodes that someone else runs."
  use Snex.Case, async: true

  setup do
    {:ok, name: :"attach-#{System.pid()}-#{System.unique_integer([:positive])}@127.0.0.1"}
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

  # The text of the error of a start that fails.
  defp failure(opts) do
    Process.flag(:trap_exit, true)
    assert {:error, %Error{code: :call_failed} = error} = Interpreter.start_link(opts)
    Exception.message(error)
  end

  test "tells that there is none", %{name: name} do
    assert failure(node: name) =~ "#{name} does not run"
    assert failure(node: :py) =~ "py is no name of a node"
    assert failure(node: :py@localhost) =~ "long names"
  end

  test "waits for a node that does not run yet, if it may", %{name: name} do
    {:ok, interpreter} = Interpreter.start_link(node: name, sync_start?: false)
    assert {:error, %Error{code: :call_failed}} = Snex.pyeval(interpreter, "return 1")
    start_node(name)
    wait_until(fn -> Snex.pyeval(interpreter, "return 1") == {:ok, 1} end)
    wait_until(fn -> is_integer(Interpreter.os_pid(interpreter)) end)
    {time, :ok} = :timer.tc(fn -> Interpreter.stop(interpreter) end)
    assert time < 1_000_000
  end

  test "tells that the cookie is another one, and takes it", %{name: name} do
    start_node(name, [], :another_cookie)
    assert failure(node: name) =~ "has it another cookie?"
    {:ok, interpreter} = Interpreter.start_link(node: name, cookie: "another_cookie")
    assert Snex.pyeval(interpreter, "return 1") == {:ok, 1}
  end

  test "takes another name than snex", %{name: name} do
    start_node(name, ["--register-as", "other"])
    assert failure(node: name) =~ ":register_as"
    {:ok, interpreter} = Interpreter.start_link(node: name, register_as: :other)
    assert Snex.pyeval(interpreter, "return 1") == {:ok, 1}
  end

  test "makes a BEAM that is no node one that can connect", %{name: name} do
    short = :"#{hd(String.split(Atom.to_string(name), "@"))}-short@localhost"

    for name <- [name, short] do
      start_node(name, ["--listen", "127.0.0.1:0"], :another_cookie)

      code = """
      opts = [node: #{inspect(name)}, cookie: :another_cookie]
      {:ok, interpreter} = Snex.Interpreter.start_link(opts)
      tell.(Snex.pyeval(interpreter, "return 1"))
      """

      port = to_charlist(System.get_env("ERL_EPMD_PORT") || "4369")
      beam = Snex.Beam.start(code, env: [{~c"ERL_EPMD_PORT", port}])
      assert Snex.Beam.told(beam) == {:ok, 1}
    end
  end

  test "refuses a string as the node's name", %{name: name} do
    assert_raise ArgumentError, ~r/an atom, here :"attach-.*@127.0.0.1"/, fn ->
      Interpreter.start_link(node: Atom.to_string(name))
    end
  end

  test "refuses its own options where no node is given" do
    for option <- [register_as: :other, cookie: "another"] do
      assert_raise ArgumentError, ~r/for a node that runs already/, fn ->
        Interpreter.start_link([option])
      end
    end
  end

  test "refuses options about starting one", %{name: name} do
    assert_raise ArgumentError, ~r/:python does not go with :node/, fn ->
      Interpreter.start_link(node: name, python: "python3")
    end
  end
end
