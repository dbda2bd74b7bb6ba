# Writes a page of Markdown for each public module of the client, from the documentation in its
# compiled code. Run by docs/_ext/elixir_reference.py, in the folder elixir/:
#
#     mix run --no-start ../docs/elixir_reference.exs FOLDER

defmodule ElixirReference do
  @titles [
    function: "Functions",
    macro: "Macros",
    callback: "Callbacks",
    macrocallback: "Callbacks",
    type: "Types",
    opaque: "Types"
  ]

  def write(folder) do
    File.rm_rf!(folder)
    File.mkdir_p!(folder)
    {:ok, modules} = :application.get_key(:snex, :modules)

    for module <- Enum.sort(modules),
        {:docs_v1, _, _, _, %{"en" => doc}, _, entries} <- [Code.fetch_docs(module)],
        do: File.write!(Path.join(folder, "#{inspect(module)}.md"), page(module, doc, entries))
  end

  defp page(module, doc, entries) do
    specs = specs(module)

    [
      "(#{inspect(module)})=\n# `#{inspect(module)}`\n\n",
      markdown(doc, 0),
      for title <- ["Functions", "Macros", "Callbacks", "Types"] do
        section(
          title,
          for({id, _, _, _, _} = e <- entries, title(id, entries) == title, do: e),
          module,
          specs
        )
      end
    ]
  end

  # The functions of a protocol are its callbacks as well.
  defp title({:callback, name, arity}, entries) do
    if not List.keymember?(entries, {:function, name, arity}, 0), do: "Callbacks"
  end

  defp title({kind, _, _}, _entries), do: @titles[kind]

  defp section(title, entries, module, specs) do
    case for entry <- entries, visible?(entry), do: entry(entry, module, specs) do
      [] -> []
      shown -> ["\n## #{title}\n" | shown]
    end
  end

  # Types have no sentence where their name says all.
  defp visible?({_, _, _, doc, _}), do: doc != :hidden

  defp entry({{kind, name, arity}, _line, signature, doc, _meta}, module, specs) do
    label = if kind in [:type, :opaque], do: "t:#{name}/#{arity}", else: "#{name}/#{arity}"
    # Labels that differ in capitals alone would be the same.
    target = String.replace(label, ~r/[A-Z]/, "-\\0")

    [
      "\n(#{inspect(module)}.#{target})=\n### `#{label}`\n\n",
      code(signature, Map.get(specs, {group(kind), name, arity}, [])),
      with(%{"en" => text} <- doc, do: markdown(text, 3), else: (_ -> []))
    ]
  end

  defp group(kind) when kind in [:type, :opaque], do: :type
  defp group(kind) when kind in [:callback, :macrocallback], do: :callback
  defp group(_), do: :function

  defp code([], []), do: []

  defp code(signature, specs) do
    lines = if specs == [], do: signature, else: specs
    ["```elixir\n", Enum.intersperse(lines, "\n"), "\n```\n\n"]
  end

  # Headings of a text stand below that of what it tells of; doctests and indented code are Elixir.
  defp markdown(text, level) do
    text
    |> String.split("\n")
    |> Enum.map(
      &if(String.starts_with?(&1, "#"), do: String.duplicate("#", level) <> &1, else: &1)
    )
    |> fence([])
    |> Enum.map(&(&1 <> "\n"))
  end

  # Code is what is indented by four behind an empty line.
  defp fence([], done), do: Enum.reverse(done)

  defp fence(["", "    " <> _ = first | rest], done) do
    {code, rest} =
      Enum.split_while([first | rest], &(&1 == "" or String.starts_with?(&1, "    ")))

    code = code |> Enum.reverse() |> Enum.drop_while(&(&1 == ""))

    block =
      ["", "```"] ++
        Enum.map(code, &String.replace_prefix(&1, "    ", "")) ++ ["```#{language(code)}", ""]

    fence(rest, block ++ done)
  end

  defp fence([line | rest], done), do: fence(rest, [line | done])

  defp language(code) do
    source = code |> Enum.reverse() |> Enum.join("\n")
    if match?({:ok, _}, Code.string_to_quoted(source)), do: "elixir", else: ""
  end

  defp specs(module) do
    functions = fetched(&Code.Typespec.fetch_specs/1, module)
    callbacks = fetched(&Code.Typespec.fetch_callbacks/1, module)
    types = fetched(&Code.Typespec.fetch_types/1, module)

    Map.new(
      for(
        {{name, arity}, forms} <- functions,
        do: {{:function, name, arity}, each(forms, name, "@spec ")}
      ) ++
        for(
          {{name, arity}, forms} <- callbacks,
          do: {{:callback, name, arity}, each(forms, name, "@callback ")}
        ) ++
        for {kind, {name, _, arguments} = type} <- types do
          quoted = Code.Typespec.type_to_quoted(type)
          # What an opaque type is made of is nobody's business.
          quoted = with {:"::", _, [head, _]} when kind == :opaque <- quoted, do: head
          {{:type, name, length(arguments)}, [written({:@, [], [{kind, [], [quoted]}]})]}
        end
    )
  end

  defp fetched(fetch, module) do
    case fetch.(module) do
      {:ok, found} -> found
      :error -> []
    end
  end

  defp each(forms, name, prefix),
    do: for(form <- forms, do: prefix <> written(Code.Typespec.spec_to_quoted(name, form)))

  defp written(quoted) do
    quoted |> Macro.to_string() |> Code.format_string!(line_length: 88) |> IO.iodata_to_binary()
  end
end

[folder] = System.argv()
ElixirReference.write(folder)
