"""What every node answers: ``net_kernel`` (ping), ``rex``, and requests to spawn (erpc, rpc).

Source: OTP's ``net_kernel``, ``rpc`` and ``erpc`` modules, and the spawn requests of "Protocol
between Connected Nodes" in the ERTS user's guide. A module name is a Python module, a function
name its attribute; ``:erpc.call(node, :math, :sqrt, [16])`` calls ``math.sqrt(16)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from snex_node.control import SpawnReply, SpawnRequest
from snex_node.etf import DecodeError, EncodeError
from snex_node.gen import From, GenProcess
from snex_node.process import NORMAL, BaseProcess
from snex_node.terms import Atom

if TYPE_CHECKING:
    from snex_node.node import Node
    from snex_node.remote import RemoteNode

Resolver = Callable[[str, str], Callable[..., object]]
"""Finds a function by the names of module and function, or raises `UndefinedFunctionError`."""

MAX_STACK = 50
"""Frames of a Python traceback that are sent as an Erlang stack trace, innermost first."""

_UNDEF = Atom("undef")
_log = logging.getLogger(__name__)


class UndefinedFunctionError(LookupError):
    """There is no such module, or no such function in it: Erlang's ``undef``."""


def import_function(module: str, function: str) -> Callable[..., object]:
    """Import ``module`` and take its attribute ``function`` (dots lead further in).

    Raises `UndefinedFunctionError` when there is no such module or attribute, or it cannot be called;
    and whatever the module raises while it is imported.
    """
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UndefinedFunctionError(f"no module named {module}") from error
    for part in function.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise UndefinedFunctionError(f"module {module} has no {function}") from error
    if not callable(found):
        raise UndefinedFunctionError(f"{module}.{function} cannot be called")
    return found


class NetKernel(GenProcess):
    """``net_kernel``: says yes to ``Node.ping/1`` and ``:net_adm.ping/1``."""

    __slots__ = ()

    def call_received(self, caller: From, request: object) -> None:
        """Answer ``{is_auth, Node}``; nothing else is asked of a hidden node."""
        if isinstance(request, tuple) and len(request) == 2 and request[0] == "is_auth":
            self.node.reply(caller, Atom("yes"), sender=self.pid)
        else:
            self.node.reply(caller, Atom("no"), sender=self.pid)


class Rex(GenProcess):
    """``rex``: the remote procedure calls of ``:rpc.block_call`` and of nodes older than erpc."""

    __slots__ = ("_spawner",)

    def __init__(self, node: Node, spawner: Spawner) -> None:
        super().__init__(node)
        self._spawner = spawner

    def call_received(self, caller: From, request: object) -> None:
        """Answer ``{call | block_call, M, F, A, GroupLeader}`` with the value or ``badrpc``."""
        if (
            not isinstance(request, tuple)
            or len(request) < 4
            or request[0] not in ("call", "block_call")
            or not isinstance(request[3], list)
        ):
            self.node.reply(caller, (Atom("badrpc"), Atom("badarg")), sender=self.pid)
            return
        job = _RexCall(self.node, caller)
        job.run(self._spawner.resolver, str(request[1]), str(request[2]), request[3])

    def cast_received(self, request: object) -> None:
        """Run ``{cast, M, F, A, GroupLeader}``."""
        if (
            isinstance(request, tuple)
            and len(request) >= 4
            and request[0] == "cast"
            and isinstance(request[3], list)
        ):
            job = _Job(self.node)
            job.run(self._spawner.resolver, str(request[1]), str(request[2]), request[3])


class Spawner:
    """Answers spawn requests: erpc's, and those of ``Node.spawn``."""

    def __init__(self, node: Node, resolver: Resolver | None) -> None:
        self.node = node
        self.resolver = resolver

    def spawn(self, remote: RemoteNode, request: SpawnRequest, data: bytes, offset: int) -> None:
        """Start what ``request`` asks for. The reply goes out before anything the process does."""
        module, function, _ = request.mfa
        options = request.options
        known = {"link", "monitor"}
        if not all((isinstance(o, Atom) and o in known) or _is_tuning(o) for o in options):
            self._refuse(remote, request, "badopt")
            return
        try:
            args, _ = self.node.decoder.decode(data, offset)
        except DecodeError as error:
            _log.warning("%s: refused to spawn %s:%s: %s", remote.name, module, function, error)
            self._refuse(remote, request, "badarg")
            return
        job: _Job
        if (module, function) in (("erpc", "execute_call"), ("erpc", "execute_cast")):
            if not isinstance(args, list) or len(args) < 3 or not isinstance(args[-1], list):
                self._refuse(remote, request, "badarg")
                return
            job = _ErpcCall(self.node, args[0]) if function == "execute_call" else _Job(self.node)
            module, function, args = args[-3:]
        elif module == "erlang":
            # Node.spawn(node, fun) asks for erlang:apply: the fun is code for a BEAM.
            self._refuse(remote, request, "notsup")
            return
        else:
            job = _Job(self.node)
        if not isinstance(args, list):
            self._refuse(remote, request, "badarg")
            return
        flags = 0
        if "link" in options:
            flags |= SpawnReply.LINK
            remote.add_link(job, request.from_)
        if "monitor" in options:
            flags |= SpawnReply.MONITOR
            remote.add_watcher(job, request.from_, request.id)
        reply = SpawnReply(request.id, request.from_, flags, job.pid)
        remote.send(reply, sender=job.pid)
        job.run(self.resolver, str(module), str(function), args)

    def _refuse(self, remote: RemoteNode, request: SpawnRequest, why: str) -> None:
        remote.send(SpawnReply(request.id, request.from_, 0, Atom(why)))


def _is_tuning(option: object) -> bool:
    """``{priority, high}``, ``{min_heap_size, N}`` and their like: they mean nothing here."""
    return isinstance(option, tuple) and len(option) == 2


class _Job(BaseProcess):
    """A process that calls one Python function and ends with it."""

    __slots__ = ("_task",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._task: asyncio.Task[None] | None = None

    def run(
        self, resolver: Resolver | None, module: str, function: str, args: list[object]
    ) -> None:
        """Call the function now; a coroutine that it returns goes on in a task."""
        try:
            called = _find(resolver, module, function)
        except UndefinedFunctionError:
            self.undefined(Atom(module[:255]), Atom(function[:255]), args)
            return
        except Exception as error:
            self.failed(error)
            return
        try:
            value = called(*args)
        except Exception as error:
            self.failed(error)
        else:
            if inspect.isawaitable(value):
                self._task = asyncio.ensure_future(self._finish(value))
            else:
                self.returned(value)

    async def _finish(self, awaitable: object) -> None:
        try:
            value = await awaitable  # type: ignore[misc]
        except Exception as error:
            self.failed(error)
        except asyncio.CancelledError:
            self.exit(Atom("killed"))
            raise
        else:
            self.returned(value)

    def returned(self, value: object) -> None:
        """The function returned."""
        self.exit(NORMAL)

    def undefined(self, module: Atom, function: Atom, args: list[object]) -> None:
        """There is no such function."""
        _log.error("no function %s.%s for %d arguments", module, function, len(args))
        self.exit((_UNDEF, [(module, function, args, [])]))

    def failed(self, error: BaseException) -> None:
        """The function raised."""
        _log.error("a process spawned from another node failed", exc_info=error)
        self.exit((error_reason(error), error_stack(error)))

    def exited(self, reason: object) -> None:
        """Cancel what still runs."""
        task, self._task = self._task, None
        if task is not None and not task.done() and task is not _current_task():
            task.cancel()


class _ErpcCall(_Job):
    """What ``erpc:execute_call/4`` does: the result is the exit reason."""

    __slots__ = ("_result",)

    def __init__(self, node: Node, result: object) -> None:
        super().__init__(node)
        self._result = result

    def returned(self, value: object) -> None:
        try:
            self.node.encoder.encode(value)
        except EncodeError as error:
            self.failed(error)
            return
        self.exit((self._result, Atom("return"), value))

    def undefined(self, module: Atom, function: Atom, args: list[object]) -> None:
        self.exit((self._result, Atom("error"), _UNDEF, [(module, function, args, [])]))

    def failed(self, error: BaseException) -> None:
        self.exit((self._result, Atom("error"), error_reason(error), error_stack(error)))

    def demonitored(self, ref: bytes) -> None:
        """The caller's time is over, or it has died: so has the work."""
        self.exit(Atom("killed"))


class _RexCall(_Job):
    """A call to ``rex``: the result is an answer."""

    __slots__ = ("_caller",)

    def __init__(self, node: Node, caller: From) -> None:
        super().__init__(node)
        self._caller = caller

    def returned(self, value: object) -> None:
        try:
            self.node.reply(self._caller, value, sender=self.pid)
        except EncodeError as error:
            self.failed(error)
            return
        self.exit(NORMAL)

    def undefined(self, module: Atom, function: Atom, args: list[object]) -> None:
        self._bad((_UNDEF, [(module, function, args, [])]))

    def failed(self, error: BaseException) -> None:
        self._bad((error_reason(error), error_stack(error)))

    def _bad(self, reason: object) -> None:
        answer = (Atom("badrpc"), (Atom("EXIT"), reason))
        self.node.reply(self._caller, answer, sender=self.pid)
        self.exit(NORMAL)


def _current_task() -> asyncio.Task[object] | None:
    with contextlib.suppress(RuntimeError):
        return asyncio.current_task()
    return None


def _find(resolver: Resolver | None, module: str, function: str) -> Callable[..., object]:
    if resolver is None:
        raise UndefinedFunctionError("this node lets nobody call functions")
    return resolver(module, function)


def error_reason(error: BaseException) -> tuple[Atom, str, str]:
    """A Python exception as an Erlang reason: ``{python_error, <<"Type">>, <<"text">>}``."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    return Atom("python_error"), name, _text(error)


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "<the exception's own __str__ failed>"
    return text.encode("utf-8", "replace").decode("utf-8")


def error_stack(error: BaseException) -> list[object]:
    """A Python traceback as an Erlang stack trace, innermost frame first."""
    stack: list[object] = []
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == __file__:
            continue
        where = [
            (Atom("file"), list(frame.filename.encode("utf-8", "replace"))),
            (Atom("line"), frame.lineno or 0),
        ]
        stack.append((Atom("python"), Atom(frame.name[:255]), 0, where))
        if len(stack) == MAX_STACK:
            break
    return stack


__all__ = [
    "NetKernel",
    "Resolver",
    "Rex",
    "Spawner",
    "UndefinedFunctionError",
    "error_reason",
    "error_stack",
    "import_function",
]
