Code.require_file("mix_compilers.exs", __DIR__)

defmodule Snex.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :snex,
      version: @version,
      elixir: ">= 1.14.0",
      description: "Easy and efficient Python interop for Elixir",
      compilers: [:snex_python, :snex_nif] ++ Mix.compilers(),
      elixirc_paths: if(Mix.env() == :test, do: ["lib", "test/support"], else: ["lib"]),
      consolidate_protocols: Mix.env() != :test,
      start_permanent: Mix.env() == :prod,
      deps: [],
      aliases: aliases(),
      package: [
        licenses: ["Apache-2.0"],
        files: ~w(lib c_src python mix.exs mix_compilers.exs .formatter.exs README.md)
      ]
    ]
  end

  # A package takes its Python from this folder; see mix_compilers.exs.
  defp aliases do
    package = fn _args -> Snex.PythonSources.package() end
    ["hex.build": [package, "hex.build"], "hex.publish": [package, "hex.publish"]]
  end

  def application do
    [extra_applications: [:logger, :crypto], mod: {Snex.Application, []}]
  end
end
