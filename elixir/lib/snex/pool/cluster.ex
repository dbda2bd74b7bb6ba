defmodule Snex.Pool.Cluster do
  @moduledoc false
  # Pools of one name on several nodes, which find each other through `:pg`.

  # The scope of `:pg`, and its process.
  @scope Snex.Pool

  # ms that a scope which has just been started is given to learn of other nodes.
  @acquaintance 500
  @again 10

  @doc "Start the scope on this node, unless it runs; whether it has been started now."
  @spec start() :: boolean()
  def start do
    child = %{id: @scope, start: {:pg, :start_link, [@scope]}}

    Process.whereis(@scope) == nil and
      match?({:ok, _}, Supervisor.start_child(Snex.Supervisor, child))
  catch
    # The application is not running.
    :exit, _reason -> false
  end

  @doc "Make a pool known to other nodes; `nil` is no name."
  @spec join(term(), pid()) :: :ok
  def join(nil, _pool), do: :ok

  def join(name, pool) do
    start()
    :pg.join(@scope, name, pool)
  end

  @doc "The pools of that name on other nodes, in a random order."
  @spec others(term()) :: [pid()]
  def others(nil), do: []

  def others(name) do
    @scope |> :pg.get_members(name) |> Enum.reject(&(node(&1) == node())) |> Enum.shuffle()
  rescue
    # The scope does not run, or its process is being restarted.
    ArgumentError -> []
  end

  @doc "The pools of that name on other nodes, for a node that may not have had a pool yet."
  @spec find(term()) :: [pid()]
  def find(name) do
    cond do
      Node.list() == [] -> []
      start() -> find(name, @acquaintance)
      true -> others(name)
    end
  end

  defp find(name, left) do
    case others(name) do
      [] when left > 0 ->
        receive do
        after
          @again -> find(name, left - @again)
        end

      found ->
        found
    end
  end
end
