defmodule Mix.Tasks.Snex.Doctor do
  @shortdoc "Says whether Python can be used here, and what to do where it cannot"

  @moduledoc """
  Says whether Python can be used here, and what to do where it cannot.

      mix snex.doctor [--python PROGRAM] [NODE]

  It looks for Erlang/OTP, a C compiler, Python and uv, at names, cookie file and epmd, and starts an
  interpreter. With the name of a Python node that someone else runs (`py@host`) it connects to that,
  too. Each line is `ok`, `warning` or `failed`, with what to do below it; the task fails when one has.
  The cookie is not shown.

    * `--python`: the program to look at and to start, `python3` where none is given
  """

  use Mix.Task

  @impl Mix.Task
  def run(args) do
    {opts, rest, wrong} = OptionParser.parse(args, strict: [python: :string])

    if wrong != [] or length(rest) > 1,
      do: Mix.raise("usage: mix snex.doctor [--python PROGRAM] [NODE]")

    Mix.Task.run("app.start", ["--no-start"])
    {:ok, _} = Application.ensure_all_started(:snex)
    node = for name <- rest, do: {:node, String.to_atom(name)}
    results = Snex.Doctor.run(opts ++ node)
    for result <- results, do: show(result)

    if Enum.any?(results, &match?({:failed, _, _, _}, &1)), do: exit({:shutdown, 1})
    :ok
  end

  defp show({state, what, found, advice}) do
    Mix.shell().info([String.pad_trailing(to_string(state), 9), what, ": ", found])
    if advice, do: Mix.shell().info([String.duplicate(" ", 9), advice])
  end
end
