defmodule Snex.ProjectTest do
  @moduledoc "What makes environments of Python movable, on folders as uv leaves them."
  use ExUnit.Case, async: true

  alias Snex.Project

  setup do
    root = Path.join(System.tmp_dir!(), "snex-project-#{System.unique_integer([:positive])}/snex")
    bin = Path.join(root, "projects/My/venv/bin")
    File.mkdir_p!(bin)
    File.mkdir_p!(Path.join(root, "python/cpython-3.12.1/bin"))
    on_exit(fn -> root |> Path.dirname() |> File.rm_rf!() end)
    {:ok, root: root, bin: bin}
  end

  test "links into the folder become relative, others stay", %{root: root, bin: bin} do
    File.ln_s!(Path.join(root, "python/cpython-3.12.1/bin/python3"), Path.join(bin, "python"))
    File.ln_s!("python", Path.join(bin, "python3"))
    File.ln_s!("/usr/bin/env", Path.join(bin, "env"))
    Project.make_links_relative(bin, root)

    assert File.read_link!(Path.join(bin, "python")) ==
             "../../../../python/cpython-3.12.1/bin/python3"

    assert File.read_link!(Path.join(bin, "python3")) == "python"
    assert File.read_link!(Path.join(bin, "env")) == "/usr/bin/env"
  end

  test "the path of our Python becomes relative, the system's stays", %{root: root, bin: bin} do
    config = bin |> Path.dirname() |> Path.join("pyvenv.cfg")
    rest = "implementation = CPython\nrelocatable = true\n"

    File.write!(config, "home = #{root}/python/cpython-3.12.1/bin\n" <> rest)
    Project.make_home_relative(config)
    assert File.read!(config) == "home = ../../python/cpython-3.12.1/bin\n" <> rest
    Project.make_home_relative(config)
    assert File.read!(config) == "home = ../../python/cpython-3.12.1/bin\n" <> rest

    File.write!(config, "home = /usr/bin\n" <> rest)
    Project.make_home_relative(config)
    assert File.read!(config) == "home = /usr/bin\n" <> rest
  end

  test "use takes exactly one source, and needs uv" do
    text = "[project]\nname = 'x'\nversion = '0'\n"

    for opts <- [[], [pyproject_toml: text, project_path: "."], [pyproject_toml: 1], [other: 1]] do
      assert_raise ArgumentError, ~r/takes one of/, fn -> Project.build!(Some.Module, opts) end
    end

    # nil is as good as absent.
    for opts <- [
          [project_path: nil],
          [pyproject_toml: nil, project_path: nil],
          [other: nil],
          [pyproject_toml: text, other: nil]
        ] do
      assert_raise ArgumentError, ~r/takes one of/, fn -> Project.build!(Some.Module, opts) end
    end

    assert_raise ArgumentError, ~r/has no pyproject.toml/, fn ->
      Project.build!(Some.Module, project_path: "/nonexistent", pyproject_toml: nil)
    end

    assert_raise ArgumentError, ~r/has no pyproject.toml/, fn ->
      Project.build!(Some.Module, project_path: "/nonexistent")
    end

    assert_raise ArgumentError, ~r/there is no no-such-uv: install uv/, fn ->
      Project.build!(Some.Module, pyproject_toml: text, uv: "no-such-uv")
    end
  end

  test "a module's folder has its whole name" do
    assert Project.folder(Some.Module) == Path.join(Project.root(), "projects/Elixir.Some.Module")
    assert Project.folder(:some_module) == Path.join(Project.root(), "projects/some_module")
  end

  describe "options of start_link" do
    test "where the caller gives none" do
      folder = Project.folder(Some.Module)
      opts = Project.start_options(Some.Module, name: Some.Name)
      assert opts[:name] == Some.Name
      assert opts[:python] == "#{folder}/venv/bin/python"
      assert opts[:cd] == folder
      assert opts[:label] == Some.Module

      assert opts[:environment] == %{
               "VIRTUAL_ENV" => "#{folder}/venv",
               "PATH" => "#{folder}/venv/bin:#{System.fetch_env!("PATH")}"
             }

      assert Project.start_options(Some.Module, environment: nil)[:environment] ==
               opts[:environment]
    end

    test "the caller's own stay, but the environment is the module's" do
      venv = Path.join(Project.folder(Some.Module), "venv")

      environment = %{
        "PATH" => "/my/bin:/usr/bin",
        "VIRTUAL_ENV" => "/elsewhere",
        "PYTHONPATH" => "/my/modules",
        "MINE" => "1"
      }

      opts = [python: "/my/python", cd: "/my", label: :mine, environment: environment]
      opts = Project.start_options(Some.Module, opts)
      assert {opts[:python], opts[:cd], opts[:label]} == {"/my/python", "/my", :mine}

      assert opts[:environment] == %{
               "PATH" => "#{venv}/bin:/my/bin:/usr/bin",
               "VIRTUAL_ENV" => venv,
               "PYTHONPATH" => "/my/modules",
               "MINE" => "1"
             }
    end

    test "an empty PATH adds no empty entry, which would be the working directory" do
      opts = Project.start_options(Some.Module, environment: %{"PATH" => ""})

      assert opts[:environment]["PATH"] ==
               Path.join(Project.folder(Some.Module), "venv/bin")
    end
  end

  describe "with uv" do
    @describetag :uv

    setup do
      on_exit(fn -> File.rm_rf!(Project.folder(Some.Module)) end)
    end

    test "an environment is stale when its sources change, or it is gone" do
      text = "[project]\nname = 'x'\nversion = '0'\nrequires-python = '>=3.10'\n"
      opts = [pyproject_toml: text, managed_python: false]
      project = Project.build!(Some.Module, opts)
      refute Project.stale?(project)
      assert Project.build!(Some.Module, opts) == project
      other = Project.build!(Some.Module, Keyword.put(opts, :pyproject_toml, text <> "#\n"))
      assert Project.stale?(project)
      refute Project.stale?(other)
      File.rm_rf!(Project.folder(Some.Module))
      assert Project.stale?(other)
      refute SnexTest.MyProject.__mix_recompile__?()
    end

    test "what a project needs to run is installed, its groups for development are not", %{
      root: root
    } do
      text = """
      [project]
      name = "grouped"
      version = "0"
      requires-python = ">=3.10"
      dependencies = ["needed @ #{wheel!(root, "needed")}"]

      [dependency-groups]
      dev = ["developing @ #{wheel!(root, "developing")}"]
      lint = ["linting @ #{wheel!(root, "linting")}"]

      [tool.uv]
      default-groups = ["dev", "lint"]
      dev-dependencies = ["legacy @ #{wheel!(root, "legacy")}"]
      """

      # Whoever develops the project may have asked for them everywhere.
      System.put_env("UV_DEV", "1")
      on_exit(fn -> System.delete_env("UV_DEV") end)
      Project.build!(Some.Module, pyproject_toml: text, project_path: nil, managed_python: false)

      installed =
        [Project.folder(Some.Module), "venv/lib/python*/site-packages/*.dist-info"]
        |> Path.join()
        |> Path.wildcard()
        |> Enum.map(&Path.basename/1)

      assert installed == ["needed-1.0.dist-info"]
    end

    test "programs of the module's Python are found first, whatever PATH a user gives" do
      Process.flag(:trap_exit, true)

      {:ok, interpreter} =
        SnexTest.PlainProject.start_link(environment: %{"PATH" => "/usr/bin:/bin"})

      venv = Path.join(Project.folder(SnexTest.PlainProject), "venv")

      assert Snex.pyeval(interpreter, """
             import os, shutil, sys
             return shutil.which("python"), os.environ["VIRTUAL_ENV"], sys.prefix
             """) == {:ok, {Path.join(venv, "bin/python"), venv, venv}}

      Snex.Interpreter.stop(interpreter)
    end

    test "a project is importable as the README shows, in one build of a module" do
      {:ok, interpreter} = SnexTest.MyProject.start_link()
      {:ok, env} = Snex.make_env(interpreter)

      assert Snex.pyeval(env, """
             import foo
             return foo.bar()
             """) == {:ok, "hi from bar"}

      Snex.Interpreter.stop(interpreter)
    end
  end

  # The least that uv installs: no index is asked for it.
  defp wheel!(folder, name) do
    info = "#{name}-1.0.dist-info"

    files = [
      {"#{name}.py", ""},
      {"#{info}/METADATA", "Metadata-Version: 2.1\nName: #{name}\nVersion: 1.0\n"},
      {"#{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
      {"#{info}/RECORD", "#{name}.py,,\n#{info}/METADATA,,\n#{info}/WHEEL,,\n#{info}/RECORD,,\n"}
    ]

    path = Path.join(folder, "#{name}-1.0-py3-none-any.whl")
    files = for {file, content} <- files, do: {to_charlist(file), content}
    {:ok, _} = :zip.create(to_charlist(path), files)
    "file://" <> path
  end
end
