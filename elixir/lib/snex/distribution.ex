defmodule Snex.Distribution do
  @moduledoc false
  # This node's part in distribution, and names and cookies for Python nodes.

  @own {__MODULE__, :own}
  @loopback {127, 0, 0, 1}

  # ms; what net_kernel has for handshakes, where it is not told otherwise.
  @setup_time 7_000

  @doc """
  Whether distribution can be what we need it to be: Python does not speak TLS.
  """
  @spec check() :: :ok | {:error, String.t()}
  def check do
    if Enum.any?(protocols(), &(&1 in ["inet_tls", "inet6_tls"])) do
      {:error,
       "this BEAM was started with -proto_dist #{Enum.join(protocols(), " ")}: its connections need TLS, " <>
         "which Python nodes do not support yet. Start interpreters with port_opts: [:use_stdio], " <>
         "which connects them without a network, or the BEAM without that option"}
    else
      :ok
    end
  end

  defp protocols do
    case :init.get_argument(:proto_dist) do
      {:ok, values} -> values |> Enum.concat() |> Enum.map(&to_string/1)
      :error -> []
    end
  end

  # --- becoming a node ----------------------------------------------------------------------------

  @doc """
  Makes this a distributed node that connects to others but takes no connections: no epmd is told,
  nothing listens, and other nodes do not see it. Its name is that of `config :snex, node_name: name`,
  or a unique one. `peer`, where it is given, is a node that it has to be able to connect to.
  """
  @spec start(node() | nil) :: :ok | {:error, String.t()}
  def start(peer \\ nil) do
    with {:ok, name} <- own_name(Application.get_env(:snex, :node_name), peer) do
      options = %{name_domain: domain(name), hidden: true, dist_listen: false}

      case with_cookie_file(fn -> :net_kernel.start(name, options) end) do
        {:ok, _} ->
          :persistent_term.put(@own, node())
          :ok

        {:error, {:already_started, _}} ->
          :ok

        {:error, reason} ->
          {:error, "this BEAM cannot be made the node #{name}: #{explain(reason)}"}
      end
    end
  end

  defp own_name(nil, peer) do
    # Nodes with short names and nodes with long ones cannot connect to each other.
    host = if peer == nil or domain(peer) == :longnames, do: "127.0.0.1", else: "localhost"
    {:ok, :"snex_#{System.pid()}_#{random()}@#{host}"}
  end

  defp own_name(name, _peer) when is_atom(name) or is_binary(name) do
    case String.split(to_string(name), "@") do
      [_, _] -> {:ok, :"#{name}"}
      [short] -> {:ok, :"#{short}@127.0.0.1"}
      _ -> wrong_name(name)
    end
  end

  defp own_name(name, _peer), do: wrong_name(name)

  defp wrong_name(name) do
    {:error,
     "config :snex, node_name: #{inspect(name, limit: 5)} is no name of a node: it is one such as " <>
       ":\"my_app@127.0.0.1\""}
  end

  defp domain(name) do
    [_, host] = String.split(to_string(name), "@")
    if String.contains?(host, "."), do: :longnames, else: :shortnames
  end

  defp explain(reason) do
    case failed_child(reason) do
      {:auth, text} ->
        "there is no cookie (#{text}); set HOME to a directory that can be written to, or start the " <>
          "BEAM with --cookie"

      _ ->
        remedy =
          if Application.get_env(:snex, :node_name),
            do: "; the name is that of config :snex, node_name: ...",
            else: ""

        inspect(reason, limit: 5) <> remedy
    end
  end

  defp failed_child({{:shutdown, _} = reason, _child}), do: failed_child(reason)

  defp failed_child({:shutdown, {:failed_to_start_child, :auth, reason}}),
    do: {:auth, why_no_cookie(reason)}

  defp failed_child(_other), do: nil

  defp why_no_cookie({{:error, text}, _stack}) when is_list(text), do: to_string(text)
  defp why_no_cookie({text, _stack}) when is_list(text), do: to_string(text)
  defp why_no_cookie(reason), do: inspect(reason, limit: 5)

  # --- a cookie where there is no home ------------------------------------------------------------

  # OTP makes no node of a BEAM without a cookie, and looks for it in the home directory, then in the
  # user's configuration. Nobody needs that of a node that takes no connections.
  defp with_cookie_file(start) do
    if cookie?(), do: start.(), else: with_temporary_cookie(start)
  end

  defp cookie? do
    :init.get_argument(:setcookie) != :error or :init.get_argument(:nocookie) != :error or
      cookie_at_home?() or File.exists?(configured_cookie())
  end

  # One that may not be read is there all the same, and an error.
  defp cookie_at_home? do
    case :init.get_argument(:home) do
      {:ok, [[home | _] | _]} ->
        File.stat(Path.join(home, ".erlang.cookie")) != {:error, :enoent} or writable?(home)

      _ ->
        false
    end
  end

  defp configured_cookie do
    :user_config |> :filename.basedir("erlang") |> to_string() |> Path.join(".erlang.cookie")
  rescue
    # There is no home at all.
    _ -> "/nonexistent/.erlang.cookie"
  end

  defp writable?(directory) do
    match?({:ok, %{access: access}} when access in [:write, :read_write], File.stat(directory))
  end

  defp with_temporary_cookie(start) do
    before = System.get_env("XDG_CONFIG_HOME")
    directory = Path.join(System.tmp_dir() || "/tmp", "snex-" <> random() <> random())
    System.put_env("XDG_CONFIG_HOME", directory)

    try do
      # Nobody else may look in, not even before the file has its own mode.
      File.mkdir(directory)
      File.chmod(directory, 0o700)
      File.mkdir_p(Path.dirname(configured_cookie()))
      File.write(configured_cookie(), random() <> random() <> random())
      File.chmod(configured_cookie(), 0o400)
      start.()
    after
      File.rm_rf(directory)

      if before,
        do: System.put_env("XDG_CONFIG_HOME", before),
        else: System.delete_env("XDG_CONFIG_HOME")
    end
  end

  # --- connections that come through a pipe -------------------------------------------------------

  @doc """
  Makes a connection to this node, as if another node had connected to it; returns the other end.
  The handshake comes next. This node need not listen, and no epmd is asked.
  """
  @spec join() :: {:ok, :gen_tcp.socket()} | {:error, term()}
  def join do
    with {:ok, ours, theirs} <- socket_pair() do
      accept(theirs)
      {:ok, ours}
    end
  end

  # Sockets as those of `inet_tcp_dist`.
  defp socket_pair do
    with {:ok, listener} <- :inet_tcp.listen(0, active: false, packet: 2, ip: @loopback),
         {:ok, {_, port}} <- :inet.sockname(listener),
         {:ok, ours} <-
           :gen_tcp.connect(@loopback, port, [:binary, active: false, nodelay: true]),
         {:ok, theirs} <- accept_from(listener, :inet.sockname(ours)) do
      :inet_tcp.close(listener)
      {:ok, ours, theirs}
    end
  end

  # Anybody on this machine could be first.
  defp accept_from(listener, {:ok, address}) do
    with {:ok, socket} <- :inet_tcp.accept(listener) do
      if :inet.peername(socket) == {:ok, address} do
        {:ok, socket}
      else
        :inet_tcp.close(socket)
        accept_from(listener, {:ok, address})
      end
    end
  end

  # What net_kernel does when a process that accepts connections sends it one ("How to Implement an
  # Alternative Carrier for the Erlang Distribution", ERTS user's guide). A net_kernel that does not
  # listen refuses such messages, so it is brought to do it by the one way there is to have a process
  # of OTP call a function: its state is returned as it was.
  defp accept(socket) do
    acceptor = self()
    kernel = Process.whereis(:net_kernel)
    node = node()

    setup_time =
      :timer.seconds(Application.get_env(:kernel, :net_setuptime, div(@setup_time, 1000)))

    :sys.replace_state(kernel, fn state ->
      pid = :inet_tcp_dist.accept_connection(acceptor, socket, node, [], setup_time)
      send(acceptor, {kernel, :controller, pid})
      state
    end)

    receive do
      {^kernel, :controller, pid} ->
        :inet_tcp.controlling_process(socket, pid)
        send(pid, {self(), :controller})
    end
  end

  # --- names and cookies --------------------------------------------------------------------------

  @doc """
  Name and cookie for a new Python node on this host. In a cluster it is the cluster's cookie, so
  that other nodes can reach Python too; otherwise one that only this node and Python know.
  """
  @spec invent() :: {node(), cookie :: String.t()}
  def invent do
    [_, host] = String.split(Atom.to_string(node()), "@")
    name = :"snex_#{random()}@#{host}"

    # The user may have stopped the node that we made, and started another one.
    if :persistent_term.get(@own, nil) == node() do
      cookie = random() <> random() <> random()
      Node.set_cookie(name, :"#{cookie}")
      {name, cookie}
    else
      {name, Atom.to_string(Node.get_cookie())}
    end
  end

  defp random, do: Base.encode32(:crypto.strong_rand_bytes(5), case: :lower)
end
