defmodule Snex.BatchTest do
  @moduledoc "Calls of many processes, brought together."
  use Snex.Case, async: true

  alias Snex.Batch

  # A model that tells of each call, and how many items came.
  @init """
  async def model(test, items):
      await snex.send(test, ["called", list(items)])
      return [item * 2 for item in items]
  """

  setup_all do
    {:ok, interpreter: start_supervised!({Interpreter, python: python(), init_script: @init})}
  end

  defp start_batch!(context, opts) do
    base = [
      interpreter: context.interpreter,
      code: "return await model(test, items)",
      vars: %{"test" => self()}
    ]

    id = {Batch, make_ref()}
    start_supervised!(Map.put(Batch.child_spec(Keyword.merge(base, opts)), :id, id))
  end

  defp run_all(batch, items, opts \\ []) do
    items
    |> Enum.map(&Task.async(fn -> Batch.run(batch, &1, opts) end))
    |> Task.await_many(20_000)
  end

  defp calls(calls \\ []) do
    receive do
      ["called", items] -> calls([items | calls])
    after
      0 -> Enum.reverse(calls)
    end
  end

  defp waiting(batch), do: :sys.get_state(batch).groups.size

  defp later(batch, item, opts \\ []) do
    before = waiting(batch)
    task = Task.async(fn -> Batch.run(batch, item, opts) end)
    wait_until(fn -> waiting(batch) == before + 1 end)
    task
  end

  test "many calls become one, and results go back one by one", context do
    batch = start_batch!(context, batch_size: 10, batch_timeout: 60_000)
    assert run_all(batch, 1..20) == for(n <- 1..20, do: {:ok, n * 2})
    assert [first, second] = calls()
    assert length(first) == 10 and length(second) == 10
    assert Enum.sort(first ++ second) == Enum.to_list(1..20)
  end

  test "what is not full goes out after its time", context do
    batch = start_batch!(context, batch_size: 10, batch_timeout: 200)
    first = later(batch, 1)
    second = later(batch, 2)
    assert Task.await_many([first, second]) == [{:ok, 2}, {:ok, 4}]
    assert calls() == [[1, 2]]
    assert Batch.run(batch, 3) == {:ok, 6}
  end

  test "items keep their order, and nothing is lost in a crowd", context do
    batch = start_batch!(context, batch_size: 7, batch_timeout: 5, concurrency: 3)
    assert run_all(batch, 1..500) == for(n <- 1..500, do: {:ok, n * 2})
    calls = calls()
    assert Enum.all?(calls, &(length(&1) in 1..7))
    assert calls |> Enum.concat() |> Enum.sort() == Enum.to_list(1..500)
  end

  describe "an item that fails fails alone" do
    test "by an exception among the results", context do
      code = "return [ValueError(f'bad {n}') if n % 2 else n for n in items]"
      batch = start_batch!(context, code: code, batch_size: 4)

      assert [{:ok, 2}, {:error, three}, {:ok, 4}, {:error, five}] = run_all(batch, [2, 3, 4, 5])
      assert %Error{code: :python_runtime_error, reason: "bad 3", type: "ValueError"} = three
      assert %Error{reason: "bad 5"} = five
    end

    test "by an error struct", context do
      code = "return [error if n else n for n in items]"
      error = %Error{code: :cancelled, reason: "not today"}
      batch = start_batch!(context, code: code, vars: %{"error" => error}, batch_size: 2)
      assert Enum.sort(run_all(batch, [0, 1])) == [{:error, error}, {:ok, 0}]
    end

    test "by raising", context do
      code = "await model(test, items)\nreturn [6 // n for n in items]"
      batch = start_batch!(context, code: code, batch_size: 3)
      assert [{:ok, 6}, {:error, error}, {:ok, 2}] = run_all(batch, [1, 0, 3])
      assert %Error{code: :python_runtime_error, type: "ZeroDivisionError"} = error
      assert length(calls()) == 4
    end

    test "by a result that cannot be sent", context do
      code = "return [object() if n == 2 else n for n in items]"
      batch = start_batch!(context, code: code, batch_size: 3)
      assert [{:ok, 1}, {:error, error}, {:ok, 3}] = run_all(batch, [1, 2, 3])
      assert error.reason =~ "Cannot serialize"
    end

    test "by being one that Python cannot take", context do
      batch = start_batch!(context, code: "return [len(i) for i in items]", batch_size: 2)
      results = run_all(batch, ["abc", <<0xFF>>])
      assert [{:ok, 3}, {:error, %Error{reason: reason}}] = results
      assert reason =~ "UTF-8"
    end

    test "not without isolation", context do
      code = "await model(test, items)\nreturn [6 // n for n in items]"
      batch = start_batch!(context, code: code, batch_size: 3, isolate: false)
      for answer <- run_all(batch, [1, 0, 3]), do: assert({:error, %Error{reason: _}} = answer)
      assert length(calls()) == 1
    end
  end

  test "what is no list of that length is told to all", context do
    for {code, text} <- [
          {"return items[1:]", "for 2 it returned a list of 1"},
          {"return 5", "it returned 5"},
          {"pass", "it returned nil"}
        ] do
      batch = start_batch!(context, code: code, batch_size: 2)

      for answer <- run_all(batch, [1, 2]) do
        assert {:error, %Error{code: :python_runtime_error, reason: reason}} = answer
        assert reason =~ text
      end
    end
  end

  describe "who does not wait any more" do
    test "is not in the batch when it has died", context do
      batch = start_batch!(context, batch_size: 3, batch_timeout: 60_000)
      first = later(batch, 1)
      pid = spawn(fn -> Batch.run(batch, 2) end)
      wait_until(fn -> waiting(batch) == 2 end)
      Process.exit(pid, :kill)
      wait_until(fn -> waiting(batch) == 1 end)
      rest = for n <- [3, 4], do: Task.async(fn -> Batch.run(batch, n) end)
      assert Task.await_many([first | rest]) == [{:ok, 2}, {:ok, 6}, {:ok, 8}]
      assert Enum.sort(Enum.concat(calls())) == [1, 3, 4]
    end

    test "is not in it when its time is over", context do
      batch = start_batch!(context, batch_size: 2, batch_timeout: 60_000)
      assert Batch.run(batch, 1, timeout: 50) == {:error, %Error{code: :response_timeout}}
      wait_until(fn -> waiting(batch) == 0 end)
      assert Enum.sort(run_all(batch, [2, 3])) == [{:ok, 4}, {:ok, 6}]
      assert Enum.map(calls(), &Enum.sort/1) == [[2, 3]]
    end

    test "has the call cancelled, when nobody else waits for it", context do
      code = """
      import asyncio
      await snex.send(test, "began")
      try:
          await asyncio.sleep(60)
      except asyncio.CancelledError:
          await snex.send(test, "cancelled")
          raise
      """

      batch = start_batch!(context, code: code, batch_size: 2)
      pids = for n <- 1..2, do: spawn(fn -> Batch.run(batch, n, timeout: :infinity) end)
      assert_receive "began"
      Process.exit(hd(pids), :kill)
      refute_receive "cancelled", 200
      Process.exit(List.last(pids), :kill)
      assert_receive "cancelled"
      assert :sys.get_state(batch).running == %{}
    end

    test "is told in time, while the others get their results", context do
      code = "import asyncio; await asyncio.sleep(0.4); return items"
      batch = start_batch!(context, code: code, batch_size: 2)
      hasty = Task.async(fn -> :timer.tc(fn -> Batch.run(batch, 1, timeout: 150) end) end)
      patient = Task.async(fn -> Batch.run(batch, 2) end)
      assert {time, {:error, %Error{code: :response_timeout}}} = Task.await(hasty)
      assert time in 150_000..390_000
      assert Task.await(patient) == {:ok, 2}
    end

    test "gets no answer later", context do
      code = "import asyncio; await asyncio.sleep(0.2); return items"
      batch = start_batch!(context, code: code, batch_size: 2)
      other = Task.async(fn -> Batch.run(batch, 2) end)
      assert {:error, _} = Batch.run(batch, 1, timeout: 100)
      assert Task.await(other) == {:ok, 2}
      refute_received _
    end
  end

  test "several batches are under way at a time, as many as are to be", context do
    code = "await snex.send(test, 'began'); await Elixir.Kernel.apply(wait, []); return items"
    keeper = spawn_link(fn -> receive do: (:open -> :ok) end)

    wait = fn ->
      monitor = Process.monitor(keeper)
      receive do: ({:DOWN, ^monitor, _, _, _} -> nil)
    end

    vars = %{"test" => self(), "wait" => wait}
    batch = start_batch!(context, code: code, vars: vars, batch_size: 1, concurrency: 2)
    tasks = for n <- 1..5, do: Task.async(fn -> Batch.run(batch, n) end)
    for _ <- 1..2, do: assert_receive("began")
    wait_until(fn -> waiting(batch) == 3 end)
    refute_received "began"
    send(keeper, :open)
    assert Task.await_many(tasks) == for(n <- 1..5, do: {:ok, n})
  end

  test "items with different keys are not mixed", context do
    key = &rem(&1, 2)
    batch = start_batch!(context, batch_key: key, batch_size: 3, batch_timeout: 60_000)
    assert run_all(batch, 1..6) == for(n <- 1..6, do: {:ok, n * 2})
    assert calls() |> Enum.map(&Enum.sort/1) |> Enum.sort() == [[1, 3, 5], [2, 4, 6]]
    tasks = for n <- [1, 2, 3], do: Task.async(fn -> Batch.run(batch, n, batch_key: :same) end)
    assert Task.await_many(tasks) == [{:ok, 2}, {:ok, 4}, {:ok, 6}]
    assert {:error, %Error{code: :bad_request, reason: reason}} = Batch.run(batch, "no number")
    assert reason =~ ":batch_key failed"
    batch = start_batch!(context, batch_key: &throw/1)
    assert {:error, %Error{reason: ":batch_key failed: {:throw, 1}"}} = Batch.run(batch, 1)
  end

  test "functions of Python are called, and awaited if they are to be", context do
    module = """
    import sys, types
    async def double(items):
        return [item * 2 for item in items]
    sys.modules["of_test"] = types.ModuleType("of_test")
    sys.modules["of_test"].models = types.SimpleNamespace(double=double)
    """

    {:ok, nil} = Snex.pyeval(context.interpreter, module)
    batch = start_batch!(context, code: {"of_test", "models.double"}, batch_size: 2)
    assert run_all(batch, [1, 2]) == [{:ok, 2}, {:ok, 4}]
    batch = start_batch!(context, code: {:builtins, :sorted}, batch_size: 1, variable: "x")
    assert Batch.run(batch, 5) == {:ok, 5}
    batch = start_batch!(context, code: {"no_such_module", "f"}, batch_size: 1)
    assert {:error, %Error{type: "ModuleNotFoundError"}} = Batch.run(batch, 5)
  end

  test "pools and environments are interpreters, too", context do
    {:ok, env} = Snex.make_env(context.interpreter, %{"factor" => 3})
    batch = start_batch!(context, interpreter: env, code: "return [n * factor for n in items]")
    assert Batch.run(batch, 2) == {:ok, 6}

    pool = start_supervised!({Snex.Pool, interpreter: [python: python()], size: 2})
    code = "import os, asyncio; await asyncio.sleep(0.1); return [os.getpid()] * len(items)"
    batch = start_batch!(context, interpreter: pool, code: code, batch_size: 5, concurrency: 2)
    pids = for {:ok, pid} <- run_all(batch, 1..20), do: pid
    assert pids |> Enum.uniq() |> length() == 2
  end

  test "all are told when Python ends, once", context do
    {:ok, interpreter} = start_interpreter()
    code = "import os; os._exit(3)"
    batch = start_batch!(context, interpreter: interpreter, code: code, batch_size: 3)

    for answer <- run_all(batch, 1..3) do
      assert {:error, %Error{code: :call_failed, reason: %Error{reason: {:exit_status, 3}}}} =
               answer
    end

    assert {:error, %Error{code: :call_failed}} = Batch.run(batch, 4)
  end

  test "who finds no room is told so", context do
    batch = start_batch!(context, batch_size: 100, batch_timeout: 60_000, max_queue: 2)
    waiting = for n <- 1..2, do: later(batch, n)
    assert {:error, %Error{code: :overloaded, reason: reason}} = Batch.run(batch, 3)
    assert reason =~ ":max_queue"
    for task <- waiting, do: Task.shutdown(task, :brutal_kill)
    wait_until(fn -> waiting(batch) == 0 end)
  end

  test "a full batch that waits for others to end is one that may be left", context do
    code =
      "import asyncio; await snex.send(test, 'began'); await asyncio.sleep(0.5); return items"

    batch = start_batch!(context, code: code, batch_size: 2)
    first = for n <- 1..2, do: Task.async(fn -> Batch.run(batch, n) end)
    assert_receive "began"
    pid = spawn(fn -> Batch.run(batch, 3) end)
    wait_until(fn -> waiting(batch) == 1 end)
    fourth = later(batch, 4)
    Process.exit(pid, :kill)
    wait_until(fn -> waiting(batch) == 1 end)
    assert Task.await_many([fourth | first]) == [{:ok, 4}, {:ok, 1}, {:ok, 2}]
  end

  test "callers of a batch that ends are told", context do
    {:ok, batch} =
      GenServer.start(Batch, %{batch_size: 9, batch_timeout: 60_000, max_queue: 9, concurrency: 1})

    waiting = later(batch, 1, batch_key: context)
    GenServer.stop(batch)
    assert Task.await(waiting) == {:error, %Error{code: :call_failed, reason: :normal}}
    noproc = {:error, %Error{code: :call_failed, reason: :noproc}}
    assert Batch.run(batch, 1) == noproc
    assert Batch.run(:snex_no_such_batch, 1) == noproc
  end

  test "options that are none are refused" do
    refused = fn opts ->
      assert_raise(ArgumentError, fn -> Batch.start_link(opts) end).message
    end

    base = [interpreter: self(), code: "return items"]
    assert refused.([]) =~ "needs the option :interpreter"
    assert refused.(interpreter: self()) =~ "needs the option :code"
    assert refused.(base ++ [bach_size: 3]) =~ "unknown option :bach_size"
    assert refused.(base ++ [batch_size: 0]) =~ ":batch_size takes a number of items, 1 to"
    assert refused.(base ++ [batch_key: 1]) =~ "function of an item"
    assert refused.(base ++ [isolate: 1]) =~ "true or false"
    assert refused.(base ++ [variable: "not a name"]) =~ "name of a variable"
    assert refused.(base ++ [vars: []]) =~ "map of variables"
    assert refused.(base ++ [vars: %{1 => 1}]) =~ "names of variables are strings"
    assert refused.(interpreter: self(), code: {"os; x", "y"}) =~ "names of a module"
    assert refused.(interpreter: self(), code: 5) =~ ":code is Python code"
    assert refused.(:code) =~ "keyword list"
    assert_raise ArgumentError, ~r/unknown option/, fn -> Batch.run(self(), 1, tiemout: 1) end
    assert_raise ArgumentError, ~r/:timeout takes/, fn -> Batch.run(self(), 1, timeout: -1) end
    assert Batch.child_spec(name: :b).id == :b
  end
end
