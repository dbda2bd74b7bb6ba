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
  Makes this a distributed node that listens on 127.0.0.1, for Pythons whose distribution runs through
  their standard input and output. OTP's epmd is started for it where none runs.
  """
  @spec start_listening() :: :ok | {:error, term()}
  def start_listening do
    # It goes on as a daemon, as the one that `elixir --name` starts does.
    with epmd when epmd != nil <- System.find_executable("epmd"),
         do: System.cmd(epmd, ["-daemon"])

    name = :"snex_#{System.pid()}_#{random()}@127.0.0.1"
    interface = Application.get_env(:kernel, :inet_dist_use_interface)
    Application.put_env(:kernel, :inet_dist_use_interface, {127, 0, 0, 1})

    case :net_kernel.start(name, %{name_domain: :longnames, hidden: true}) do
      {:ok, _} ->
        :persistent_term.put(@own, true)
        :ok

      {:error, {:already_started, _}} ->
        :ok

      {:error, reason} ->
        if interface == nil, do: Application.delete_env(:kernel, :inet_dist_use_interface)
        {:error, reason}
    end
  end

  @doc "Where this node listens for others."
  @spec address() ::
          {:ok, {:inet.ip_address() | charlist(), :inet.port_number()}} | {:error, String.t()}
  def address do
    [name, host] = node() |> Atom.to_charlist() |> :string.split(~c"@")

    case :erl_epmd.port_please(name, host) do
      {:port, port, _version} ->
        {:ok, {host, port}}

      _ ->
        {:error,
         "#{node()} takes no connections, which :use_stdio needs: start it with a name, or start an " <>
           "interpreter with :use_stdio before all others"}
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
