"""What the interop tests share: nodes of ours, and a BEAM that must have nothing to complain of."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from snex_node import Node
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.runtime import runtime, start_runtime

__all__ = ["runtime", "start_runtime"]

NodeStarter = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this directory is an interop test."""
    for item in items:
        if "/tests/interop/" in str(item.path):
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="module")
def beam(epmd: RealEpmd) -> Iterator[Beam]:
    """A BEAM that the tests of a module share. What it logs, it has against us.

    A test that provokes a complaint starts a BEAM of its own.
    """
    with Beam.start(epmd_port=epmd.port) as peer:
        yield peer
    assert peer.log == "", "the BEAM complained"


@pytest.fixture
async def start_node(epmd: RealEpmd, beam: Beam) -> AsyncIterator[NodeStarter]:
    """A function that starts a node of ours, with the options of `Node`; it is stopped at the end.

    Its name is its own, its cookie that of the shared BEAM, unless told otherwise.
    """
    async with AsyncExitStack() as stack:

        async def start(name: str | None = None, **options: Any) -> Node:
            name = name or f"py{secrets.token_hex(4)}@127.0.0.1"
            defaults = {"cookie": beam.cookie, "epmd": "external", "epmd_port": epmd.port}
            return await stack.enter_async_context(Node(name, **{**defaults, **options}))

        yield start


@pytest.fixture
async def node(start_node: NodeStarter) -> Node:
    """A node of ours that can reach the shared BEAM, and is not connected."""
    started: Node = await start_node()
    return started
