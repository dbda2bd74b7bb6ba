#!/bin/sh
# The developer of a web application: from an empty directory to a release that calls Python. Pages:
# "Getting started with Elixir", "Testing", "Releases".
#
# SNEX is the dependency as mix.exs has it.
set -eu

mix new shop --sup > /dev/null
cd shop

cat > mix.exs <<ELIXIR
defmodule Shop.MixProject do
  use Mix.Project

  def project do
    [
      app: :shop,
      version: "0.1.0",
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      deps: [$SNEX],
      releases: [shop: [steps: [:assemble, &Snex.Release.after_assemble/1]]]
    ]
  end

  def application, do: [extra_applications: [:logger], mod: {Shop.Application, []}]
end
ELIXIR

cat > lib/shop/application.ex <<'ELIXIR'
defmodule Shop.Application do
  use Application

  @impl Application
  def start(_type, _args) do
    children = [
      {Snex.Pool,
       name: Shop.Python,
       size: 2,
       max_queue: 50,
       interpreter: [init_script: File.read!(Application.app_dir(:shop, "priv/scores.py"))]}
    ]

    Supervisor.start_link(children, strategy: :one_for_one, name: Shop.Supervisor)
  end
end
ELIXIR

mkdir -p priv
cat > priv/scores.py <<'PYTHON'
from statistics import fmean

weights = {"new": 0.5, "old": 1.5}  # a model, loaded once


def score(prices, kind):
    return fmean(prices) * weights[kind]
PYTHON

cat > lib/shop.ex <<'ELIXIR'
defmodule Shop do
  @moduledoc "Scores offers."

  @doc "The score of some prices; an error says that the kind is unknown, or that Python is busy."
  def score(prices, kind) do
    vars = %{"prices" => prices, "kind" => kind}

    case Snex.pyeval(Shop.Python, "return score(prices, kind)", vars, timeout: 2_000) do
      {:ok, score} -> {:ok, score}
      {:error, %Snex.Error{type: "KeyError"}} -> {:error, :unknown_kind}
      {:error, %Snex.Error{code: code}} -> {:error, code}
    end
  end
end
ELIXIR

cat > test/shop_test.exs <<'ELIXIR'
defmodule ShopTest do
  use ExUnit.Case, async: true

  test "scores", do: assert(Shop.score([10, 20], "old") == {:ok, 22.5})
  test "unknown kinds", do: assert(Shop.score([10], "used") == {:error, :unknown_kind})

  test "many at a time" do
    tasks = for n <- 1..40, do: Task.async(fn -> Shop.score([n, n], "new") end)
    assert Task.await_many(tasks) == for(n <- 1..40, do: {:ok, n * 0.5})
  end
end
ELIXIR

mix snex.doctor
mix test
MIX_ENV=prod mix release --quiet

# It runs where it was moved to.
mv _build/prod/rel/shop ../released
cd ../released
test "$(bin/shop eval '
  {:ok, _} = Application.ensure_all_started(:shop)
  :ok = Snex.Pool.await_ready(Shop.Python)
  {:ok, score} = Shop.score([10, 20], "old")
  IO.puts("score #{score}")
' | tail -n 1)" = "score 22.5"
echo "the release scores"
