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
      package: [
        licenses: ["Apache-2.0"],
        files: ~w(lib c_src priv/python mix.exs mix_compilers.exs .formatter.exs)
      ]
    ]
  end

  def application do
    [extra_applications: [:logger, :crypto], mod: {Snex.Application, []}]
  end
end
