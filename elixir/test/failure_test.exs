defmodule Snex.FailureTest do
  @moduledoc "Whatever Python does when its BEAM is killed, it is gone within five seconds."
  use Snex.Case, async: true

  @quiet [
    {"is idle", ""},
    {"waits", "import asyncio\nawait asyncio.sleep(600)"},
    {"sleeps in C", "import time\ntime.sleep(600)"},
    {"sits in a thread",
     "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()"},
    {"sits in an executor", "import asyncio, time\nawait asyncio.to_thread(time.sleep, 600)"},
    {"has child processes",
     """
     import multiprocessing, subprocess, time
     context = multiprocessing.get_context('fork')
     context.Process(target=time.sleep, args=(600,)).start()
     subprocess.Popen(['sh', '-c', 'trap "" TERM INT HUP; sleep 600 & wait'])
     """},
    {"hangs in its clean-up", "import atexit, time\natexit.register(time.sleep, 600)"}
  ]

  @busy [
    {"keeps the GIL in C", "sum(range(10 ** 12))"},
    {"spins", "while True: pass"},
    {"spins and takes no interrupt",
     """
     def spin():
       while True: pass
     while True:
       try: spin()
       except BaseException: pass
     """}
  ]

  test "Python that #{Enum.map_join(@quiet, ", ", &elem(&1, 0))} does not outlive its BEAM" do
    assert left_by(@quiet) == []
  end

  for {name, code} <- @busy do
    test "Python that #{name} does not outlive its BEAM" do
      assert left_by([{unquote(name), unquote(code)}]) == []
    end
  end

  # Has a BEAM run each piece of code in an interpreter of its own, kills it when all have begun, and
  # returns what is left five seconds later.
  defp left_by(cases) do
    beam =
      Snex.Beam.start("""
      test = self()
      # With a pause: what follows may leave Python no moment to write.
      begin = "import subprocess; subprocess.Popen(['sleep', '600']); await snex.send(test, 'began'); import asyncio; await asyncio.sleep(0.1)\\n"
      running = for {name, code} <- #{inspect(cases)} do
        {:ok, interpreter} = Snex.Interpreter.start_link(python: #{inspect(python())})
        spawn(fn ->
          Snex.pyeval(interpreter, begin <> code, %{"test" => test}, timeout: :infinity)
        end)
        receive do: ("began" -> :ok)
        {name, Snex.Interpreter.os_pid(interpreter)}
      end
      tell.({System.pid(), running, Node.list()})
      """)

    {beam_pid, running, []} = Snex.Beam.told(beam)
    # Python, the process that watches it, and the child.
    for {name, os_pid} <- running, do: assert(length(group(os_pid)) >= 3, name)
    Snex.Beam.kill(beam_pid)

    try do
      wait_until(fn -> Enum.all?(running, fn {_, os_pid} -> group(os_pid) == [] end) end, 5_000)
      []
    rescue
      ExUnit.AssertionError -> for {name, os_pid} <- running, group(os_pid) != [], do: name
    end
  end

  test "interpreters that are the first to start start at once" do
    beam =
      Snex.Beam.start("""
      start = fn _ -> Snex.Interpreter.start_link(python: #{inspect(python())}, init_script: "x = 1") end
      use_it = fn n ->
        {:ok, interpreter} = start.(n)
        answer = Snex.pyeval(interpreter, "return x")
        Snex.Interpreter.stop(interpreter)
        answer
      end
      answers = 1..4 |> Enum.map(&Task.async(fn -> use_it.(&1) end)) |> Task.await_many(20_000)
      tell.({answers, Node.alive?(), Node.list()})
      """)

    assert Snex.Beam.told(beam) == {List.duplicate({:ok, 1}, 4), true, []}
  end

  test "Python runs its clean-up when its BEAM is killed" do
    file = Path.join(System.tmp_dir!(), "snex-#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm(file) end)

    beam =
      Snex.Beam.start("""
      {:ok, interpreter} = Snex.Interpreter.start_link(python: #{inspect(python())})
      code = "import atexit, time; atexit.register(lambda: open(file, 'w').write('cleaned up'))"
      {:ok, nil} = Snex.pyeval(interpreter, code, %{"file" => #{inspect(file)}})
      tell.({System.pid(), Snex.Interpreter.os_pid(interpreter)})
      Snex.pyeval(interpreter, "import time; time.sleep(600)", timeout: :infinity)
      """)

    {beam_pid, os_pid} = Snex.Beam.told(beam)
    Snex.Beam.kill(beam_pid)
    wait_until(fn -> not running?(os_pid) end, 5_000)
    assert File.read!(file) == "cleaned up"
  end

  test "Python ends with a BEAM that ends as it should" do
    beam =
      Snex.Beam.start("""
      {:ok, interpreter} = Snex.Interpreter.start_link(python: #{inspect(python())})
      tell.(Snex.Interpreter.os_pid(interpreter))
      System.stop(0)
      """)

    os_pid = Snex.Beam.told(beam)
    assert_receive {^beam, {:exit_status, 0}}, 10_000
    wait_until(fn -> not running?(os_pid) end, 5_000)
  end

  test "a BEAM that runs in a cluster keeps its cookie to itself" do
    interpreter = start_interpreter!()
    os_pid = Interpreter.os_pid(interpreter)
    cookie = Atom.to_string(Node.get_cookie())
    refute File.read!("/proc/#{os_pid}/cmdline") =~ cookie
    refute File.read!("/proc/#{os_pid}/environ") =~ cookie
  end
end
