defmodule Snex.StdioTest do
  @moduledoc "Distribution through standard input and output, on BEAMs that do not listen."
  use Snex.Case, async: true

  @use """
  big = String.duplicate("x", 3_000_000)
  use = fn interpreter ->
    [
      Snex.pyeval(interpreter, "return x", %{"x" => 1}),
      Snex.pyeval(interpreter, "return len(x)", %{"x" => big}),
      Snex.pyeval(interpreter, "return 'x' * 3_000_000") == {:ok, big},
      Snex.pyeval(interpreter, "return await Elixir.Enum.sum([1, 2])")
    ]
  end
  """
  @used [{:ok, 1}, {:ok, 3_000_000}, true, {:ok, 3}]

  defp started(opts) do
    opts = inspect([python: python()] ++ opts)
    "{:ok, interpreter} = Snex.Interpreter.start_link(#{opts})\n"
  end

  defp stdio, do: started(port_opts: [:use_stdio])
  defp used(code, opts \\ []), do: Snex.Beam.told(Snex.Beam.start(@use <> code, opts))

  test "works as the first thing that a BEAM does, and starts no epmd" do
    code = stdio() <> "tell.({use.(interpreter), :erl_epmd.names(~c\"127.0.0.1\")})"
    assert used(code) == {@used, {:error, :address}}
  end

  test "works after another interpreter has made the BEAM a node, and before one" do
    assert used(started([]) <> stdio() <> started([]) <> "tell.(use.(interpreter))") == @used
    assert used(started([]) <> stdio() <> "tell.(use.(interpreter))") == @used
  end

  test "works several times at once" do
    code = """
    start = fn _ ->
      #{stdio()}
      use.(interpreter)
    end
    tell.(1..3 |> Enum.map(&Task.async(fn -> start.(&1) end)) |> Task.await_many(30_000))
    """

    assert used(code) == List.duplicate(@used, 3)
  end

  test "works on BEAMs that were started so that they do not listen" do
    for name <- [["--name", "a@127.0.0.1"], ["--sname", "a@localhost"]] do
      args = ["--erl", "-dist_listen false -start_epmd false" | name]
      assert used(stdio() <> "tell.(use.(interpreter))", args: args) == @used
    end
  end

  test "works on BEAMs whose other connections need TLS" do
    args = ["--erl", "-proto_dist inet_tls"]
    assert used(stdio() <> "tell.(use.(interpreter))", args: args) == @used
  end

  test "works where only certain nodes are allowed, and with a short net_setuptime" do
    code = """
    #{started([])}
    :net_kernel.allow([:"a@127.0.0.1"])
    Application.put_env(:kernel, :net_setuptime, 2)
    wrap = fn python, args -> {"sh", ["-c", "sleep 3; exec \\"$@\\"", "sh", python | args]} end
    {:ok, interpreter} =
      Snex.Interpreter.start_link(python: #{inspect(python())}, port_opts: [:use_stdio], wrap_exec: wrap)
    tell.(use.(interpreter))
    """

    assert used(code) == @used
  end

  test "works on a BEAM that listens" do
    interpreter = start_interpreter!(port_opts: [:use_stdio])
    assert Snex.pyeval(interpreter, "return 1") == {:ok, 1}
    # net_kernel is as it was.
    {peer, node} = Snex.Peer.start()
    assert Node.ping(node) == :pong
    :peer.stop(peer)
  end
end
