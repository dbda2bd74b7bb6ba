# Loaded into the BEAM that calls.

defmodule Benchmark.Peer do
  @moduledoc """
  How one side is asked: `{:python, node}`, or `{:beam, node}`, the yardstick.

  With `client?` a Python node is asked by `Snex.pyeval`; the yardstick then gets the message that
  the client would send.
  """

  alias Benchmark.{Data, Requests}

  @patience 60_000
  @options [timeout: @patience]

  def server({_kind, node}), do: {:snex, node}

  def call(server, request), do: GenServer.call(server, request, @patience)

  @doc "A function that makes one small request, and is content with one answer only."
  def request(peer, "call"), do: fn -> :pong = call(server(peer), :ping) end
  def request(peer, "eval"), do: evaluation(server(peer), Requests.multiply(), [])
  def request(peer, "async eval"), do: evaluation(server(peer), Requests.await(), [])

  def request(peer, "env eval"), do: evaluation(env(peer), Requests.multiply(), [])
  def request(peer, "compute"), do: evaluation(server(peer), Requests.compute(), [])

  def request({:python, _} = peer, "Snex.pyeval") do
    env = client_env(peer)
    code = Requests.multiply()
    fn -> {:ok, 42} = Snex.pyeval(env, code, %{"x" => 7}) end
  end

  def request({:beam, _} = peer, "Snex.pyeval"),
    do: evaluation(env(peer), Requests.multiply(), [[timeout: 5_000]])

  def request(peer, "make_env") do
    server = server(peer)

    fn ->
      {:ok, env} = call(server, {:make_env, %{}, []})
      :ok = call(server, {:destroy_env, env})
    end
  end

  defp evaluation(server, code, options) do
    request = List.to_tuple([:eval, code, %{"x" => 7} | options])
    fn -> {:ok, 42} = call(server, request) end
  end

  @doc "Data of a kind, as this side takes it."
  def data({:python, _} = peer, "Arrow table", count) do
    {:ok, table} = Snex.pyeval(client_env(peer), Requests.table(), %{"count" => count}, @options)
    table
  end

  def data(_peer, kind, count), do: Data.make(kind, count)

  @doc "A function that sends data of a kind, which stays there."
  def store({:python, _} = peer, kind, true) do
    env = client_env(peer)
    options = @options ++ Data.options(kind)
    fn data -> {:ok, nil} = Snex.pyeval(env, Requests.store(), %{"data" => data}, options) end
  end

  def store(peer, kind, client?) do
    env = env(peer)
    options = if client?, do: @options ++ Data.options(kind), else: Data.options(kind)
    options = if options == [], do: [], else: [options]

    fn data ->
      request = List.to_tuple([:eval, Requests.store(), %{"data" => data} | options])
      {:ok, nil} = call(env, request)
    end
  end

  @doc "A function that has data sent back, after it was sent there."
  def fetch({:python, _} = peer, kind, true, data) do
    env = client_env(peer)
    {:ok, nil} = Snex.pyeval(env, "", %{"data" => data}, @options ++ Data.options(kind))
    options = @options ++ Keyword.take(Data.options(kind), [:shared])
    fn -> {:ok, _} = Snex.pyeval(env, Requests.fetch(), %{}, options) end
  end

  def fetch(peer, kind, client?, data) do
    env = env(peer)
    {:ok, nil} = call(env, {:eval, Requests.store(), %{"data" => data}, Data.options(kind)})
    request = {:eval, Requests.fetch(), %{}}
    request = if client?, do: Tuple.append(request, @options), else: request
    fn -> {:ok, _} = call(env, request) end
  end

  @doc "An environment; it ends with who asks for it, or with another handle."
  def env(peer, options \\ []) do
    {:ok, env} = call(server(peer), {:make_env, %{}, options})
    env
  end

  @doc "An environment by the client."
  def client_env({:python, node}) do
    {:ok, python} = Snex.Interpreter.start_link(node: node)
    {:ok, env} = Snex.make_env(python)
    env
  end
end

defmodule Benchmark.Instruments do
  @moduledoc """
  What is measured in a round: `prepare/3` gives a function that does it.

  The function returns nanoseconds in all, how often it was done, and nanoseconds of each time.
  """

  alias Benchmark.{Peer, Requests, Together}

  # Who make environments that are kept: many together are done sooner.
  @makers 20

  def prepare("requests", peer, %{"request" => request, "callers" => callers, "calls" => calls}) do
    ask = Peer.request(peer, request)
    fn -> Together.measure(callers, calls, ask) end
  end

  def prepare("there", peer, %{"kind" => kind, "count" => count, "client" => client?}) do
    data = Peer.data(peer, kind, count)
    store = Peer.store(peer, kind, client?)
    fn -> once(fn -> store.(data) end) end
  end

  def prepare("back", peer, %{"kind" => kind, "count" => count, "client" => client?}) do
    fetch = Peer.fetch(peer, kind, client?, Peer.data(peer, kind, count))
    fn -> once(fetch) end
  end

  def prepare("snex.call", peer, %{"callers" => callers, "calls" => calls}) do
    variables = %{"callers" => callers, "calls" => calls}
    request = {:eval, Requests.calls_back(), variables}

    fn ->
      {:ok, measured} = Peer.call(Peer.server(peer), request)
      measured
    end
  end

  def prepare("snex.send", peer, %{"calls" => calls}) do
    fn ->
      {time, _, _} = once(fn -> receive_all(peer, calls) end)
      {time, calls, []}
    end
  end

  def prepare("stream", peer, %{"calls" => calls}) do
    env = Peer.client_env(peer)
    stream = Snex.stream(env, Requests.yields(), %{"count" => calls}, max_demand: 500)
    fn -> counted(stream, calls) end
  end

  def prepare("pipeline", peer, %{"calls" => calls}) do
    env = Peer.client_env(peer)

    fn ->
      variables = %{"source" => Snex.source(1..calls)}
      counted(Snex.stream(env, Requests.passes_on(), variables, max_demand: 500), calls)
    end
  end

  # Made and kept: what matters is the memory of who has them.
  def prepare("hold", peer, %{"calls" => calls}) do
    handle = self()

    fn ->
      Together.measure(@makers, div(calls, @makers), fn -> Peer.env(peer, handle: handle) end)
    end
  end

  def prepare("interpreter", {:python, _}, %{"python" => python, "exec" => exec}) do
    wrap = fn python, args ->
      [program | arguments] = exec ++ [python]
      {program, arguments ++ args}
    end

    fn ->
      once(fn ->
        {:ok, interpreter} = Snex.Interpreter.start_link(python: python, wrap_exec: wrap)
        :ok = Snex.Interpreter.stop(interpreter)
      end)
    end
  end

  def prepare("interpreter", {:beam, _}, %{"exec" => exec, "flags" => flags}) do
    [program | arguments] = exec ++ [Path.join(:code.root_dir(), "bin/erl")]

    fn ->
      once(fn ->
        {:ok, peer, _node} =
          :peer.start(%{
            name: :peer.random_name(),
            host: ~c"127.0.0.1",
            longnames: true,
            exec: {to_charlist(program), Enum.map(arguments, &to_charlist/1)},
            args: [~c"-start_epmd", ~c"false", ~c"-connect_all", ~c"false"],
            env: [{~c"ERL_FLAGS", to_charlist(flags)}]
          })

        :ok = :peer.stop(peer)
      end)
    end
  end

  defp receive_all(peer, count) do
    parent = self()

    # A process of its own: what it gets is not looked through for an answer.
    receiver =
      spawn_link(fn ->
        for n <- 0..(count - 1), do: receive(do: (^n -> :ok))
        send(parent, :received)
      end)

    variables = %{"pid" => receiver, "count" => count}
    {:ok, nil} = Peer.call(Peer.server(peer), {:eval, Requests.sends(), variables})
    receive do: (:received -> :ok)
  end

  defp counted(stream, calls) do
    {time, _, _} = once(fn -> ^calls = Enum.count(stream) end)
    {time, calls, []}
  end

  defp once(work) do
    start = Together.now()
    work.()
    time = Together.now() - start
    {time, 1, [time]}
  end
end

defmodule Benchmark.Meter do
  @moduledoc """
  Measures one row on one side: a process that the suite opens, asks for rounds, and closes.

  What it has others make (environments, connections of the client) ends with it.
  """
  use GenServer

  @doc "Start one; not linked to the caller, which is gone before the first round."
  def open(instrument, kind, node, options) do
    peer = {String.to_existing_atom(kind), String.to_atom(node)}
    {:ok, meter} = GenServer.start(__MODULE__, {instrument, peer, options}, timeout: :infinity)
    meter
  end

  @doc "Measure a round."
  def round(meter), do: GenServer.call(meter, :round, :infinity)

  def close(meter), do: GenServer.stop(meter)

  @impl true
  def init({instrument, peer, options}) do
    measure = Benchmark.Instruments.prepare(instrument, peer, options)
    {:ok, {measure, Map.fetch!(options, "settle")}}
  end

  # A scheduler spins for a while after it has worked, and garbage is collected when it comes to it;
  # the next side is not to feel either.
  @impl true
  def handle_call(:round, _from, {measure, settle} = state) do
    :erlang.garbage_collect()
    Process.sleep(settle)
    {:reply, measure.(), state}
  end

  # Late answers, and the ends of those that a round has started.
  @impl true
  def handle_info(_message, state), do: {:noreply, state}
end
