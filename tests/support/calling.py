"""A runtime in this process, and a node that calls it as an Erlang node would: with bare terms.

`tests.support.pair` is the same with the runtime's own conversion on both sides.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

from snex_node import Node
from snex_node.wire.terms import Atom, Pid
from snex_runtime import serde
from snex_runtime.server import Server

A = Atom
OK = A("ok")
STRUCT = A("__struct__")


def binary(text: str) -> bytes:
    """A text as a binary in external form."""
    return b"m" + len(text.encode()).to_bytes(4, "big") + text.encode()


def nested(depth: int) -> object:
    """A list in a list, and so on."""
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def snex_code(src: object, file: object = b"f.py", line: object = 1) -> object:
    """A ``%Snex.Code{}``."""
    return {STRUCT: A("Elixir.Snex.Code"), A("src"): src, A("file"): file, A("line"): line}


def evaluate(code: object, variables: object, *options: object) -> tuple[object, ...]:
    """An eval request."""
    return (A("eval"), code, variables, *options)


class Caller:
    """A node that asks a runtime, and the runtime, which shares its event loop."""

    def __init__(self, node: Node, server: Server) -> None:
        self.node = node
        self.server = server
        self.to = ("snex", str(server.node.name))

    async def call(self, request: object, to: Any = None, timeout: float = 10.0) -> Any:
        return await self.node.call(to or self.to, request, timeout=timeout)

    async def eval(
        self, code: object, variables: object = None, options: object = None, to: Any = None
    ) -> Any:
        request = evaluate(code, {} if variables is None else variables)
        return await self.call(request if options is None else (*request, options), to)

    async def value(self, code: str, variables: object = None, to: Any = None) -> Any:
        ok, value = await self.eval(code, variables, to=to)
        assert ok == OK, value
        return value

    async def error(self, request: object, to: Any = None) -> tuple[str, str]:
        """Code and reason of what must be an error, whose shape is checked."""
        tag, error = await self.call(request, to)
        assert tag == A("error"), error
        assert set(error) == {"__struct__", "__exception__", "code", "reason", "traceback", "type"}
        assert error[A("__exception__")] is True
        assert error[STRUCT] == A("Elixir.Snex.Error")
        assert isinstance(error[A("reason")], bytes)
        assert error[A("reason")].strip()
        assert (error[A("type")] is None) == (error[A("traceback")] is None)
        return str(error[A("code")]), error[A("reason")].decode()

    async def env(self, variables: object = None, **options: object) -> Pid:
        pairs = {A(name.rstrip("_")): value for name, value in options.items()}
        ok, env = await self.call((A("make_env"), variables or {}, pairs))
        assert ok == OK, env
        assert isinstance(env, Pid)
        return env

    def cast(self, request: object) -> None:
        self.node.send(self.to, (A("$gen_cast"), request))


@contextlib.asynccontextmanager
async def calling(**options: Any) -> AsyncIterator[Caller]:
    """Start both, connected; ``options`` are the server's."""
    cookie, name = secrets.token_hex(8), secrets.token_hex(4)
    conversion: dict[str, Any] = {"decoder": serde.decoder(), "encoder": serde.encoder}
    async with (
        Node(f"py{name}@127.0.0.1", cookie=cookie, epmd="none", **conversion) as node,
        Node(f"caller{name}@127.0.0.1", cookie=cookie, epmd="none", listen=None) as other,
    ):
        server = Server(node, **options)
        assert node.port is not None
        await other.connect(node.name, address=("127.0.0.1", node.port))
        yield Caller(other, server)
