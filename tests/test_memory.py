"""What many hold together is bounded, and memory is given back."""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snex_node import Node
from snex_node.system import memory
from snex_node.system.memory import LARGE, TRIM_AFTER, TRIM_PAUSE, Holdings, Trimmer, find_trim
from snex_node.wire.control import SendSender, encode
from snex_node.wire.framing import FRAGMENT_SIZE
from snex_node.wire.handshake import Identity
from tests.support.peer import ScriptedPeer
from tests.support.waiting import until


class TestHoldings:
    def test_who_holds_the_most_is_told(self) -> None:
        told: list[str] = []
        holdings: Holdings[str] = Holdings(100, told.append)
        for name, size in ("a", 40), ("b", 60), ("a", 30), ("c", 10):
            holdings.changed(name, size)
        assert (holdings.size, told) == (100, [])
        holdings.changed("c", 11)
        assert told == ["b"]
        holdings.changed("b", 0)
        assert holdings.size == 41

    def test_who_holds_nothing_is_forgotten(self) -> None:
        holdings: Holdings[str] = Holdings(100, lambda holder: None)
        holdings.changed("a", 40)
        holdings.changed("a", 0)
        holdings.changed("b", 0)
        assert (holdings.size, holdings._held) == (0, {})


class TestTrimmer:
    @pytest.fixture
    def trims(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        trims: list[float] = []
        monkeypatch.setattr(memory, "find_trim", lambda: lambda: trims.append(time.monotonic()))
        return trims

    def test_when_enough_has_been_released(self, trims: list[float]) -> None:
        trimmer = Trimmer()
        trimmer.released(TRIM_AFTER - 1)
        trimmer.check()
        assert trims == []
        trimmer.released(1)
        trimmer.check()
        trimmer.check()
        assert len(trims) == 1

    def test_not_too_often(self, trims: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        trimmer = Trimmer()
        for _ in range(100):
            trimmer.released(TRIM_AFTER)
            trimmer.check()
        assert len(trims) == 1
        now[0] += TRIM_PAUSE
        trimmer.check()
        trimmer.check()
        assert len(trims) == 2

    def test_where_there_is_no_such_thing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: object) -> object:
            raise OSError("no such library")

        monkeypatch.setattr(ctypes, "CDLL", refuse)
        find_trim()()
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
        find_trim()()


def glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "malloc_trim")


ALLOCATES = f"""
import resource, sys
from snex_node.system import memory
if sys.argv[1] == "keep":
    trimmer = memory.Trimmer()
    trimmer.released({LARGE - 1})
    trimmer.released({LARGE})
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    three = [bytes([1]) * 10_000_000 for _ in range(3)]
    del three
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not glibc(), reason="no glibc here")
def test_memory_of_large_objects_is_kept_for_the_next_ones() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", ALLOCATES, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("leave") > 1000
    assert faults("keep") < 100


IDENTITIES = [Identity(f"p{n}@127.0.0.1", 7) for n in range(3)]


def part(peer: ScriptedPeer, number: int, size: int) -> bytes:
    """A message of which `number` fragments are to come after this one, of `size` bytes."""
    head = encode(SendSender(peer.pid(), peer.pid()))
    body = b"\x83E" + (1).to_bytes(8, "big") + (number + 1).to_bytes(8, "big") + b"\0" + head
    return (len(body) + size).to_bytes(4, "big") + body + bytes(size)


async def connect(node: Node, number: int) -> ScriptedPeer:
    assert node.port is not None
    return await ScriptedPeer.connect(IDENTITIES[number], "secret", node.name, node.port)


async def test_peers_together_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """None of them sends too much; the one that has sent the most is closed, the others live."""
    name = f"py{secrets.token_hex(4)}@127.0.0.1"
    async with Node(name, cookie="secret", epmd="none", max_unfinished=250_000) as node:
        peers = [await connect(node, number) for number in range(3)]
        for peer, size in zip(peers, (60_000, 110_000, 50_000), strict=True):
            await peer.send_raw(part(peer, 5, size))
        await until(lambda: node.cluster.unfinished.size > 220_000)
        assert len(node.nodes) == 3
        await peers[2].send_raw(bytes.fromhex("0000ffff") + bytes(40_000))
        await peers[1].wait_closed()
        await until(lambda: len(node.nodes) == 2)
        assert node.nodes == [IDENTITIES[0].name, IDENTITIES[2].name]
        assert "all peers together have sent more than 250000 bytes" in caplog.text
        for peer in peers:
            peer.close()
        await until(lambda: not node.nodes)
        assert node.cluster.unfinished.size == 0


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not glibc(), reason="no malloc_trim here")
async def test_memory_is_given_back() -> None:
    """After 200 MB of a message that never became whole, in pieces between which others live."""
    name = f"py{secrets.token_hex(4)}@127.0.0.1"
    async with Node(name, cookie="secret", epmd="none") as node:
        peer = await connect(node, 0)
        await until(lambda: node.nodes)
        trim = find_trim()
        assert trim is not None
        trim()  # or what other tests have freed would be taken first
        before = resident()
        kept: list[bytes] = []
        for number in range(3200, 0, -1):
            if number == 3200:
                await peer.send_raw(part(peer, number, FRAGMENT_SIZE))
            else:
                await peer.send_raw(fragment(number + 1, FRAGMENT_SIZE))
            if not number % 100:
                await until(lambda: node.cluster.unfinished.size > (3100 - number) * FRAGMENT_SIZE)  # noqa: B023
                kept.append(bytes(2000))
        held = resident()
        assert held - before > 150_000_000
        peer.close()
        await until(lambda: resident() - before < 60_000_000, timeout=20)
        del kept


def fragment(number: int, size: int) -> bytes:
    body = b"\x83F" + (1).to_bytes(8, "big") + number.to_bytes(8, "big")
    return (len(body) + size).to_bytes(4, "big") + body + bytes(size)
