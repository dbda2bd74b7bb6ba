"""The process of an epmd of ours: it serves the sockets that it was given while it is needed."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys

import pytest

from snex_node.epmd import NodeInfo, daemon, names, register, server
from tests.support.forked import forked


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LINGER_SECONDS", 0.1)


def serve(sockets: list[socket.socket]) -> None:
    """What the starter has a Python do."""
    sys.argv = ["-c", "package", *(str(each.fileno()) for each in sockets)]
    daemon.main()


def test_it_serves_as_a_process_of_its_own_until_its_last_node_has_gone() -> None:
    sockets = server.listen(["127.0.0.1"], 0)
    port = sockets[0].getsockname()[1]
    # Its number is all that it says; the output ends though it goes on.
    status, output = forked(lambda: serve(sockets))
    assert status == 0
    process = int(output)
    for each in sockets:
        each.close()

    async def use() -> None:
        registration = await register(NodeInfo("py", 1), port=port)
        assert await names(port=port) == [("py", 1)]
        os.kill(process, 0)
        registration.close()

    asyncio.run(use())
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionError:
            break


def test_it_logs_nothing_and_may_have_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def look(core: server.Core) -> None:
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 1000)
        assert not logging.getLogger().isEnabledFor(logging.CRITICAL)
        theirs.send(b"as it should be")

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        serve(server.listen(["127.0.0.1"], 0))

    monkeypatch.setattr(server.Core, "run", look)
    forked(run)
    ours.settimeout(20)
    assert ours.recv(100) == b"as it should be"
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (100, 500, 400),
        (100, 300, 300),
        (100, resource.RLIM_INFINITY, 400),
        (450, 500, None),
        (300, 300, None),
    ],
)
def test_how_many_files_it_asks_for(
    soft: int, hard: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    daemon._allow_files(400)
    assert asked == ([] if expected is None else [(expected, hard)])


def test_a_system_that_refuses_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 500))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    daemon._allow_files(400)
