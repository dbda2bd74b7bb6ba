defmodule Snex.Relay do
  @moduledoc false
  # Distribution through the standard input and output of Python, for where there is no network: this
  # process owns the port, and joins it to a connection of this node. The bytes are those of any
  # connection between nodes; the relay does not look at them.
  #
  # It is linked to the interpreter and does not trap exits: it may be blocked by a full pipe when it
  # has to end.
  use GenServer

  # What may wait for Python before no more is read for it.
  @high_water 1_048_576

  @doc "Start a relay for the calling interpreter."
  @spec start_link() :: {:ok, pid()}
  def start_link, do: GenServer.start_link(__MODULE__, self())

  @doc "Give a port of the calling process to the relay."
  @spec take(pid(), port()) :: :ok
  def take(relay, port) do
    GenServer.cast(relay, {:take, port})
    Snex.Port.hand_over(port, relay)
  end

  @doc "What Python has to know besides: whom to connect to, and whom to tell."
  @spec configure(map()) :: map()
  def configure(configuration) do
    Map.merge(configuration, %{beam: Atom.to_string(node()), interpreter: self()})
  end

  @doc "End a relay, whatever it does; the port is closed then, and Python takes that for its end."
  @spec stop(pid()) :: :ok
  def stop(relay) do
    monitor = Process.monitor(relay)
    Process.unlink(relay)
    Process.exit(relay, :kill)
    receive do: ({:DOWN, ^monitor, _, _, _} -> :ok)
  end

  @impl GenServer
  def init(interpreter), do: {:ok, %{interpreter: interpreter, port: nil, socket: nil}}

  @impl GenServer
  def handle_cast({:take, port}, state), do: {:noreply, %{state | port: port}}

  @impl GenServer
  # What comes first is Python's handshake; a node waits for it for some seconds only, and Python may
  # take longer to start.
  def handle_info({port, {:data, data}}, %{port: port, socket: nil} = state) do
    case Snex.Distribution.join() do
      {:ok, socket} ->
        :ok = :inet.setopts(socket, active: :once)
        to_node(data, %{state | socket: socket})

      {:error, reason} ->
        {:stop, {:shutdown, reason}, state}
    end
  end

  def handle_info({port, {:data, data}}, %{port: port} = state), do: to_node(data, state)

  def handle_info({:tcp, socket, data}, %{socket: socket} = state) do
    # Blocks while the pipe is full, and then nothing more is read: that is the back-pressure.
    to_python(state.port, data)
    :inet.setopts(socket, active: :once, buffer: @high_water)
    {:noreply, state}
  end

  def handle_info({port, {:exit_status, status}}, %{port: port} = state) do
    send(state.interpreter, {port, {:exit_status, status}})
    {:stop, :normal, state}
  end

  # This node has closed the connection: the cookie is wrong, or ticks were missing.
  def handle_info({:tcp_closed, socket}, %{socket: socket} = state),
    do: {:stop, {:shutdown, :connection_closed}, state}

  def handle_info({:tcp_error, socket, reason}, %{socket: socket} = state),
    do: {:stop, {:shutdown, reason}, state}

  def handle_info(_other, state), do: {:noreply, state}

  defp to_node(data, state) do
    case :gen_tcp.send(state.socket, data) do
      :ok -> {:noreply, state}
      {:error, reason} -> {:stop, {:shutdown, reason}, state}
    end
  end

  # A port that is closed has told its exit status, or will. An exception would show the data.
  defp to_python(port, data) do
    Port.command(port, data)
  rescue
    ArgumentError -> false
  end

  # Messages are what users send to Python. (Elixir knows the callback from 1.17 on.)
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(GenServer)
  @doc false
  def format_status(status) do
    hide = fn _ -> :hidden end
    status |> Map.replace_lazy(:message, hide) |> Map.replace_lazy(:log, fn _ -> [] end)
  end
end
