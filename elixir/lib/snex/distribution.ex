defmodule Snex.Distribution do
  @moduledoc false
  # This node's part in distribution, and names and cookies for Python nodes.

  @own {__MODULE__, :own}

  @doc """
  Makes this a distributed node that connects to others but takes no connections: no epmd is told,
  nothing listens, and other nodes do not see it. Its name is unique.
  """
  @spec start() :: :ok | {:error, term()}
  def start do
    name = :"snex_#{System.pid()}_#{random()}@127.0.0.1"
    options = %{name_domain: :longnames, hidden: true, dist_listen: false}

    case :net_kernel.start(name, options) do
      {:ok, _} ->
        :persistent_term.put(@own, true)
        :ok

      {:error, {:already_started, _}} ->
        :ok

      {:error, reason} ->
        {:error, reason}
    end
  end

  @doc """
  Name and cookie for a new Python node on this host. In a cluster it is the cluster's cookie, so
  that other nodes can reach Python too; otherwise one that only this node and Python know.
  """
  @spec invent() :: {node(), cookie :: String.t()}
  def invent do
    [_, host] = String.split(Atom.to_string(node()), "@")
    name = :"snex_#{random()}@#{host}"

    if :persistent_term.get(@own, false) do
      cookie = random() <> random() <> random()
      Node.set_cookie(name, :"#{cookie}")
      {name, cookie}
    else
      {name, Atom.to_string(Node.get_cookie())}
    end
  end

  defp random, do: Base.encode32(:crypto.strong_rand_bytes(5), case: :lower)
end
