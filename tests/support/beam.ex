# Runs on the BEAM that a test owns: evaluates what the test sends over a connection of its own.
#
# Packets have a length of four bytes. Both directions: `<<id::64, term>>` in external term format.
#   request  {source, bindings}
#   reply    {:ok, value} | {:error, kind, reason, text}
# Every request runs in a process of its own, so that requests may wait for each other.
# When the connection ends, so does this BEAM: it never outlives the test run.
#
# A module, compiled once: a script would be compiled at every start, which takes as long as all else.
defmodule BeamOfTests do
  def main do
    port = String.to_integer(System.fetch_env!("SNEX_TEST_PORT"))
    options = [:binary, packet: 4, active: false, nodelay: true]
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, options)

    hello = {
      System.fetch_env!("SNEX_TEST_TOKEN"),
      node(),
      String.to_integer(System.pid()),
      System.otp_release(),
      System.version()
    }

    :ok = :gen_tcp.send(socket, :erlang.term_to_binary(hello))
    serve(socket)
  end

  defp serve(socket) do
    case :gen_tcp.recv(socket, 0) do
      {:ok, packet} ->
        spawn(fn -> answer(socket, packet) end)
        serve(socket)

      {:error, _closed} ->
        System.halt(0)
    end
  end

  # The evaluating process is monitored, because a `Process.exit(self(), :kill)` cannot be caught. It
  # ends normally after its answer, so that what it is linked to stays.
  defp answer(socket, <<id::64, request::binary>>) do
    {source, bindings} = :erlang.binary_to_term(request)
    parent = self()

    {pid, monitor} = spawn_monitor(fn -> send(parent, {self(), evaluate(source, bindings)}) end)

    reply =
      receive do
        {^pid, reply} -> reply
        {:DOWN, ^monitor, _, _, reason} -> {:error, :exit, reason, "** (exit) #{inspect(reason)}"}
      end

    :ok = :gen_tcp.send(socket, [<<id::64>>, :erlang.term_to_binary(reply)])
  end

  defp evaluate(source, bindings) do
    try do
      {value, _bindings} = Code.eval_string(source, bindings, file: "test")
      {:ok, value}
    catch
      kind, reason ->
        text = Exception.format(kind, reason, __STACKTRACE__)
        {:error, kind, reason, text}
    end
  end
end
