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
      deps: deps(),
      aliases: aliases(),
      docs: docs(),
      package: [
        licenses: ["Apache-2.0"],
        # Hex has another package of the name of the application.
        name: "snex_node",
        files:
          ~w(lib c_src python mix.exs mix_compilers.exs .formatter.exs README.md guides) ++
            ~w(CHANGELOG.md LICENSE)
      ]
    ]
  end

  # None. `SNEX_DOCS=1 mix do deps.get + docs` writes the documentation as Hex shows it. Mix wants to
  # have what is named here also for what does not need it, so it is named for that command alone.
  defp deps do
    if System.get_env("SNEX_DOCS") == "1",
      do: [{:ex_doc, "~> 0.34", only: :dev, runtime: false, optional: true}],
      else: []
  end

  defp docs do
    [
      main: "getting-started",
      extras: [
        "guides/getting-started.md",
        "guides/cookbook.md",
        "guides/data-science.md",
        "guides/streams.md",
        "guides/objects.md",
        "guides/testing.md",
        "guides/releases.md",
        "guides/migrating.md",
        "guides/snex.livemd",
        {"README.md", [filename: "client", title: "The client"]}
      ],
      groups_for_extras: [Guides: ~r/guides/],
      groups_for_modules: [
        "Many Pythons": [Snex.Pool, Snex.Batch],
        "Streams and objects": [Snex.Source, Snex.Object, Snex.Progress],
        Values: [Snex.Tensor, Snex.Arrow, Snex.Serde, Snex.Serde.Encoder, Snex.Code, Snex.Sigils],
        Releases: [Snex.Release]
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
