defmodule Snex.Port do
  @moduledoc false
  # The Python process behind an interpreter: its start, its output, its end. Requests do not go
  # this way; see the module snex_runtime.child for the other side.

  # The line that begins so tells how the start went.
  @mark "\0snex "

  @type failure ::
          {:exit_status, non_neg_integer()} | {:error, String.t()} | {:unreachable, String.t()}

  @doc "Start Python, or what `:wrap_exec` makes of it."
  @spec open(keyword()) :: {:ok, port()} | failure()
  def open(opts) do
    python = Keyword.get(opts, :python, "python")
    # PYTHONUNBUFFERED would slow down what writes much; lines are flushed without it.
    {program, args} = wrap(opts[:wrap_exec], python, ["-m", "snex_runtime", "child"])

    case System.find_executable(program) do
      # What a shell says when it finds no command.
      nil -> {:exit_status, 127}
      executable -> open(executable, args, opts)
    end
  end

  defp open(executable, args, opts) do
    port_opts = opts[:port_opts] || []
    # Where the output is the distribution's, errors go to the terminal as they are.
    errors = if :use_stdio in port_opts, do: [], else: [:stderr_to_stdout]

    theirs =
      for {name, _} = option <- port_opts, name in [:parallelism, :busy_limits_port], do: option

    settings =
      [
        :binary,
        :exit_status,
        :hide,
        :use_stdio,
        args: args,
        env: environment(opts[:environment] || %{})
      ] ++ errors ++ cd(opts[:cd]) ++ theirs

    {:ok, Port.open({:spawn_executable, executable}, settings)}
  rescue
    error in [ErlangError, ArgumentError] ->
      {:error, "#{executable} cannot be run: #{Exception.message(error)}"}
  end

  defp wrap(nil, python, args), do: {python, args}
  defp wrap(fun, python, args) when is_function(fun, 2), do: fun.(python, args)
  defp wrap({m, f, a}, python, args), do: apply(m, f, a ++ [python, args])

  defp cd(nil), do: []
  defp cd(directory), do: [cd: directory]

  defp environment(environment) do
    theirs = environment["PYTHONPATH"] || System.get_env("PYTHONPATH")
    ours = Path.join(:code.priv_dir(:snex), "python")
    path = if theirs in [nil, ""], do: ours, else: ours <> ":" <> theirs

    for {name, value} <- Map.put(safe(environment), "PYTHONPATH", path),
        do: {to_charlist(name), to_charlist(value)}
  end

  # `python -m` looks for what it needs itself in the current directory first, so a `types.py` in
  # the user's would be it. Python 3.11 and later leave that to us: see snex_runtime.search_path.
  defp safe(environment) do
    if System.get_env("PYTHONSAFEPATH") in [nil, ""],
      do: Map.put_new(environment, "PYTHONSAFEPATH", "snex"),
      else: environment
  end

  @doc "Tell Python what it is to be, and wait until it is: returns where it takes requests."
  @spec configure(port(), map()) :: {:ok, pid(), rest :: binary()} | failure()
  def configure(port, configuration) do
    send_configuration(port, configuration)
    await_ready(port, "")
  end

  @doc "Tell Python what it is to be."
  @spec send_configuration(port(), map()) :: :ok
  def send_configuration(port, configuration) do
    data = :erlang.term_to_binary(configuration)
    # Python may have ended already; then its exit status comes.
    send(port, {self(), {:command, <<byte_size(data)::32, data::binary>>}})
    :ok
  end

  defp await_ready(port, output) do
    receive do
      {^port, {:data, data}} ->
        case String.split(output <> data, @mark, parts: 2) do
          [text] -> await_ready(port, print_but_mark(text))
          [text, line] -> await_line(port, print(text), line)
        end

      {^port, {:exit_status, status}} ->
        {:exit_status, status}
    end
  end

  defp await_line(port, output, line) do
    case String.split(line, "\n", parts: 2) do
      [told, rest] -> ready(told, output <> rest)
      [_] -> with {:data, data} <- receive_data(port), do: await_line(port, output, line <> data)
    end
  end

  defp receive_data(port) do
    receive do
      {^port, {:data, data}} -> {:data, data}
      {^port, {:exit_status, status}} -> {:exit_status, status}
    end
  end

  defp ready(told, rest) do
    case told |> Base.decode64!() |> :erlang.binary_to_term() do
      {:ready, _name, _listening, server} -> {:ok, server, print(rest)}
      {:error, reason} -> {:error, reason}
      {:unregistered, reason} -> {:unreachable, reason}
    end
  end

  # The mark may be in two pieces: what could be its beginning is kept.
  defp print_but_mark(text) do
    case :binary.match(text, "\0") do
      :nomatch ->
        print(text)

      {at, _} ->
        print(binary_part(text, 0, at)) <> binary_part(text, at, byte_size(text) - at)
    end
  end

  @doc "Write output to the group leader; returns the beginning of a character that is not whole yet."
  @spec print(binary()) :: binary()
  def print(""), do: ""

  def print(data) do
    {text, rest} = whole_characters(data, [])
    # A device that is gone takes no output; that is no reason to end.
    if text != "", do: :io.put_chars(Process.group_leader(), text)
    rest
  rescue
    ErlangError -> ""
    ArgumentError -> ""
  end

  defp whole_characters(data, done) do
    case :unicode.characters_to_binary(data) do
      text when is_binary(text) ->
        {IO.iodata_to_binary([done, text]), ""}

      {:incomplete, text, rest} when byte_size(rest) < 4 ->
        {IO.iodata_to_binary([done, text]), rest}

      {_, text, <<_, rest::binary>>} ->
        whole_characters(rest, [done, text, "\uFFFD"])
    end
  end

  @doc "The number of the process."
  @spec os_pid(port()) :: non_neg_integer() | nil
  def os_pid(port) do
    case Port.info(port, :os_pid) do
      {:os_pid, number} -> number
      nil -> nil
    end
  end

  @doc "Let Python go and wait until it has gone, `timeout` at most; what it prints is shown."
  @spec stop(port(), binary(), timeout()) :: :ok
  def stop(port, output, timeout) do
    send(port, {self(), {:command, "stop\n"}})
    timer = Process.send_after(self(), {:snex_port_timeout, port}, timeout)
    drain(port, output)
    Process.cancel_timer(timer)
    # It may be closed already.
    send(port, {self(), :close})
    :ok
  end

  defp drain(port, output) do
    receive do
      {^port, {:data, data}} -> drain(port, print(output <> data))
      {^port, {:exit_status, _}} -> :ok
      {:snex_port_timeout, ^port} -> :ok
    end
  end
end
