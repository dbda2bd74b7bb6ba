defmodule Snex.RelayTest do
  @moduledoc "What carries the bytes to Python where `:use_stdio` is set, while Python reads none."
  use Snex.Case, async: true

  import ExUnit.CaptureLog

  describe "a relay that is blocked by a full pipe" do
    setup do
      {:ok, interpreter} = start_interpreter(port_opts: [:use_stdio])
      os_pid = Interpreter.os_pid(interpreter)
      relay = :sys.get_state(interpreter).relay
      kill("STOP", os_pid)
      secret = String.duplicate("secret", 1_000_000)
      spawn(fn -> Snex.pyeval(interpreter, "pass", %{"x" => secret}, timeout: :infinity) end)
      wait_until(fn -> Process.info(relay, :status) == {:status, :suspended} end)
      {:ok, interpreter: interpreter, relay: relay, os_pid: os_pid}
    end

    test "ends when its interpreter is stopped", %{interpreter: interpreter} = context do
      assert Interpreter.stop(interpreter) == :ok
      refute Process.alive?(context.relay)
      refute running?(context.os_pid)
    end

    test "ends when its interpreter is killed", %{interpreter: interpreter} = context do
      Process.exit(interpreter, :kill)
      wait_until(fn -> not Process.alive?(context.relay) end)
      wait_until(fn -> not running?(context.os_pid) end, 10_000)
    end

    test "ends when the connection is lost", %{interpreter: interpreter} = context do
      log =
        capture_log(fn ->
          disconnect(interpreter)
          assert_receive {:EXIT, ^interpreter, %Error{code: :interpreter_exited}}, 10_000
          wait_until(fn -> not Process.alive?(context.relay) end)
        end)

      refute running?(context.os_pid)
      refute log =~ "secretsecret"
    end
  end
end
