# Callers of a pool of the client, until the time is over: the outcomes, counted. The bindings are
# `python`, `size`, `memory`, `milliseconds`, `callers`, `seed`, and `fates`: what code does, its options, the
# codes that it may have.

{:ok, _} = Application.ensure_all_started(:snex)
Process.flag(:trap_exit, true)

{:ok, pool} =
  Snex.Pool.start_link(
    size: size,
    max_restarts: 1_000_000,
    queue_timeout: :infinity,
    restart_after: 500,
    interpreter: [python: python, max_memory: memory, kill_after: 300]
  )

deadline = System.monotonic_time(:millisecond) + milliseconds

outcome = fn
  {:ok, _} -> :ok
  {:error, %Snex.Error{code: code}} -> code
  other -> {:other, other}
end

well = fn n ->
  answer = Snex.pyeval(pool, "return n + 1", %{"n" => n}, timeout: 60_000)
  if answer == {:ok, n + 1}, do: :right, else: outcome.(answer)
end

# The time that it waits for a member is in its timeout.
ill = fn {name, code, _opts, allowed} ->
  found = outcome.(Snex.pyeval(pool, code, %{}, timeout: 1_500, kill_after: 300))
  if found in [:response_timeout | allowed], do: {name, :as_it_should}, else: {name, found}
end

# What becomes of an environment when its Python ends: it is gone.
in_env = fn n ->
  with {:ok, env} <- Snex.make_env(pool, %{"n" => n}),
       {:ok, value} <- Snex.pyeval(env, "n += 1; return n", %{}, timeout: 60_000) do
    if value == n + 1, do: :right, else: {:other, value}
  else
    error ->
      found = outcome.(error)
      gone = [:call_failed, :env_not_found, :killed, :memory_limit]
      if found in gone, do: {:env, :went_with_its_worker}, else: found
  end
end

gives_up = fn ->
  found = outcome.(Snex.pyeval(pool, "import asyncio\nawait asyncio.sleep(5)", %{}, timeout: 50))

  if found in [:response_timeout, :call_failed],
    do: {:gives_up, :as_it_should},
    else: {:gives_up, found}
end

choose = fn n ->
  case :rand.uniform(100) do
    k when k <= 84 -> well.(n)
    k when k <= 92 -> in_env.(n)
    k when k <= 95 -> gives_up.()
    _ -> ill.(Enum.random(fates))
  end
end

loop = fn loop, n, counts ->
  if System.monotonic_time(:millisecond) >= deadline do
    # What comes now was answered twice, or answered too late.
    Process.sleep(1_000)
    {:messages, left} = Process.info(self(), :messages)
    Map.update(counts, :twice, length(left), &(&1 + length(left)))
  else
    loop.(loop, n + 1, Map.update(counts, choose.(n), 1, &(&1 + 1)))
  end
end

counts =
  1..callers
  |> Enum.map(fn number ->
    Task.async(fn ->
      :rand.seed(:exsss, {seed, number, 1})
      loop.(loop, number * 1_000_000, %{})
    end)
  end)
  |> Task.await_many(:infinity)
  |> Enum.reduce(%{}, fn counts, all -> Map.merge(all, counts, fn _, a, b -> a + b end) end)

# It comes to rest: all members are there and have nothing to do.
rest = fn rest, tries ->
  :erlang.garbage_collect()
  info = Snex.Pool.info(pool)
  busy = Enum.count(info.members, &(&1.state != :up or &1.busy > 0 or &1.environments > 0))

  if tries == 0 or (busy == 0 and info.queue == 0),
    do: {busy, info.queue, info.restarts},
    else: (Process.sleep(200); rest.(rest, tries - 1))
end

{busy, queue, restarts} = rest.(rest, 100)
processes = for %{os_pid: os_pid} <- Snex.Pool.info(pool).members, do: os_pid
Supervisor.stop(pool)
{Map.to_list(counts), busy, queue, restarts, processes}
