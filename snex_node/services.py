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
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Final

from snex_node.cluster.remote import RemoteNode
from snex_node.errors import UndefinedFunctionError, error_reason, error_stack
from snex_node.processes.genprocess import GenProcess
from snex_node.processes.host import Host
from snex_node.processes.process import KILLED, NORMAL, BaseProcess
from snex_node.system import forks
from snex_node.wire import describe
from snex_node.wire.control import SpawnReply, SpawnRequest
from snex_node.wire.etf import DecodeError, EncodeError, Encoder
from snex_node.wire.gen import From
from snex_node.wire.terms import Atom, Pid, Term

Resolver = Callable[[str, str], Callable[..., object]]
"""Finds a function by the names of module and function, or raises `UndefinedFunctionError`."""

TUNING: Final = frozenset(
    "priority fullsweep_after min_heap_size min_bin_vheap_size max_heap_size message_queue_data "
    "async_dist scheduler".split()
)
"""Options ``{Name, Value}`` of a spawn request that mean something to a BEAM only: ignored here."""

_REX: Final = Atom("rex")
_REX_TAG: Final = Encoder().encode(_REX)
_UNDEF: Final = Atom("undef")
_RETURN: Final = Atom("return")
_ERROR: Final = Atom("error")
_log = logging.getLogger(__name__)


def import_function(module: str, function: str) -> Callable[..., object]:
    """Import ``module`` and take its attribute ``function`` (dots lead further in).

    Raises `UndefinedFunctionError` when there is no such module or attribute, or it cannot be
    called; and whatever the module raises while it is imported.
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


class _Service(GenProcess):
    """A process that lives as long as the node: exit signals do nothing to it, nor does a stop."""

    __slots__ = ()

    def _system(self, caller: From, request: object) -> None:
        self.node.reply(caller, (Atom("error"), Atom("not_allowed")), sender=self.pid)

    def exit_received(self, sender: Pid, reason: object, *, linked: bool) -> None:
        pass


class NetKernel(_Service):
    """``net_kernel``: says yes to ``Node.ping/1`` and ``:net_adm.ping/1``."""

    __slots__ = ()

    def call_received(self, caller: From, request: object) -> None:
        """Answer ``{is_auth, Node}``; nothing else is asked of a hidden node."""
        known = isinstance(request, tuple) and len(request) == 2 and request[0] == "is_auth"
        self.node.reply(caller, Atom("yes" if known else "no"), sender=self.pid)


class Rex(_Service):
    """``rex``: the calls of ``:rpc.block_call``, of C nodes, and of nodes older than erpc."""

    __slots__ = ("_calls", "_resolver")

    def __init__(self, node: Host, resolver: Resolver | None) -> None:
        super().__init__(node)
        self._resolver = resolver
        # Calls under way, by the reference with which their caller monitors while it waits.
        self._calls: dict[bytes, _RexCall] = {}

    def call_received(self, caller: From, request: object) -> None:
        """Answer ``{call | block_call, M, F, A, GroupLeader}`` with the value or ``badrpc``."""
        mfa = _rex_mfa(request, ("call", "block_call"))
        if mfa is None:
            self.node.reply(caller, (Atom("badrpc"), Atom("badarg")), sender=self.pid)
            return
        job = _RexCall(self.node, caller, self._calls)
        job.run(self._resolver, *mfa)

    def cast_received(self, request: object) -> None:
        """Run ``{cast, M, F, A, GroupLeader}``."""
        mfa = _rex_mfa(request, ("cast",))
        if mfa is not None:
            _Job(self.node).run(self._resolver, *mfa)

    def info_received(self, message: object) -> None:
        """Answer ``{From, Request}`` by ``{rex, ..}``: ``erl_call`` and ``:rpc.sbcast`` send it.

        Like OTP's, it also takes ``{From, {send, Name, Message}}``, which older nodes send, and
        tells which other features of `rpc` it has; the rest is dropped.
        """
        if not isinstance(message, tuple) or len(message) != 2 or not isinstance(message[0], Pid):
            return
        sender, request = message
        mfa = _rex_mfa(request, ("call",))
        if mfa is not None:
            caller = From(sender, _REX_TAG, None)
            _RexCall(self.node, caller, self._calls).run(self._resolver, *mfa)
        elif isinstance(request, Atom) and request == "features_request":
            self._tell(sender, (Atom("features_reply"), self.node.name, [Atom("erpc")]))
        elif isinstance(request, tuple) and len(request) == 3 and isinstance(request[1], Atom):
            self._pass_on(sender, *request)

    def _pass_on(self, sender: Pid, kind: object, name: Atom, message: object) -> None:
        """To the process registered as ``name``; that there is none is always told."""
        if kind not in ("sbcast", "send"):
            return
        answer: object = self.node.name
        if self.node.find(name) is None:
            answer = (Atom("nonexisting_name"), name)
        else:
            self.node.send(name, message if kind == "sbcast" else (sender, message))
            if kind == "send":
                return
        self._tell(sender, (_REX, self.node.name, answer))

    def _tell(self, to: Pid, message: object) -> None:
        self.node.send(to, message, sender=self.pid)

    def demonitored(self, ref: bytes) -> None:
        """A caller's time is over, or it has died: so has the work."""
        job = self._calls.get(ref)
        if job is not None:
            job.exit(KILLED)


def _rex_mfa(request: object, kinds: tuple[str, ...]) -> tuple[str, str, list[object]] | None:
    if not isinstance(request, tuple) or len(request) < 4 or request[0] not in kinds:
        return None
    _, module, function, args = request[:4]
    names = _names(module, function)
    return (*names, args) if names is not None and isinstance(args, list) else None


def _names(module: object, function: object) -> tuple[str, str] | None:
    """The names of a module and a function; None where these are no atoms."""
    names = [
        _ATOMS[term] if term is None or isinstance(term, bool) else str(term)
        for term in (module, function)
        if term is None or isinstance(term, bool | str)
    ]
    return (names[0], names[1]) if len(names) == 2 else None


_ATOMS: Final[dict[object, str]] = {None: "nil", True: "true", False: "false"}


class Spawner:
    """Answers spawn requests: erpc's, and those of ``Node.spawn``."""

    def __init__(self, node: Host, resolver: Resolver | None) -> None:
        self._node = node
        self._resolver = resolver

    def spawn(self, remote: RemoteNode, request: SpawnRequest, data: bytes, offset: int) -> None:
        """Start what ``request`` asks for. The reply goes out before anything the process does."""
        try:
            job, module, function, args = self._prepare(remote, request, data, offset)
        except _RefusedError as refused:
            module, function, arity = request.mfa
            what = f"{module}:{function}/{describe.inspect(arity)}"
            _log.warning("%s: refused to spawn %s: %s", remote.name, what, refused.why)
            remote.send(SpawnReply(request.id, request.from_, 0, Atom(refused.reason)))
            return
        flags = 0
        if "link" in request.options:
            flags |= SpawnReply.LINK
            self._node.signals.ties.add_link(job, request.from_)
        if "monitor" in request.options:
            flags |= SpawnReply.MONITOR
            self._node.signals.ties.add_watcher(
                job, remote.name, request.from_, request.id, job.pid
            )
        remote.send(SpawnReply(request.id, request.from_, flags, job.pid), sender=job.pid)
        job.run(self._resolver, module, function, args)

    def _prepare(
        self, remote: RemoteNode, request: SpawnRequest, data: bytes, offset: int
    ) -> tuple[_Job, str, str, list[object]]:
        module, function, _ = request.mfa
        for option in request.options:
            if not _is_known(option):
                raise _RefusedError("badopt", f"there is no option {describe.inspect(option)}")
        if (module, function) == ("erlang", "apply"):
            raise _RefusedError("notsup", "a fun is code for a BEAM")
        try:
            args, _ = self._node.decoder.decode(data, offset)
        except DecodeError as error:
            raise _RefusedError("badarg", str(error)) from None
        if module == "erpc" and function in ("execute_call", "execute_cast"):
            result, module, function, args = _erpc_args(function == "execute_call", args)
            if result is not None:
                return _ErpcCall(self._node, result, remote.encoder), module, function, args
        elif not isinstance(args, list):
            raise _RefusedError("badarg", "the arguments are no proper list")
        return _Job(self._node), module, function, args


class _RefusedError(Exception):
    """Nothing is started; ``reason`` is what the other side is told."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(reason, why)
        self.reason = reason
        self.why = why


def _is_known(option: object) -> bool:
    if isinstance(option, tuple):
        return len(option) == 2 and isinstance(option[0], Atom) and option[0] in TUNING
    return isinstance(option, Atom) and option in ("link", "monitor")


def _erpc_args(call: bool, args: object) -> tuple[object, Atom, Atom, list[object]]:
    """``[Result, M, F, Args]`` of a call; ``[M, F, Args]`` of a cast, whose result is None."""
    if isinstance(args, list) and len(args) == 3 + call:
        module, function, arguments = args[-3:]
        names = _names(module, function)
        if names is not None and isinstance(arguments, list):
            result = args[0] if call else None
            return result, Atom(names[0][:255]), Atom(names[1][:255]), arguments
    raise _RefusedError("badarg", f"what erpc sent is {describe.inspect(args)}")


class _Job(BaseProcess):
    """A process that calls one Python function and ends with it."""

    __slots__ = ("_task",)

    def __init__(self, node: Host) -> None:
        super().__init__(node)
        self._task: asyncio.Task[None] | None = None

    def run(
        self, resolver: Resolver | None, module: str, function: str, args: list[object]
    ) -> None:
        """Call the function now; a coroutine that it returns goes on in a task."""
        called: Callable[..., object] | None = None
        try:
            called = _find(resolver, module, function)
            # In a context of its own, so that it leaves nothing to others.
            value = copy_context().run(called, *args)
        except KeyboardInterrupt as error:
            self.failed(error)
            raise
        except BaseException as error:  # `sys.exit` in it ends what runs it, not this node
            if self.node.forked:
                forks.end_child(error)
            if called is None and isinstance(error, UndefinedFunctionError):
                self.undefined(Atom(module[:255]), Atom(function[:255]), args)
            else:
                self.failed(error)
            return
        if inspect.isawaitable(value):
            self._task = asyncio.ensure_future(self.finish(value))
            if inspect.iscoroutine(value):
                # It has not begun, when the task is cancelled before its first step.
                self._task.add_done_callback(lambda _: value.close())
        else:
            self.returned(value)

    async def finish(self, awaitable: Awaitable[object]) -> None:
        try:
            value = await awaitable
        except KeyboardInterrupt as error:
            self.failed(error)
            raise
        except BaseException as error:
            if self.node.forked:
                forks.end_child(error)
            if self.alive:
                self.failed(error)
            if isinstance(error, asyncio.CancelledError):
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


BOUNDARIES: Final = (_Job.run.__code__, _Job.finish.__code__)
"""What calls functions of users here."""


class _ErpcCall(_Job):
    """What ``erpc:execute_call/4`` does: the result is the exit reason."""

    __slots__ = ("_encoder", "_result")

    def __init__(self, node: Host, result: object, encoder: Encoder) -> None:
        super().__init__(node)
        self._result = result
        self._encoder = encoder

    def returned(self, value: object) -> None:
        """End with ``{Result, return, Value}``, the value encoded once."""
        try:
            encoded = Term(self._encoder.encode(value))
        except EncodeError as error:
            self.failed(error)
            return
        self.exit((self._result, _RETURN, encoded))

    def undefined(self, module: Atom, function: Atom, args: list[object]) -> None:
        """End with ``{Result, error, undef, Stack}``."""
        self.exit((self._result, _ERROR, _UNDEF, [(module, function, args, [])]))

    def failed(self, error: BaseException) -> None:
        """End with ``{Result, error, Reason, Stack}``."""
        self.exit((self._result, _ERROR, error_reason(error), error_stack(error)))

    def demonitored(self, ref: bytes) -> None:
        """The caller's time is over, or it has died: so has the work."""
        self.exit(KILLED)


class _RexCall(_Job):
    """A call to ``rex``: the result is an answer."""

    __slots__ = ("_caller", "_calls")

    def __init__(self, node: Host, caller: From, calls: dict[bytes, _RexCall]) -> None:
        super().__init__(node)
        self._caller = caller
        self._calls = calls
        if caller.ref is not None:
            calls[caller.ref] = self

    def returned(self, value: object) -> None:
        """Answer with the value."""
        try:
            self.node.reply(self._caller, value, sender=self.pid)
        except EncodeError as error:
            self.failed(error)
            return
        self.exit(NORMAL)

    def undefined(self, module: Atom, function: Atom, args: list[object]) -> None:
        """Answer with ``{badrpc, {'EXIT', {undef, Stack}}}``."""
        self._bad((_UNDEF, [(module, function, args, [])]))

    def failed(self, error: BaseException) -> None:
        """Answer with ``{badrpc, {'EXIT', {Reason, Stack}}}``."""
        self._bad((error_reason(error), error_stack(error)))

    def exited(self, reason: object) -> None:
        """Cancel what still runs."""
        super().exited(reason)
        if self._caller.ref is not None:
            self._calls.pop(self._caller.ref, None)

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


__all__ = [
    "BOUNDARIES",
    "TUNING",
    "NetKernel",
    "Resolver",
    "Rex",
    "Spawner",
    "UndefinedFunctionError",
    "error_reason",
    "error_stack",
    "import_function",
]
