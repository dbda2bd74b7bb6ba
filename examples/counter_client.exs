# The Elixir side of counter_server.py. In another terminal:
#
#     elixir --name me@127.0.0.1 examples/counter_client.exs

counter = {:counter, :"counter@127.0.0.1"}

IO.inspect(GenServer.call(counter, {:add, 5}), label: "add 5")

# Three callers at once are served one after the other.
tasks = for _ <- 1..3, do: Task.async(fn -> GenServer.call(counter, {:add_later, 1, 50}) end)
IO.inspect(Enum.sort(Task.await_many(tasks)), label: "three callers")

GenServer.cast(counter, :reset)
IO.inspect(GenServer.call(counter, {:add, 2}), label: "after a reset")
IO.inspect(GenServer.call(counter, :subtract), label: "a mistake")

# It is a process like any other: a monitor fires when it ends.
monitor = Process.monitor(counter)
IO.inspect(GenServer.call(counter, :stop), label: "stop")

receive do
  {:DOWN, ^monitor, :process, _, reason} -> IO.inspect(reason, label: "it ended")
end
