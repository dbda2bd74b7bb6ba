defmodule Snex.WithoutCompilerTest do
  @moduledoc "The client where there is no C compiler: the process that makes an environment keeps it."
  use Snex.Case, async: true

  @program """
  {:ok, interpreter} = Snex.Interpreter.start_link(python: System.fetch_env!("SNEX_PYTHON"))
  {:ok, env} = Snex.make_env(interpreter, %{"x" => 1})
  test = self()

  maker =
    spawn(fn ->
      {:ok, made} = Snex.make_env(interpreter)
      {:ok, kept} = Snex.make_env(interpreter, %{"x" => 2})
      send(test, {:made, made, Snex.Env.disable_gc(kept)})
      receive do: (:end -> :ok)
    end)

  {made, kept} = receive do: ({:made, made, kept} -> {made, kept})
  monitor = Process.monitor(made.id)
  {:ok, nil} = Snex.pyeval(made, "y = 1")
  send(maker, :end)
  receive do: ({:DOWN, ^monitor, _, _, _} -> :ok)
  {:ok, 1} = Snex.pyeval(env, "return x")
  {:ok, 2} = Snex.pyeval(kept, "return x")
  large = :binary.copy("0123456789abcdef", 65_536)
  options = [shared: true, encoding_opts: [binary_as: :bytes]]
  {:ok, ^large} = Snex.pyeval(interpreter, "return x", %{"x" => large}, options)
  {:ok, _, target} = Snex.Runtimes.find(interpreter)
  {false, true} = Snex.Shared.Arena.pair(node(target))
  IO.puts("all is well")
  """

  test "compiling says so, and environments live as long as their makers" do
    folder = Path.join(System.tmp_dir!(), "snex-without-compiler-#{System.pid()}")
    on_exit(fn -> File.rm_rf!(folder) end)
    File.mkdir_p!(folder)

    for name <- ~w(lib c_src mix.exs mix_compilers.exs),
        do: File.cp_r!(name, Path.join(folder, name))

    # As a published package has it. Interpreters may be about to write bytecode beside it.
    python = Application.app_dir(:snex, "priv/python")

    for path <- Path.wildcard(Path.join(python, "**/*.py")) do
      copy = Path.join([folder, "python", Path.relative_to(path, python)])
      File.mkdir_p!(Path.dirname(copy))
      File.cp!(path, copy)
    end

    {output, status} =
      System.cmd("mix", ["run", "-e", @program],
        cd: folder,
        env: [{"CC", "false"}, {"MIX_ENV", "prod"}, {"SNEX_PYTHON", python()}],
        stderr_to_stdout: true
      )

    assert output =~ "environments are freed when the process that made them ends"
    assert output =~ "all is well"
    assert status == 0
  end
end
