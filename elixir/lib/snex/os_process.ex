defmodule Snex.OSProcess do
  @moduledoc false
  # The process of the operating system that an interpreter has started: whether it lives, and its
  # end by force. A port does not tell of an end while somebody else holds the process's output, and
  # closing it does not end what does not read its input.

  @enforce_keys [:pid]
  # When it began, as far as that is known: the system gives numbers to others later.
  defstruct [:pid, :began]

  @type t :: %__MODULE__{pid: pos_integer(), began: String.t() | nil}

  # ms between two looks.
  @look_again 20

  # ms that the system may take to end what is killed.
  @end_of_killed 500

  # Those that have the same number on Linux and macOS, then where they differ.
  @signals %{
    1 => "SIGHUP",
    2 => "SIGINT",
    3 => "SIGQUIT",
    4 => "SIGILL",
    5 => "SIGTRAP",
    6 => "SIGABRT",
    8 => "SIGFPE",
    9 => "SIGKILL",
    11 => "SIGSEGV",
    13 => "SIGPIPE",
    14 => "SIGALRM",
    15 => "SIGTERM",
    24 => "SIGXCPU",
    25 => "SIGXFSZ"
  }
  @signals_of_linux %{7 => "SIGBUS", 10 => "SIGUSR1", 12 => "SIGUSR2", 31 => "SIGSYS"}
  @signals_of_bsd %{10 => "SIGBUS", 12 => "SIGSYS", 30 => "SIGUSR1", 31 => "SIGUSR2"}

  # Beyond that a status is no signal but what the program chose.
  @highest_signal 64

  @doc "The process behind a port, nil where it has ended."
  @spec of(port()) :: t() | nil
  def of(port) do
    case Port.info(port, :os_pid) do
      {:os_pid, pid} -> %__MODULE__{pid: pid, began: began(pid)}
      nil -> nil
    end
  end

  @doc "Whether it runs; what nobody has started does not."
  @spec alive?(t() | nil) :: boolean()
  def alive?(nil), do: false
  def alive?(%{pid: pid, began: nil}), do: signal("0", "#{pid}")
  def alive?(%{pid: pid, began: began}), do: began(pid) == began

  # The 20th field after the name, in which everything may be; the first is the state.
  defp began(pid) do
    with {:ok, stat} <- File.read("/proc/#{pid}/stat"),
         [state | fields] when state != "Z" <-
           stat |> String.split(")") |> List.last() |> String.split() do
      Enum.at(fields, 18)
    else
      _ -> nil
    end
  end

  @doc "Kill it, and its process group with it, unless it has ended; wait until it has."
  @spec kill(t() | nil) :: :ok
  def kill(process) do
    # The runtime of Erlang makes each program that it starts the leader of a group. (The number of no
    # group is below 2; -1 would be everything.)
    if alive?(process) and process.pid > 1, do: signal("KILL", "-#{process.pid}")
    wait(process, now() + @end_of_killed)
    :ok
  end

  # Every shell has the command; the program of that name is not on every system, and procps' takes
  # "-15" for "-1 -5" where no "--" comes before.
  defp signal(name, whom) do
    {_, status} =
      System.cmd("/bin/sh", ["-c", ~S(kill -s "$0" -- "$1"), name, whom], stderr_to_stdout: true)

    status == 0
  end

  @doc "Wait until it has ended; after `timeout` ms it is killed."
  @spec await_end(t() | nil, non_neg_integer()) :: :ok
  def await_end(process, timeout) do
    if wait(process, now() + timeout), do: :ok, else: kill(process)
  end

  defp wait(process, deadline) do
    cond do
      not alive?(process) ->
        true

      now() >= deadline ->
        false

      true ->
        receive do
        after
          @look_again -> wait(process, deadline)
        end
    end
  end

  @doc "Do `clean_up` in a process of its own when the calling process has ended."
  @spec guard(t() | nil, non_neg_integer()) :: pid()
  def guard(process, timeout) do
    owner = self()

    spawn(fn ->
      monitor = Process.monitor(owner)
      receive do: ({:DOWN, ^monitor, _, _, _} -> await_end(process, timeout))
    end)
  end

  @doc "The name of the signal that an exit status tells of, nil where it tells of none."
  @spec signal_name(non_neg_integer()) :: String.t() | nil
  def signal_name(status) when status > 128 and status <= 128 + @highest_signal do
    number = status - 128
    theirs = if :os.type() == {:unix, :linux}, do: @signals_of_linux, else: @signals_of_bsd
    @signals[number] || theirs[number] || "signal #{number}"
  end

  def signal_name(_status), do: nil

  defp now, do: System.monotonic_time(:millisecond)
end
