defmodule Snex.Env do
  @moduledoc """
  A reference to a Python environment: the variables that code runs with.

  `Snex.make_env/3` makes one. When the last reference to it on the node that made it is garbage
  collected, the environment is freed; when a copy of the value lives on another node only, that
  does not keep it (see `disable_gc/1`). Where the project was compiled without a C compiler,
  environments are freed when the process that made them ends instead.

  The environment is a process of the Python node, and `id` is its pid: it can be monitored, and
  the monitor fires when it is freed.
  """

  alias Snex.Nif

  @typedoc "What identifies an environment: its process on the Python node."
  @type id :: pid()

  @typedoc "`id` is the environment's pid; all other fields are private."
  @type t :: %__MODULE__{
          id: id(),
          interpreter: pid(),
          ref: reference() | nil,
          pool: pid() | nil
        }

  @enforce_keys [:id, :interpreter]
  defstruct [:id, :interpreter, :ref, :pool]

  @doc """
  The interpreter that the environment belongs to; of one of a pool the member that it is on.

      {:ok, env} = Snex.make_env(interpreter)
      ^interpreter = Snex.Env.interpreter(env)
  """
  @spec interpreter(t()) :: pid()
  def interpreter(%__MODULE__{interpreter: pid}), do: pid

  @doc """
  Keeps the environment until `Snex.destroy_env/1`, or until Python ends; for environments that
  are used on other nodes than the one that made them.

  Raises `ArgumentError` on another node than that one. May be called repeatedly, and with an
  environment that is gone or whose handle is: there is nothing to be kept then.
  """
  @spec disable_gc(t()) :: t()
  def disable_gc(%__MODULE__{ref: nil} = env) do
    if not Nif.loaded?(), do: keep_without_handle(env)
    env
  end

  def disable_gc(%__MODULE__{ref: ref} = env) when is_reference(ref) and node(ref) != node() do
    raise ArgumentError,
          "#{inspect(env)} was made on #{node(ref)}: only there can its garbage collection be disabled"
  end

  def disable_gc(%__MODULE__{} = env) do
    disarm(env)
    keep_without_handle(env)
    %{env | ref: nil}
  end

  defp keep_without_handle(env) do
    # Whoever ends it is told by Python; an environment that is gone already needs no keeping.
    if not Snex.Call.ended?(env.interpreter),
      do: Snex.Call.request(env.id, env.interpreter, {:handle, :none}, :infinity)

    :ok
  end

  @doc false
  # Its end, and that of all copies on this node, does nothing from now on. What is no handle (that
  # of a copy which came back when the last other one had been dropped, say) does nothing anyway.
  @spec disarm(t() | reference() | nil) :: :ok
  def disarm(%__MODULE__{ref: ref}), do: disarm(ref)

  def disarm(ref) do
    if is_reference(ref) and Nif.loaded?(), do: Nif.disarm(ref)
    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc false
  # The environment is in use up to this call, or it might be freed while a request is on its way.
  @spec used(t()) :: :ok
  def used(%__MODULE__{}), do: :ok

  @doc false
  @spec handle() :: pid()
  def handle, do: if(Nif.loaded?(), do: Snex.Collector.pid(), else: self())

  @doc false
  @spec new(pid(), pid(), pid(), pid() | nil) :: t()
  def new(id, interpreter, handle, pool) do
    ref = if Nif.loaded?(), do: Nif.make(handle, :erlang.term_to_binary(id))
    %__MODULE__{id: id, interpreter: interpreter, ref: ref, pool: pool}
  end

  defimpl Inspect do
    import Inspect.Algebra

    def inspect(env, opts), do: concat(["#Snex.Env<", to_doc(env.id, opts), ">"])
  end
end
