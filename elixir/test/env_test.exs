defmodule Snex.EnvTest do
  use Snex.Case, async: true

  setup_all do
    {:ok, interpreter: start_supervised!({Interpreter, python: python()})}
  end

  test "shows nothing but its id", %{interpreter: interpreter} do
    {:ok, env} = Snex.make_env(interpreter)
    assert inspect(env) == "#Snex.Env<#{inspect(env.id)}>"
    assert Env.interpreter(env) == interpreter
  end

  test "is freed when its last reference is dropped" do
    interpreter = start_interpreter!()
    test = self()

    holder =
      spawn_link(fn ->
        {:ok, env} = Snex.make_env(interpreter)
        send(test, {:id, env.id})

        receive do
          :use -> send(test, Snex.pyeval(env, "return 1"))
        end

        :erlang.garbage_collect()
        send(test, :dropped)
        receive do: (:end -> :ok)
      end)

    assert_receive {:id, id}
    monitor = Process.monitor(id)
    :erlang.garbage_collect(holder)
    send(holder, :use)
    assert_receive {:ok, 1}
    assert_receive :dropped
    assert_receive {:DOWN, ^monitor, _, _, _}
    assert environments(interpreter) == 0
    send(holder, :end)
  end

  test "outlives the process that made it while another has it", %{interpreter: interpreter} do
    {:ok, env} = Task.async(fn -> Snex.make_env(interpreter, %{"x" => 1}) end) |> Task.await()
    assert Snex.pyeval(env, "return x") == {:ok, 1}
  end

  test "costs no process, and leaves nothing" do
    interpreter = start_interpreter!()
    processes = length(Process.list())

    task =
      Task.async(fn ->
        envs = for _ <- 1..5_000, do: elem(Snex.make_env(interpreter), 1)
        count = environments(interpreter)
        {length(envs), count, length(Process.list())}
      end)

    assert {5_000, 5_000, during} = Task.await(task, 60_000)
    assert during - processes < 500
    wait_until(fn -> environments(interpreter) == 0 end)
  end

  test "is freed by destroy_env, repeatedly", %{interpreter: interpreter} do
    {:ok, env} = Snex.make_env(interpreter)
    monitor = Process.monitor(env.id)
    assert Snex.destroy_env(env) == :ok
    assert Snex.destroy_env(env) == :ok
    assert_receive {:DOWN, ^monitor, _, _, _}
    assert {:error, %Error{code: :env_not_found}} = Snex.pyeval(env, "return 1")
  end

  test "is kept with disable_gc" do
    interpreter = start_interpreter!()
    test = self()

    Task.async(fn ->
      {:ok, env} = Snex.make_env(interpreter)
      kept = env |> Env.disable_gc() |> Env.disable_gc()
      ^kept = Env.disable_gc(env)
      send(test, {:kept, :erlang.term_to_binary(kept)})
    end)
    |> Task.await()

    assert_receive {:kept, data}
    # What was dropped without that is freed; the collector takes one after the other.
    Task.async(fn -> {:ok, _} = Snex.make_env(interpreter) end) |> Task.await()
    wait_until(fn -> environments(interpreter) == 1 end)
    env = :erlang.binary_to_term(data)
    assert Snex.pyeval(env, "return 1") == {:ok, 1}
    Snex.destroy_env(env)
    wait_until(fn -> environments(interpreter) == 0 end)
  end

  describe "disable_gc gives the environment back" do
    test "when it has been destroyed", %{interpreter: interpreter} do
      {:ok, env} = Snex.make_env(interpreter)
      :ok = Snex.destroy_env(env)
      assert Env.disable_gc(env) == %{env | ref: nil}
    end

    test "when its interpreter has ended" do
      {:ok, interpreter} = start_interpreter()
      {:ok, env} = Snex.make_env(interpreter)
      :ok = Interpreter.stop(interpreter)
      assert Env.disable_gc(env) == %{env | ref: nil}
      assert Env.disable_gc(Env.disable_gc(env)) == %{env | ref: nil}
    end

    test "when its handle has been dropped", %{interpreter: interpreter} do
      data =
        Task.async(fn ->
          {:ok, env} = Snex.make_env(interpreter)
          {env.id, :erlang.term_to_binary(env)}
        end)
        |> Task.await()

      {id, data} = data
      monitor = Process.monitor(id)
      assert_receive {:DOWN, ^monitor, _, _, _}
      stale = :erlang.binary_to_term(data)
      assert is_reference(stale.ref)
      assert Env.disable_gc(stale) == %{stale | ref: nil}
      assert Snex.destroy_env(stale) == :ok
    end

    test "when its handle is none", %{interpreter: interpreter} do
      {:ok, env} = Snex.make_env(interpreter)

      for ref <- [make_ref(), :none, 5] do
        foreign = %{env | ref: ref}
        assert Env.disable_gc(foreign) == %{env | ref: nil}
        assert Snex.pyeval(foreign, "return 1") == {:ok, 1}
      end

      assert Snex.destroy_env(%{env | ref: make_ref()}) == :ok
    end
  end

  test "is not freed again when it has been destroyed", %{interpreter: interpreter} do
    # The collector is told of every environment that is dropped; what it gets is traced, in order.
    :erlang.trace(Process.whereis(Snex.Collector), true, [:receive])

    make = fn ->
      Task.async(fn ->
        {:ok, env} = Snex.make_env(interpreter)
        {env.id, env}
      end)
      |> Task.await()
    end

    Task.async(fn ->
      {_, env} = make.()
      :ok = Snex.destroy_env(env)
      env.id
    end)
    |> Task.await()
    |> then(&send(self(), {:destroyed, &1}))

    assert_receive {:destroyed, destroyed}
    dropped = Task.async(fn -> elem(make.(), 0) end) |> Task.await()
    dropped_message = {:snex_env_dropped, :erlang.term_to_binary(dropped)}
    destroyed_message = {:snex_env_dropped, :erlang.term_to_binary(destroyed)}
    assert_receive {:trace, _, :receive, ^dropped_message}
    refute_received {:trace, _, :receive, ^destroyed_message}
  end

  test "ends with its interpreter" do
    {:ok, interpreter} = start_interpreter()
    {:ok, env} = Snex.make_env(interpreter)
    monitor = Process.monitor(env.id)
    Interpreter.stop(interpreter)
    assert_receive {:DOWN, ^monitor, _, _, _}
    assert Snex.destroy_env(env) == :ok
  end
end
