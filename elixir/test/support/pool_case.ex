defmodule Snex.PoolCase do
  @moduledoc "What the tests of pools share."
  import ExUnit.Assertions
  import Snex.Case

  alias Snex.Pool

  @doc "Start a pool that ends with the test; `:interpreter` are options of its members."
  def start_pool!(opts) do
    {interpreter, opts} = Keyword.pop(opts, :interpreter, [])
    interpreter = Keyword.put_new(interpreter, :python, python())
    spec = Pool.child_spec([interpreter: interpreter] ++ opts)
    ExUnit.Callbacks.start_supervised!(Map.put(spec, :id, {Pool, make_ref()}))
  end

  @doc "What keeps code waiting until it is opened, or the test ends."
  def gate do
    keeper = spawn_link(fn -> receive do: (:open -> :ok) end)

    wait = fn ->
      monitor = Process.monitor(keeper)
      receive do: ({:DOWN, ^monitor, _, _, _} -> nil)
    end

    {keeper, wait}
  end

  def open({keeper, _wait}), do: send(keeper, :open)

  @hold "await snex.send(test, 'began')\nawait Elixir.Kernel.apply(wait, [])\nreturn 'held'"

  @doc "Code that tells `test` that it has begun, and returns when the function `wait` does."
  def hold_code, do: @hold

  @doc "Keep a pool, or what an environment is on, busy until the gate is opened."
  def hold(target, {_keeper, wait}) do
    vars = %{"test" => self(), "wait" => wait}
    task = Task.async(fn -> Snex.pyeval(target, @hold, vars, timeout: :infinity) end)
    assert_receive "began"
    task
  end

  def waiting(pool), do: Pool.info(pool).queue
  def busy(pool), do: for(member <- Pool.info(pool).members, do: member.busy)
  def os_pids(pool), do: for(member <- Pool.info(pool).members, do: member.os_pid)

  @doc "A task that calls the pool and waits in its queue."
  def queue_up(pool, fun) do
    before = waiting(pool)
    task = Task.async(fun)
    wait_until(fn -> waiting(pool) == before + 1 end)
    task
  end
end
