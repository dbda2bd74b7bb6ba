defmodule Snex.LostPythonTest do
  @moduledoc "Python that is stopped by a signal, and whose connection is lost for that."
  use Snex.Case, async: true

  @modes [pipe: [], stdio: [port_opts: [:use_stdio]]]

  for {name, opts} <- @modes do
    @opts opts
    test "Python that is stopped by a signal is ended when its connection is lost (#{name})" do
      {:ok, interpreter} = start_interpreter(@opts)
      os_pid = Interpreter.os_pid(interpreter)
      kill("STOP", os_pid)
      disconnect(interpreter)
      assert_receive {:EXIT, ^interpreter, %Error{code: :interpreter_exited}}, 10_000
      refute running?(os_pid)
      noproc = {:error, %Error{code: :call_failed, reason: :noproc}}
      assert Snex.pyeval(interpreter, "return 1") == noproc
    end
  end

  test "a supervisor starts another one for Python that is stopped by a signal" do
    child = {Interpreter, python: python(), name: :snex_test_stopped}
    {:ok, supervisor} = Supervisor.start_link([child], strategy: :one_for_one)
    before = Process.whereis(:snex_test_stopped)
    kill("STOP", Interpreter.os_pid(before))
    disconnect(before)
    wait_until(fn -> Process.whereis(:snex_test_stopped) not in [nil, before] end, 10_000)
    assert Snex.pyeval(:snex_test_stopped, "return 1") == {:ok, 1}
    Supervisor.stop(supervisor)
  end

  test "Python that is stopped by a signal is missed after net_ticktime" do
    beam =
      Snex.Beam.start(
        """
        child = {Snex.Interpreter, python: #{inspect(python())}, name: :python}
        {:ok, _} = Supervisor.start_link([child], strategy: :one_for_one)
        before = Process.whereis(:python)
        os_pid = Snex.Interpreter.os_pid(:python)
        {_, 0} = System.cmd("kill", ["-STOP", to_string(os_pid)])
        wait = fn wait ->
          if Process.whereis(:python) in [nil, before], do: wait.(Process.sleep(50) && wait)
        end
        wait.(wait)
        tell.({os_pid, Snex.pyeval(:python, "return 1")})
        """,
        args: ["--erl", "-kernel net_ticktime 4"]
      )

    assert {os_pid, {:ok, 1}} = Snex.Beam.told(beam)
    refute running?(os_pid)
  end
end
