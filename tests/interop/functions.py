"""Python functions that the BEAM calls by `:erpc`, `:rpc` and `Node.spawn`."""

from __future__ import annotations

import asyncio
import sys

from snex_node import Atom

MODULE = Atom(__name__)

running: list[object] = []
"""Arguments of the coroutines that wait now."""
cancelled: list[object] = []
called: list[object] = []
go_on: list[asyncio.Event] = []


def reset() -> None:
    for seen in (running, cancelled, called, go_on):
        seen.clear()


def note(*args: object) -> object:
    called.append(args)
    return args


def give(*args: object) -> object:
    return list(args)


async def wait(key: object) -> object:
    """Waits until the test says so; what it is called with shows that it does."""
    event = asyncio.Event()
    running.append(key)
    go_on.append(event)
    try:
        await event.wait()
    except asyncio.CancelledError:
        cancelled.append(key)
        raise
    finally:
        running.remove(key)
    return (Atom("waited"), key)


def fail(text: str | bytes) -> None:
    raise ValueError(text.decode() if isinstance(text, bytes) else text)


async def fail_later(text: bytes) -> None:
    await asyncio.sleep(0)
    raise KeyError(text.decode())


def unsendable() -> object:
    return [1, {"where": object()}]


def end() -> None:
    sys.exit(3)


async def end_later() -> None:
    await asyncio.sleep(0)
    sys.exit(3)


async def cancel() -> None:
    await asyncio.sleep(0)
    raise asyncio.CancelledError("by itself")


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot even say what it is")


def fail_unreadably() -> None:
    raise Unreadable


class Holder:
    """Attributes are reached with dots."""

    @staticmethod
    def method(value: object) -> object:
        return value


not_callable = 1
