"""Where others find a node: its address, and its name with epmd."""

from __future__ import annotations

import socket

import pytest

from snex_node import NodeStartError
from snex_node.cluster.presence import Presence, listen, random_creation
from snex_node.epmd import EpmdServer, lookup, register
from snex_node.epmd.messages import NodeInfo
from tests.support.ports import free_port

HERE = ("127.0.0.1", 0)


def test_creations_are_never_small() -> None:
    creations = {random_creation() for _ in range(100)}
    assert len(creations) > 95
    assert all(15 < creation < 2**32 for creation in creations)


async def test_with_an_epmd() -> None:
    with EpmdServer("127.0.0.1", 0) as server:
        port = server.address[1]
        presence = Presence("py@127.0.0.1", HERE, "external", port)
        assert presence.address is None
        creation = await presence.take()
        assert creation > 0
        assert presence.address is not None
        assert presence.listener is not None
        found = await lookup("py", "127.0.0.1", port=port)
        assert found is not None
        assert found.port == presence.address[1]
        presence.stop_listening()
        assert presence.listener is None
        assert await lookup("py", "127.0.0.1", port=port) is not None
        await presence.leave()
        assert await lookup("py", "127.0.0.1", port=port) is None
        assert presence.address is None


@pytest.mark.parametrize("where", [HERE, None])
async def test_without_an_epmd(where: tuple[str, int] | None) -> None:
    presence = Presence("py@127.0.0.1", where, "none", None)
    assert 15 < await presence.take() < 2**32
    assert (presence.address is None) is (where is None)
    await presence.leave()


async def test_who_listens_nowhere_is_not_registered() -> None:
    """Others could not come, so there is nothing to tell an epmd."""
    presence = Presence("py@127.0.0.1", None, "external", free_port())
    assert 15 < await presence.take() < 2**32
    await presence.leave()


async def test_a_name_that_is_taken_leaves_nothing_open() -> None:
    with EpmdServer("127.0.0.1", 0) as server:
        port = server.address[1]
        first = await register(NodeInfo("py", 1), port=port)
        presence = Presence("py@127.0.0.1", HERE, "external", port)
        with pytest.raises(NodeStartError, match="py"):
            await presence.take()
        assert presence.listener is None
        assert presence.address is None
        first.close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(NodeStartError, match=r"cannot listen on 192\.0\.2\.1:0: .*Choose another"):
        listen("192.0.2.1", 0)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(NodeStartError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port)


def test_a_host_that_does_not_resolve() -> None:
    with pytest.raises(NodeStartError, match=r"cannot listen on no-such-host\.invalid:0"):
        listen("no-such-host.invalid", 0)
