"""Environments: variable contexts in which code runs, each a process of the node.

Source: "Environments" in the README of Snex. An environment is freed when its handle, a process,
ends or its node goes down; when it is destroyed, killed or stopped; and when the runtime stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from snex_node.processes.process import DOWN, BaseProcess
from snex_node.wire.describe import inspect
from snex_node.wire.gen import From, parse_system
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime import contexts
from snex_runtime.errors import BadRequest
from snex_runtime.namespace import Variables, here

if TYPE_CHECKING:
    from snex_node.cluster.remote import RemoteNode
    from snex_runtime.server import Server

T = TypeVar("T")


class Environment(BaseProcess):
    """One environment. ``variables`` are the globals and locals of the code that runs in it, and
    ``context`` holds its context variables.
    """

    __slots__ = ("_entered", "context", "handle", "server", "variables")

    def __init__(self, server: Server, variables: Variables, context: Context) -> None:
        super().__init__(server.node)
        self.server = server
        self.variables = variables
        self.context = context
        self.handle: Pid | None = None
        self._entered = False

    def enter(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function`` in the context of this environment.

        While code there runs the event loop itself, as nest_asyncio has it, what else comes for it
        runs in a copy: no context can be entered twice.
        """
        if self._entered:
            return self.context.copy().run(function, *args)
        self._entered = True
        try:
            return self.context.run(function, *args)
        finally:
            self._entered = False

    def receive_external(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take a request to run code here."""
        self.server.request_received(self, data, offset, remote)

    def receive(self, message: object) -> None:
        """Take a message from a process of this node: only system messages come this way."""
        system = parse_system(message)
        if system is not None:
            self.system_received(*system)

    def system_received(self, caller: From, request: object) -> None:
        """``GenServer.stop/1`` frees the environment."""
        self.server.answer_system(self, caller, request)

    def demonitored(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""
        self.server.given_up(ref)

    def exited(self, reason: object) -> None:
        """The environment is freed; what runs in it keeps its variables until it is done."""
        self.server.environments.removed(self)


class Root(Environment):
    """The root environment, of which others are copies; none of users."""

    __slots__ = ("mutable",)

    def __init__(self, server: Server, variables: Variables) -> None:
        super().__init__(server, variables, copy_context())
        self.mutable: tuple[ContextVar[Any], ...] = ()
        """Of its context: what copies must not share. `contexts.copied` takes it."""
        self.enter(here.set, variables)

    def enter(self, function: Callable[..., T], *args: Any) -> T:
        """See `Environment.enter`."""
        try:
            return super().enter(function, *args)
        finally:
            self.mutable = contexts.mutable_in(self.context)


class Environments:
    """All environments of a runtime, and the handles that keep them.

    A handle is monitored once, however many environments it holds.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._all: set[Environment] = set()
        self._handles: dict[Pid, tuple[Reference, set[Environment]]] = {}

    def all(self) -> list[Environment]:
        """All of them."""
        return list(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def make(self, variables: Variables, handle: Pid | None) -> Environment:
        """Make an environment around ``variables`` that lives as long as ``handle``."""
        environment = Environment(self._server, variables, self._server.new_context())
        self._all.add(environment)
        self.set_handle(environment, handle)
        return environment

    def get(self, pid: object) -> Environment | None:
        """The environment with this pid."""
        found = self._server.node.find(pid) if isinstance(pid, Pid) else None
        return found if isinstance(found, Environment) else None

    def set_handle(self, environment: Environment, handle: Pid | None) -> None:
        """Make ``handle`` what keeps ``environment``; None keeps it until it is destroyed."""
        if environment.handle == handle:
            return
        self._release(environment)
        environment.handle = handle
        if handle is None:
            return
        held = self._handles.get(handle)
        if held is None:
            self._handles[handle] = held = (self._server.monitor(handle), set())
        held[1].add(environment)

    def handle_down(self, message: tuple[object, ...]) -> bool:
        """Take a DOWN message of the server; False when it is about no handle."""
        if message[0] != DOWN or not isinstance(message[3], Pid):
            return False
        held = self._handles.pop(message[3], None)
        if held is None:
            return False
        for environment in held[1]:
            environment.handle = None
            environment.exit(message[4] if message[4] == "noconnection" else _NORMAL)
        return True

    def removed(self, environment: Environment) -> None:
        """``environment`` has ended."""
        self._all.discard(environment)
        self._release(environment)

    def _release(self, environment: Environment) -> None:
        handle, environment.handle = environment.handle, None
        if handle is None:
            return
        reference, kept = self._handles[handle]
        kept.discard(environment)
        if not kept:
            del self._handles[handle]
            self._server.demonitor(reference)


_NORMAL = Atom("normal")

Source = tuple[Environment, Iterable[str] | None, Iterable[str] | None]


def copy_into(
    variables: Variables, sources: Iterable[Source], builtin: Mapping[str, object]
) -> None:
    """Copy what each source (environment, ``only``, ``except``) gives; later ones win.

    A name of ``only`` that the source lacks becomes None. What every environment starts with is
    neither lost by ``only`` and ``except`` nor overwritten.
    """
    for environment, only, excluded in sources:
        given = environment.variables
        if only is not None:
            variables.update((name, given.get(name)) for name in only)
        elif excluded is not None:
            without = set(excluded)
            variables.update((k, v) for k, v in given.items() if k not in without)
        else:
            variables.update(given)
    variables.update(builtin)


def names_in(value: object, option: str) -> list[str]:
    """The names of an ``only`` or ``except`` option. Raises `BadRequest`."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise BadRequest(f"{option} takes a list of variable names, not {inspect(value)}")
    return [str(name) for name in value]
