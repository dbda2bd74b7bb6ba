defmodule Snex.Application do
  @moduledoc false
  use Application

  @impl Application
  def start(_type, _args) do
    Snex.Nif.warn_if_refused()
    Snex.Telemetry.detect()
    children = [Snex.Runtimes, Snex.Collector, Snex.Shared.Arena]
    Supervisor.start_link(children, strategy: :one_for_one, name: Snex.Supervisor)
  end
end
