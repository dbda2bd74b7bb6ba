defmodule Snex.Runtimes do
  @moduledoc false
  # Where the Python of each interpreter of this node takes its requests, so that callers need not
  # ask the interpreter; why interpreters ended; and the start of distribution, which is one for all.
  use GenServer

  @table __MODULE__

  # For how long it is known why an interpreter has ended. Callers ask within milliseconds.
  @remembered 30_000

  # ms within which it is known.
  @obituary 1_000

  @type target :: pid() | {atom(), node()}

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "Make known that the calling process is an interpreter whose Python is at `target`."
  @spec register(target()) :: :ok
  def register(target), do: GenServer.call(__MODULE__, {:register, self(), target}, :infinity)

  @doc "The pid of an interpreter and where its Python takes requests, or why there is none."
  @spec find(GenServer.server()) :: {:ok, pid(), target()} | {:error, term()}
  def find(interpreter) do
    case whereis(interpreter) do
      nil ->
        {:error, :noproc}

      pid when is_pid(pid) ->
        case :ets.lookup(@table, pid) do
          [{_, {:at, target}}] -> {:ok, pid, target}
          [{_, {:ended, _reason}}] -> {:error, :noproc}
          [] -> ask(pid)
        end

      remote ->
        ask(remote)
    end
  end

  defp whereis(pid) when is_pid(pid), do: pid
  defp whereis(server), do: GenServer.whereis(server)

  defp ask(interpreter) do
    GenServer.call(interpreter, :snex_runtime, :infinity)
  catch
    :exit, {reason, {GenServer, :call, _}} -> {:error, reason}
  end

  @doc "Whether the interpreter `pid` is known to be attached to a node that someone else runs."
  @spec attached?(pid()) :: boolean()
  def attached?(pid), do: match?([{_, {:at, {_, _}}}], :ets.lookup(@table, pid))

  @doc "Why the interpreter `pid` has ended, as far as is known here."
  @spec why_ended(pid()) :: {:ok, term()} | :error
  def why_ended(pid), do: why_ended(pid, @obituary)

  # A process that is ending is no process any more to those who ask, and only then are those told
  # who watched it.
  defp why_ended(pid, left) do
    case :ets.lookup(@table, pid) do
      [{_, {:ended, reason}}] ->
        {:ok, reason}

      [{_, {:at, _}}] when left > 0 ->
        receive do
        after
          10 -> why_ended(pid, left - 10)
        end

      _ ->
        :error
    end
  end

  @doc "True the first time it is called with `key`."
  @spec first?(term()) :: boolean()
  def first?(key), do: :ets.insert_new(@table, {{:seen, key}})

  @doc "Start distribution, unless it runs; `listening?` says whether others may connect."
  @spec start_distribution(boolean()) :: :ok | {:error, term()}
  def start_distribution(listening?) do
    if Node.alive?(),
      do: :ok,
      else: GenServer.call(__MODULE__, {:start_distribution, listening?}, :infinity)
  end

  @impl GenServer
  def init(nil) do
    :ets.new(@table, [:named_table, :public, read_concurrency: true])
    {:ok, nil}
  end

  @impl GenServer
  def handle_call({:register, pid, target}, _from, state) do
    Process.monitor(pid)
    :ets.insert(@table, {pid, {:at, target}})
    {:reply, :ok, state}
  end

  def handle_call({:start_distribution, listening?}, _from, state) do
    answer =
      cond do
        Node.alive?() -> :ok
        listening? -> Snex.Distribution.start_listening()
        true -> Snex.Distribution.start()
      end

    {:reply, answer, state}
  end

  @impl GenServer
  def handle_info({:DOWN, _, :process, pid, reason}, state) do
    :ets.insert(@table, {pid, {:ended, reason}})
    Process.send_after(self(), {:forget, pid}, @remembered)
    {:noreply, state}
  end

  def handle_info({:forget, pid}, state) do
    :ets.delete(@table, pid)
    {:noreply, state}
  end

  def handle_info(_other, state), do: {:noreply, state}
end
