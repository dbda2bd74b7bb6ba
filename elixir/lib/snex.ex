defmodule Snex do
  @moduledoc """
  Easy and efficient Python interop for Elixir.

      {:ok, interpreter} = Snex.Interpreter.start_link()
      {:ok, 42} = Snex.pyeval(interpreter, "return 6 * x", %{"x" => 7})

  An interpreter (`Snex.Interpreter`) is a Python process that joins this node's cluster as a hidden
  node. Requests go from the calling process straight to it. Wherever an interpreter is taken, so is a
  pool of them (`Snex.Pool`).
  """

  alias Snex.{
    Call,
    Code,
    Env,
    Error,
    Interpreter,
    Limits,
    Object,
    Progress,
    Runtimes,
    Serde,
    Shared,
    Source,
    Streams,
    Telemetry
  }

  alias Snex.Pool.Checkout

  @default_timeout 5_000

  # What `receive` waits for at most, and so `GenServer.call/3`.
  @longest_timeout 4_294_967_295

  @make_env_opts [:from, :encoding_opts, :executor, :shared]
  @pyeval_opts [
    :timeout,
    :kill_after,
    :encoding_opts,
    :executor,
    :shared,
    :returning,
    :traceparent,
    :keep
  ]

  @typedoc "Python code: a string, or code that knows its place (see `Snex.Sigils`)."
  @type code :: String.t() | Code.t()

  @typedoc "Variables by name; their values are converted as the README's table says."
  @type additional_vars :: %{optional(String.t()) => term()}

  @typedoc "See `t:additional_vars/0`."
  @type vars :: additional_vars()

  @typedoc """
  An environment to copy from: all of it, or some of its variables.

  `:only` and `:except` exclude each other; an empty list restricts nothing.
  """
  @type from_env :: Env.t() | {Env.t(), only: [String.t()], except: [String.t()]}

  @typedoc """
  What code runs in: an environment, or a throw-away copy of an interpreter's; or the same with an object as
  `self`.
  """
  @type env_or_interpreter :: Env.t() | Interpreter.server() | Object.t()

  @typedoc """
  Options of `make_env/3`:

    * `:from` - an environment, or a list of them, to copy variables from; later ones win
    * `:encoding_opts` - how the given variables are converted, over those of the interpreter
    * `:executor` - where code runs there, unless `pyeval/4` says otherwise: on Python's event `:loop`,
      or in a `:thread`, one after another; by default as the interpreter has it
    * `:shared` - see `t:pyeval_opt/0`
  """
  @type make_env_opt ::
          {:from, from_env() | [from_env()]}
          | {:encoding_opts, Serde.encoding_opts()}
          | {:executor, executor()}
          | {:shared, boolean()}

  @typedoc """
  Where Python code runs: on the event loop, where it has all others wait until it awaits or ends,
  or in a thread.
  """
  @type executor :: :loop | :thread

  @typedoc "See `t:make_env_opt/0`."
  @type make_env_opts :: [make_env_opt()]

  @typedoc """
  Options of `pyeval/4`:

    * `:timeout` - milliseconds to wait (default #{@default_timeout}), or `:infinity`. When the time
      is over the Python work is cancelled; code that blocks is interrupted
    * `:kill_after` - milliseconds after the end of `:timeout`, in which code that cannot be
      interrupted must have ended; else Python is killed, and the error is `:killed`. The call takes
      that much longer then. Default: that of the interpreter
    * `:encoding_opts` - how the given variables are converted, over those of the interpreter
    * `:executor` - where the code runs, by default as the environment or the interpreter has it
    * `:traceparent` - the trace that the call belongs to, as the header of that name has it:
      `snex.traceparent()` in Python. Default: that of OpenTelemetry, where it is
    * `:progress` - who is told how far loops over `snex.progress` have come: see `Snex.Progress`
    * `:keep` - whether the value stays in Python, and the result is a `Snex.Object` (default `false`)
    * `:shared` - true has binaries, tensors and tables of 256 KiB and more pass through memory that both
      sides map, where Python is on the same machine and runs for the same user, on Linux; elsewhere they are
      sent, as they are without it. Default: that of the interpreter
    * `:returning` - deprecated: Python expressions to return, say `return` in the code instead
  """
  @type pyeval_opt ::
          {:timeout, timeout()}
          | {:kill_after, pos_integer()}
          | {:encoding_opts, Serde.encoding_opts()}
          | {:executor, executor()}
          | {:traceparent, String.t()}
          | {:keep, boolean()}
          | {:progress, pid() | atom() | {atom(), node()} | (Progress.t() -> term())}
          | {:shared, boolean()}
          | {:returning, code() | [code()]}

  @typedoc "See `t:pyeval_opt/0`."
  @type pyeval_opts :: [pyeval_opt()]

  # --- environments -------------------------------------------------------------------------------

  @doc """
  Makes an environment. The only argument is the interpreter, or options with `:from`.

  See `make_env/3`.
  """
  @spec make_env(Interpreter.server() | make_env_opts()) :: {:ok, Env.t()} | {:error, Error.t()}
  def make_env(opts) when is_list(opts), do: make_env(%{}, opts)
  def make_env(interpreter), do: make_env(interpreter, %{}, [])

  @doc """
  Makes an environment, from an interpreter and variables or options, or from variables and options
  with `:from`.

  See `make_env/3`.
  """
  @spec make_env(Interpreter.server() | vars(), vars() | make_env_opts()) ::
          {:ok, Env.t()} | {:error, Error.t()}
  def make_env(vars, opts) when is_map(vars) and is_list(opts) do
    check_keys!(opts, @make_env_opts)

    case sources(opts[:from]) do
      [{env, _} | _] -> make_env(env.interpreter, vars, opts)
      [] -> raise ArgumentError, "make_env takes an interpreter, or :from an environment of one"
    end
  end

  def make_env(interpreter, vars) when is_map(vars), do: make_env(interpreter, vars, [])
  def make_env(interpreter, opts) when is_list(opts), do: make_env(interpreter, %{}, opts)

  @doc """
  Makes an environment with a copy of the variables that the init script made, then those of
  `:from`, then `vars`.

      {:ok, env} = Snex.make_env(interpreter, %{"hello" => 42.0}, from: {old, only: ["world"]})

  A name of `:only` that the environment lacks becomes `nil`; an empty `:only` or `:except` restricts
  nothing. Raises `ArgumentError` for unknown options, names that are not strings, names in both
  `:only` and `:except`, and environments of other interpreters.

  A pool makes it on the member that has the fewest environments, of these on the one that has least
  to do; and where `:from` is given on the member that this environment is on.
  """
  @spec make_env(Interpreter.server(), vars(), make_env_opts()) ::
          {:ok, Env.t()} | {:error, Error.t()}
  def make_env(interpreter, vars, opts) when is_map(vars) and is_list(opts) do
    check_keys!(opts, @make_env_opts)
    sources = sources(opts[:from])
    encoded = Serde.encode_vars!(vars)
    encoding = Serde.check_options!(opts[:encoding_opts] || [])
    executor = executor!(opts)
    shared = Shared.check!(opts)

    make = &make_env(&1, &2, {encoded, shared}, sources, encoding, executor)

    made =
      case find_for_env(interpreter, sources) do
        {:ok, pid, target} -> Checkout.visit(pid, fn -> make.(pid, target) end)
        {:pool, pool} -> Checkout.lodge(pool, fn pid, target, _left -> make.(pid, target) end)
        {:error, reason} -> {:error, Call.failed(reason)}
      end

    Object.used(vars)
    made
  end

  # What is copied from is on one member of a pool, and so will the copy be.
  defp find_for_env(interpreter, [{env, _} | _]) do
    case find(interpreter) do
      {:pool, pool} ->
        if Checkout.of_pool?(env, pool),
          do: Runtimes.find(env.interpreter),
          else: raise(ArgumentError, foreign(env, interpreter))

      found ->
        found
    end
  end

  defp find_for_env(interpreter, []), do: find(interpreter)

  defp make_env(interpreter, target, {vars, shared}, sources, encoding, executor) do
    check_owner!(sources, interpreter)
    from = Enum.map(sources, fn {env, which} -> {env.id, which} end)
    handle = Env.handle()
    options = [from: from, handle: handle, encoding_opts: encoding] ++ executor

    request = fn vars, _more ->
      Call.attempt(target, interpreter, {:make_env, vars, options}, :infinity)
    end

    {fate, answer} =
      if shares?(shared, interpreter),
        do: Shared.call(target, interpreter, vars, encoding, :infinity, request),
        else: request.(vars, [])

    Enum.each(sources, fn {env, _} -> Env.used(env) end)

    case answer do
      {:ok, env} -> {fate, {:ok, Env.new(env, interpreter, handle, Checkout.lodged(interpreter))}}
      {:error, _} = error -> {fate, error}
    end
  end

  defp sources(nil), do: []
  defp sources(list) when is_list(list), do: Enum.map(list, &copied/1)
  defp sources(one), do: [copied(one)]

  defp copied(%Env{} = env), do: {env, []}

  defp copied({%Env{} = env, which}) when is_list(which) do
    check_keys!(which, [:only, :except])

    case for(name <- [:only, :except], do: {name, names!(name, which[name])}) do
      [only: [], except: []] -> {env, []}
      [only: only, except: []] -> {env, only: only}
      [only: [], except: except] -> {env, except: except}
      _ -> raise ArgumentError, ":from takes :only or :except of an environment, not both"
    end
  end

  defp copied(other) do
    raise ArgumentError,
          ":from takes environments, {env, only: names} or {env, except: names}, " <>
            "got: #{inspect(other)}"
  end

  defp names!(_option, nil), do: []

  defp names!(option, names) do
    if not (is_list(names) and Enum.all?(names, &(is_binary(&1) or is_atom(&1)))) do
      raise ArgumentError, "#{inspect(option)} takes a list of names, got: #{inspect(names)}"
    end

    Enum.map(names, &to_string/1)
  end

  defp check_owner!(sources, interpreter) do
    for {env, _} <- sources,
        env.interpreter != interpreter,
        do: raise(ArgumentError, foreign(env, interpreter))
  end

  defp foreign(env, interpreter) do
    "#{inspect(env)} belongs to the interpreter #{inspect(env.interpreter)}, and cannot be " <>
      "copied to #{inspect(interpreter)}"
  end

  @doc """
  Frees an environment, from any node. May be called repeatedly; code that runs in it finishes.
  """
  @spec destroy_env(Env.t()) :: :ok
  def destroy_env(%Env{} = env) do
    Env.disarm(env)
    Call.destroy(env.id, [])
  end

  # --- running code -------------------------------------------------------------------------------

  @doc """
  Runs code in an environment, or sets variables.

  See `pyeval/4`.
  """
  @spec pyeval(env_or_interpreter(), code() | nil | vars() | pyeval_opts()) ::
          {:ok, term()} | {:error, Error.t()}
  def pyeval(target, code) when is_binary(code), do: run(target, code, %{}, [])
  def pyeval(target, %Code{} = code), do: run(target, code, %{}, [])
  def pyeval(target, nil), do: run(target, nil, %{}, [])
  def pyeval(target, vars) when is_map(vars), do: run(target, nil, vars, [])
  def pyeval(target, opts) when is_list(opts), do: run(target, nil, %{}, opts)

  @doc """
  Runs code in an environment, with variables or options; or sets variables, with options.

  See `pyeval/4`.
  """
  @spec pyeval(env_or_interpreter(), code() | nil | vars(), vars() | pyeval_opts()) ::
          {:ok, term()} | {:error, Error.t()}
  def pyeval(target, %Code{} = code, vars) when is_map(vars), do: run(target, code, vars, [])
  def pyeval(target, %Code{} = code, opts) when is_list(opts), do: run(target, code, %{}, opts)
  def pyeval(target, vars, opts) when is_map(vars), do: run(target, nil, vars, opts)
  def pyeval(target, code, vars) when is_map(vars), do: run(target, code, vars, [])
  def pyeval(target, code, opts) when is_list(opts), do: run(target, code, %{}, opts)

  @doc """
  Runs Python code and returns the value that it returns, `nil` where it returns none.

  The first argument is an environment, whose variables the code sees and changes, or an
  interpreter; then it runs in a copy of what the init script made, which is thrown away. `vars` are
  put there before.

      {:ok, 20} = Snex.pyeval(env, "return x * y", %{"x" => 10, "y" => 2}, timeout: 1_000)

  Errors are those of `Snex.Error`. Raises `ArgumentError` for unknown options, for a `:timeout` that
  `GenServer.call/3` would not take, for code that is no string (a charlist, say), and for names of
  variables that are not strings.
  """
  @spec pyeval(env_or_interpreter(), code() | nil, vars(), pyeval_opts()) ::
          {:ok, term()} | {:error, Error.t()}
  def pyeval(target, code, vars, opts) when is_map(vars) and is_list(opts),
    do: run(target, code, vars, opts)

  # --- streams ------------------------------------------------------------------------------------

  @max_demand 1_000

  @doc """
  What Python code yields, as a lazy enumerable.

      interpreter
      |> Snex.stream("for n in range(stop): yield n * n", %{"stop" => 1_000_000})
      |> Enum.take(3)
      #=> [0, 1, 4]

  The code is that of a generator, with `yield` at its top level (and `await`, if it likes), or it returns
  what can be iterated. It runs when the result is enumerated, anew each time, and makes items only when
  they are asked for: at most `:max_demand` are under way. When no more are wanted the generator is
  closed, and its `finally` blocks run.

  The first argument is that of `pyeval/4`; of a pool a member runs the whole stream.

  Options:

    * `:max_demand` - how many items may be under way (default #{@max_demand})
    * `:min_demand` - when so many of these are still to come further ones are asked for (default: half)
    * `:timeout` - milliseconds to wait for each item, and for the stream to begin (default #{@default_timeout}), or
      `:infinity`
    * `:encoding_opts`, `:executor` - as of `pyeval/4`. In a `:thread` a generator may block; one that awaits
      runs on the event loop
    * `:max_chunk_bytes` - how large a message with several items may be

  While it is enumerated `Snex.Error` is raised for what Python raises, for an item that does not come in
  time, and for a Python that ends. Raises `ArgumentError` as `pyeval/4` does.
  """
  @spec stream(env_or_interpreter(), code(), vars(), keyword()) :: Enumerable.t()
  def stream(target, code, vars \\ %{}, opts \\ [])

  def stream(target, code, opts, []) when is_list(opts), do: stream(target, code, %{}, opts)

  def stream(_target, code, _vars, _opts) when not (is_binary(code) or is_struct(code, Code)),
    do: raise(ArgumentError, "code is a string or a %Snex.Code{}, got: #{inspect(code)}")

  # A stream has variables of its own, so the object may as well be one of them.
  def stream(%Object{} = object, code, vars, opts) when is_map(vars),
    do: stream(object.interpreter, code, Map.put(vars, "self", object), opts)

  def stream(target, code, vars, opts) when is_map(vars) and is_list(opts) do
    known = [:max_demand, :min_demand, :timeout, :encoding_opts, :executor, :max_chunk_bytes]
    check_keys!(opts, known)
    timeout = check_timeout!(Keyword.get(opts, :timeout, @default_timeout))
    max = demand!(:max_demand, opts[:max_demand] || @max_demand, 1)
    min = demand!(:min_demand, opts[:min_demand] || div(max, 2), 0)

    if min >= max do
      raise ArgumentError,
            ":min_demand is less than :max_demand, which is #{max}, got: #{inspect(min)}"
    end

    encoding = Serde.check_options!(opts[:encoding_opts] || [])
    encoding = if encoding == [], do: [], else: [encoding_opts: encoding]
    options = executor!(opts) ++ Keyword.take(opts, [:max_chunk_bytes]) ++ encoding
    request = {:stream, code, [{:subscribe_timeout, 60_000} | options], Serde.encode_vars!(vars)}

    open = fn ->
      answer = open_stream(target, request, timeout)
      Object.used(vars)
      answer
    end

    Streams.items(open, max, min, timeout, if(is_struct(target, Env), do: target))
  end

  defp open_stream(%Env{id: id, interpreter: interpreter}, request, timeout) do
    if Call.ended?(interpreter),
      do: {:error, Call.failed(:noproc)},
      else: Call.request(id, interpreter, request, timeout)
  end

  defp open_stream(interpreter, request, timeout) do
    case find(interpreter) do
      {:ok, pid, target} ->
        Call.request(target, pid, request, timeout)

      {:pool, pool} ->
        Checkout.lodge(pool, fn pid, target, _left ->
          Call.attempt(target, pid, request, timeout)
        end)

      {:error, reason} ->
        {:error, Call.failed(reason)}
    end
  end

  @doc """
  What Python code can iterate over: an enumerable, run in a process of its own as far as Python asks.

      {:ok, [2, 4, 6]} =
        Snex.pyeval(env, "return [2 * x async for x in snex.subscribe(numbers)]", %{
          "numbers" => Snex.source([1, 2, 3])
        })

  It is a variable for one evaluation, or one `stream/4`: see `Snex.Source`. So

      env
      |> Snex.stream("async for x in snex.subscribe(source): yield x * 2", %{
        "source" => Snex.source(1..1_000_000)
      })
      |> Enum.sum()

  takes no more memory on either side than for the items that are under way.
  """
  @spec source(Enumerable.t()) :: Source.t()
  def source(enumerable), do: Source.start(enumerable)

  defp demand!(_name, value, least) when is_integer(value) and value >= least, do: value

  defp demand!(name, value, least) do
    raise ArgumentError,
          "#{inspect(name)} is an integer of at least #{least}, got: #{inspect(value)}"
  end

  defp run(_target, code, _vars, _opts)
       when not (is_binary(code) or is_nil(code) or is_struct(code, Code)),
       do: raise(ArgumentError, "code is a string or a %Snex.Code{}, got: #{inspect(code)}")

  defp run(target, code, vars, opts) do
    case Keyword.keyword?(opts) and Keyword.pop(opts, :progress) do
      {to, opts} when to != nil ->
        Progress.told(to, fn telling -> run_told(target, code, vars, opts ++ [told: telling]) end)

      _ ->
        run_told(target, code, vars, opts)
    end
  end

  defp run_told(target, code, vars, opts) do
    answer =
      if Telemetry.on?(),
        do: Telemetry.call(target, fn -> evaluate_on(target, code, vars, opts) end),
        else: evaluate_on(target, code, vars, opts)

    Object.used(vars)
    answer
  end

  defp evaluate_on(%Env{id: id, interpreter: interpreter} = env, code, vars, opts) do
    if Call.ended?(interpreter) do
      {:error, Call.failed(:noproc)}
    else
      answer = run_in(env.pool, id, interpreter, plan(code, vars, opts))
      Env.used(env)
      answer
    end
  end

  defp evaluate_on(%Object{} = object, code, vars, opts) do
    {_, _, timeout, _, _, _, _} = plan = plan(code, vars, opts)
    on_object(object, &evaluate(&1, &2, plan, timeout))
  end

  defp evaluate_on(interpreter, code, vars, opts) do
    case find(interpreter) do
      {:ok, pid, target} ->
        run_in(nil, target, pid, plan(code, vars, opts))

      {:pool, pool} ->
        {_, _, timeout, _, _, _, _} = plan = plan(code, vars, opts)
        Checkout.run(pool, timeout, &evaluate(&2, &1, plan, &3))

      {:error, reason} ->
        {:error, Call.failed(reason)}
    end
  end

  defp run_in(nil, target, interpreter, {_, _, timeout, _, _, _, _} = plan) do
    {_fate, answer} = evaluate(target, interpreter, plan, timeout)
    answer
  end

  defp run_in(_pool, target, interpreter, {_, _, timeout, _, _, _, _} = plan),
    do: Checkout.visit(interpreter, fn -> evaluate(target, interpreter, plan, timeout) end)

  # A pool need not be on this node.
  defp find(interpreter) do
    with {:error, :noproc} = error <- Runtimes.find(interpreter) do
      case Checkout.elsewhere(interpreter) do
        nil -> error
        pool -> {:pool, pool}
      end
    end
  end

  # Code, variables, timeout, options beside it, kill_after, encoding and sharing of an evaluation,
  # checked.
  defp plan(code, vars, []) do
    options = trace(Telemetry.traceparent())
    {code, Serde.encode_vars!(vars), @default_timeout, options, nil, [], nil}
  end

  defp plan(code, vars, opts) do
    {told, opts} = Keyword.pop(opts, :told, [])
    check_keys!(opts, @pyeval_opts)

    timeout = check_timeout!(Keyword.get(opts, :timeout, @default_timeout))
    kill_after = Limits.check_kill_after!(opts[:kill_after], timeout)
    code = returning(code, opts[:returning])
    encoding = Serde.check_options!(opts[:encoding_opts] || [])
    options = if kill_after, do: [kill_after: kill_after], else: []
    options = options ++ executor!(opts) ++ trace(opts[:traceparent] || Telemetry.traceparent())
    options = options ++ keep!(opts[:keep]) ++ told
    {code, Serde.encode_vars!(vars), timeout, options, kill_after, encoding, Shared.check!(opts)}
  end

  defp evaluate(target, interpreter, {_, vars, _, _, _, encoding, shared} = plan, timeout) do
    if shares?(shared, interpreter) do
      request = &evaluate(target, interpreter, plan, &1, &2, timeout)
      Shared.call(target, interpreter, vars, encoding, timeout, request)
    else
      evaluate(target, interpreter, plan, vars, [], timeout)
    end
  end

  defp evaluate(target, interpreter, plan, vars, more, timeout) do
    {code, _, _, options, kill_after, encoding, _} = plan
    request = eval(code, vars, [{:timeout, timeout} | more ++ options], encoding)
    outcome = Call.attempt(target, interpreter, request, timeout, kill_after)

    if options == [] or options[:keep] == nil,
      do: outcome,
      else: kept(outcome, interpreter, options)
  end

  defp kept({fate, {:ok, {id, shown}}}, interpreter, options),
    do: {fate, {:ok, Object.new(id, interpreter, options[:handle], shown)}}

  defp kept(outcome, _interpreter, _options), do: outcome

  defp keep!(keep) when keep in [nil, false], do: []
  defp keep!(true), do: [keep: :shown, handle: Env.handle()]

  defp keep!(other),
    do: raise(ArgumentError, ":keep is true or false, got: #{inspect(other)}")

  defp on_object(%Object{id: id, interpreter: interpreter} = object, work) do
    if Call.ended?(interpreter) do
      {:error, Call.failed(:noproc)}
    else
      answer = Checkout.visit(interpreter, fn -> work.(id, interpreter) end)
      Object.used(object)
      answer
    end
  end

  @doc false
  # A request to an object, which is made of its options; and its answer.
  @spec ask(Object.t(), (keyword() -> term()), keyword()) :: {:ok, term()} | {:error, Error.t()}
  def ask(object, request, opts) do
    check_keys!(opts, [:timeout, :kill_after, :executor, :keep, :traceparent])
    timeout = check_timeout!(Keyword.get(opts, :timeout, @default_timeout))
    kill_after = Limits.check_kill_after!(opts[:kill_after], timeout)
    options = executor!(opts) ++ trace(opts[:traceparent] || Telemetry.traceparent())
    options = if kill_after, do: [{:kill_after, kill_after} | options], else: options
    options = [{:timeout, timeout} | options] ++ keep!(opts[:keep])

    on_object(object, fn id, interpreter ->
      outcome = Call.attempt(id, interpreter, request.(options), timeout, kill_after)
      if options[:keep], do: kept(outcome, interpreter, options), else: outcome
    end)
  end

  defp shares?(nil, interpreter), do: Runtimes.shared?(interpreter)
  defp shares?(shared, _interpreter), do: shared

  defp eval(code, vars, options, []), do: {:eval, code, vars, options}

  # In front of the variables, which Python would have to pass over to know how to read them.
  defp eval(code, vars, options, encoding),
    do: {:eval, code, options ++ [encoding_opts: encoding], vars}

  defp trace(nil), do: []
  defp trace(traceparent) when is_binary(traceparent), do: [traceparent: traceparent]

  defp trace(other) do
    raise ArgumentError,
          ":traceparent is a string, as the header of that name has it, got: #{inspect(other)}"
  end

  # The option as it is sent, where it is given.
  defp executor!(opts) do
    case opts[:executor] do
      nil -> []
      executor when executor in [:loop, :thread] -> [executor: executor]
      other -> raise ArgumentError, ":executor takes :loop or :thread, got: #{inspect(other)}"
    end
  end

  defp check_timeout!(:infinity), do: :infinity

  defp check_timeout!(timeout)
       when is_integer(timeout) and timeout >= 0 and timeout <= @longest_timeout,
       do: timeout

  defp check_timeout!(timeout) do
    raise ArgumentError,
          ":timeout takes milliseconds, 0 to #{@longest_timeout}, or :infinity, " <>
            "got: #{inspect(timeout, limit: 5, printable_limit: 50)}"
  end

  defp check_keys!(opts, known) do
    if not Keyword.keyword?(opts) do
      raise ArgumentError,
            "options are a keyword list, and code is a string, got: #{inspect(opts, limit: 50)}"
    end

    for {name, _} <- opts, name not in known do
      raise ArgumentError,
            "unknown option #{inspect(name)}: there are #{Enum.map_join(known, ", ", &inspect/1)}"
    end
  end

  # --- :returning ---------------------------------------------------------------------------------

  defp returning(code, nil), do: code

  defp returning(code, expressions) do
    warn_of_returning()
    code = Code.wrap(code || "")
    %{code | src: [code.src, "\nreturn ", result_of(expressions), "\n"]}
  end

  defp result_of(list) when is_list(list),
    do: ["[", list |> Enum.map(&expression!/1) |> Enum.intersperse(", "), "]"]

  defp result_of(one), do: expression!(one)

  defp expression!(expression) when is_binary(expression), do: expression
  defp expression!(%Code{src: src}), do: src

  defp expression!(other) do
    raise ArgumentError,
          ":returning takes a Python expression, as a string or %Snex.Code{}, or a list of these, " <>
            "got: #{inspect(other)}"
  end

  defp warn_of_returning do
    {:current_stacktrace, trace} = Process.info(self(), :current_stacktrace)
    trace = Enum.drop_while(trace, fn {module, _, _, _} -> module in [Process, __MODULE__] end)

    if Runtimes.first?({:returning, List.first(trace)}) do
      IO.warn("`:returning` is deprecated; use plain Python `return` statements", trace)
    end
  end
end
