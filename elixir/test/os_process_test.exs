defmodule Snex.OSProcessTest do
  use Snex.Case, async: true

  alias Snex.OSProcess

  defp start(script) do
    Port.open({:spawn_executable, "/bin/sh"}, [:binary, :exit_status, args: ["-c", script]])
  end

  test "is alive until it has ended" do
    port = start("read line")
    process = OSProcess.of(port)
    assert OSProcess.alive?(process)
    # Where there is no /proc the system is asked by a signal.
    assert OSProcess.alive?(%{process | began: nil})
    Port.command(port, "\n")
    assert_receive {^port, {:exit_status, 0}}
    refute OSProcess.alive?(process)
    refute OSProcess.alive?(%{process | began: nil})
    assert OSProcess.of(port) == nil
    refute OSProcess.alive?(nil)
  end

  test "is not another one with its number" do
    port = start("read line")
    process = %{OSProcess.of(port) | began: "1"}
    refute OSProcess.alive?(process)
    assert OSProcess.kill(process) == :ok
    assert Port.info(port) != nil
    Port.close(port)
  end

  test "is killed with its group, when its time is over" do
    port = start("sleep 600 & echo $!; exec sleep 600")
    process = OSProcess.of(port)
    assert_receive {^port, {:data, child}}
    child = String.trim(child)
    {time, :ok} = :timer.tc(fn -> OSProcess.await_end(process, 200) end)
    assert time >= 200_000
    assert_receive {^port, {:exit_status, 137}}
    wait_until(fn -> not running?(child) end)
  end

  test "is waited for no longer than it runs" do
    port = start("sleep 0.2")
    {time, :ok} = :timer.tc(fn -> OSProcess.await_end(OSProcess.of(port), 60_000) end)
    assert time < 30_000_000
  end

  test "statuses tell of signals" do
    assert OSProcess.signal_name(128) == nil
    assert OSProcess.signal_name(129) == "SIGHUP"
    assert OSProcess.signal_name(128 + 50) == "signal 50"
    assert OSProcess.signal_name(255) == nil
    port = start("kill -s SEGV $$")
    assert_receive {^port, {:exit_status, status}}
    assert OSProcess.signal_name(status) == "SIGSEGV"
  end
end
