defmodule Snex.LaunchTest do
  @moduledoc "The start of Python: what is run, how long it may take, and what its BEAM needs for it."
  use Snex.Case, async: true

  defp temporary(name) do
    dir =
      Path.join(System.tmp_dir!(), "snex-#{System.pid()}-#{System.unique_integer([:positive])}")

    File.mkdir_p!(dir)
    on_exit(fn -> File.rm_rf!(dir) end)
    Path.join(dir, name)
  end

  defp message(opts) do
    Process.flag(:trap_exit, true)
    {:error, %Error{} = error} = Interpreter.start_link(opts)
    {error.reason, Exception.message(error)}
  end

  describe "what is run" do
    test "is named when it is not there, with what was looked for" do
      assert {{:exit_status, 127}, text} = message(python: "/no/such/python")
      assert text =~ "/no/such/python cannot be run: there is no such file"
      assert {{:exit_status, 127}, text} = message(python: "no-such-python")
      assert text =~ ~s(no-such-python cannot be run: looked for "no-such-python" on the PATH)
      refute text =~ "/bin"
      relative = Path.expand("no/such")
      assert {{:exit_status, 127}, text} = message(python: "no/such")
      assert text =~ relative
      wrap = fn _, _ -> {"no-such-wrapper", []} end
      assert {{:exit_status, 127}, text} = message(wrap_exec: wrap)
      assert text =~ "no-such-wrapper"
      assert text =~ ":wrap_exec"
    end

    test "is named when it may not be run" do
      file = temporary("python")
      File.write!(file, "")
      assert {{:exit_status, 126}, text} = message(python: file)
      assert text =~ "#{file} cannot be run: it is not executable"
      assert {{:exit_status, 126}, text} = message(python: Path.dirname(file))
      assert text =~ "#{Path.dirname(file)} cannot be run: it is a directory"
    end

    test "is named when the directory is not there" do
      assert {text, _} = message(python: python(), cd: "/no/such/directory")
      assert text =~ "/no/such/directory, the option :cd"
    end

    test "is python, or python3 where there is none, or both are named" do
      dir = Path.dirname(temporary("python3"))
      {executable, 0} = System.cmd(python(), ["-c", "import sys; print(sys.executable, end='')"])
      File.ln_s!(executable, Path.join(dir, "python3"))

      code = """
      Process.flag(:trap_exit, true)
      System.put_env("PATH", #{inspect(dir)})
      {:ok, interpreter} = Snex.Interpreter.start_link([])
      tell.(Snex.pyeval(interpreter, "return 1"))
      System.put_env("PATH", "/nonexistent")
      {:error, error} = Snex.Interpreter.start_link([])
      tell.({error.reason, Exception.message(error)})
      """

      beam = Snex.Beam.start(code)
      assert Snex.Beam.told(beam) == {:ok, 1}
      assert {{:exit_status, 127}, text} = Snex.Beam.told(beam)
      assert text =~ ~s("python" and "python3" on the PATH)
    end
  end

  test "an exit status above 128 is told with its signal" do
    for {status, name} <- [{139, "SIGSEGV"}, {137, "SIGKILL"}, {134, "SIGABRT"}, {143, "SIGTERM"}] do
      error = %Error{code: :interpreter_exited, reason: {:exit_status, status}}
      assert Exception.message(error) == "interpreter_exited: {:exit_status, #{status}} (#{name})"
    end

    error = %Error{code: :interpreter_exited, reason: {:exit_status, 1}}
    assert Exception.message(error) == "interpreter_exited: {:exit_status, 1}"
    {:ok, interpreter} = start_interpreter()

    assert {:error, %Error{reason: %Error{reason: {:exit_status, 139}} = error}} =
             Snex.pyeval(interpreter, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")

    assert Exception.message(error) =~ "SIGSEGV"
  end

  describe "init_script_timeout" do
    # What reads no input, and tells its number.
    defp sleeper(file) do
      fn _, _ ->
        {"sh", ["-c", ~s(echo $$ > "#{file}.new"; mv "#{file}.new" "#{file}"; exec sleep 60)]}
      end
    end

    defp number(file) do
      wait_until(fn -> File.exists?(file) end)
      file |> File.read!() |> String.trim()
    end

    for {name, opts} <- [direct: [], stdio: [port_opts: [:use_stdio]]] do
      @opts opts
      test "covers the start of Python, of which nothing is left (#{name})" do
        file = temporary("pid")
        opts = [wrap_exec: sleeper(file), init_script_timeout: 500] ++ @opts
        {time, result} = :timer.tc(fn -> start_interpreter(opts) end)
        assert result == {:error, %Error{code: :init_script_timeout}}
        assert time in 500_000..2_000_000
        pid = number(file)
        wait_until(fn -> not running?(pid) end)
      end

      test "fails an asynchronous start in time when the script takes too long (#{name})" do
        for script <- ["import asyncio; await asyncio.sleep(60)", "sum(range(10 ** 12))"] do
          opts = [init_script: script, init_script_timeout: 1_500, sync_start?: false] ++ @opts
          {:ok, interpreter} = start_interpreter(opts)
          assert_receive {:EXIT, ^interpreter, %Error{code: :init_script_timeout}}, 3_000
        end
      end

      test "lets stop work meanwhile (#{name})" do
        file = temporary("pid")
        opts = [wrap_exec: sleeper(file), sync_start?: false] ++ @opts
        {:ok, interpreter} = start_interpreter(opts)
        pid = number(file)
        {time, :ok} = :timer.tc(fn -> Interpreter.stop(interpreter) end)
        refute running?(pid)
        assert time < 2_000_000
      end

      test "lets stop work while start_link waits, and while the script runs (#{name})" do
        file = temporary("pid")

        script =
          {"import os; f = open(n + '_', 'w'); f.write(str(os.getpid())); f.close(); os.rename(n + '_', n); import asyncio; await asyncio.sleep(60)",
           %{"n" => file}}

        for opts <- [[wrap_exec: sleeper(file)], [init_script: script]] do
          File.rm(file)
          name = :"snex_test_#{System.unique_integer([:positive])}"
          starting = Task.async(fn -> start_interpreter([name: name] ++ opts ++ @opts) end)
          pid = number(file)
          assert Interpreter.stop(name, :enough) == :ok
          refute running?(pid)
          assert Task.await(starting) == {:error, :enough}
        end
      end
    end

    test "leaves no Python behind whose parent ends while it starts" do
      file = temporary("pid")
      parent = spawn(fn -> Interpreter.start_link(wrap_exec: sleeper(file)) end)
      pid = number(file)
      Process.exit(parent, :kill)
      wait_until(fn -> not running?(pid) end)
    end
  end

  describe "a BEAM that is no node" do
    defp start_code do
      """
      Process.flag(:trap_exit, true)
      tell.(
        case Snex.Interpreter.start_link(python: #{inspect(python())}) do
          {:ok, interpreter} -> {node(), Snex.pyeval(interpreter, "return 1")}
          {:error, error} -> Exception.message(error)
        end
      )
      """
    end

    test "needs no home" do
      beam = Snex.Beam.start(start_code(), env: [{~c"HOME", ~c"/nonexistent"}])
      assert {_, {:ok, 1}} = Snex.Beam.told(beam)
    end

    test "is told of HOME and --cookie where its cookie cannot be used" do
      cookie = temporary(".erlang.cookie")
      home = Path.dirname(cookie)
      File.write!(cookie, "EVERYBODY_READS_IT")
      File.chmod!(cookie, 0o644)
      env = [{~c"HOME", to_charlist(home)}]
      text = Snex.Beam.told(Snex.Beam.start(start_code(), env: env))
      assert text =~ "must be accessible by owner only"
      assert text =~ "HOME"
      assert text =~ "--cookie"
      beam = Snex.Beam.start(start_code(), env: env, args: ["--cookie", "another"])
      assert {_, {:ok, 1}} = Snex.Beam.told(beam)
    end

    test "needs a host whose own name resolves no more than epmd" do
      wrap = [
        "unshare",
        "--uts",
        "sh",
        "-c",
        ~S(hostname no-such-host.invalid && exec "$@"),
        "sh"
      ]

      # Only root may name a host.
      if match?({_, 0}, System.cmd("sh", ["-c", "unshare --uts true"], stderr_to_stdout: true)) do
        beam = Snex.Beam.start(start_code(), wrap: wrap)
        assert {_, {:ok, 1}} = Snex.Beam.told(beam)
      end
    end

    test "becomes the node that is configured" do
      for {name, node} <- [my_app: :"my_app@127.0.0.1", a@localhost: :a@localhost] do
        code = "Application.put_env(:snex, :node_name, #{inspect(name)})\n" <> start_code()
        assert {^node, {:ok, 1}} = Snex.Beam.told(Snex.Beam.start(code))
      end

      for name <- [:a@b@c, 42, :"ä ö@127.0.0.1"] do
        code = "Application.put_env(:snex, :node_name, #{inspect(name)})\n" <> start_code()
        assert Snex.Beam.told(Snex.Beam.start(code)) =~ "config :snex, node_name:"
      end
    end

    test "may be another node afterwards, whose interpreters have its cookie" do
      code = """
      Process.flag(:trap_exit, true)
      {:ok, first} = Snex.Interpreter.start_link(python: #{inspect(python())})
      {:error, {:already_started, _}} = Node.start(:"another@127.0.0.1")
      :ok = Node.stop()
      receive do: ({:EXIT, ^first, %Snex.Error{code: :interpreter_exited}} -> :ok)
      options = %{name_domain: :longnames, dist_listen: false}
      {:ok, _} = :net_kernel.start(:"another@127.0.0.1", options)
      Node.set_cookie(:of_the_cluster)
      {:ok, interpreter} = Snex.Interpreter.start_link(python: #{inspect(python())})
      {:ok, _, target} = Snex.Runtimes.find(interpreter)
      tell.({node(), Snex.pyeval(interpreter, "return 1"), :erlang.get_cookie(node(target))})
      """

      assert Snex.Beam.told(Snex.Beam.start(code)) ==
               {:"another@127.0.0.1", {:ok, 1}, :of_the_cluster}
    end

    test "is told at once that there is no TLS, and what to do" do
      for args <- [["--erl", "-proto_dist inet_tls"], ["--erl", "-proto_dist inet6_tls"]] do
        text = Snex.Beam.told(Snex.Beam.start(start_code(), args: args))
        assert text =~ "-proto_dist inet"
        assert text =~ "TLS"
        assert text =~ ":use_stdio"
      end
    end
  end
end
