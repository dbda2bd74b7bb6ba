"""Strangers open sockets as fast as they can: who has the cookie gets in all the same."""

from __future__ import annotations

import logging
import os
import time

import pytest

from snex_node import Node, Process
from snex_node.cluster.door import MAX_HANDSHAKES
from tests.interop.conftest import NodeStarter
from tests.support.beam import Beam
from tests.support.flood import KINDS, flooding

pytestmark = pytest.mark.both_loops

CONNECT = """
began = System.monotonic_time(:millisecond)
connected = Node.connect(py)
took = System.monotonic_time(:millisecond) - began
Node.disconnect(py)
{connected, took}
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_beam_connects_within_a_second(
    beam: Beam, start_node: NodeStarter, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    node: Node = await start_node()
    assert node.port is not None
    events = Process(node)
    node.monitor_nodes(events)
    descriptors = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    async with flooding(node.port, kind):
        times = []
        for _ in range(7):
            result = await beam.eval(CONNECT, py=node.name)
            assert isinstance(result, tuple)
            assert result[0] is True
            times.append(result[1])
            assert await events.receive(timeout=5) == ("nodeup", beam.name)
            assert await events.receive(timeout=5) == ("nodedown", beam.name)
        # In ms; on a machine that is busy with other things, we have a share of a core.
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert sorted(times)[3] < 1000 * busy
        assert len(os.listdir("/proc/self/fd")) <= descriptors + MAX_HANDSHAKES + 16
    seconds = time.monotonic() - began
    lines = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert 1 <= len(lines) <= 11 * (1 + seconds / 10)
