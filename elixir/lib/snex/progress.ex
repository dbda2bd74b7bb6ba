defmodule Snex.Progress do
  @moduledoc """
  How far Python code has come, while it runs.

      Snex.pyeval(
        interpreter,
        "return [train(batch) for batch in snex.progress(batches)]",
        %{"batches" => batches},
        progress: Snex.Progress.bar("training"),
        timeout: :infinity
      )

  `snex.progress` tells how many items of a loop are done, at its begin and its end, and at most ten times a second
  between. The option `:progress` of `Snex.pyeval/4` says who is told:

    * a pid or a registered name gets messages `{:snex_progress, ref, done, total, seconds}`; `ref` is the same for
      one loop, and `total` is `nil` where Python does not know it
    * a function is called with a `t:t/0`, one after another, in a process of its own

  Where it is not given, `snex.progress` tells nobody, unless Python code says whom: `snex.progress(items, to=pid)`.
  """

  @typedoc "How far one loop has come."
  @type t :: %{
          ref: reference(),
          done: non_neg_integer(),
          total: non_neg_integer() | nil,
          seconds: float()
        }

  @width 30

  @doc """
  A function for `:progress` that draws a bar on the terminal.

  Where the output is no terminal, one line is written at the end of each loop.
  """
  @spec bar(String.t(), Keyword.t()) :: (t() -> :ok)
  def bar(title \\ "", opts \\ []) do
    device = opts[:device] || :stdio
    live? = Keyword.get_lazy(opts, :live, fn -> terminal?(device) end)

    fn %{done: done, total: total} = progress ->
      over? = done == total

      cond do
        live? ->
          IO.write(device, ["\r", line(title, progress), "\e[K", if(over?, do: "\n", else: "")])

        over? ->
          IO.puts(device, line(title, progress))

        true ->
          :ok
      end
    end
  end

  defp terminal?(:stdio) do
    match?({:ok, _}, :io.columns()) and IO.ANSI.enabled?()
  end

  defp terminal?(_device), do: false

  defp line(title, %{done: done, total: total, seconds: seconds}) do
    [
      if(title == "", do: "", else: [title, " "]),
      share(done, total),
      " #{done}",
      if(total, do: "/#{total}", else: ""),
      " #{:erlang.float_to_binary(seconds * 1.0, decimals: 1)} s"
    ]
  end

  defp share(_done, nil), do: ""
  defp share(_done, 0), do: share(1, 1)

  defp share(done, total) do
    done = min(done, total)
    full = div(done * @width, total)
    rest = String.duplicate(" ", @width - full)
    ["[", String.duplicate("#", full), rest, "] #{div(100 * done, total)}%"]
  end

  # --- for the library ---------------------------------------------------------------------------

  @doc false
  # Do something that is told whom to tell: a pid or a name; and be done when all has been told.
  @spec told(nil | pid() | atom() | {atom(), node()} | (t() -> term()), (keyword() -> result)) ::
          result
        when result: term()
  def told(nil, work), do: work.([])

  def told(to, work) when is_pid(to) or is_atom(to) or (is_tuple(to) and tuple_size(to) == 2),
    do: work.(progress: whole(to))

  def told(fun, work) when is_function(fun, 1) do
    {pid, monitor} = spawn_monitor(fn -> tell(fun) end)

    try do
      work.(progress: pid)
    after
      send(pid, :done)
      receive do: ({:DOWN, ^monitor, _, _, _} -> :ok)
    end
  end

  def told(other, _work) do
    raise ArgumentError,
          ":progress takes a pid, a name or a function of one argument, got: #{inspect(other)}"
  end

  defp whole(name) when is_atom(name), do: {name, node()}
  defp whole(to), do: to

  defp tell(fun) do
    receive do
      {:snex_progress, ref, done, total, seconds} ->
        fun.(%{ref: ref, done: done, total: total, seconds: seconds})
        tell(fun)

      :done ->
        :ok
    end
  end
end
