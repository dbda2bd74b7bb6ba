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

  @doc "How many environments the interpreter's Python has."
  def environments(interpreter) do
    {:ok, _, target} = Snex.Runtimes.find(interpreter)
    {:ok, info} = GenServer.call(target, :info)
    info.environments
  end
end
