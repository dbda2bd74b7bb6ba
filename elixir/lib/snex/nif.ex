defmodule Snex.Nif do
  @moduledoc false
  # Handles of environments, made in C where the project was compiled with a C compiler.

  @on_load :load

  @doc false
  def load do
    path = :filename.join(:code.priv_dir(:snex), ~c"snex_nif")
    :persistent_term.put(__MODULE__, :erlang.load_nif(path, 0) == :ok)
    # Without it the client works too; see `loaded?/0`.
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
end
