# The compilers of this project. They have to be there before the project is compiled, so mix.exs
# loads them.
#
# What they make goes into the folder `priv` of the build (`_build/dev/lib/snex/priv`), and nothing
# into that of the sources:
#
#   * Mix links `priv` of the sources into the build *before* compilers run, so that what a first
#     build makes there is missing from it, and from a release made of it.
#   * The sources of a path dependency are shared by all that use it, each with an Erlang/OTP of its
#     own; they may be read-only as well.
#
# So it is the same for a path, for git with `subdir:`, in an umbrella, for `Mix.install/2` and for
# a package: one build is enough, and a release copies the folder.

defmodule Snex.BuildPriv do
  @moduledoc false
  # The folder `priv` of the build.

  @sources Path.join(__DIR__, "priv")

  @doc "The folder, which belongs to this build alone."
  @spec path!() :: Path.t()
  def path! do
    remove_former()
    path = path()
    # Mix made a link while the sources had a `priv`.
    if match?({:ok, _}, File.read_link(path)), do: File.rm!(path)
    File.mkdir_p!(path)
    path
  end

  @doc "Where it is."
  @spec path() :: Path.t()
  def path, do: Path.join(Mix.Project.app_path(), "priv")

  # Until 0.1.0 all was made in the sources. While it is there, Mix links to it at every build.
  # What others keep there stays, and so does what cannot be removed: then each build makes its
  # folder anew.
  defp remove_former do
    for name <- ~w(python/snex python/snex_node python/snex_runtime snex_nif.so),
        do: File.rm_rf(Path.join(@sources, name))

    File.rmdir(Path.join(@sources, "python"))
    File.rmdir(@sources)
  end

  @doc "Write a file, so that who opens it meanwhile finds the old one or the new one."
  @spec write!(Path.t(), iodata()) :: :ok
  def write!(path, content) do
    File.mkdir_p!(Path.dirname(path))
    new = new(path)
    File.write!(new, content)
    File.rename!(new, path)
  end

  @doc "A name for what will be renamed to `path`; two builds may run at a time."
  @spec new(Path.t()) :: Path.t()
  def new(path), do: "#{path}.#{System.pid()}.new"
end

defmodule Snex.PythonSources do
  @moduledoc false
  # The Python packages: beside this folder in the repository, in it in a published package.

  @packages ~w(snex snex_node snex_runtime)
  @packaged Path.join(__DIR__, "python")

  @doc "The folder that has them; raises where there is none."
  @spec find!() :: Path.t()
  def find! do
    Enum.find([Path.dirname(__DIR__), @packaged], &there?/1) || Mix.raise(missing())
  end

  defp there?(folder), do: File.dir?(Path.join(folder, "snex_runtime"))

  defp missing do
    "snex: its Python packages (#{Enum.join(@packages, ", ")}) are neither in " <>
      "#{Path.dirname(__DIR__)} nor in #{@packaged}. They belong to the repository of which this " <>
      "folder is a part: with git, say `subdir: \"elixir\"` instead of `sparse: \"elixir\"`, " <>
      "which fetches this folder alone; a path dependency leads into a whole clone"
  end

  @doc "Make `target` have the packages of `source`; returns whether anything was different."
  @spec copy!(Path.t(), Path.t()) :: boolean()
  def copy!(source, target) do
    wanted = files(source)
    gone = files(target) -- wanted
    Enum.each(gone, &File.rm!(Path.join(target, &1)))
    changed = Enum.filter(wanted, &copy_file!(Path.join(source, &1), Path.join(target, &1)))
    gone != [] or changed != []
  end

  defp files(folder) do
    for package <- @packages,
        file <- Path.wildcard(Path.join([folder, package, "**/*.{py,typed}"])),
        do: Path.relative_to(file, folder)
  end

  defp copy_file!(source, target) do
    content = File.read!(source)
    changed? = File.read(target) != {:ok, content}
    if changed?, do: Snex.BuildPriv.write!(target, content)
    changed?
  end

  # What is one for both halves.
  @shared ["LICENSE", "CHANGELOG.md"]

  @doc "Put what is elsewhere in the repository where a published package has it."
  @spec package() :: :ok
  def package do
    source = find!()
    copy!(source, @packaged)
    for name <- @shared, do: File.cp!(Path.join(source, name), Path.join(__DIR__, name))
    :ok
  end
end

defmodule Mix.Tasks.Compile.SnexPython do
  @moduledoc false
  # Copies the Python packages to where `Snex.Interpreter` finds them.
  use Mix.Task.Compiler

  alias Snex.{BuildPriv, PythonSources}

  @impl Mix.Task.Compiler
  def run(_args) do
    source = PythonSources.find!()
    changed? = PythonSources.copy!(source, Path.join(BuildPriv.path!(), "python"))
    {if(changed?, do: :ok, else: :noop), []}
  end

  @impl Mix.Task.Compiler
  def clean, do: File.rm_rf!(Path.join(BuildPriv.path(), "python"))
end

defmodule Mix.Tasks.Compile.SnexNif do
  @moduledoc false
  # Compiles the one C file of the project where there is a C compiler. It tells the collector of
  # environments that were dropped; without it the process that made an environment keeps it.
  #
  # A library belongs to the Erlang/OTP that it was built for: another one may refuse to load it. A
  # stamp in the build says what that was; and of which library it speaks, should one have come from
  # elsewhere.
  use Mix.Task.Compiler

  alias Snex.BuildPriv

  @impl Mix.Task.Compiler
  def run(_args) do
    source = Path.join(__DIR__, "c_src/snex_nif.c")
    target = Path.join(BuildPriv.path!(), "snex_nif.so")

    if File.exists?(target) and File.read(stamp()) == {:ok, stamp_of(source, target)},
      do: {:noop, []},
      else: build(source, target)
  end

  @impl Mix.Task.Compiler
  def manifests, do: [stamp()]

  @impl Mix.Task.Compiler
  def clean do
    File.rm_rf!(Path.join(BuildPriv.path(), "snex_nif.so"))
    File.rm_rf!(stamp())
  end

  defp stamp, do: Path.join(Mix.Project.manifest_path(), "compile.snex_nif")

  defp stamp_of(source, target) do
    inspect(
      erts: to_string(:erlang.system_info(:version)),
      nif: to_string(:erlang.system_info(:nif_version)),
      root: to_string(:code.root_dir()),
      architecture: to_string(:erlang.system_info(:system_architecture)),
      compiler: System.get_env("CC"),
      source: digest(source),
      built_by: digest(__ENV__.file),
      library: digest(target)
    )
  end

  defp digest(file), do: :sha256 |> :crypto.hash(File.read!(file)) |> Base.encode16()

  defp build(source, target) do
    compiler = System.get_env("CC") || Enum.find(~w(cc gcc clang), &System.find_executable/1)
    include = Path.join([:code.root_dir(), "usr", "include"])

    cond do
      compiler == nil ->
        without("there is no C compiler (CC names one)", target)

      not File.exists?(Path.join(include, "erl_nif.h")) ->
        without("#{include} has no erl_nif.h (Debian has it in erlang-dev)", target)

      true ->
        compile(compiler, include, source, target)
    end
  end

  defp compile(compiler, include, source, target) do
    # Not overwritten: a BEAM may have the old one loaded.
    new = BuildPriv.new(target)
    [program | arguments] = OptionParser.split(compiler)
    arguments = arguments ++ flags() ++ ["-I", include, "-o", new, source]

    case run_compiler(program, arguments) do
      {_, 0} ->
        File.rename!(new, target)
        BuildPriv.write!(stamp(), stamp_of(source, target))
        {:ok, []}

      {output, status} ->
        without("#{compiler} failed with status #{status}:\n#{output}", target)
    end
  end

  defp run_compiler(program, arguments) do
    System.cmd(program, arguments, stderr_to_stdout: true)
  rescue
    error in ErlangError -> {Exception.message(error), 127}
  end

  defp flags do
    platform =
      if match?({:unix, :darwin}, :os.type()), do: ~w(-undefined dynamic_lookup), else: []

    ~w(-O2 -Wall -Wextra -fPIC -shared) ++ platform
  end

  # One that was built for something else must not stay: it would depend on chance what holds.
  defp without(why, target) do
    File.rm_rf!(target)

    Mix.shell().info(
      "snex: environments are freed when the process that made them ends, and not when they are " <>
        "garbage collected, because #{why}"
    )

    {:noop, []}
  end
end
