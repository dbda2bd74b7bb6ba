"""A caller whose calls a test carries itself: as bytes, and with the answer when one comes."""

from __future__ import annotations

import asyncio
from typing import Any

from snex_node import Node
from snex_node.wire.gen import ALIAS, GEN_CALL, GEN_CAST, call_head
from snex_node.wire.terms import Atom, ImproperList, Pid, Reference

A = Atom


class Call:
    """``data`` is the message; ``answer`` is what comes to its alias."""

    def __init__(self, asking: Asking, request: object) -> None:
        self.ref = asking.node.make_ref()
        self.answer: asyncio.Future[Any] = asking.node.router.expect(self.ref)
        self.data = call_head(asking.pid, self.ref) + asking.node.encoder.encode(request)

    async def answered(self) -> Any:
        """The answer, with the codes of errors in the place of errors."""
        return coded(await asyncio.wait_for(asyncio.shield(self.answer), 10))


class Asking:
    """Makes calls in the name of the process ``pid`` of a node."""

    def __init__(self, node: Node, pid: Pid) -> None:
        self.node = node
        self.pid = pid

    def call(self, *request: Any) -> Call:
        """A call; the first part of the request is an atom."""
        return Call(self, term_of(request[0], *request[1:]))

    def by_tag(self, ref: Reference, *request: Any) -> bytes:
        """The message of a call whose answer goes to the pid, as C nodes make it."""
        return self.node.encoder.encode(
            (GEN_CALL, (self.pid, ref), term_of(request[0], *request[1:]))
        )

    def cast(self, *request: Any) -> bytes:
        """The message of a cast."""
        return self.node.encoder.encode((GEN_CAST, term_of(request[0], *request[1:])))

    def system(self, ref: Reference, *request: Any) -> bytes:
        """A system message."""
        tag = self.pid, ImproperList([ALIAS], ref)
        return self.node.encoder.encode((A("system"), tag, term_of(request[0], *request[1:])))


def term_of(head: Any, *rest: object) -> object:
    """A request: a tuple that begins with an atom, or the atom."""
    return (A(head), *rest) if rest else A(head)


def coded(answer: Any) -> Any:
    """An answer, with its code in the place of an error, which has everything else as well."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict):
        error = {str(name): value for name, value in answer[1].items()}
        if error.get("__exception__") is True:
            return answer[0], error["code"]
    return answer
