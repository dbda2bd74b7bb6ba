defmodule Snex.Doctor do
  @moduledoc false
  # What `mix snex.doctor` looks at: each check says whether it is well, what was found, and what to do.

  alias Snex.{Distribution, Error, Interpreter, Nif}

  @oldest_python [3, 10]
  @oldest_uv [0, 6, 8]

  # What uv is asked for its version within, and epmd for its names, in ms.
  @patience 5_000

  # What a Python has to start within.
  @start_timeout 30_000

  @typedoc "How it is, what was looked at, what was found, and what to do about it."
  @type result :: {:ok | :warning | :failed, String.t(), String.t(), String.t() | nil}

  @doc """
  All checks. Options: `:python`, the program, as `Snex.Interpreter` takes it; `:node`, a Python node to
  attach to.
  """
  @spec run(keyword()) :: [result()]
  def run(opts) do
    python = opts[:python] || "python3"

    List.flatten([
      versions(),
      compiler(),
      handles(),
      python(python),
      uv(),
      home(),
      name_resolution(),
      distribution(),
      epmd(),
      telemetry(),
      interpreter(python),
      if(opts[:node], do: attached(opts[:node]), else: [])
    ])
  end

  # --- what is installed --------------------------------------------------------------------------

  defp versions do
    otp = System.otp_release()
    found = "Elixir #{System.version()}, Erlang/OTP #{otp}, snex #{Application.spec(:snex, :vsn)}"

    if String.to_integer(otp) >= 25,
      do: {:ok, "versions", found, nil},
      else: {:failed, "versions", found, "Python nodes connect to Erlang/OTP 25 and later"}
  end

  defp compiler do
    case System.find_executable("cc") do
      nil ->
        {:warning, "C compiler", "there is no cc",
         "install one (gcc, or clang) and run: mix deps.compile snex --force. Without it environments " <>
           "are freed when the process that made them ends, and not when they are garbage collected"}

      cc ->
        {:ok, "C compiler", cc, nil}
    end
  end

  defp handles do
    if Nif.loaded?() do
      {:ok, "handles", "environments are freed when they are garbage collected", nil}
    else
      {:warning, "handles", "environments are freed when the process that made them ends",
       "where there is a C compiler: mix deps.compile snex --force"}
    end
  end

  defp python(program) do
    script = "import sys; print('.'.join(map(str, sys.version_info[:3])), sys.executable)"

    with {:ok, output} <- ask(program, ["-c", script]),
         {_, [_, version, path]} <- {output, Regex.run(~r/^(\d+\.\d+\.\d+) (.*)\z/m, output)} do
      python(path, version, numbers(version))
    else
      {:error, why} -> no_python(program, why)
      {output, nil} -> no_python(program, "it is no Python: it says #{inspect(output, limit: 5)}")
    end
  end

  defp no_python(program, why) do
    {:failed, "Python", "#{program}: #{why}",
     "install Python 3.10 or later, or name one: mix snex.doctor --python /path/to/python3, and " <>
       "{Snex.Interpreter, python: \"/path/to/python3\"} in your application"}
  end

  defp python(path, version, numbers) do
    if numbers >= @oldest_python,
      do: {:ok, "Python", "#{version}, #{path}", nil},
      else: {:failed, "Python", "#{version}, #{path}", "Python 3.10 or later is needed"}
  end

  defp uv do
    missing = "only modules that `use Snex.Interpreter` with a project need it"

    case ask("uv", ["--version"]) do
      {:ok, "uv " <> version} ->
        if numbers(version) >= @oldest_uv,
          do: {:ok, "uv", version, nil},
          else: {:warning, "uv", version, "0.6.8 or later is needed; #{missing}"}

      {:ok, other} ->
        {:warning, "uv", "it calls itself #{inspect(other)}", missing}

      {:error, why} ->
        {:warning, "uv", why, "https://github.com/astral-sh/uv; #{missing}"}
    end
  end

  # The numbers that a version begins with.
  defp numbers(version) do
    Regex.scan(~r/\d+/, version |> String.split([" ", "+", "-"]) |> hd())
    |> Enum.map(fn [number] -> String.to_integer(number) end)
  end

  defp ask(program, args) do
    case System.find_executable(program) do
      nil ->
        {:error, "not found"}

      path ->
        task = Task.async(fn -> System.cmd(path, args, stderr_to_stdout: true) end)

        case Task.yield(task, @patience) || Task.shutdown(task, :brutal_kill) do
          {:ok, {output, 0}} -> {:ok, String.trim(output)}
          {:ok, {output, status}} -> {:error, "status #{status}: #{String.trim(output)}"}
          _ -> {:error, "#{path} did not answer within #{@patience} ms"}
        end
    end
  end

  # --- this machine -------------------------------------------------------------------------------

  defp home do
    case System.get_env("HOME") do
      nil ->
        {:warning, "HOME", "not set",
         "nodes look for their cookie in $HOME/.erlang.cookie: set it for services, too"}

      home ->
        home_at(home, File.stat(Path.join(home, ".erlang.cookie")))
    end
  end

  defp home_at(home, {:ok, %{mode: mode}}) do
    if Bitwise.band(mode, 0o077) == 0,
      do: {:ok, "HOME", "#{home}, with a cookie file", nil},
      else:
        {:failed, "HOME", "#{home}/.erlang.cookie can be read by others",
         "Erlang refuses it: chmod 400 #{home}/.erlang.cookie"}
  end

  defp home_at(home, {:error, _}), do: {:ok, "HOME", "#{home}, without a cookie file", nil}

  defp name_resolution do
    {:ok, name} = :inet.gethostname()

    case :inet.getaddr(name, :inet) do
      {:ok, address} ->
        {:ok, "host name", "#{name} is #{:inet.ntoa(address)}", nil}

      {:error, reason} ->
        {:warning, "host name", "#{name} has no address (#{:inet.format_error(reason)})",
         "interpreters do not need one; for nodes with short names: add it to /etc/hosts"}
    end
  end

  defp distribution do
    case Distribution.check() do
      :ok -> {:ok, "distribution", distributed(), nil}
      {:error, why} -> {:failed, "distribution", why, nil}
    end
  end

  defp distributed do
    if Node.alive?(),
      do: "this is #{node()}",
      else:
        "this BEAM is no node: it becomes one, that does not listen, with the first interpreter"
  end

  defp epmd do
    case :erl_epmd.names({127, 0, 0, 1}) do
      {:ok, names} ->
        list = Enum.map_join(names, ", ", fn {name, _port} -> to_string(name) end)

        {:ok, "epmd", "runs on 127.0.0.1; registered: #{if list == "", do: "none", else: list}",
         nil}

      {:error, _} ->
        {:ok, "epmd", "none runs on 127.0.0.1: Python starts one", nil}
    end
  end

  defp telemetry do
    if Snex.Telemetry.on?(),
      do: {:ok, "telemetry", "events are told: see Snex.Telemetry", nil},
      else: {:ok, "telemetry", "not there: no events are told", nil}
  end

  # --- a call -------------------------------------------------------------------------------------

  defp interpreter(python) do
    began = now()

    case start(python: python, init_script_timeout: @start_timeout) do
      {:ok, interpreter} ->
        took = now() - began
        answer = Snex.pyeval(interpreter, "import sys; return sys.version.split()[0]")
        Interpreter.stop(interpreter)
        interpreter_answered(answer, took)

      {:error, reason} ->
        {:failed, "interpreter", explain(reason),
         "see the lines above, and what Python has printed"}
    end
  end

  defp interpreter_answered({:ok, version}, took),
    do: {:ok, "interpreter", "Python #{version} started in #{took} ms, and evaluates", nil}

  defp interpreter_answered({:error, error}, _took),
    do: {:failed, "interpreter", "it has started, and a call failed: #{explain(error)}", nil}

  defp attached(node) do
    case start(node: node) do
      {:ok, interpreter} ->
        answer = Interpreter.info(interpreter)
        Interpreter.stop(interpreter)
        attached_answered(node, answer)

      {:error, reason} ->
        {:failed, "node", explain(reason),
         "on its machine: snex-node names, and snex-node ping #{node}"}
    end
  end

  defp attached_answered(node, {:ok, info}) do
    ours = to_string(Application.spec(:snex, :vsn))
    found = "#{node}: snex-node #{info.version}, Python #{info.python_version}"

    if info.version == ours,
      do: {:ok, "node", found, nil},
      else:
        {:warning, "node", found, "this client is #{ours}: use the same version on both sides"}
  end

  defp attached_answered(node, {:error, error}),
    do: {:failed, "node", "#{node}: #{explain(error)}", nil}

  # Its end, when the start fails, is not that of who asks.
  defp start(opts) do
    task =
      Task.async(fn ->
        Process.flag(:trap_exit, true)

        with {:ok, interpreter} <- Interpreter.start_link(opts) do
          Process.unlink(interpreter)
          {:ok, interpreter}
        end
      end)

    Task.await(task, :infinity)
  rescue
    error -> {:error, error}
  end

  defp explain(%Error{} = error), do: Exception.message(error)
  defp explain(%{__exception__: true} = error), do: Exception.message(error)
  defp explain(other), do: inspect(other)

  defp now, do: System.monotonic_time(:millisecond)
end
