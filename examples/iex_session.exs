# The session of the README, without the typing. In one terminal:
#
#     snex-node start
#
# and in another (both use the cookie in ~/.erlang.cookie):
#
#     elixir --name me@127.0.0.1 examples/iex_session.exs

Node.connect(:"py@127.0.0.1") |> IO.inspect()

snex = {:snex, :"py@127.0.0.1"} |> IO.inspect()

# Code, and variables for it. It runs in a throw-away environment.
GenServer.call(snex, {:eval, "return 6 * x", %{"x" => 7}}) |> IO.inspect()

# An environment keeps its variables. It is a process: monitor it, link to it, stop it.
{:ok, env} = GenServer.call(snex, {:make_env, %{"seen" => []}}) |> IO.inspect()
GenServer.call(env, {:eval, "seen.append(word)", %{"word" => "hello"}}) |> IO.inspect()
GenServer.call(env, {:eval, "return len(seen), seen", %{}}) |> IO.inspect()
GenServer.stop(env) |> IO.inspect()

# Code may await, and call back: here a function that Elixir gave it, run by Elixir's Enum.
code = "return await Elixir.Enum.map([1, 2, 3], double)" |> IO.inspect()
GenServer.call(snex, {:eval, code, %{"double" => &(&1 * 2)}}) |> IO.inspect()

# Errors are answers, with Python's traceback.
GenServer.call(snex, {:eval, "return 1 / n", %{"n" => 0}}) |> IO.inspect()

# A time limit ends the work itself, even when it blocks; the next request is served.
GenServer.call(snex, {:eval, "while True: pass", %{}, timeout: 200}) |> IO.inspect()

# Any function of any Python module, as if it were one of Erlang's.
:erpc.call(:"py@127.0.0.1", :statistics, :mean, [[1, 2, 3.5]]) |> IO.inspect()
