"""The process registered as ``snex``, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import Node
from snex_node.errors import ProcessExitError
from tests.support.calling import (
    A,
    Caller,
    calling,
)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as made:
        yield made


@pytest.fixture
async def started(caller: Caller) -> Caller:
    """A caller that knows when code has begun to wait: ``began.set()`` in that code."""
    caller.server.provide(began=asyncio.Event(), ended=asyncio.Event(), asyncio=asyncio)
    return caller


FINALLY = """
began.set()
try:
    await asyncio.sleep(60)
finally:
    ended.set()
"""


async def test_a_runtime_that_stops_cancels_what_runs(started: Caller) -> None:
    root: dict[str, Any] = started.server.root
    call = asyncio.ensure_future(started.eval(FINALLY))
    await root["began"].wait()
    node = started.server.node
    assert isinstance(node, Node)
    await node.stop()
    await asyncio.wait_for(root["ended"].wait(), 5)
    with contextlib.suppress(ProcessExitError):
        tag, error = await call
        assert (tag, error[A("code")]) == (A("error"), A("cancelled"))
