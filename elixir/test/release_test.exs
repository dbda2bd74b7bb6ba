defmodule Snex.ReleaseTest do
  @moduledoc "A release of a project that uses Snex, built, moved and run."
  use Snex.Case, async: true

  @moduletag :uv

  setup do
    folder = Path.join(System.tmp_dir!(), "snex-release-#{System.pid()}")
    File.mkdir_p!(Path.join(folder, "lib"))
    on_exit(fn -> File.rm_rf!(folder) end)

    File.write!(Path.join(folder, "mix.exs"), """
    defmodule Demo.MixProject do
      use Mix.Project

      def project do
        [
          app: :demo,
          version: "0.1.0",
          deps: [{:snex, path: #{inspect(File.cwd!())}}],
          releases: [demo: [steps: [:assemble, &Snex.Release.after_assemble/1]]]
        ]
      end

      def application, do: [extra_applications: [:logger]]
    end
    """)

    File.write!(Path.join(folder, "lib/demo.ex"), """
    defmodule Demo do
      use Snex.Interpreter,
        pyproject_toml: \"\"\"
        [project]
        name = "demo"
        version = "0.0.0"
        requires-python = ">=3.10"
        dependencies = ["colorama==0.4.6"]
        \"\"\",
        managed_python: false

      def run do
        {:ok, _} = Application.ensure_all_started(:snex)
        {:ok, python} = start_link()
        {:ok, answer} = Snex.pyeval(python, "import colorama; return colorama.__file__")
        IO.puts("answer " <> answer)
        {:ok, python} = Demo.Project.start_link([])
        {:ok, answer} = Snex.pyeval(python, "import own; return own.__file__")
        IO.puts("own " <> answer)
      end
    end

    defmodule Demo.Project do
      use Snex.Interpreter, project_path: "priv/my_project", managed_python: false

      def start_link(opts) do
        path = Application.app_dir(:demo, "priv/my_project")
        opts |> Keyword.put(:environment, %{"PYTHONPATH" => path}) |> super()
      end
    end
    """)

    project = Path.join(folder, "priv/my_project")
    File.mkdir_p!(project)
    File.write!(Path.join(project, "own.py"), "")

    File.write!(Path.join(project, "pyproject.toml"), """
    [project]
    name = "my-project"
    version = "0.0.0"
    requires-python = ">=3.10"
    """)

    {:ok, folder: folder}
  end

  test "a release has what is used, and runs after it was moved", %{folder: folder} do
    mix(folder, ["compile"])
    build = Path.join(folder, "_build/prod/snex/projects")
    # What a module left that does not exist any more.
    File.cp_r!(Path.join(build, "Elixir.Demo"), Path.join(build, "Elixir.Demo.Gone"))
    mix(folder, ["release", "--quiet"])
    moved = Path.join(folder, "moved")
    File.rename!(Path.join(folder, "_build/prod/rel/demo"), moved)
    File.rm_rf!(Path.join(folder, "_build"))

    assert Enum.sort(File.ls!(Path.join(moved, "snex/projects"))) ==
             ["Elixir.Demo", "Elixir.Demo.Project"]

    {output, 0} =
      System.cmd(Path.join(moved, "bin/demo"), ["eval", "Demo.run()"], stderr_to_stdout: true)

    assert output =~ "answer #{moved}/snex/projects/Elixir.Demo/venv/"
    assert output =~ "own #{moved}/lib/demo-0.1.0/priv/my_project/own.py"
  end

  defp mix(folder, args) do
    case System.cmd("mix", args,
           cd: folder,
           env: [{"MIX_ENV", "prod"}, {"MIX_TARGET", nil}],
           stderr_to_stdout: true
         ) do
      {_, 0} -> :ok
      {output, status} -> flunk("mix #{hd(args)} failed with status #{status}:\n#{output}")
    end
  end
end
