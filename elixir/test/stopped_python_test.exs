defmodule Snex.StoppedPythonTest do
  @moduledoc "Python that is stopped by a signal, and so answers nothing and ends by no other."
  use Snex.Case, async: true

  @modes [pipe: [], stdio: [port_opts: [:use_stdio]]]

  for {name, opts} <- @modes do
    @opts opts
    test "stop returns when Python that is stopped by a signal is gone (#{name})" do
      {:ok, interpreter} = start_interpreter(@opts)
      os_pid = Interpreter.os_pid(interpreter)
      kill("STOP", os_pid)
      assert Interpreter.stop(interpreter) == :ok
      refute running?(os_pid)
    end

    test "Python that is stopped by a signal goes with an interpreter that is killed (#{name})" do
      {:ok, interpreter} = start_interpreter(@opts)
      os_pid = Interpreter.os_pid(interpreter)
      # With the process that watches it.
      assert [_, _] = group = group(os_pid)
      Enum.each(group, &kill("STOP", &1))
      Process.exit(interpreter, :kill)
      wait_until(fn -> group(os_pid) == [] end, 10_000)
    end
  end
end
