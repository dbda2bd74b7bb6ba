defmodule Snex.Object do
  @moduledoc """
  An object that stays in Python while Elixir holds it.

      {:ok, counter} =
        Snex.pyeval(interpreter, "import collections; return collections.Counter(words)",
          %{"words" => ~w(a b a)},
          keep: true
        )

      {:ok, [{"a", 2}]} = Snex.Object.call(counter, "most_common", [1])
      {:ok, 3} = Snex.pyeval(interpreter, "return c.total()", %{"c" => counter})

  `keep: true` has `Snex.pyeval/4` and the functions here give one of these in place of the value. As a variable or
  an argument, whatever it is nested in, it is the object again; in code that is evaluated with it as the target it is `self`:

      {:ok, 2} = Snex.pyeval(counter, "return len(self)")

  Where the object can be iterated over it is an `Enumerable`, of what `Snex.stream/4` gives.

  When the last reference to it on the node that made it is garbage collected, the object is let go; as with `Snex.Env`,
  where the project was compiled without a C compiler that is when the process that made it ends. It is a process of
  the Python node, and `id` is its pid: it can be monitored, linked to, and stopped.
  """

  alias Snex.{Call, Env, Error, Nif}

  @typedoc "`id` is the object's pid; all other fields are private."
  @type t :: %__MODULE__{
          id: pid(),
          interpreter: pid(),
          ref: reference() | nil,
          shown: String.t()
        }

  @enforce_keys [:id, :interpreter]
  defstruct [:id, :interpreter, :ref, shown: ""]

  @typedoc """
  Options of the functions here: `:timeout`, `:kill_after`, `:executor`, `:keep` and `:traceparent`, as of
  `t:Snex.pyeval_opt/0`.
  """
  @type opts :: keyword()

  @doc """
  Calls a method of the object, and returns what that returns; a coroutine is awaited.

  Besides the other options there is `:kwargs`, a map or a keyword list of arguments by name.

      {:ok, "1-2"} = Snex.Object.call(separator, "join", [["1", "2"]])
  """
  @spec call(t(), String.t() | atom(), [term()], opts()) :: {:ok, term()} | {:error, Error.t()}
  def call(%__MODULE__{} = object, method, args \\ [], opts \\ [])
      when is_list(args) and is_list(opts) do
    {kwargs, opts} = Keyword.pop(opts, :kwargs, %{})
    kwargs = Map.new(kwargs, fn {name, value} -> {to_string(name), value} end)
    encoded = Snex.Serde.encode(args)
    encoded_kwargs = Snex.Serde.encode_vars!(kwargs)
    answer = Snex.ask(object, &{:call, name!(method), encoded, encoded_kwargs, &1}, opts)
    used([args | kwargs])
    answer
  end

  @doc """
  An attribute of the object.

      {:ok, {100, 3}} = Snex.Object.get(frame, "shape")
  """
  @spec get(t(), String.t() | atom(), opts()) :: {:ok, term()} | {:error, Error.t()}
  def get(%__MODULE__{} = object, attribute, opts \\ []) when is_list(opts),
    do: Snex.ask(object, &{:get, name!(attribute), &1}, opts)

  @doc "The object itself, converted as what `Snex.pyeval/4` returns is."
  @spec value(t(), timeout: timeout()) :: {:ok, term()} | {:error, Error.t()}
  def value(%__MODULE__{} = object, opts \\ []) when is_list(opts),
    do: Snex.ask(object, fn _options -> :value end, Keyword.take(opts, [:timeout]))

  @doc "Lets the object go, from any node. May be called repeatedly."
  @spec free(t()) :: :ok
  def free(%__MODULE__{} = object) do
    Env.disarm(object.ref)
    Call.destroy(object.id, [])
  end

  defp name!(name) when is_binary(name) or (is_atom(name) and name not in [nil, true, false]),
    do: to_string(name)

  defp name!(other) do
    raise ArgumentError,
          "the name of a method or attribute is a string or an atom, got: #{inspect(other)}"
  end

  @doc false
  # An object, and what holds some, is in use up to this call: it might be let go while a request is
  # on its way.
  @spec used(term()) :: :ok
  def used(_term), do: :ok

  @doc false
  @spec new(pid(), pid(), pid(), String.t()) :: t()
  def new(id, interpreter, handle, shown) do
    ref = if Nif.loaded?(), do: Nif.make(handle, :erlang.term_to_binary(id))
    %__MODULE__{id: id, interpreter: interpreter, ref: ref, shown: shown}
  end

  defimpl Inspect do
    def inspect(object, _opts), do: "#Snex.Object<#{object.shown}>"
  end

  defimpl Enumerable do
    def reduce(object, acc, fun) do
      object.interpreter
      |> Snex.stream("return it", %{"it" => object})
      |> Enumerable.reduce(acc, fun)
    end

    def count(_object), do: {:error, __MODULE__}
    def member?(_object, _item), do: {:error, __MODULE__}
    def slice(_object), do: {:error, __MODULE__}
  end
end

defimpl Snex.Serde.Encoder, for: Snex.Object do
  def encode(object), do: %{__struct__: Snex.Object, id: object.id}
end
