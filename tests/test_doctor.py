"""What nodes need, looked at one by one: where it is there, and where it is missing."""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from snex_node import Node, __version__, epmd
from snex_node.epmd import EpmdServer
from snex_node.errors import NodeError
from snex_runtime import doctor, serde
from snex_runtime.doctor import Check, Patient, examine
from snex_runtime.server import Server
from tests.support.ports import free_port

COOKIE = "the-cookie-of-the-doctor"


def client(cookie: str = COOKIE) -> Node:
    name = f"looks{secrets.token_hex(4)}@127.0.0.1"
    conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
    return Node(name, cookie=cookie, listen=None, epmd="none", **conversion)


async def checks(patient: Patient) -> dict[str, Check]:
    return {check.name: check async for check in examine(patient)}


def patient(node: str | None = None, cookie: str = COOKIE, **more: Any) -> Patient:
    return Patient(node, partial(client, cookie), timeout=5.0)._replace(**more)


@pytest.fixture(autouse=True)
def _machine(
    embedded: EpmdServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_otp: None
) -> None:
    """One with a home, a cookie and an epmd of its own, and no programs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ERL_EPMD_PORT", str(embedded.address[1]))
    monkeypatch.setattr("snex_node.cookie._taken", None)
    monkeypatch.setenv("SNEX_COOKIE", COOKIE)


@pytest.fixture
async def node() -> AsyncIterator[str]:
    """A node of ours that is registered."""
    async with AsyncExitStack() as stack:
        conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
        name = f"well{secrets.token_hex(4)}@127.0.0.1"
        made = Node(name, cookie=COOKIE, epmd="external", **conversion)
        await stack.enter_async_context(made)
        Server(made)
        yield name


def program(directory: Path, name: str, text: str) -> None:
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


class TestThisMachine:
    async def test_programs_that_are_missing(self) -> None:
        found = await checks(patient())
        assert found["versions"].text.startswith(f"snex-node {__version__} on ")
        assert [found[name].state for name in ("uv", "compiler")] == ["warning", "warning"]
        assert found["erlang"].state == "ok"
        assert "Python nodes need neither" in found["erlang"].text
        assert all(check.state != "failed" for check in found.values())

    async def test_programs_that_are_there(self, tmp_path: Path) -> None:
        for name in ("uv", "gcc"):
            program(tmp_path, name, "")
        program(
            tmp_path,
            "elixir",
            "echo 'Erlang/OTP 27 [erts-15]'; echo 'Elixir 1.18.1 (with Erlang/OTP 25)'",
        )
        found = await checks(patient())
        assert found["uv"].text == str(tmp_path / "uv")
        assert found["compiler"].text == str(tmp_path / "gcc")
        assert found["erlang"].text == "Erlang/OTP 27, Elixir 1.18.1"

    @pytest.mark.parametrize(
        ("text", "state", "told"),
        [("echo Erlang/OTP 26", "ok", "Erlang/OTP 26"), ("exit 3", "warning", "does not say")],
    )
    async def test_erlang_without_elixir(
        self, tmp_path: Path, text: str, state: str, told: str
    ) -> None:
        program(tmp_path, "erl", text)
        check = (await checks(patient()))["erlang"]
        assert (check.state, told in check.text) == (state, True)

    @pytest.mark.parametrize(("spec", "told"), [(None, "not installed"), (object(), "installed:")])
    async def test_uvloop(self, monkeypatch: pytest.MonkeyPatch, spec: object, told: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        assert told in (await checks(patient()))["uvloop"].text

    async def test_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
        monkeypatch.setattr(socket, "getfqdn", lambda: "box.example.org")
        found = await checks(patient())
        assert found["short names"].state == found["long names"].state == "ok"
        assert "127.0.0.1" in found["short names"].text
        assert "--name py@box.example.org" in found["long names"].text

    async def test_names_that_nobody_finds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(host: str) -> Any:
            raise OSError(2, "no such name")

        monkeypatch.setattr(doctor, "resolve", fail)
        monkeypatch.setattr(socket, "gethostname", lambda: "box")
        monkeypatch.setattr(socket, "getfqdn", lambda: "box")
        found = await checks(patient())
        assert found["short names"].state == found["long names"].state == "warning"
        assert "box does not resolve (no such name)" in found["short names"].text

    async def test_a_name_server_that_does_not_answer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "box")
        monkeypatch.setattr(socket, "getfqdn", lambda: time.sleep(0.3))
        monkeypatch.setattr(doctor, "resolve", lambda host: time.sleep(0.3))
        found = await checks(patient(timeout=0.05))
        assert "no answer in time" in found["short names"].text
        assert "box has no dot" in found["long names"].text

    async def test_epmd(self, embedded: EpmdServer, node: str) -> None:
        check = (await checks(patient()))["epmd"]
        assert check.state == "ok"
        assert f"{node.partition('@')[0]} at port" in check.text

    async def test_no_epmd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ERL_EPMD_PORT", str(free_port()))
        check = (await checks(patient()))["epmd"]
        assert (check.state, check.remedy) == ("warning", "`snex-node start` starts one")


class TestCookie:
    async def test_the_variable(self) -> None:
        check = (await checks(patient()))["cookie"]
        assert (check.state, check.text) == ("ok", "from the environment variable SNEX_COOKIE")

    @pytest.mark.parametrize(("mode", "state"), [(0o400, "ok"), (0o644, "failed")])
    async def test_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, state: str
    ) -> None:
        monkeypatch.delenv("SNEX_COOKIE")
        file = tmp_path / ".erlang.cookie"
        file.write_text("ANOTHERCOOKIE")
        file.chmod(mode)
        check = (await checks(patient()))["cookie"]
        assert check.state == state
        assert str(file) in check.text
        assert "ANOTHERCOOKIE" not in str(check)

    async def test_one_that_is_named(self, tmp_path: Path) -> None:
        check = (await checks(patient(cookie_file=str(tmp_path / "none"))))["cookie"]
        assert check.state == "failed"
        assert "cannot read the cookie file" in check.text

    @pytest.mark.parametrize(("name", "state"), [(None, "warning"), ("x@127.0.0.1", "failed")])
    async def test_none_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, state: str
    ) -> None:
        monkeypatch.delenv("SNEX_COOKIE")
        check = (await checks(patient(name)))["cookie"]
        assert check.state == state
        assert not (tmp_path / ".erlang.cookie").exists()


class TestTheWay:
    async def test_to_one_that_is_well(self, node: str) -> None:
        found = await checks(patient(node))
        names = (
            "host",
            "epmd",
            "registered",
            "port",
            "handshake",
            "answers",
            "versions there",
            "clock",
        )
        assert [found[name].state for name in names] == ["ok"] * len(names)
        assert found["host"].text.startswith("127.0.0.1 is 127.0.0.1; a long name")
        assert f"snex-node {__version__}" in found["versions there"].text

    @pytest.mark.parametrize("name", ["py", "@127.0.0.1", "py@"])
    async def test_what_is_no_name(self, name: str) -> None:
        check = (await checks(patient(name)))["host"]
        assert (check.state, check.remedy) == ("failed", "give NAME@HOST")

    async def test_a_host_that_is_not_found(self) -> None:
        found = await checks(patient("py@no-such-host.invalid"))
        assert found["host"].state == "failed"
        assert "epmd" not in found

    async def test_no_epmd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ERL_EPMD_PORT", str(free_port()))
        found = await checks(patient("py@127.0.0.1"))
        assert found["epmd"].state == "failed"
        assert "registered" not in found

    async def test_one_that_is_not_registered(self) -> None:
        found = await checks(patient("nobody@127.0.0.1"))
        assert found["registered"].state == "failed"
        assert "knows no nobody" in found["registered"].text
        assert "port" not in found

    async def test_epmd_fails_meanwhile(self, monkeypatch: pytest.MonkeyPatch, node: str) -> None:
        async def fail(*_: object) -> None:
            raise epmd.EpmdError("it has gone")

        monkeypatch.setattr(epmd, "lookup", fail)
        assert (await checks(patient(node)))["registered"].text == "it has gone"

    async def test_a_port_that_is_closed(self) -> None:
        registration = await epmd.register(epmd.NodeInfo("gone", port=free_port()))
        found = await checks(patient("gone@127.0.0.1"))
        registration.close()
        assert found["port"].state == "failed"
        assert "handshake" not in found

    async def test_another_cookie(self, node: str) -> None:
        found = await checks(patient(node, cookie="another"))
        check = found["handshake"]
        assert (check.state, check.text.partition(":")[0]) == ("failed", "cookie")
        assert check.remedy is not None
        assert "the same cookie" in check.remedy
        assert COOKIE not in str(found)

    async def test_one_that_does_not_answer(self, node: str) -> None:
        found = await checks(patient(node, register_as="nope"))
        assert found["answers"].state == "failed"
        assert "--register-as" in str(found["answers"].remedy)

    async def test_one_that_is_older(self, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("snex_runtime.info.__version__", "0.0.1")
        check = (await checks(patient(node)))["versions there"]
        assert (check.state, "0.0.1" in check.text) == ("warning", True)

    @pytest.mark.parametrize(("ahead", "way"), [(60.0, "60 s ahead of"), (-60.0, "60 s behind")])
    async def test_another_time(
        self, node: str, monkeypatch: pytest.MonkeyPatch, ahead: float, way: str
    ) -> None:
        async def rpc(*_: object, **__: object) -> float:
            return time.time() + ahead

        monkeypatch.setattr(Node, "rpc", rpc)
        check = (await checks(patient(node)))["clock"]
        assert (check.state, way in check.text) == ("warning", True)

    async def test_time_is_not_told(self, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async def rpc(*_: object, **__: object) -> float:
            raise NodeError("no")

        monkeypatch.setattr(Node, "rpc", rpc)
        assert (await checks(patient(node)))["clock"].text == "not told: no"

    async def test_what_is_no_answer(self) -> None:
        async def answer() -> object:
            return Check("x", "ok", "y")

        assert await doctor._pair(answer()) == (None, None)


async def test_a_command_that_takes_too_long(tmp_path: Path) -> None:
    program(tmp_path, "erl", "exec /bin/sleep 5")
    began = time.monotonic()
    check = (await checks(patient(timeout=0.05)))["erlang"]
    assert check.state == "warning"
    assert time.monotonic() - began < 4.0
    assert doctor._why(subprocess.SubprocessError()) == "SubprocessError"
    assert doctor._why(asyncio.TimeoutError()) == "no answer in time"
