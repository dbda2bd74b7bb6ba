# Callers of a node with workers, until the time is over: the outcomes, counted. The bindings are
# `py`, `milliseconds`, `callers`, `seed`, and `fates`: what code does, its options, the codes that it may have.

deadline = System.monotonic_time(:millisecond) + milliseconds
parent = self()

# One call as it is on the wire: what comes under its tag, or :lost.
call = fn to, request, aliased, wait ->
  alias = :erlang.alias()
  tag = if aliased, do: [:alias | alias], else: make_ref()
  monitor = Process.monitor(to)
  send(to, {:"$gen_call", {self(), tag}, request})

  answer =
    receive do
      {^tag, answer} -> answer
      {:DOWN, ^monitor, _, _, reason} -> {:down, reason}
    after
      wait -> :lost
    end

  Process.demonitor(monitor, [:flush])
  {tag, answer}
end

outcome = fn
  {:ok, _} -> :ok
  {:error, %{code: code}} -> code
  {:down, _} -> :down
  :lost -> :lost
  other -> {:other, other}
end

well = fn n, to ->
  fn aliased ->
    {tag, answer} = call.(to, {:eval, "return n + 1", %{"n" => n}}, aliased, 60_000)
    {tag, if(answer == {:ok, n + 1}, do: :right, else: outcome.(answer))}
  end
end

ill = fn {name, code, opts, allowed} ->
  fn aliased ->
    {tag, answer} = call.({:snex, py}, {:eval, code, %{}, opts}, aliased, 60_000)
    found = outcome.(answer)
    {tag, if(found in allowed, do: {name, :as_it_should}, else: {name, found})}
  end
end

# In an environment: what becomes of it when its worker ends is a monitor that fires.
in_env = fn n ->
  fn aliased ->
    case call.({:snex, py}, {:make_env, %{"n" => n}}, aliased, 60_000) do
      {_, {:ok, env}} ->
        {tag, answer} = call.(env, {:eval, "n += 1; return n", %{}}, aliased, 60_000)
        call.({:snex, py}, {:destroy_env, env}, true, 60_000)
        found = if answer == {:ok, n + 1}, do: :right, else: outcome.(answer)
        {tag, if(found == :down, do: {:env, :went_with_its_worker}, else: found)}

      {tag, answer} ->
        found = outcome.(answer)
        {tag, if(found == :worker_exited, do: {:env, :went_with_its_worker}, else: found)}
    end
  end
end

# Gives up after a moment, as GenServer.call does.
gives_up = fn ->
  fn _ ->
    code = "import asyncio\nawait asyncio.sleep(5)"

    try do
      {:error, %{code: :worker_exited}} = GenServer.call({:snex, py}, {:eval, code, %{}}, 50)
      {make_ref(), {:env, :went_with_its_worker}}
    catch
      :exit, _ -> {make_ref(), {:gives_up, :as_it_should}}
    end
  end
end

choose = fn n ->
  case :rand.uniform(100) do
    k when k <= 84 -> well.(n, {:snex, py})
    k when k <= 92 -> in_env.(n)
    k when k <= 95 -> gives_up.()
    _ -> ill.(Enum.random(fates))
  end
end

loop = fn loop, n, counts, tags ->
  if System.monotonic_time(:millisecond) >= deadline do
    # What comes now was answered twice, or answered too late.
    Process.sleep(1_000)
    {:messages, left} = Process.info(self(), :messages)
    twice = Enum.count(left, fn message -> is_tuple(message) and elem(message, 0) in tags end)
    Map.update(counts, :twice, twice, &(&1 + twice))
  else
    {tag, found} = choose.(n).(:rand.uniform(2) == 1)
    loop.(loop, n + 1, Map.update(counts, found, 1, &(&1 + 1)), [tag | Enum.take(tags, 1000)])
  end
end

1..callers
|> Enum.map(fn number ->
  Task.async(fn ->
    :rand.seed(:exsss, {seed, number, 1})
    loop.(loop, number * 1_000_000, %{}, [])
  end)
end)
|> Task.await_many(:infinity)
|> Enum.reduce(%{}, fn counts, all -> Map.merge(all, counts, fn _, a, b -> a + b end) end)
|> Map.to_list()
