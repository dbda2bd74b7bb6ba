defmodule Snex.Beam do
  @moduledoc "A BEAM in a process of its own, to be killed; it is no node until Snex makes it one."

  @doc """
  Start a BEAM that runs `code`, which tells the test what it has to say with `tell.(term)`.

  It ends when its port is closed, at the end of the test at the latest. Options: `:args` of `elixir`,
  `:env` as `Port.open/2` has it, `:wrap`, a command that runs what is appended to it.
  """
  def start(code, opts \\ []) do
    program = """
    {:ok, _} = Application.ensure_all_started(:snex)
    tell = fn term -> IO.puts("told " <> Base.encode64(:erlang.term_to_binary(term))) end
    spawn(fn -> IO.read(:stdio, :eof); System.halt(0) end)
    #{code}
    Process.sleep(:infinity)
    """

    port = free_port()
    ExUnit.Callbacks.on_exit(fn -> end_epmd(port) end)
    paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
    elixir = Keyword.get(opts, :args, []) ++ paths ++ ["-e", program]
    [command | args] = Keyword.get(opts, :wrap, []) ++ ["elixir" | elixir]

    Port.open({:spawn_executable, System.find_executable(command)}, [
      :binary,
      :exit_status,
      :stderr_to_stdout,
      line: 65_536,
      args: args,
      env: [{~c"ERL_EPMD_PORT", Integer.to_charlist(port)} | Keyword.get(opts, :env, [])]
    ])
  end

  # With an epmd port of its own there is none there: Python starts one, and OTP's stays.
  defp end_epmd(port) do
    if epmd = System.find_executable("epmd") do
      Snex.Case.wait_until(fn ->
        options = [stderr_to_stdout: true]
        {said, status} = System.cmd(epmd, ["-port", "#{port}", "-kill"], options)
        # It refuses while a node is registered.
        status == 0 or said =~ "Cannot connect"
      end)
    end
  end

  defp free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    port
  end

  @doc "The next thing that the BEAM tells."
  def told(port, seen \\ []) do
    receive do
      {^port, {:data, {:eol, "told " <> data}}} ->
        :erlang.binary_to_term(Base.decode64!(data))

      {^port, {:data, {_, line}}} ->
        told(port, [line | seen])

      {^port, {:exit_status, status}} ->
        raise "the BEAM ended with #{status}: #{Enum.join(Enum.reverse(seen), "\n")}"
    after
      45_000 -> raise "the BEAM told nothing: #{Enum.join(Enum.reverse(seen), "\n")}"
    end
  end

  @doc "All that the BEAM prints until it ends by itself."
  def printed(port, lines \\ []) do
    receive do
      {^port, {:data, {_, line}}} -> printed(port, [line, "\n" | lines])
      {^port, {:exit_status, _}} -> lines |> Enum.reverse() |> IO.iodata_to_binary()
    after
      20_000 -> raise "the BEAM did not end: #{Enum.reverse(lines)}"
    end
  end

  @doc "Kill it with SIGKILL."
  def kill(beam_os_pid), do: {_, 0} = System.cmd("kill", ["-KILL", to_string(beam_os_pid)])
end
