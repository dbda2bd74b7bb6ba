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

    assert_raise ArgumentError, ~r/has no pyproject.toml/, fn ->
      Project.build!(Some.Module, project_path: "/nonexistent")
    end

    assert_raise ArgumentError, ~r/there is no no-such-uv: install uv/, fn ->
      Project.build!(Some.Module, pyproject_toml: text, uv: "no-such-uv")
    end
  end

  if System.get_env("SNEX_TEST_WITHOUT_UV") == nil do
    test "an environment is stale when its sources change, or it is gone" do
      text = "[project]\nname = 'x'\nversion = '0'\nrequires-python = '>=3.10'\n"
      opts = [pyproject_toml: text, managed_python: false]
      on_exit(fn -> File.rm_rf!(Project.folder(Some.Module)) end)
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
  end
end
