# The compilers of this project. They have to be there before the project is compiled, so mix.exs
# loads them.

defmodule Mix.Tasks.Compile.SnexPython do
  @moduledoc false
  # Copies the Python packages into priv, where `Snex.Interpreter` finds them. A published package
  # has them there already and nothing beside it to copy from.
  use Mix.Task.Compiler

  @packages ~w(snex snex_node snex_runtime)

  @impl Mix.Task.Compiler
  def run(_args) do
    source = Path.expand("..", __DIR__)
    target = Path.join(__DIR__, "priv/python")

    cond do
      File.dir?(Path.join(source, "snex_runtime")) -> copy(source, target)
      File.dir?(Path.join(target, "snex_runtime")) -> {:noop, []}
      true -> Mix.raise("the Python packages #{Enum.join(@packages, ", ")} are not in #{source}")
    end
  end

  @impl Mix.Task.Compiler
  def clean, do: File.rm_rf!(Path.join(__DIR__, "priv/python"))

  defp copy(source, target) do
    wanted =
      for package <- @packages,
          file <- Path.wildcard(Path.join([source, package, "**/*.{py,typed}"])),
          do: Path.relative_to(file, source)

    there = target |> Path.join("**/*.{py,typed}") |> Path.wildcard()
    Enum.each(there -- Enum.map(wanted, &Path.join(target, &1)), &File.rm!/1)

    changed =
      Enum.filter(wanted, fn file ->
        content = File.read!(Path.join(source, file))
        to = Path.join(target, file)
        changed? = File.read(to) != {:ok, content}

        if changed? do
          File.mkdir_p!(Path.dirname(to))
          # Written beside and renamed: a Python that starts meanwhile reads one or the other.
          File.write!(to <> ".new", content)
          File.rename!(to <> ".new", to)
        end

        changed?
      end)

    {if(changed == [], do: :noop, else: :ok), []}
  end
end

defmodule Mix.Tasks.Compile.SnexNif do
  @moduledoc false
  # Compiles the one C file of the project where there is a C compiler. It tells the collector of
  # environments that were dropped; without it the process that made an environment keeps it.
  use Mix.Task.Compiler

  @impl Mix.Task.Compiler
  def run(_args) do
    source = Path.join(__DIR__, "c_src/snex_nif.c")
    target = Path.join(__DIR__, "priv/snex_nif.so")
    compiler = System.get_env("CC") || Enum.find(~w(cc gcc clang), &System.find_executable/1)
    include = Path.join([:code.root_dir(), "usr", "include"])

    cond do
      not Mix.Utils.stale?([source, __ENV__.file], [target]) ->
        {:noop, []}

      compiler == nil ->
        note("there is no C compiler (CC names one)")

      not File.exists?(Path.join(include, "erl_nif.h")) ->
        note("#{include} has no erl_nif.h (Debian has it in erlang-dev)")

      true ->
        compile(compiler, include, source, target)
    end
  end

  @impl Mix.Task.Compiler
  def clean, do: File.rm_rf!(Path.join(__DIR__, "priv/snex_nif.so"))

  defp compile(compiler, include, source, target) do
    File.mkdir_p!(Path.dirname(target))

    platform =
      if match?({:unix, :darwin}, :os.type()), do: ~w(-undefined dynamic_lookup), else: []

    flags = ~w(-O2 -Wall -Wextra -fPIC -shared) ++ platform

    [program | arguments] = OptionParser.split(compiler)

    case System.cmd(
           program,
           arguments ++ flags ++ ["-I", include, "-o", target <> ".new", source],
           stderr_to_stdout: true
         ) do
      {_, 0} ->
        # Not overwritten: a BEAM may have the old one loaded.
        File.rename!(target <> ".new", target)
        {:ok, []}

      {output, status} ->
        note("#{compiler} failed with status #{status}:\n#{output}")
    end
  end

  defp note(why) do
    Mix.shell().info(
      "snex: environments are freed when the process that made them ends, and not when they are " <>
        "garbage collected, because #{why}"
    )

    {:noop, []}
  end
end
