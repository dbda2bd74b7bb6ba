defmodule Snex.Case do
  @moduledoc "What the tests share: interpreters on the system's Python, and watching processes."
  use ExUnit.CaseTemplate

  using do
    quote do
      import Snex.Case
      alias Snex.{Env, Error, Interpreter, Serde}
    end
  end

  @doc "The Python that tests run."
  def python, do: System.get_env("SNEX_TEST_PYTHON") || "python3"

  @doc "Start an interpreter that ends with the test."
  def start_interpreter!(opts \\ []) do
    id = {Snex.Interpreter, make_ref()}
    opts = Keyword.put_new(opts, :python, python())
    start_supervised!(%{id: id, start: {Snex.Interpreter, :start_link, [opts]}})
  end

  @doc "Start an interpreter, linked to the test, that is expected to fail or to be ended by it."
  def start_interpreter(opts \\ []) do
    Process.flag(:trap_exit, true)
    Snex.Interpreter.start_link(Keyword.put_new(opts, :python, python()))
  end

  @doc "Wait until `condition` holds, at most `timeout` ms."
  def wait_until(condition, timeout \\ 5_000) do
    cond do
      condition.() ->
        :ok

      timeout <= 0 ->
        raise ExUnit.AssertionError, message: "a condition did not come to hold in time"

      true ->
        receive do
        after
          20 -> wait_until(condition, timeout - 20)
        end
    end
  end

  @doc "Whether a process of the operating system runs (one that has ended, but is not collected, does not)."
  def running?(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> stat |> String.split(") ") |> List.last() |> String.first() != "Z"
      {:error, _} -> false
    end
  end

  @doc """
  Send a signal to one process: the program of that name may take the number of a group for "-1",
  which is everything.
  """
  def kill(signal, os_pid) when os_pid > 1,
    do: {_, 0} = System.cmd("kill", ["-#{signal}", to_string(os_pid)])

  @doc "The processes of a group that run: its leader, Python, the one that watches it, and children."
  def group(leader) do
    for "/proc/" <> entry <- Path.wildcard("/proc/[0-9]*"),
        {:ok, stat} <- [File.read("/proc/#{entry}/stat")],
        [state, _parent, group | _] = stat |> String.split(") ") |> List.last() |> String.split(),
        state != "Z",
        group == to_string(leader),
        do: String.to_integer(entry)
  end

  defp node_of(interpreter) do
    {:ok, _, target} = Snex.Runtimes.find(interpreter)
    node(target)
  end

  @doc "Lose the connection of an interpreter, as it is lost after net_ticktime."
  def disconnect(interpreter), do: interpreter |> node_of() |> Node.disconnect()

  @doc "How many environments the interpreter's Python has."
  def environments(interpreter) do
    {:ok, _, target} = Snex.Runtimes.find(interpreter)
    {:ok, info} = GenServer.call(target, :info)
    info.environments
  end

  @doc "Start a node by `snex-node start`; it ends with its port: the shell's input is the leash here."
  def start_node(name, more \\ [], cookie \\ Node.get_cookie()) do
    script = ~S"""
    "$@" & pid=$!
    cat > /dev/null
    kill -KILL $pid
    """

    option = if Atom.to_string(name) =~ ".", do: "--name", else: "--sname"
    args = ["-m", "snex_runtime", "start", option, Atom.to_string(name) | more]
    path = Path.join(:code.priv_dir(:snex), "python")

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        line: 1000,
        args: ["-c", "exec 3<&0; " <> script, "sh", python() | args],
        env: [
          {~c"PYTHONPATH", to_charlist(path)},
          {~c"SNEX_COOKIE", Atom.to_charlist(cookie)}
        ]
      ])

    receive do
      {^port, {:data, {:eol, "ready " <> _}}} -> port
    after
      20_000 -> raise ExUnit.AssertionError, message: "the node was not ready in time"
    end
  end
end
