defmodule Snex.Limits do
  @moduledoc false
  # The options of an interpreter about how Python runs code and what it may use. They are checked here
  # and sent to Python as they are, under their names, where they are given.

  @type option ::
          {:executor, :loop | :thread}
          | {:threads, pos_integer()}
          | {:max_time, pos_integer()}
          | {:max_queue, non_neg_integer()}
          | {:queue_timeout, non_neg_integer()}
          | {:max_memory, pos_integer()}
          | {:kill_after, pos_integer()}
          | {:rlimit_as, pos_integer()}
          | {:rlimit_cpu, pos_integer()}
          | {:rlimit_nofile, pos_integer()}
          | {:cgroup, Path.t()}

  # What a timer takes.
  @longest 4_294_967_295
  # What a system call takes.
  @largest 0x7FFF_FFFF_FFFF_FFFF

  # Name, least and largest value, unit.
  @numbers [
    threads: {1, 1024, "a number of threads"},
    max_time: {1, @longest, "milliseconds"},
    max_queue: {0, 1_000_000, "a number of evaluations"},
    queue_timeout: {0, @longest, "milliseconds"},
    max_memory: {1, @largest, "bytes"},
    kill_after: {1, @longest, "milliseconds"},
    rlimit_as: {1, @largest, "bytes"},
    rlimit_cpu: {1, @largest, "seconds"},
    rlimit_nofile: {1, @largest, "a number of files"}
  ]

  @executors [:loop, :thread]

  @doc "The names of the options."
  @spec options() :: [atom()]
  def options, do: [:executor, :cgroup | Keyword.keys(@numbers)]

  @doc "What Python is to be told of them."
  @spec configuration(keyword()) :: map()
  def configuration(opts), do: opts |> Keyword.take(options()) |> Map.new()

  @doc "Check those among the options of an interpreter. ArgumentError says what each takes."
  @spec check!(keyword()) :: :ok
  def check!(opts) do
    for {name, value} <- opts, do: check_one!(name, value)

    :ok
  end

  defp check_one!(:executor, value) do
    if value not in @executors,
      do: raise(ArgumentError, ":executor is :loop or :thread, got: #{inspect(value)}")
  end

  defp check_one!(:cgroup, value) do
    if not (is_binary(value) and String.valid?(value) and Path.type(value) == :absolute) do
      raise ArgumentError,
            ":cgroup is the absolute path of a cgroup, such as \"/sys/fs/cgroup/python\", " <>
              "got: #{inspect(value)}"
    end
  end

  defp check_one!(name, value) do
    with {least, largest, unit} <- @numbers[name],
         do: check_number!(name, value, least, largest, unit)
  end

  @doc "Check a number. ArgumentError says what the option takes."
  @spec check_number!(atom(), term(), integer(), integer(), String.t()) :: :ok
  def check_number!(name, value, least, largest, unit) do
    if not (is_integer(value) and value >= least and value <= largest) do
      raise ArgumentError,
            "#{inspect(name)} takes #{unit}, #{least} to #{largest}, " <>
              "got: #{inspect(value, limit: 5, printable_limit: 50)}"
    end

    :ok
  end

  @doc "The `kill_after` of one request, nil where it has none. ArgumentError says what it takes."
  @spec check_kill_after!(term(), timeout()) :: pos_integer() | nil
  def check_kill_after!(nil, _timeout), do: nil

  def check_kill_after!(_kill_after, :infinity) do
    raise ArgumentError,
          ":kill_after counts from the end of :timeout, which is :infinity here: give a :timeout in " <>
            "milliseconds"
  end

  def check_kill_after!(kill_after, _timeout) do
    {least, largest, unit} = @numbers[:kill_after]
    check_number!(:kill_after, kill_after, least, largest, unit)
    kill_after
  end
end
