defmodule Snex.Project do
  @moduledoc false
  # Python projects of modules that `use Snex.Interpreter`: an environment each, made with uv when
  # the module is compiled.
  #
  #     _build/$MIX_ENV/snex/python/                             Pythons that uv has fetched
  #     _build/$MIX_ENV/snex/projects/Elixir.My.Interpreter/     pyproject.toml, uv.lock, venv, stamp
  #
  # The folder can be moved, a release moves it: links inside it are relative, and so is the path of
  # its Python in pyvenv.cfg, which Python takes from the project's folder.

  @enforce_keys [:module, :stamp]
  defstruct [:module, :stamp, :source, managed_python: true]

  @type t :: %__MODULE__{
          module: module(),
          stamp: binary(),
          source: Path.t() | {:text, String.t()},
          managed_python: boolean()
        }

  @options [:pyproject_toml, :project_path, :uv, :managed_python]
  @files ["pyproject.toml", "uv.lock"]

  # What uv is told beside the files. Another number makes every environment anew.
  @recipe 2

  @doc "Make the environment of `module`, unless it is there."
  @spec build!(module(), keyword()) :: t()
  def build!(module, opts) do
    opts = Enum.reject(opts, fn {name, value} -> name in @options and value == nil end)
    {uv, opts} = Keyword.pop(opts, :uv, "uv")
    {managed, opts} = Keyword.pop(opts, :managed_python, true)
    source = source!(opts)
    stamp = stamp(source, managed)
    project = %__MODULE__{module: module, stamp: stamp, source: source, managed_python: managed}
    if stale?(project), do: make!(project, uv)
    project
  end

  defp source!(pyproject_toml: text) when is_binary(text), do: {:text, text}

  defp source!(project_path: path) when is_binary(path) do
    path = Path.expand(path)

    if not File.exists?(Path.join(path, "pyproject.toml")),
      do: raise(ArgumentError, ":project_path #{path} has no pyproject.toml")

    path
  end

  defp source!(other) do
    raise ArgumentError,
          "use Snex.Interpreter takes one of :pyproject_toml (text) and :project_path (a folder), " <>
            "and :uv and :managed_python; got: #{inspect(other)}"
  end

  @doc "The files that a project depends on."
  @spec resources(t()) :: [Path.t()]
  def resources(%{source: {:text, _}}), do: []
  def resources(%{source: path}), do: Enum.map(@files, &Path.join(path, &1))

  @doc "Whether the environment has to be made anew: it is not there, or was made of something else."
  @spec stale?(t()) :: boolean()
  def stale?(project) do
    stamp(project.source, project.managed_python) != project.stamp or
      File.read(stamp_file(project.module)) != {:ok, project.stamp} or
      not File.exists?(python(project.module))
  end

  defp stamp(source, managed) do
    contents = Enum.map(@files, &read(source, &1))

    :sha256
    |> :crypto.hash(:erlang.term_to_binary({contents, managed, @recipe}))
    |> Base.encode16()
  end

  defp read({:text, text}, "pyproject.toml"), do: text
  defp read({:text, _}, _other), do: nil

  defp read(path, file) do
    case File.read(Path.join(path, file)) do
      {:ok, content} -> content
      {:error, _} -> nil
    end
  end

  # --- places -------------------------------------------------------------------------------------

  @doc "The folder of all projects: beside `lib`, in a build as in a release."
  @spec root() :: Path.t()
  def root, do: :snex |> :code.lib_dir() |> Path.join("../../snex") |> Path.expand()

  @doc "The folder of a module's project, which has the module's whole name: `Elixir.My.Module`."
  @spec folder(module()) :: Path.t()
  def folder(module), do: Path.join([root(), "projects", Atom.to_string(module)])

  defp venv(module), do: Path.join(folder(module), "venv")
  defp python(module), do: Path.join(venv(module), "bin/python")
  defp stamp_file(module), do: Path.join(folder(module), "stamp")

  @doc "The options of `Snex.Interpreter.start_link/1` that make it run a module's Python."
  @spec start_options(module(), keyword()) :: keyword()
  def start_options(module, opts) do
    find_python(module)

    opts
    |> Keyword.put_new(:python, python(module))
    |> Keyword.put_new(:cd, folder(module))
    |> Keyword.put_new(:label, module)
    |> Keyword.put(:environment, environment(module, opts[:environment] || %{}))
  end

  # As in an activated environment, whatever else the caller wants in it.
  defp environment(module, theirs) do
    bin = Path.join(venv(module), "bin")
    others = Map.get(theirs, "PATH") || System.get_env("PATH")
    # An empty entry would stand for the working directory.
    path = if others in [nil, ""], do: bin, else: bin <> ":" <> others
    Map.merge(theirs, %{"VIRTUAL_ENV" => venv(module), "PATH" => path})
  end

  # Python finds its library from pyvenv.cfg. A relative path there is good as long as Python starts
  # in the project's folder, as it does by default; an absolute one is good everywhere. So it is made
  # absolute where the file can be written.
  defp find_python(module) do
    config = Path.join(venv(module), "pyvenv.cfg")

    with {:ok, text} <- File.read(config),
         [_, home] <- Regex.run(~r/^home = (.*)$/m, text),
         python when python != nil <- in_our_pythons(home) do
      absolute = Path.join([root(), "python", python])

      if home != absolute do
        temporary = "#{config}.#{System.pid()}"

        case File.write(temporary, String.replace(text, "home = " <> home, "home = " <> absolute)) do
          :ok -> File.rename(temporary, config)
          # A release that may not be written to: then the relative path serves.
          {:error, _} -> :ok
        end
      end
    end

    :ok
  end

  # What comes after .../snex/python/, wherever that was when the path was written.
  defp in_our_pythons(home) do
    case Regex.run(~r{(?:/snex|\.\./\.\.)/python/(.*)$}, home) do
      [_, rest] -> rest
      nil -> nil
    end
  end

  # --- making ---------------------------------------------------------------------------------------

  defp make!(project, uv) do
    executable =
      System.find_executable(uv) ||
        raise ArgumentError,
              "there is no #{uv}: install uv (https://github.com/astral-sh/uv), which makes the " <>
                "Python environment of #{inspect(project.module)}, or give its path as :uv"

    folder = folder(project.module)
    File.mkdir_p!(folder)
    File.rm(stamp_file(project.module))

    for file <- @files,
        content = read(project.source, file),
        do: File.write!(Path.join(folder, file), content)

    python = if project.managed_python, do: "--managed-python", else: "--no-managed-python"
    common = ["--project", folder, "--no-progress", python]
    run!(executable, ["venv", "--relocatable", "--clear" | common] ++ [venv(project.module)])
    # Groups are for those who work on the project; what it needs to run are its dependencies.
    # UV_DEV alone has uv install one in spite of --no-default-groups.
    run!(executable, ["sync", "--no-install-project", "--no-default-groups", "--no-dev" | common])
    make_links_relative(Path.join(venv(project.module), "bin"), root())
    make_home_relative(Path.join(venv(project.module), "pyvenv.cfg"))
    File.write!(stamp_file(project.module), project.stamp)
  end

  defp run!(uv, args) do
    environment = [
      {"UV_PYTHON_INSTALL_DIR", Path.join(root(), "python")},
      {"UV_PROJECT_ENVIRONMENT", "venv"},
      {"VIRTUAL_ENV", nil}
    ]

    case System.cmd(uv, args, env: environment, stderr_to_stdout: true) do
      {_, 0} -> :ok
      {output, status} -> raise "uv #{hd(args)} failed with status #{status}:\n#{output}"
    end
  end

  @doc "Make links in `folder` that lead to something below `top` relative."
  @spec make_links_relative(Path.t(), Path.t()) :: :ok
  def make_links_relative(folder, top) do
    for name <- File.ls!(folder),
        link = Path.join(folder, name),
        {:ok, target} <- [File.read_link(link)],
        Path.type(target) == :absolute and String.starts_with?(target, top <> "/") do
      File.rm!(link)
      File.ln_s!(relative(target, folder), link)
    end

    :ok
  end

  @doc "Make the path of our Python in a pyvenv.cfg relative to the project's folder."
  @spec make_home_relative(Path.t()) :: :ok
  def make_home_relative(config) do
    text = File.read!(config)

    with [_, home] <- Regex.run(~r/^home = (.*)$/m, text),
         python when python != nil <- in_our_pythons(home) do
      File.write!(
        config,
        String.replace(text, "home = " <> home, "home = ../../python/" <> python)
      )
    end

    :ok
  end

  @doc "`path` as seen from `folder`, both absolute."
  @spec relative(Path.t(), Path.t()) :: Path.t()
  def relative(path, folder), do: relative_parts(Path.split(path), Path.split(folder))

  defp relative_parts([same | path], [same | folder]), do: relative_parts(path, folder)
  defp relative_parts(path, folder), do: Path.join(Enum.map(folder, fn _ -> ".." end) ++ path)
end
