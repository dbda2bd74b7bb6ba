defmodule Snex.LimitsTest do
  @moduledoc "Options about how Python runs code and what it may use; and what is told of a Python that went over them."
  use Snex.Case, async: true

  alias Snex.{Launch, Limits, Runtimes}

  @all [
    executor: :thread,
    threads: 4,
    max_time: 60_000,
    max_queue: 0,
    queue_timeout: 0,
    max_memory: 1_000_000_000,
    kill_after: 500,
    rlimit_as: 2_000_000_000,
    rlimit_cpu: 60,
    rlimit_nofile: 256,
    cgroup: "/sys/fs/cgroup/python"
  ]

  test "are sent as they are, when they are given" do
    structs = for module <- [MapSet, Duration], Code.ensure_loaded?(module), do: struct(module)
    base = %{name: "a@b", cookie: "c", encoding_opts: [], structs: structs}
    assert Launch.configuration([], :a@b, "c") == base
    opts = @all ++ [python: "python3", environment: %{}]
    assert Launch.configuration(opts, :a@b, "c") == Map.merge(base, Map.new(@all))
    assert Enum.sort(Keyword.keys(@all)) == Enum.sort(Limits.options())
  end

  test "do not keep Python from starting" do
    opts = [executor: :loop, max_time: 60_000, kill_after: 1_000]
    interpreter = start_interpreter!(opts)
    assert Snex.pyeval(interpreter, "return 1") == {:ok, 1}
  end

  test "are checked" do
    assert Limits.check!(@all) == :ok

    for {name, value, text} <- [
          {:executor, :process, ":executor is :loop or :thread, got: :process"},
          {:threads, 0, ":threads takes a number of threads, 1 to 1024, got: 0"},
          {:max_time, 1.5, ":max_time takes milliseconds"},
          {:max_queue, -1, ":max_queue takes a number of evaluations, 0 to"},
          {:queue_timeout, :infinity, ":queue_timeout takes milliseconds"},
          {:max_memory, "1G", ":max_memory takes bytes"},
          {:kill_after, 0, ":kill_after takes milliseconds, 1 to"},
          {:rlimit_as, 0, ":rlimit_as takes bytes"},
          {:rlimit_cpu, 0, ":rlimit_cpu takes seconds"},
          {:rlimit_nofile, 0, ":rlimit_nofile takes a number of files"},
          {:cgroup, "python", "absolute path of a cgroup"},
          {:cgroup, ~c"/python", "absolute path of a cgroup"}
        ] do
      error = assert_raise ArgumentError, fn -> Interpreter.start_link([{name, value}]) end
      assert error.message =~ text
    end

    assert_raise ArgumentError, ~r/:max_memory does not go with :node/, fn ->
      Interpreter.start_link(node: :a@b, max_memory: 1)
    end
  end

  # --- kill_after of a request ---------------------------------------------------------------------

  # An interpreter whose Python does what it is told with requests; `told` is its answer, or how it ends.
  defp fake(kill_after, answer) do
    test = self()

    python =
      spawn(fn ->
        receive do
          {:"$gen_call", {_pid, [:alias | alias]} = _from, request} ->
            send(test, {:request, request})
            answer.(fn term -> send(alias, {[:alias | alias], term}) end)
        end
      end)

    spawn(fn ->
      :ok = Runtimes.register(python, kill_after)
      send(test, {:interpreter, self()})

      receive do
        {:end, reason} ->
          Runtimes.ending(reason)
          Process.exit(python, :kill)
          # As an interpreter that cleans up.
          receive do: (:never -> :ok)
      end
    end)

    receive do: ({:interpreter, pid} -> pid)
  end

  defp never, do: fn _answer -> receive(do: (:never -> :ok)) end
  defp exited(signal), do: %Error{code: :interpreter_exited, reason: {:exit_status, 128 + signal}}

  test "kill_after goes with the request, before its variables where their encoding is" do
    answer = fn answer -> answer.({:ok, 1}) end
    assert Snex.pyeval(fake(nil, answer), "return 1", %{}, kill_after: 50) == {:ok, 1}
    assert_receive {:request, {:eval, "return 1", %{}, [timeout: 5_000, kill_after: 50]}}

    opts = [timeout: 10, kill_after: 50, encoding_opts: [binary_as: :bytes]]
    assert Snex.pyeval(fake(nil, answer), "return 1", %{}, opts) == {:ok, 1}
    assert_receive {:request, {:eval, "return 1", ^opts, vars}} when vars == %{}
    assert Snex.pyeval(fake(10, answer), "return 1") == {:ok, 1}
    assert_receive {:request, {:eval, "return 1", _, [timeout: 5_000]}}
  end

  test "kill_after is refused where it means nothing" do
    interpreter = fake(nil, never())

    assert_raise ArgumentError, ~r/counts from the end of :timeout/, fn ->
      Snex.pyeval(interpreter, "return 1", timeout: :infinity, kill_after: 100)
    end

    assert_raise ArgumentError, ~r/:kill_after takes milliseconds/, fn ->
      Snex.pyeval(interpreter, "return 1", kill_after: -1)
    end
  end

  test "who went over time is told so, others that Python was killed for it" do
    interpreter = fake(nil, never())
    opts = [timeout: 100, kill_after: 100]
    over = Task.async(fn -> Snex.pyeval(interpreter, "over", opts) end)
    assert_receive {:request, {:eval, "over", _, _}}
    other = Task.async(fn -> Snex.pyeval(interpreter, "other", timeout: 60_000) end)
    later = Task.async(fn -> Snex.pyeval(interpreter, "later", kill_after: 60_000) end)
    # Longer than its timeout: Python may still be killed.
    assert Task.yield(over, 250) == nil
    send(interpreter, {:end, exited(63)})
    assert {:error, %Error{code: :killed, reason: reason}} = Task.await(over)
    assert reason =~ "could not be interrupted"
    error = {:error, %Error{code: :call_failed, reason: exited(63)}}
    assert Task.await(other) == error
    assert Task.await(later) == error
  end

  test "who is not over time yet is not told so" do
    interpreter = fake(60_000, never())
    call = Task.async(fn -> Snex.pyeval(interpreter, "call", timeout: 100) end)
    assert_receive {:request, _}
    assert Task.yield(call, 200) == nil
    send(interpreter, {:end, exited(63)})
    assert {:error, %Error{code: :call_failed}} = Task.await(call)
  end

  test "who is answered while Python was to be killed has that answer" do
    late = fn answer ->
      Process.send_after(self(), :now, 200) && receive(do: (:now -> answer.({:ok, 1})))
    end

    assert Snex.pyeval(fake(nil, late), "late", timeout: 100, kill_after: 5_000) == {:ok, 1}
  end

  test "Python that should have been killed, and was not, is waited for so long" do
    interpreter = fake(100, never())
    {time, answer} = :timer.tc(fn -> Snex.pyeval(interpreter, "hangs", timeout: 100) end)
    assert answer == {:error, %Error{code: :response_timeout}}
    assert time in 1_200_000..2_500_000
  end

  # --- end to end: Python is killed as its watcher would ----------------------------------------------

  # It cannot be interrupted, and goes by a signal of a process beside it.
  @busy """
  import os, subprocess
  subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -s {signal} {os.getpid()}"])
  sum(range(10 ** 12))
  """

  test "Python that is killed for its time is told by :killed" do
    {:ok, interpreter} = start_interpreter(kill_after: 200)
    answer = Snex.pyeval(interpreter, @busy, %{"signal" => 63}, timeout: 200)
    assert {:error, %Error{code: :killed}} = answer
    assert_receive {:EXIT, ^interpreter, %Error{reason: {:exit_status, 191}} = error}
    assert Exception.message(error) =~ "went over its :kill_after"
  end

  test "Python that is killed for its memory is told by :memory_limit to all" do
    {:ok, interpreter} = start_interpreter()
    {:ok, env} = Snex.make_env(interpreter)
    code = "import asyncio; await snex.send(test, 'began'); await asyncio.sleep(60)"
    other = Task.async(fn -> Snex.pyeval(env, code, %{"test" => self()}) end)
    answer = Snex.pyeval(interpreter, @busy, %{"signal" => 62}, timeout: :infinity)
    assert {:error, %Error{code: :memory_limit, reason: reason}} = answer
    assert reason =~ ":max_memory"
    assert {:error, %Error{code: :memory_limit}} = Task.await(other)
    assert_receive {:EXIT, ^interpreter, %Error{reason: {:exit_status, 190}} = error}
    assert Exception.message(error) =~ ":max_memory"
    assert {:error, %Error{code: :call_failed, reason: :noproc}} = Snex.pyeval(env, "return 1")
  end

  test "a member of a pool that is killed for its time is replaced" do
    opts = [python: python(), kill_after: 200]
    {:ok, pool} = Snex.Pool.start_link(size: 2, interpreter: opts)
    answer = Snex.pyeval(pool, @busy, %{"signal" => 63}, timeout: 200)
    assert {:error, %Error{code: :killed}} = answer
    for _ <- 1..10, do: assert(Snex.pyeval(pool, "return 1") == {:ok, 1})
    wait_until(fn -> Snex.Pool.await_ready(pool, 100) == :ok end)
    assert Snex.Pool.info(pool).restarts == 1
    Interpreter.stop(pool)
  end
end
