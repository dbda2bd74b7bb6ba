defmodule Snex.DoctorTest do
  @moduledoc "What `mix snex.doctor` finds, here and where something is missing."
  use Snex.Case, async: true

  alias Snex.Doctor

  defp find(results, what), do: Enum.find(results, &(elem(&1, 1) == what))

  defp script!(content) do
    path = Path.join(System.tmp_dir!(), "snex-doctor-#{System.unique_integer([:positive])}")
    File.write!(path, "#!/bin/sh\n" <> content)
    File.chmod!(path, 0o755)
    on_exit(fn -> File.rm!(path) end)
    path
  end

  test "all is well where tests run" do
    results = Doctor.run(python: python())
    assert Enum.filter(results, &(elem(&1, 0) == :failed)) == []
    assert {:ok, _, versions, nil} = find(results, "versions")
    assert versions =~ "Elixir #{System.version()}, Erlang/OTP #{System.otp_release()}, snex "
    assert {:ok, _, found, nil} = find(results, "Python")
    assert found =~ ~r"^3\.\d+\.\d+, /"
    assert {:ok, _, started, nil} = find(results, "interpreter")
    assert started =~ ~r"^Python 3\.\S+ started in \d+ ms, and evaluates$"
    assert {:ok, _, distributed, nil} = find(results, "distribution")
    assert distributed == "this is #{node()}"
    cookie = Atom.to_string(Node.get_cookie())
    refute Enum.any?(results, &(inspect(&1) =~ cookie))
  end

  for {name, content, said} <- [
        {"that is old", "echo 3.8.20 /usr/bin/python3.8", "3.8.20, /usr/bin/python3.8"},
        {"that is something else", "echo hello", "it is no Python: it says \"hello\""},
        {"that ends", "echo no >&2; exit 3", "status 3: no"}
      ] do
    @content content
    @said said
    test "a Python #{name}" do
      results = Doctor.run(python: script!(@content))
      assert {:failed, _, found, advice} = find(results, "Python")
      assert found =~ @said
      assert advice =~ "Python 3.10 or later"
      assert {:failed, _, _, _} = find(results, "interpreter")
    end
  end

  test "a Python that is not there" do
    results = Doctor.run(python: "/nowhere/python3")
    assert {:failed, _, "/nowhere/python3: not found", _} = find(results, "Python")
    assert {:failed, _, failed, _} = find(results, "interpreter")
    assert failed =~ "/nowhere/python3"
  end

  test "a node" do
    interpreter = start_interpreter!()
    {:ok, info} = Interpreter.info(interpreter)

    assert {:ok, _, found, nil} =
             [python: python(), node: info.node] |> Doctor.run() |> find("node")

    assert found == "#{info.node}: snex-node #{info.version}, Python #{info.python_version}"
  end

  test "the task says it line by line, and fails when a line has" do
    Mix.shell(Mix.Shell.Process)
    on_exit(fn -> Mix.shell(Mix.Shell.IO) end)
    args = ["--python", script!("exit 1"), "nothing@127.0.0.1"]
    assert catch_exit(Mix.Tasks.Snex.Doctor.run(args)) == {:shutdown, 1}
    assert_received {:mix_shell, :info, ["ok       versions: Elixir " <> _]}
    assert_received {:mix_shell, :info, ["failed   node: " <> sentence]}
    assert sentence =~ "nothing@127.0.0.1 does not run"
    assert_received {:mix_shell, :info, ["         on its machine: snex-node names, and " <> _]}

    assert_raise Mix.Error, ~r/^usage: /, fn -> Mix.Tasks.Snex.Doctor.run(["--pyhton"]) end
  end
end
