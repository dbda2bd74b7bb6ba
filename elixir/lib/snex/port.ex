defmodule Snex.Port do
  @moduledoc false
  # The Python process behind an interpreter: its start, its output, its end. Requests do not go
  # this way; see the module snex_runtime.child for the other side.

  alias Snex.{Error, OSProcess}

  # The line that begins so tells how the start went.
  @mark "\0snex "

  # What the default of `:python` may be called.
  @pythons ["python", "python3"]

  # What shells say of a program that cannot be run, and of one that is not there.
  @not_executable 126
  @not_found 127

  # ms between two looks whether the process has gone.
  @look_again 50

  @doc "Start Python, or what `:wrap_exec` makes of it; returns what was started, too."
  @spec open(keyword()) :: {:ok, port(), program :: String.t()} | {:error, Error.t()}
  def open(opts) do
    # PYTHONUNBUFFERED would slow down what writes much; lines are flushed without it.
    {program, args} =
      wrap(opts[:wrap_exec], python(opts[:python]), ["-m", "snex_runtime", "child"])

    with {:ok, executable} <- find(program, opts),
         :ok <- check_directory(opts[:cd]),
         do: open(executable, args, opts)
  end

  defp python(nil), do: Enum.find(@pythons, hd(@pythons), &System.find_executable/1)
  defp python(python), do: python

  # --- what is to be run --------------------------------------------------------------------------

  # A name is looked for on the PATH, a path is one whatever PATH says.
  defp find(program, opts) do
    path = if String.contains?(program, "/"), do: Path.expand(program), else: program

    case System.find_executable(path) do
      nil -> {:error, not_found(path, opts)}
      executable -> {:ok, executable}
    end
  end

  defp not_found("/" <> _ = path, opts) do
    case File.stat(path) do
      {:ok, %{type: :directory}} -> cannot_run(path, "it is a directory", @not_executable, opts)
      {:ok, _} -> cannot_run(path, "it is not executable", @not_executable, opts)
      {:error, :eacces} -> cannot_run(path, "permission denied", @not_executable, opts)
      {:error, _} -> cannot_run(path, "there is no such file", @not_found, opts)
    end
  end

  defp not_found(name, opts) do
    names = if name in @pythons and opts[:python] == nil, do: @pythons, else: [name]
    directories = String.split(System.get_env("PATH") || "", ":", trim: true)
    paths = for name <- names, directory <- directories, do: Path.join(directory, name)

    case Enum.find(paths, &File.regular?/1) do
      nil ->
        looked_for = Enum.map_join(names, " and ", &inspect/1)
        cannot_run(name, "looked for #{looked_for} on the PATH of this BEAM", @not_found, opts)

      path ->
        cannot_run(path, "it is not executable", @not_executable, opts)
    end
  end

  defp cannot_run(program, why, status, opts) do
    remedy =
      if opts[:wrap_exec],
        do: "it is what :wrap_exec returned",
        else: "give the path of a Python (3.10 or later) as :python"

    details = "#{program} cannot be run: #{why}; #{remedy}"
    %Error{code: :interpreter_exited, reason: {:exit_status, status}, details: details}
  end

  defp check_directory(nil), do: :ok

  defp check_directory(directory) do
    if File.dir?(directory) do
      :ok
    else
      reason = "Python cannot run in #{directory}, the option :cd: there is no such directory"
      {:error, %Error{code: :internal_error, reason: reason}}
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

    {:ok, Port.open({:spawn_executable, executable}, settings), executable}
  rescue
    # Others than the owner may run it, or it has gone meanwhile.
    error in [ErlangError] ->
      status = if error.original == :enoent, do: @not_found, else: @not_executable
      {:error, cannot_run(executable, reason_of(error.original), status, opts)}

    # The message of this one would show the environment.
    ArgumentError ->
      reason = "#{executable} cannot be run: :cd, :environment or :port_opts is not valid"
      {:error, %Error{code: :internal_error, reason: reason}}
  end

  defp reason_of(:eacces), do: "permission denied"
  defp reason_of(reason) when is_atom(reason), do: to_string(:file.format_error(reason))
  defp reason_of(_reason), do: "the system refuses"

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

  @doc "Tell Python what it is to be."
  @spec send_configuration(port(), map()) :: :ok
  def send_configuration(port, configuration) do
    data = :erlang.term_to_binary(configuration)
    # Python may have ended already; then its exit status comes.
    send(port, {self(), {:command, <<byte_size(data)::32, data::binary>>}})
    :ok
  end

  @doc """
  Look for the line that tells how the start went in what Python has written; what comes before it
  is shown. Returns what is to be looked at when more has come, or what the line tells and what
  comes after it.
  """
  @spec find_told(binary()) :: {:more, binary()} | {:told, term(), rest :: binary()}
  def find_told(output) do
    case String.split(output, @mark, parts: 2) do
      [text] -> {:more, print_but_mark(text)}
      [text, line] -> read_told(print(text), line)
    end
  end

  defp read_told(kept, line) do
    case String.split(line, "\n", parts: 2) do
      [told, rest] ->
        {:told, told |> Base.decode64!() |> :erlang.binary_to_term(), kept <> rest}

      [_] ->
        {:more, kept <> @mark <> line}
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

  @doc """
  Let Python go and wait until it has gone, what it prints is shown; after `timeout` it is killed.

  `server` is the monitor of its server, nil when that is known to be gone. A port tells of the end
  of a program only when nobody holds its output any more, and a program that is wrapped around
  Python may end before it: so Python has gone when the port says so, or when both have gone.
  """
  @spec stop(port(), OSProcess.t() | nil, binary(), reference() | nil, non_neg_integer()) :: :ok
  def stop(port, process, output, server, timeout) do
    send(port, {self(), {:command, "stop\n"}})
    deadline = now() + timeout
    drain(port, process, output, server, deadline)
    OSProcess.await_end(process, max(0, deadline - now()))
    # It may be closed already.
    send(port, {self(), :close})
    :ok
  end

  defp drain(port, process, output, server, deadline) do
    left = deadline - now()

    receive do
      {^port, {:data, data}} when left > 0 ->
        drain(port, process, print(output <> data), server, deadline)

      {^port, {:exit_status, _}} ->
        :ok

      {:DOWN, ^server, _, _, _} ->
        drain(port, process, output, nil, deadline)
    after
      min(@look_again, max(0, left)) ->
        gone? = server == nil and not OSProcess.alive?(process)
        if left > 0 and not gone?, do: drain(port, process, output, server, deadline)
    end
  end

  @doc "The same as `stop/5`, in a process of its own."
  @spec finish(port(), OSProcess.t() | nil, binary(), non_neg_integer()) :: :ok
  def finish(port, process, output, timeout) do
    finisher = spawn(fn -> receive do: (:finish -> stop(port, process, output, nil, timeout)) end)
    hand_over(port, finisher)
    send(finisher, :finish)
    :ok
  end

  @doc "Make `owner` the owner of a port of the calling process, which may be closed already."
  @spec hand_over(port(), pid()) :: :ok
  def hand_over(port, owner) do
    Port.connect(port, owner)
    Process.unlink(port)
    :ok
  rescue
    ArgumentError -> :ok
  end

  defp now, do: System.monotonic_time(:millisecond)
end
