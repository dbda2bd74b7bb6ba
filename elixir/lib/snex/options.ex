defmodule Snex.Options do
  @moduledoc false
  # Options of an interpreter on their way through a supervisor, which shows the arguments of its
  # children in what it logs; and what may be shown of them. Environments, variables and scripts hold
  # passwords, cookies and keys.

  @enforce_keys [:opts]
  defstruct [:opts]

  @type t :: %__MODULE__{opts: keyword()}

  @shown [
    :python,
    :cd,
    :init_script_timeout,
    :sync_start?,
    :label,
    :encoding_opts,
    :port_opts,
    :node,
    :register_as,
    :shared,
    :eager_polyfill?,
    :name,
    :size,
    :max_queue,
    :queue_timeout,
    :concurrency,
    :max_restarts,
    :max_seconds,
    :restart_after,
    :cluster?
    | Snex.Limits.options()
  ]

  @doc "The options without the values that are not for everybody."
  @spec hide(term()) :: term()
  def hide(opts) when is_list(opts), do: Enum.map(opts, &hide_one/1)
  def hide(_other), do: :hidden

  defp hide_one({name, value}) when name in @shown, do: {name, value}
  defp hide_one({name, _value}), do: {name, :hidden}
  defp hide_one(_other), do: :hidden

  @doc "A message to an interpreter without what Python prints, and what is asked of it."
  @spec hide_message(term()) :: term()
  def hide_message({port, {:data, _}}) when is_port(port), do: {port, {:data, :hidden}}
  def hide_message(message), do: message

  defimpl Inspect do
    import Inspect.Algebra

    def inspect(%{opts: opts}, inspect_opts),
      do: concat(["#Snex.Options<", to_doc(Snex.Options.hide(opts), inspect_opts), ">"])
  end
end
