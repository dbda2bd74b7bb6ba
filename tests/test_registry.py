"""Processes by pid and by name, and the numbers of pids and references."""

from __future__ import annotations

import pytest

from snex_node import (
    Node,
    Pid,
    Process,
    Reference,
)
from snex_node.processes.process import BaseProcess


class TestNames:
    async def test_register(self, node: Node) -> None:
        process = Process(node, name="one")
        assert node.whereis("one") == process.pid
        assert node.find("one") is node.find(process.pid) is process
        assert node.whereis("two") is None
        process.register("two")
        node.send("two", 1)
        assert await process.receive(timeout=1) == 1
        process.exit()
        assert node.whereis("one") is node.whereis("two") is None
        Process(node, name="one")

    async def test_taken(self, node: Node) -> None:
        process = Process(node, name="one")
        with pytest.raises(ValueError, match="the name one is taken by"):
            Process(node, name="one")
        with pytest.raises(ValueError, match="is taken"):
            process.register("one")

    async def test_no_name_at_all(self, node: Node) -> None:
        with pytest.raises(ValueError, match="atom too long"):
            Process(node, name="x" * 256)

    async def test_the_dead_have_none(self, node: Node) -> None:
        process = Process(node)
        process.exit()
        with pytest.raises(ValueError, match="has ended"):
            process.register("one")

    async def test_unregister(self, node: Node) -> None:
        process = Process(node, name="one")
        node.unregister("one")
        assert node.whereis("one") is None
        with pytest.raises(ValueError, match="no process is registered as one"):
            node.unregister("one")
        process.register("one")
        assert node.whereis("one") == process.pid

    async def test_repr(self, node: Node) -> None:
        process = Process(node)
        assert repr(process) == f"<Process #PID<py@127.0.0.1.{process.pid.id}.0>>"


class TestIdentity:
    async def test_pids_are_unique(self, node: Node) -> None:
        pids = {BaseProcess(node).pid for _ in range(1000)}
        assert len(pids) == 1000
        assert {pid.node for pid in pids} == {node.name}
        assert {pid.creation for pid in pids} == {node.creation}

    async def test_references_are_unique(self, node: Node) -> None:
        refs = {node.make_ref() for _ in range(1000)}
        assert len(refs) == 1000
        assert {type(ref) for ref in refs} == {Reference}
        assert {len(ref.words) for ref in refs} == {3}

    async def test_a_small_one(self, node: Node) -> None:
        """What an idle process takes is bounded: 100,000 of them fit a small machine."""
        process = BaseProcess(node)
        assert not hasattr(process, "__dict__")
        assert process.ties is None
        assert isinstance(process.pid, Pid)


class TestReferences:
    async def test_references_of_our_own_processes(self, node: Node) -> None:
        process = Process(node)
        assert process.line == process.pid
