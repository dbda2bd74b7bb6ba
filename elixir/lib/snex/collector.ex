defmodule Snex.Collector do
  @moduledoc false
  # Frees the environments that were garbage collected on this node. It is the handle of all of
  # them: when this node goes, so does it, and with it whatever it had not freed yet.
  use GenServer

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "The process that is the handle of environments made on this node."
  @spec pid() :: pid()
  def pid do
    Process.whereis(__MODULE__) ||
      raise "the application :snex is not running: start it with Application.ensure_all_started(:snex)"
  end

  @impl GenServer
  def init(nil), do: {:ok, nil, :hibernate}

  @impl GenServer
  def handle_info({:snex_env_dropped, data}, state) do
    Snex.Call.destroy(:erlang.binary_to_term(data), [:noconnect])
    {:noreply, state}
  end

  def handle_info(_other, state), do: {:noreply, state}
end
