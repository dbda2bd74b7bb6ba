defmodule Snex.SecretsTest do
  @moduledoc "Environments, variables and scripts are in no log: they hold keys and passwords."
  use Snex.Case, async: true

  import ExUnit.CaptureLog

  @secret "the-secret-of-the-test"

  defp with_secrets(opts \\ []) do
    [
      environment: %{"A_KEY" => @secret},
      init_script: {"key = '#{@secret}'", %{"password" => @secret}},
      wrap_exec: {__MODULE__, :wrap, [@secret]}
    ] ++ opts
  end

  def wrap(_secret, python, args), do: {python, args}

  for {name, opts} <- [pipe: [], stdio: [port_opts: [:use_stdio]]] do
    @opts opts
    test "an interpreter that crashes shows none (#{name})" do
      log =
        capture_log(fn ->
          {:ok, interpreter} = start_interpreter(with_secrets(@opts))
          GenServer.stop(interpreter, :because_of_the_test)
          assert_receive {:EXIT, ^interpreter, :because_of_the_test}
        end)

      assert log =~ "because_of_the_test"
      assert log =~ ":hidden"
      refute log =~ @secret
    end
  end

  test "what supervisors and crashed processes report shows none" do
    beam =
      Snex.Beam.start(
        """
        opts = [
          python: #{inspect(python())},
          name: :supervised,
          environment: %{"A_KEY" => #{inspect(@secret)}, "PATH" => System.get_env("PATH") <> ":/a/path"},
          init_script: {"key = '#{@secret}'", %{"password" => #{inspect(@secret)}}},
          wrap_exec: fn python, args -> if(#{inspect(@secret)} != "", do: {python, args}) end
        ]
        {:ok, _} = Supervisor.start_link([{Snex.Interpreter, opts}], strategy: :one_for_one)
        before = Process.whereis(:supervised)
        {:error, _} = Snex.pyeval(:supervised, "import os; os._exit(3)")
        wait = fn wait -> if Process.whereis(:supervised) in [nil, before], do: wait.(wait) end
        wait.(wait)
        Process.flag(:trap_exit, true)
        {:error, _} = Supervisor.start_link([{Snex.Interpreter, [cd: "/nonexistent"] ++ opts}], strategy: :one_for_one)
        Logger.flush()
        System.halt(0)
        """,
        args: ["--logger-sasl-reports", "true"]
      )

    log = Snex.Beam.printed(beam)
    assert log =~ "Start Call: Snex.Interpreter.start_child"
    assert log =~ "GenServer :supervised terminating"
    refute log =~ @secret
    refute log =~ "/a/path"
  end

  test "the status of a relay shows no message" do
    message = {:tcp, nil, @secret}
    status = Snex.Relay.format_status(%{message: message, state: %{}, log: [{:in, message}]})
    refute inspect(status) =~ @secret

    log =
      capture_log(fn ->
        {:ok, interpreter} = start_interpreter(with_secrets(port_opts: [:use_stdio]))
        relay = :sys.get_state(interpreter).relay
        GenServer.stop(relay, :because_of_the_test)
        assert_receive {:EXIT, ^interpreter, %Error{code: :interpreter_exited}}, 10_000
      end)

    assert log =~ "because_of_the_test"
    refute log =~ @secret
  end

  test "child specifications show none" do
    spec = Interpreter.child_spec(with_secrets())
    refute inspect(spec) =~ @secret
    assert inspect(spec) =~ "environment: :hidden"
  end
end
