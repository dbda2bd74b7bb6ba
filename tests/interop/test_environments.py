"""Environments, as processes of a runtime that real Elixir processes make, watch and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.beam import Beam
from tests.support.runtime import Runtime, until

# What every test here says of a runtime whose name is `py`.
HELPERS = """
snex = {:snex, py}
call = fn to, request -> GenServer.call(to, request) end
value = fn to, code -> {:ok, v} = call.(to, {:eval, code, %{}}); v end
make = fn vars, opts -> {:ok, env} = call.(snex, {:make_env, vars, opts}); env end
down = fn ref -> receive do {:DOWN, ^ref, _, _, reason} -> reason after 5000 -> :alive end end
gone = fn env -> catch_exit = try do call.(env, :ping) catch :exit, {r, _} -> r end; catch_exit end
"""


async def elixir(beam: Beam, runtime: Runtime, source: str, **bindings: Any) -> object:
    # Every helper is used, or the compiler warns on the BEAM.
    used = "_ = {snex, call, value, make, down, gone}\n"
    return await beam.eval(HELPERS + used + source, py=runtime.name, **bindings)


async def no_environments(beam: Beam, runtime: Runtime) -> None:
    async def none() -> bool:
        return bool((await runtime.info(beam))["environments"] == 0)

    await until(none)


class TestMakingAndCopying:
    async def test_variables_stay(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        {:ok, env} = call.(snex, {:make_env, %{x: 1}})
        nil = value.(env, "y = x + 1")
        {value.(env, "return (x, y)"), value.(snex, "return 'x' in globals()")}
        """
        assert await elixir(beam, runtime, source) == ((1, 2), False)

    async def test_eval_with_variables_only(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        env = make.(%{}, [])
        {:ok, nil} = call.(env, {:eval, nil, %{"a" => 3}})
        value.(env, "return a")
        """
        assert await elixir(beam, runtime, source) == 3

    async def test_from(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        one = make.(%{a: 1, b: 1, c: 1}, [])
        two = make.(%{b: 2, c: 2, d: 2}, [])
        see = "return [globals().get(n, 'none') for n in 'abcd']"
        for from <- [one, [one, two], [two, one], {one, only: ["a", "z"]}, {one, except: ["a"]},
                     [one, {two, only: ["c"]}], [{one, except: [:b]}, {two, only: [:d]}], []] do
          value.(make.(%{}, from: from), see)
        end ++ [value.(make.(%{"b" => 9}, %{from: one}), see),
                value.(make.(%{}, from: {one, only: ["z"]}), "return z"),
                value.(make.(%{}, from: {one, only: []}), "return str(type(snex)), repr(Elixir)")]
        """
        none = b"none"
        assert await elixir(beam, runtime, source) == [
            [1, 1, 1, none],
            [1, 2, 2, 2],
            [1, 1, 1, 2],
            [1, none, none, none],
            [none, 1, 1, none],
            [1, 1, 2, none],
            [1, none, 1, 2],
            [none, none, none, none],
            [1, 9, 1, none],
            None,
            (b"<class 'module'>", b"<snex.BeamModuleProxy Elixir>"),
        ]

    async def test_what_all_start_with_is_not_lost(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        bare = make.(%{}, [])
        nil = value.(bare, "del snex, Elixir")
        for from <- [bare, {bare, only: ["snex", "Elixir"]}, {bare, except: ["snex", "Elixir"]}] do
          value.(make.(%{}, from: from), "return snex.Elixir is Elixir")
        end
        """
        assert await elixir(beam, runtime, source) == [True, True, True]

    async def test_a_copy_is_apart(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        one = make.(%{a: 1}, [])
        two = make.(%{}, from: one)
        nil = value.(two, "a = 2")
        {value.(one, "return a"), value.(two, "return a")}
        """
        assert await elixir(beam, runtime, source) == (1, 2)

    async def test_refused(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        env = make.(%{}, [])
        gone = make.(%{}, [])
        :ok = call.(snex, {:destroy_env, gone})
        for {vars, opts} <- [
              {%{}, [from: self()]}, {%{}, [from: gone]}, {%{}, [from: 7]},
              {%{}, [from: {env, only: ["a"], except: ["b"]}]}, {%{}, [from: {env, only: "a"}]},
              {%{}, [form: env]}, {[], []}, {%{1 => 2}, []}, {%{}, [handle: :nobody]}, {%{}, 7},
              {%{}, [encoding_opts: [binary_as: :text]]}] do
          {:error, %{code: code, reason: reason}} = call.(snex, {:make_env, vars, opts})
          {code, reason}
        end
        """
        answers = await elixir(beam, runtime, source)
        assert isinstance(answers, list)
        codes = [str(code) for code, _ in answers]
        assert codes == ["env_not_found"] * 3 + ["bad_request"] * 8
        assert b"is no environment of this node" in answers[0][1]
        assert b"exclude each other" in answers[3][1]
        assert b"unknown option form: there are from" in answers[5][1]

    async def test_an_environment_of_another_node(
        self, beam: Beam, runtime: Runtime, start_runtime: Callable[..., Runtime]
    ) -> None:
        other = start_runtime(cookie=beam.cookie)
        source = """
        {:ok, env} = call.({:snex, other}, {:make_env, %{a: 1}})
        {:error, error} = call.(snex, {:make_env, %{}, from: env})
        {error.code, error.reason, call.(snex, {:destroy_env, env}), value.(env, "return a")}
        """
        answer = await elixir(beam, runtime, source, other=other.name)
        assert isinstance(answer, tuple)
        assert answer[0] == "env_not_found"
        assert b"is no environment of this node" in answer[1]
        assert answer[2:] == ("ok", 1)

    async def test_a_cast_makes_none(self, beam: Beam, runtime: Runtime) -> None:
        await no_environments(beam, runtime)
        source = "GenServer.cast(snex, {:make_env, %{}}); send(snex, {:make_env, %{}}); :ok"
        assert await elixir(beam, runtime, source) == "ok"
        assert (await runtime.info(beam))["environments"] == 0

    async def test_the_init_script_is_the_root(
        self, beam: Beam, start_runtime: Callable[..., Runtime]
    ) -> None:
        script = "import asyncio\nawait asyncio.sleep(0)\nanswer = 42\nshared = []\n"
        runtime = start_runtime(cookie=beam.cookie, init_script=script)
        source = """
        env = make.(%{"answer" => 1}, [])
        nil = value.(snex, "answer = 0; shared.append(1)")
        {value.(env, "return answer"), value.(snex, "return answer, shared"),
         value.(make.(%{}, from: {env, only: ["other"]}), "return answer")}
        """
        assert await elixir(beam, runtime, source) == (1, (42, [1]), 42)


class TestEnding:
    async def test_every_way(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        for how <- [
              fn env -> call.(snex, {:destroy_env, env}) end,
              fn env -> Process.exit(env, :kill) end,
              fn env -> Process.exit(env, :shutdown) end,
              fn env -> GenServer.stop(env) end] do
          env = make.(%{}, [])
          ref = Process.monitor(env)
          how.(env)
          reason = down.(ref)
          {reason, gone.(env), call.(snex, {:destroy_env, env}), call.(snex, {:destroy_env, env})}
        end
        """
        answer = await elixir(beam, runtime, source)
        assert answer == [
            ("normal", "noproc", "ok", "ok"),
            ("killed", "noproc", "ok", "ok"),
            ("shutdown", "noproc", "ok", "ok"),
            ("normal", "noproc", "ok", "ok"),
        ]

    async def test_exit_normal_does_not_end_it(self, beam: Beam, runtime: Runtime) -> None:
        source = "env = make.(%{a: 1}, []); Process.exit(env, :normal); value.(env, 'return a')"
        assert await elixir(beam, runtime, source.replace("'return a'", '"return a"')) == 1

    async def test_links(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        Process.flag(:trap_exit, true)
        env = make.(%{}, [])
        Process.link(env)
        Process.exit(env, :kill)
        reason = receive do {:EXIT, ^env, reason} -> reason after 5000 -> :none end
        # And the other way round: the environment follows what it is linked to.
        held = make.(%{}, handle: :none)
        ref = Process.monitor(held)
        pid = spawn(fn -> Process.link(held); exit(:over) end)
        _ = pid
        {reason, down.(ref)}
        """
        assert await elixir(beam, runtime, source) == ("killed", "over")

    async def test_stopping_the_server_itself_is_refused(
        self, beam: Beam, runtime: Runtime
    ) -> None:
        source = "GenServer.stop(snex, :normal, 500)"
        try:
            await elixir(beam, runtime, source)
        except Exception as error:
            assert "not_allowed" in str(error)  # noqa: PT017
        assert await elixir(beam, runtime, "call.(snex, :ping)") == "pong"

    async def test_what_runs_in_it_finishes(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        env = make.(%{x: 20, me: self()}, [])
        code = "await snex.send(me, 'runs')\\nawait go.wait()\\nawait snex.send(me, x + 1)"
        nil = value.(env, "import asyncio; go = asyncio.Event()")
        keep = make.(%{}, from: {env, only: ["go"]})
        GenServer.cast(env, {:eval, code, %{}})
        receive do "runs" -> :ok end
        Process.exit(env, :kill)
        :noproc = gone.(env)
        nil = value.(keep, "go.set()")
        receive do n -> n after 5000 -> :none end
        """
        assert await elixir(beam, runtime, source) == 21


class TestHandles:
    async def test_the_caller_by_default(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        me = self()
        pid = spawn(fn ->
          env = make.(%{}, [])
          send(me, {:env, env})
          receive do :end -> :ok end
        end)
        env = receive do {:env, env} -> env end
        ref = Process.monitor(env)
        :pong = call.(env, :ping)
        send(pid, :end)
        down.(ref)
        """
        assert await elixir(beam, runtime, source) == "normal"

    async def test_named_none_and_changed(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        handle = spawn(fn -> receive do :end -> :ok end end)
        other = spawn(fn -> receive do :end -> :ok end end)
        run = fn opts -> Task.await(Task.async(fn -> make.(%{}, opts) end)) end
        named = run.(handle: handle)
        forever = run.(handle: :none)
        changed = run.(handle: handle)
        kept = run.(handle: handle)
        :ok = call.(changed, {:handle, other})
        :ok = call.(changed, {:handle, other})
        :ok = call.(kept, {:handle, :none})
        refs = for env <- [named, changed], do: Process.monitor(env)
        Process.exit(handle, :kill)
        first = Enum.map([hd(refs)], down)
        alive = Enum.map([forever, changed, kept], &call.(&1, :ping))
        Process.exit(other, :kill)
        second = Enum.map(tl(refs), down)
        Enum.each([forever, kept], &call.(snex, {:destroy_env, &1}))
        {first, alive, second}
        """
        answer = await elixir(beam, runtime, source)
        assert answer == (["normal"], ["pong"] * 3, ["normal"])

    async def test_one_that_is_dead_already(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        {pid, ref} = spawn_monitor(fn -> :ok end)
        _ = down.(ref)
        down.(Process.monitor(make.(%{}, handle: pid)))
        """
        assert await elixir(beam, runtime, source) in ("normal", "noproc")

    async def test_bad_handle_requests(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        env = make.(%{}, [])
        for {to, request} <- [{env, {:handle, 7}}, {snex, {:handle, self()}}, {env, {:handle}},
                              {snex, {:destroy_env}}, {snex, {:destroy_env, 1}}] do
          {:error, %{code: :bad_request, reason: reason}} = call.(to, request)
          is_binary(reason)
        end
        """
        assert await elixir(beam, runtime, source) == [True] * 5

    async def test_one_monitor_per_handle(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        envs = for _ <- 1..50, do: make.(%{}, [])
        count = fn -> {:monitored_by, pids} = Process.info(self(), :monitored_by)
                      Enum.count(pids, &(node(&1) == py)) end
        with_50 = count.()
        Enum.each(envs, &call.(snex, {:destroy_env, &1}))
        # A later request of ours is handled after the last demonitor signal was sent.
        :pong = call.(snex, :ping)
        {with_50, count.()}
        """
        assert await elixir(beam, runtime, source) == (1, 0)

    async def test_its_node_goes_down(
        self, beam: Beam, runtime: Runtime, start_beam: Callable[..., Beam]
    ) -> None:
        other = start_beam(cookie=beam.cookie, flags=["-connect_all", "false"])
        await no_environments(beam, runtime)
        source = """
        pid = spawn(fn -> receive do :end -> :ok end end)
        {:ok, env} = GenServer.call({:snex, py}, {:make_env, %{}, handle: pid})
        env
        """
        env = await other.eval(source, py=runtime.name)
        watching = """
        ref = Process.monitor(env)
        :pong = call.(env, :ping)
        _ = {snex, value, make, gone}
        down.(ref)
        """
        waiting = beam.submit(HELPERS + watching, py=runtime.name, env=env)

        async def held() -> bool:
            return bool((await runtime.info(beam))["environments"] == 1)

        await until(held)
        await other.kill()
        assert waiting.result(20) == "noconnection"
        await no_environments(beam, runtime)
