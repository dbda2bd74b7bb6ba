# Runs the Elixir of pages: `mix run pages.exs FILE`, where FILE is an external term,
# [{page, [{kind, line, code}]}], as tests/test_site.py writes it. The blocks of a page share
# variables, aliases and imports; pages share nothing but modules. Kinds: "run", "iex" (a session,
# whose values are compared with what is printed) and "parse".

# What most pages use: a module with a Python of its own. The one that runs is that of the tests, with
# their packages.
defmodule MyApp.Python do
  use Snex.Interpreter,
    pyproject_toml: """
    [project]
    name = "my-app"
    version = "0.0.0"
    requires-python = ">=3.10"
    dependencies = []
    """,
    managed_python: false

  def start_link(opts),
    do: opts |> Keyword.put(:python, System.fetch_env!("PAGES_PYTHON")) |> super()
end

defmodule Pages do
  def run(pages) do
    Code.compiler_options(ignore_module_conflict: true)
    failed = Enum.reject(pages, &page/1)
    if failed != [], do: System.halt(1)
  end

  # In a process of its own, which its children end with.
  defp page({name, blocks}) do
    {pid, monitor} = spawn_monitor(fn -> blocks(name, blocks) end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, {:shutdown, links}} ->
        Enum.each(links, &await_end/1)
        true

      {:DOWN, ^monitor, :process, ^pid, reason} ->
        IO.puts("#{name}: #{inspect(reason)}")
        false
    end
  end

  defp await_end(pid) do
    monitor = Process.monitor(pid)
    receive(do: ({:DOWN, ^monitor, _, _, _} -> :ok), after: (10_000 -> exit({:lives_on, pid})))
  end

  defp blocks(name, blocks) do
    env = Code.env_for_eval(file: name)

    Enum.reduce(blocks, {[], env}, fn {kind, line, code}, {binding, env} ->
      try do
        block(kind, code, binding, %{env | line: line})
      catch
        kind, reason ->
          IO.puts("#{name}:#{line}: #{Exception.format(kind, reason, __STACKTRACE__)}")
          exit(:failed)
      end
    end)

    {:links, links} = Process.info(self(), :links)
    exit({:shutdown, Enum.filter(links, &is_pid/1)})
  end

  defp block("parse", code, binding, env) do
    quote!(code, env)
    {binding, env}
  end

  defp block("run", code, binding, env) do
    {_value, binding, env} = Code.eval_quoted_with_env(quote!(code, env), binding, env)
    {binding, env}
  end

  defp block("iex", code, binding, env) do
    code
    |> String.split("iex> ", trim: true)
    |> Enum.reduce({binding, env}, fn step, {binding, env} ->
      [first | lines] = String.split(step, "\n")
      {more, shown} = Enum.split_while(lines, &String.starts_with?(&1, "...> "))
      source = Enum.map_join([first | more], "\n", &String.replace_prefix(&1, "...> ", ""))

      shown =
        shown |> Enum.reject(&(&1 == "" or String.starts_with?(&1, "# "))) |> Enum.join("\n")

      {value, binding, env} = Code.eval_quoted_with_env(quote!(source, env), binding, env)

      if shown != "" and not same?(value, shown),
        do: raise("#{source} gives\n#{inspect(value)}\nand the page says\n#{shown}")

      {binding, env}
    end)
  end

  # As terms, because maps are printed in one order or another; as texts where there are pids.
  defp same?(value, shown) do
    case Code.string_to_quoted(shown) do
      {:ok, quoted} -> quoted |> Code.eval_quoted() |> elem(0) == value
      {:error, _} -> comparable(shown) == comparable(inspect(value, pretty: true))
    end
  end

  defp comparable(text), do: Regex.replace(~r/#(PID|Reference|Port)<[\d.]+>/, text, "#\\1<>")

  defp quote!(code, env), do: Code.string_to_quoted!(code, file: env.file, line: env.line)
end

# The node of the page "A node for any BEAM" is there already, under the name that the page has.
{:ok, _} = Node.start(:"me@127.0.0.1")
Node.set_cookie(String.to_atom(System.fetch_env!("PAGES_COOKIE")))
[file] = System.argv()
file |> File.read!() |> :erlang.binary_to_term() |> Pages.run()
