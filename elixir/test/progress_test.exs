defmodule Snex.ProgressTest do
  use Snex.Case, async: true

  alias Snex.Progress

  setup_all do
    %{interpreter: start_interpreter!()}
  end

  @code "return sum(snex.progress(range(n)))"

  test "is told to a process", %{interpreter: interpreter} do
    assert {:ok, 45} = Snex.pyeval(interpreter, @code, %{"n" => 10}, progress: self())
    assert_receive {:snex_progress, ref, 0, 10, seconds} when is_float(seconds)
    assert_receive {:snex_progress, ^ref, 10, 10, _}
    refute_received {:snex_progress, _, _, _, _}
  end

  test "is told to a function, all of it before the call is over", %{interpreter: interpreter} do
    test = self()
    fun = &send(test, {:told, &1.done, &1.total})
    options = [progress: fun, executor: :thread]
    assert {:ok, 45} = Snex.pyeval(interpreter, @code, %{"n" => 10}, options)
    assert_received {:told, 0, 10}
    assert_received {:told, 10, 10}
  end

  test "is told by code that awaits, and of a total that is not known", %{
    interpreter: interpreter
  } do
    code = """
    async def numbers():
        for n in range(3): yield n
    return [n async for n in snex.progress(numbers())]
    """

    assert {:ok, [0, 1, 2]} = Snex.pyeval(interpreter, code, %{}, progress: self())
    assert_receive {:snex_progress, _, 3, nil, _}
    code = "return list(snex.progress(iter([1, 2]), total=2))"
    assert {:ok, [1, 2]} = Snex.pyeval(interpreter, code, %{}, progress: self())
    assert_receive {:snex_progress, _, 2, 2, _}
  end

  test "goes where Python says, or nowhere", %{interpreter: interpreter} do
    code = "return len(list(snex.progress('abc', to=pid)))"
    assert {:ok, 3} = Snex.pyeval(interpreter, code, %{"pid" => self()})
    assert_receive {:snex_progress, _, 0, 3, _}
    assert_receive {:snex_progress, _, 3, 3, _}
    assert {:ok, 3} = Snex.pyeval(interpreter, @code, %{"n" => 3})
    refute_received {:snex_progress, _, _, _, _}
  end

  test "comes ten times a second at the most", %{interpreter: interpreter} do
    code = """
    import time
    end = time.monotonic() + 0.35
    for n in snex.progress(range(10**9)):
        if time.monotonic() > end: break
    """

    assert {:ok, nil} = Snex.pyeval(interpreter, code, %{}, progress: self())
    {:messages, messages} = Process.info(self(), :messages)
    assert length(messages) in 3..6
  end

  test "raises for other things", %{interpreter: interpreter} do
    assert_raise ArgumentError, ~r/:progress takes a pid, a name or a function/, fn ->
      Snex.pyeval(interpreter, "return 1", %{}, progress: "x")
    end

    assert {:error, %Snex.Error{type: "TypeError"}} = Snex.pyeval(interpreter, "snex.progress(5)")
  end

  test "is drawn on a terminal, and told in a line elsewhere" do
    at = fn done -> %{ref: make_ref(), done: done, total: 4, seconds: 1.25} end
    {:ok, device} = StringIO.open("")
    live = Progress.bar("work", device: device, live: true)
    Enum.each([0, 1, 4], &live.(at.(&1)))
    {_, drawn} = StringIO.contents(device)
    assert drawn =~ "\rwork [#######                       ] 25% 1/4 1.3 s\e[K"
    assert String.ends_with?(drawn, "100% 4/4 1.3 s\e[K\n")
    {:ok, device} = StringIO.open("")
    plain = Progress.bar("", device: device)
    Enum.each([0, 1, 4], &plain.(at.(&1)))
    assert StringIO.contents(device) == {"", "[##############################] 100% 4/4 1.3 s\n"}
    plain.(%{ref: make_ref(), done: 0, total: 0, seconds: 0.0})
    plain.(%{ref: make_ref(), done: 7, total: nil, seconds: 0.0})
  end
end
