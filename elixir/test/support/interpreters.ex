# The interpreters of the README. What differs: tests take the Python that is there.
#
# Where there is no uv, or no network for it, SNEX_TEST_WITHOUT_UV leaves them out, and the tests that
# are tagged with :uv.
if System.get_env("SNEX_TEST_WITHOUT_UV") == nil do
  defmodule SnexTest.NumpyInterpreter do
    use Snex.Interpreter,
      pyproject_toml: """
      [project]
      name = "my-numpy-project"
      version = "0.0.0"
      requires-python = ">=3.10"
      dependencies = ["numpy>=2"]
      """,
      managed_python: false
  end

  defmodule SnexTest.PlainProject do
    use Snex.Interpreter,
      pyproject_toml: """
      [project]
      name = "plain"
      version = "0.0.0"
      requires-python = ">=3.10"
      """,
      managed_python: false
  end

  defmodule SnexTest.MyProject do
    use Snex.Interpreter,
      project_path: "test/my_python_proj",
      managed_python: false

    # Overrides `start_link/1` from `use Snex.Interpreter`
    def start_link(opts) do
      my_project_path = Path.absname("test/my_python_proj")

      opts
      |> Keyword.put(:environment, %{"PYTHONPATH" => my_project_path})
      |> super()
    end
  end
end
