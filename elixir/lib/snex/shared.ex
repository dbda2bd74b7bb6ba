defmodule Snex.Shared do
  @moduledoc false
  # Large data between this node and a Python of the same machine: in memory that one of them makes and the
  # other maps, where a call asks for that. What travels is a handle, this struct, in place of a binary.
  #
  # A node and a Python find out at the first such call whether each can read what the other lends; where
  # it cannot (it is on another machine, in a container, another user's) bytes are sent.

  alias Snex.{Arrangement, Arrow, Call, Error, Nif, Runtimes, Tensor}
  alias Snex.Shared.Arena

  require Logger

  # Bytes from which a binary is lent.
  @threshold 256 * 1024

  # ms in which a Python is to tell whether it can read here.
  @probe_timeout 1_000

  # As snex_runtime/regions.py has it.
  @header 4096
  @magic "snexshm1"

  @derive {Inspect, only: [:size]}
  @enforce_keys [:os_pid, :fd, :id, :size, :owner]
  defstruct [:os_pid, :fd, :id, :size, :owner]

  @typedoc """
  What a process of this machine has lent: its number, the descriptor there, the 16 bytes that are its name,
  its size, and who is to be told that it is not used any more.
  """
  @type t :: %__MODULE__{
          os_pid: pos_integer(),
          fd: non_neg_integer(),
          id: binary(),
          size: non_neg_integer(),
          owner: pid()
        }

  @typedoc "A request that is made with these variables, and these options beside its own."
  @type request :: (vars :: map(), keyword() -> {Call.fate(), answer :: term()})

  @doc "The option of a call, nil where it has none. ArgumentError says what it takes."
  @spec check!(keyword()) :: boolean() | nil
  def check!(opts) do
    case opts[:shared] do
      shared when is_boolean(shared) or is_nil(shared) ->
        shared

      other ->
        raise ArgumentError, ":shared takes true or false, got: #{inspect(other, limit: 5)}"
    end
  end

  @doc "Make a request whose large data is shared, as far as it can be."
  @spec call(Runtimes.target(), pid(), map(), keyword(), timeout(), request()) ::
          {Call.fate(), term()}
  def call(target, interpreter, vars, encoding, timeout, request) do
    {to?, from?} = pair(target, interpreter, timeout)
    to = if to?, do: node_of(target)
    # Python does not look into such tensors, and would send the handle back.
    tensors? = encoding[:tensor_as] != :term
    {vars, ids} = if to, do: lend(vars, to, tensors?), else: {vars, []}

    try do
      request.(vars, if(from?, do: [shared: true], else: []))
    else
      {fate, {:ok, value}} when from? -> {fate, take(value)}
      answer -> answer
    after
      if ids != [], do: Arena.done(ids)
    end
  end

  # --- whether it is possible -----------------------------------------------------------------------

  defp pair(target, interpreter, timeout) do
    case Arena.pair(node_of(target)) do
      nil -> probe(target, interpreter, min(timeout, @probe_timeout))
      pair -> pair
    end
  end

  defp node_of({_name, node}), do: node
  defp node_of(pid), do: node(pid)

  defp probe(target, interpreter, timeout) do
    node = node_of(target)

    {ours, ids} =
      case Arena.lend("", node) do
        {:ok, handle} -> {handle, [handle.id]}
        :error -> {nil, []}
      end

    answer = Call.request(target, interpreter, {:shared, ours}, timeout)
    if ids != [], do: Arena.done(ids)

    case answer do
      {:ok, {read?, theirs}} -> remember(node, {read? == true, read?(theirs)})
      # A Python of another version.
      {:error, %Error{code: :bad_request}} -> remember(node, {false, false})
      _none_in_time -> {false, false}
    end
  end

  defp remember(node, {to?, from?} = pair) do
    Arena.put_pair(node, pair)

    Logger.debug(fn ->
      "snex: memory is shared with #{node}: #{if to?, do: "to", else: "not to"} it, " <>
        "#{if from?, do: "from", else: "not from"} it"
    end)

    pair
  end

  defp read?(%__MODULE__{} = handle), do: match?({:ok, ""}, open(handle))
  defp read?(_none), do: false

  # --- to Python ------------------------------------------------------------------------------------

  # The variables with handles in place of what is large, and what has been lent.
  defp lend(vars, node, tensors?) do
    if large?(vars), do: lend_in(vars, [], {node, tensors?}), else: {vars, []}
  end

  defp large?(binary) when is_binary(binary), do: byte_size(binary) >= @threshold
  defp large?(%Tensor{data: data}), do: large?(data)
  defp large?(%Arrow{data: data}), do: large?(data)
  defp large?(%Arrangement.Columns{columns: columns}), do: large?(columns)
  defp large?(%{__struct__: _}), do: false
  defp large?(map) when is_map(map), do: map |> :maps.values() |> large?()
  defp large?([head | tail]), do: large?(head) or large?(tail)
  defp large?(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> large?()
  defp large?(_other), do: false

  defp lend_in(binary, ids, {node, _}) when is_binary(binary) do
    with true <- large?(binary),
         {:ok, handle} <- Arena.lend(binary, node),
         do: {handle, [handle.id | ids]},
         else: (_ -> {binary, ids})
  end

  defp lend_in(%Tensor{} = tensor, ids, {_, false}), do: {tensor, ids}

  defp lend_in(%type{data: data} = struct, ids, where)
       when type in [Tensor, Arrow] and is_binary(data) do
    {data, ids} = lend_in(data, ids, where)
    {%{struct | data: data}, ids}
  end

  defp lend_in(%Arrangement.Columns{columns: columns} = struct, ids, where) do
    {columns, ids} = lend_in(columns, ids, where)
    {%{struct | columns: columns}, ids}
  end

  defp lend_in(%{__struct__: _} = struct, ids, _where), do: {struct, ids}

  defp lend_in(map, ids, where) when is_map(map) do
    {pairs, ids} =
      Enum.map_reduce(:maps.to_list(map), ids, fn {key, value}, ids ->
        {value, ids} = lend_in(value, ids, where)
        {{key, value}, ids}
      end)

    {:maps.from_list(pairs), ids}
  end

  defp lend_in(list, ids, where) when is_list(list) do
    if List.improper?(list),
      do: {list, ids},
      else: Enum.map_reduce(list, ids, &lend_in(&1, &2, where))
  end

  defp lend_in(tuple, ids, where) when is_tuple(tuple) do
    {elements, ids} = tuple |> Tuple.to_list() |> lend_in(ids, where)
    {List.to_tuple(elements), ids}
  end

  defp lend_in(other, ids, _where), do: {other, ids}

  # --- from Python ----------------------------------------------------------------------------------

  # The value with what handles in it stand for.
  defp take(value) do
    {:ok, if(lent?(value), do: take_in(value), else: value)}
  catch
    {:snex_shared, %__MODULE__{size: size}, why} ->
      reason = "#{inspect(size)} bytes of shared memory of Python cannot be read: #{inspect(why)}"
      {:error, %Error{code: :internal_error, reason: reason}}
  end

  defp lent?(%__MODULE__{}), do: true
  defp lent?(map) when is_map(map), do: map |> :maps.values() |> lent?()
  defp lent?([head | tail]), do: lent?(head) or lent?(tail)
  defp lent?(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> lent?()
  defp lent?(_other), do: false

  defp take_in(%__MODULE__{} = handle) do
    case open(handle) do
      {:ok, data} -> data
      {:error, why} -> throw({:snex_shared, handle, why})
    end
  end

  defp take_in(map) when is_map(map), do: :maps.map(fn _key, value -> take_in(value) end, map)
  defp take_in([head | tail]), do: [take_in(head) | take_in(tail)]

  defp take_in(tuple) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> Enum.map(&take_in/1) |> List.to_tuple()

  defp take_in(other), do: other

  @doc "The data that a handle stands for."
  @spec open(t()) :: {:ok, binary()} | {:error, term()}
  def open(%__MODULE__{os_pid: os_pid, fd: fd, id: id, size: size, owner: owner} = handle)
      when is_integer(os_pid) and os_pid in 1..0x7FFFFFFF and is_integer(fd) and
             fd in 0..0x7FFFFFFF and is_binary(id) and byte_size(id) == 16 and is_integer(size) and
             size in 0..0xFFFFFFFFFFFF and is_pid(owner) do
    if Nif.loaded?(),
      do: Nif.view_open(os_pid, fd, id, size, Arena.pid(), :erlang.term_to_binary({owner, id})),
      else: read(handle)
  end

  def open(_handle), do: {:error, :no_handle}

  # A copy, so that the other side has its own back at once. Nothing but memory of that kind is opened.
  defp read(%__MODULE__{os_pid: os_pid, fd: fd, id: id, size: size, owner: owner}) do
    path = "/proc/#{os_pid}/fd/#{fd}"

    with {:ok, "/memfd:snex" <> _} <- File.read_link(path),
         {:ok, data} <- File.open(path, [:read, :raw, :binary], &read_from(&1, id, size)),
         {:ok, _} <- data do
      Arena.told_dropped(owner, id)
      data
    else
      {:ok, _other_file} -> {:error, :no_region}
      {:error, _} = error -> error
    end
  end

  defp read_from(file, id, size) do
    with {:ok, <<@magic, ^id::binary-size(16), ^size::little-64>>} <- :file.pread(file, 0, 32),
         {:ok, data} when byte_size(data) == size <- read_data(file, size) do
      {:ok, data}
    else
      {:error, _} = error -> error
      _other -> {:error, :stale}
    end
  end

  defp read_data(_file, 0), do: {:ok, ""}
  defp read_data(file, size), do: :file.pread(file, @header, size)
end
