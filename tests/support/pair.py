"""A runtime in this process, and a node beside it that makes requests of it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

from snex_node import Node
from snex_node.wire.terms import Atom
from snex_runtime import serde
from snex_runtime.server import Server


class Pair:
    """``server`` runs on ``node``; ``peer`` is connected to it. Both have the same ``cookie``."""

    def __init__(self, node: Node, server: Server, peer: Node, cookie: str) -> None:
        self.cookie = cookie
        self.node = node
        self.server = server
        self.peer = peer

    async def call(self, *request: object, to: Any = None, timeout: float = 10.0) -> Any:
        """What a request to the server (or to ``to``) is answered; its first part is an atom."""
        head, *rest = request
        term = (Atom(str(head)), *rest) if rest else Atom(str(head))
        return await self.peer.call(to or ("snex", self.node.name), term, timeout=timeout)

    async def run(self, code: str, **variables: object) -> Any:
        """The value of Python code, which must succeed."""
        answer = await self.call("eval", code, variables)
        assert answer[0] == "ok", answer
        return answer[1]


@contextlib.asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[Pair]:
    """Start both; ``options`` are those of `Server`."""
    cookie = secrets.token_hex(8)
    conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
    name, other = (f"{kind}{secrets.token_hex(4)}@127.0.0.1" for kind in ("py", "peer"))
    async with (
        Node(name, cookie=cookie, epmd="none", **conversion) as node,
        Node(other, cookie=cookie, epmd="none", listen=None, **conversion) as peer,
    ):
        server = Server(node, **options)
        assert node.port is not None
        await peer.connect(node.name, address=("127.0.0.1", node.port))
        yield Pair(node, server, peer, cookie)
