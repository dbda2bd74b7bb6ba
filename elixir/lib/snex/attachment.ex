defmodule Snex.Attachment do
  @moduledoc false
  # Interpreters for nodes that someone else runs; in the process of the interpreter, whose state is
  # that of `Snex.Launch`.

  alias Snex.{Call, Distribution, Error, Launch, Runtimes, Telemetry}

  # ms after which connecting is tried again.
  @again 500

  @doc "Attach to the node now, or fail."
  @spec await(Launch.state()) :: Launch.result()
  def await(state) do
    with {:ok, state} <- prepare(state) do
      case Launch.await_task(state, task(state)) do
        {:answer, {:ok, os_pid}, state} -> {:ok, watch(state, os_pid)}
        {:answer, {:error, error}, state} -> {:error, error, state}
        error -> error
      end
    end
  end

  @doc "Begin to attach to the node, which may be away; the answer is for `answered/2`."
  @spec begin(Launch.state()) :: Launch.result()
  def begin(state) do
    with {:ok, state} <- prepare(state), do: {:ok, attempt(state)}
  end

  @doc "Try to connect to the node."
  @spec attempt(Launch.state()) :: Launch.state()
  def attempt(state), do: %{state | task: Task.async(task(state))}

  @spec answered(Launch.state(), {:ok, pos_integer()} | {:error, Error.t()}) :: Launch.state()
  def answered(state, {:ok, os_pid}), do: watch(state, os_pid)
  def answered(state, {:error, _error}), do: lost(state)

  @doc "The node is away: try again later."
  @spec lost(Launch.state()) :: Launch.state()
  def lost(state) do
    Process.send_after(self(), :snex_attach, @again)
    if state.ready?, do: Telemetry.gone(state, :nodedown)
    %{state | server: nil, ready?: false, began: System.monotonic_time()}
  end

  defp prepare(%{opts: opts} = state) do
    node = opts[:node]

    with :ok <- Distribution.check(),
         :ok <- Runtimes.start_distribution(node) do
      if opts[:cookie], do: Node.set_cookie(node, :"#{opts[:cookie]}")
      {:ok, %{state | target: {opts[:register_as] || :snex, node}}}
    else
      {:error, reason} -> {:error, %Error{code: :internal_error, reason: reason}, state}
    end
  end

  defp watch(state, os_pid),
    do: Telemetry.ready(%{state | os_pid: os_pid, server: Process.monitor(state.target)})

  defp task(%{target: target}), do: fn -> attach(target) end

  # What is asked for is that its server answers; the system's number comes with it.
  defp attach({name, node} = target) do
    if Node.connect(node) do
      with {:ok, info} <- GenServer.call(target, :info), do: {:ok, info.os_pid}
    else
      {:error, Call.failed(why_not(node))}
    end
  catch
    :exit, {:noproc, _call} ->
      {:error,
       Call.failed(
         "#{node} has no process #{inspect(name)}: say what it was told with --register-as in the " <>
           "option :register_as"
       )}

    :exit, {reason, _call} ->
      {:error, Call.failed(reason)}
  end

  # --- sentences ----------------------------------------------------------------------------------

  defp why_not(node) do
    case String.split(Atom.to_string(node), "@") do
      [name, host] -> why_not(node, name, host)
      _ -> "#{node} is no name of a node: it is one such as :\"py@127.0.0.1\""
    end
  end

  defp why_not(node, name, host) do
    if String.contains?(host, ".") != :net_kernel.longnames() do
      "#{node()} cannot connect to #{node}: nodes with long names (the host has a dot) and nodes " <>
        "with short ones do not connect to each other"
    else
      registered(node, :erl_epmd.port_please(to_charlist(name), to_charlist(host), 1_000))
    end
  end

  defp registered(node, {:port, port, _version}) do
    "#{node} is registered at port #{port}, but does not let #{node()} in, or does not answer: has " <>
      "it another cookie? Give it as :cookie, or to this node"
  end

  defp registered(node, :noport),
    do: "#{node} does not run: the epmd of its host does not know it"

  defp registered(node, _error),
    do: "#{node} does not run, or its host cannot be reached: no epmd answers there"
end
