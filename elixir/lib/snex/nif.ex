defmodule Snex.Nif do
  @moduledoc false
  # Handles of environments, and memory shared with Python, made in C where the project was compiled with a C compiler.

  require Logger

  @on_load :load

  # In a release it runs while the BEAM boots: there are neither files nor a logger yet.
  @doc false
  def load do
    path = :filename.join(:code.priv_dir(:snex), ~c"snex_nif")
    loaded = :erlang.load_nif(path, 0)
    :persistent_term.put({__MODULE__, :load}, {path, loaded})
    :persistent_term.put(__MODULE__, loaded == :ok)
    # Without it the client works too; see `loaded?/0`.
    :ok
  end

  @doc "Tell of a library that is there and does not fit, as one that came to this machine with a build."
  @spec warn_if_refused() :: :ok
  def warn_if_refused do
    with {path, {:error, {_, text}}} <- :persistent_term.get({__MODULE__, :load}, nil),
         true <- File.exists?("#{path}.so") do
      Logger.warning(
        "snex: environments are freed when the process that made them ends, and not when they are " <>
          "garbage collected, because #{path} cannot be loaded: #{text}. If it was built for " <>
          "another Erlang/OTP: mix deps.compile snex --force"
      )
    end

    :ok
  end

  @doc "Whether handles can be made."
  @spec loaded?() :: boolean()
  def loaded?, do: :persistent_term.get(__MODULE__, false)

  @doc "A handle; when it is garbage collected, `collector` gets `{:snex_env_dropped, data}`."
  @spec make(pid(), binary()) :: reference()
  def make(_collector, _data), do: :erlang.nif_error(:nif_not_loaded)

  @doc "Let a handle be collected without a word. ArgumentError for what is no handle of this node."
  @spec disarm(reference()) :: :ok
  def disarm(_handle), do: :erlang.nif_error(:nif_not_loaded)

  @doc """
  A region of shared memory with room for `capacity` bytes, and its descriptor. It is gone with the last
  reference to it.
  """
  @spec region_new(pos_integer()) :: {:ok, reference(), non_neg_integer()} | {:error, atom()}
  def region_new(_capacity), do: :erlang.nif_error(:nif_not_loaded)

  @doc "Put data into a region, as the lending of these 16 bytes."
  @spec region_write(reference(), <<_::128>>, binary()) :: :ok | {:error, atom()}
  def region_write(_region, _id, _data), do: :erlang.nif_error(:nif_not_loaded)

  @doc "Give a region up now."
  @spec region_close(reference()) :: :ok
  def region_close(_region), do: :erlang.nif_error(:nif_not_loaded)

  @doc """
  What a process of this machine has lent, as a binary; when that is garbage collected, `collector` gets
  `{:snex_view_dropped, data}`.
  """
  @spec view_open(
          pos_integer(),
          non_neg_integer(),
          <<_::128>>,
          non_neg_integer(),
          pid(),
          binary()
        ) ::
          {:ok, binary()} | {:error, atom()}
  def view_open(_os_pid, _fd, _id, _size, _collector, _data),
    do: :erlang.nif_error(:nif_not_loaded)
end
