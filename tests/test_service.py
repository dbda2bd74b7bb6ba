from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from snex_runtime.service import Service


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager, which the environment names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_it_is_ready_and_stops(manager: socket.socket) -> None:
    service = Service()
    service.ready("py@h at port 4711")
    assert manager.recv(1000) == b"READY=1\nSTATUS=py@h at port 4711"
    service.stopping()
    assert manager.recv(1000) == b"STOPPING=1"


@pytest.mark.usefixtures("manager")
def test_what_it_starts_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    Service()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"snex-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        Service().ready("here")
        assert sock.recv(1000).startswith(b"READY=1\n")


def test_nobody_asked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service = Service()
    service.ready("here")
    service.stopping()
    assert caplog.records == []


def test_a_manager_that_is_gone_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    service = Service()
    service.ready("here")
    service.stopping()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the service manager at {tmp_path}/nothing cannot be")


class TestWatchdog:
    async def test_it_is_told_until_the_node_stops(
        self, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        service = Service()
        service.ready("here")
        told = [await asyncio.to_thread(manager.recv, 1000) for _ in range(4)]
        assert told[1:] == [b"WATCHDOG=1"] * 3
        service.stopping()
        while await asyncio.to_thread(manager.recv, 1000) != b"STOPPING=1":
            pass
        await asyncio.sleep(0.05)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(1000)

    @pytest.mark.parametrize("number", ["", "soon", "-5"])
    async def test_none_is_there(
        self, number: str, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WATCHDOG_USEC", number)
        service = Service()
        service.ready("here")
        assert service._beat is None

    async def test_it_watches_another_process(
        self, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.setenv("WATCHDOG_PID", "1")
        service = Service()
        service.ready("here")
        assert service._beat is None
