defmodule Snex.Relay do
  @moduledoc false
  # Distribution through the standard input and output of Python, for where there is no network: this
  # process owns the port, and joins it to this node's own listening socket. The bytes are those of
  # any connection between nodes; the relay does not look at them.
  use GenServer

  # What may wait for Python before no more is read for it.
  @high_water 1_048_576

  @doc "Start Python, send it its configuration, and relay until it ends; the interpreter is told."
  @spec start(keyword(), map()) :: {:ok, pid(), port()} | Snex.Port.failure()
  def start(opts, configuration) do
    with {:ok, address} <- Snex.Distribution.address(),
         {:ok, relay} <- GenServer.start(__MODULE__, {self(), opts, configuration, address}) do
      {:ok, relay, GenServer.call(relay, :port, :infinity)}
    else
      {:error, {:exit_status, _} = status} -> status
      {:error, _} = error -> error
    end
  end

  @doc "What Python has to know besides: whom to connect to, and whom to tell."
  @spec configure(map()) :: map()
  def configure(configuration) do
    Map.merge(configuration, %{beam: Atom.to_string(node()), interpreter: self()})
  end

  @impl GenServer
  def init({interpreter, opts, configuration, {host, port_number}}) do
    Process.monitor(interpreter)

    with {:ok, port} <- Snex.Port.open(opts),
         {:ok, socket} <-
           :gen_tcp.connect(host, port_number, [:binary, active: :once, nodelay: true]) do
      Snex.Port.send_configuration(port, configuration)
      {:ok, %{port: port, socket: socket, interpreter: interpreter}}
    else
      {:exit_status, status} -> {:stop, {:exit_status, status}}
      {:error, reason} -> {:stop, reason}
    end
  end

  @impl GenServer
  def handle_call(:port, _from, state), do: {:reply, state.port, state}

  @impl GenServer
  def handle_info({port, {:data, data}}, %{port: port} = state) do
    case :gen_tcp.send(state.socket, data) do
      :ok -> {:noreply, state}
      {:error, _} -> {:stop, :normal, state}
    end
  end

  def handle_info({:tcp, socket, data}, %{socket: socket} = state) do
    # Blocks while the pipe is full, and then nothing more is read: that is the back-pressure.
    Port.command(state.port, data)
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

  # The port is closed with this process, and Python takes that for its end.
  def handle_info({:DOWN, _, _, _, _}, state), do: {:stop, :normal, state}
  def handle_info(_other, state), do: {:noreply, state}
end
