defmodule Snex.Release do
  @moduledoc """
  Puts the Python environments into releases.

      # mix.exs
      releases: [
        demo: [steps: [:assemble, &Snex.Release.after_assemble/1]]
      ]
  """

  alias Snex.Project

  @doc """
  A step of a release, after `:assemble` and before `:tar`: copies the Python environments of the
  modules in the release that `use Snex.Interpreter`, and the Pythons that they need. The release can
  be moved.
  """
  @spec after_assemble(Mix.Release.t()) :: Mix.Release.t()
  def after_assemble(%{path: path} = release) do
    target = Path.join(path, "snex")
    File.rm_rf!(target)

    for folder <- Path.wildcard(Path.join(Project.root(), "projects/*")),
        used?(Path.basename(folder), path) do
      copy!(folder, Path.join([target, "projects", Path.basename(folder)]))

      Project.make_home_relative(
        Path.join([target, "projects", Path.basename(folder), "venv/pyvenv.cfg"])
      )

      copy_python!(Path.join(folder, "venv/bin/python"), target)
    end

    release
  end

  defp used?(module, path) do
    [path, "lib/*/ebin/#{module}.beam"]
    |> Path.join()
    |> Path.wildcard()
    |> Enum.any?(fn beam ->
      {:ok, {_, [exports: exports]}} = :beam_lib.chunks(to_charlist(beam), [:exports])
      {:__snex_project__, 0} in exports
    end)
  end

  # Follows the links, as uv's folder for Python 3.10 is a link to that of 3.10.16.
  defp copy_python!(path, target) do
    pythons = Path.join(Project.root(), "python")

    with [name | rest] <- below(path, pythons) do
      source = Path.join(pythons, name)

      case File.read_link(source) do
        {:ok, link} ->
          next = Path.expand(link, pythons)
          File.mkdir_p!(Path.join(target, "python"))
          _ = File.rm(Path.join([target, "python", name]))
          File.ln_s!(Project.relative(next, pythons), Path.join([target, "python", name]))
          copy_python!(Path.join([next | rest]), target)

        {:error, _} ->
          copy!(source, Path.join([target, "python", name]))
      end
    else
      _ ->
        case File.read_link(path) do
          {:ok, link} -> copy_python!(Path.expand(link, Path.dirname(path)), target)
          # The system's Python: it is where it is.
          {:error, _} -> :ok
        end
    end
  end

  defp below(path, folder) do
    if String.starts_with?(path, folder <> "/"),
      do: path |> String.replace_prefix(folder <> "/", "") |> Path.split(),
      else: nil
  end

  defp copy!(source, target) do
    File.mkdir_p!(Path.dirname(target))
    File.cp_r!(source, target)
  end
end
