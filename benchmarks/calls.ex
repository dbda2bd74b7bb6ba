# Loaded into both BEAMs of `python -m benchmarks calls`.

defmodule Benchmark.Server do
  @moduledoc "What a BEAM answers to the requests that the Python node gets, word for word."
  use GenServer

  # Not linked to the process that evaluates this: it ends with the evaluation.
  def start, do: GenServer.start(__MODULE__, nil, name: :snex)

  @impl true
  def init(data), do: {:ok, data}

  @impl true
  def handle_call(:ping, _from, data), do: {:reply, :pong, data}

  def handle_call({:eval, "return 6 * x", %{"x" => x}}, _from, data),
    do: {:reply, {:ok, 6 * x}, data}

  def handle_call({:eval, "return data", _}, _from, data), do: {:reply, {:ok, data}, data}
  def handle_call({:eval, "", %{"data" => data}}, _from, _), do: {:reply, {:ok, nil}, data}
  def handle_call({:eval, "", %{"data" => data}, _}, _from, _), do: {:reply, {:ok, nil}, data}
  def handle_call({:make_env, _, _}, _from, data), do: {:reply, {:ok, self()}, data}
end

defmodule Benchmark do
  @moduledoc "The caller: every function measures the servers in turn, round by round."

  @doc "Median nanoseconds of one call, for each server."
  def latency(servers, request, rounds, calls) do
    for _ <- 1..rounds, {server, index} <- Enum.with_index(servers), reduce: %{} do
      found ->
        settle()
        times = for _ <- 1..calls, do: timed(fn -> GenServer.call(server, request, 60_000) end)
        Map.update(found, index, times, &(times ++ &1))
    end
    |> medians()
  end

  @doc "Median calls per second of `callers` processes together, for each server."
  def throughput(servers, request, callers, rounds, calls) do
    for _ <- 1..rounds, {server, index} <- Enum.with_index(servers), reduce: %{} do
      found ->
        settle()

        time =
          timed(fn ->
            1..callers
            |> Enum.map(fn _ -> Task.async(fn -> call(server, request, calls) end) end)
            |> Task.await_many(60_000)
          end)

        rate = callers * calls * 1.0e9 / time
        Map.update(found, index, [rate], &[rate | &1])
    end
    |> medians()
  end

  @doc "What is sent back and forth; terms are made here, so that none is a literal."
  def data(:optioned), do: data(:integers)
  def data(:integers), do: for(_ <- 1..100_000, do: :rand.uniform(0x7FFFFFFF))
  def data(:floats), do: for(_ <- 1..100_000, do: :rand.uniform())
  def data(:binary), do: :crypto.strong_rand_bytes(10_000_000)

  def data(:maps) do
    for n <- 1..10_000 do
      %{
        "id" => n,
        "name" => "user #{n}",
        "email" => "user#{n}@example.com",
        "score" => n / 7,
        "active" => rem(n, 3) == 0
      }
    end
  end

  @doc "Median nanoseconds to bring `data` there, and back, for each server."
  def transfer(servers, kind, rounds) do
    there = storing(kind, %{"data" => data(kind)})
    back = {:eval, "return data", %{}}

    environments =
      for server <- servers do
        {:ok, environment} = GenServer.call(server, {:make_env, %{}, []})
        environment
      end

    times =
      for _ <- 1..rounds, {server, index} <- Enum.with_index(environments), reduce: %{} do
        found ->
          settle()
          sent = timed(fn -> {:ok, nil} = GenServer.call(server, there, 60_000) end)
          settle()
          got = timed(fn -> {:ok, _} = GenServer.call(server, back, 60_000) end)
          Map.update(found, index, [{sent, got}], &[{sent, got} | &1])
      end

    for {index, pairs} <- times, into: %{} do
      {sent, got} = Enum.unzip(pairs)
      {index, {median(sent), median(got)}}
    end
  end

  # A binary becomes a str unless one says otherwise, and these bytes are no text.
  defp storing(:binary, variables),
    do: {:eval, "", variables, encoding_opts: [binary_as: :bytes]}

  # What finding the options behind so much data costs.
  defp storing(:optioned, variables), do: {:eval, "", variables, timeout: 60_000}
  defp storing(_, variables), do: {:eval, "", variables}

  defp call(_server, _request, 0), do: :ok

  defp call(server, request, calls) do
    GenServer.call(server, request, 60_000)
    call(server, request, calls - 1)
  end

  # A scheduler spins for a while after it has worked, and garbage is collected when it comes to it;
  # the next server is not to feel either.
  defp settle do
    :erlang.garbage_collect()
    Process.sleep(20)
  end

  defp timed(fun) do
    start = System.monotonic_time(:nanosecond)
    fun.()
    System.monotonic_time(:nanosecond) - start
  end

  defp medians(found), do: Map.new(found, fn {index, values} -> {index, median(values)} end)

  defp median(values) do
    sorted = Enum.sort(values)
    Enum.at(sorted, div(length(sorted), 2))
  end
end
