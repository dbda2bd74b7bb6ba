"""Environments: variable contexts in which code runs, each a process of the node.

Source: "Environments" in the README of Snex. An environment is freed when its handle, a process,
ends or its node goes down; when it is destroyed, killed or stopped; and when the runtime stops.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Protocol, TypeVar

from snex_node.processes.process import BaseProcess
from snex_node.wire.describe import inspect
from snex_node.wire.gen import From
from snex_node.wire.terms import Pid
from snex_runtime import contexts
from snex_runtime.answers import OK, OK_
from snex_runtime.contexts import Enter
from snex_runtime.errors import BadRequest, Failure
from snex_runtime.handles import Handles
from snex_runtime.namespace import NAME, Variables, here
from snex_runtime.requests import (
    Asker,
    Reader,
    Receiver,
    Request,
    handle_in,
    options_in,
    read_variables,
    receive_from_here,
    stopped_or_refused,
    threaded_in,
    typed,
)

T = TypeVar("T")


class Intake(Protocol):
    """Takes what is sent to environments."""

    def received(
        self, process: Receiver, enter: Enter, data: bytes, offset: int, remote: Asker
    ) -> None:
        """A message to ``process``, whose requests run in the context of ``enter``."""

    def given_up(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""


class Environment(BaseProcess):
    """One environment. ``variables`` are the globals and locals of the code that runs in it, and
    ``context`` holds its context variables.
    """

    __slots__ = (
        "_entered",
        "_home",
        "_lent",
        "context",
        "handle",
        "since",
        "threaded",
        "variables",
    )

    def __init__(
        self, home: Environments, variables: Variables, context: Context, *, threaded: bool = False
    ) -> None:
        super().__init__(home.node)
        self._home = home
        self.variables = variables
        self.context = context
        self.handle: Pid | None = None
        self.since: Final = time.monotonic()
        """When it was made (`time.monotonic`)."""
        self.threaded = threaded
        """Whether requests run in threads, where they do not say."""
        # Both belong to the event loop's thread.
        self._entered = False
        self._lent = 0

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

    @property
    def place(self) -> Environment:
        """What runs here in threads does so one after another."""
        return self

    def lend(self) -> Enter:
        """What enters its context in another thread; meanwhile it is entered for this one.

        Each is given back, and only one of them is used at a time.
        """
        enter: Enter = self.context.run
        if self._entered and not self._lent:  # code here runs the event loop itself
            return self.context.copy().run
        self._entered = True
        self._lent += 1
        return enter

    def give_back(self, enter: Enter) -> None:
        """What `lend` has given is not used any more."""
        if enter == self.context.run:
            self._lent -= 1
            self._entered = self._lent > 0

    def external_received(self, data: bytes, offset: int, remote: Asker) -> None:
        """Take a request to run code here."""
        self._home.intake.received(self, self.enter, data, offset, remote)

    def message_received(self, message: object) -> None:
        """Take a message from a process of this node: a system message, or a call or a cast."""
        receive_from_here(self, message)

    def system_received(self, caller: From, request: object) -> None:
        """``GenServer.stop/1`` frees the environment."""
        stopped_or_refused(self, caller, request)

    def demonitored(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""
        self._home.intake.given_up(ref)

    def exited(self, reason: object) -> None:
        """The environment is freed; what runs in it keeps its variables until it is done."""
        self._home.removed(self)


class Root(Environment):
    """The root environment, of which others are copies; none of users."""

    __slots__ = ("_mutable", "new_context")

    new_context: Callable[[], Context]
    """Makes a copy of its context."""

    def __init__(self, home: Environments, variables: Variables) -> None:
        super().__init__(home, variables, copy_context())
        # Of its context: what copies must not share.
        self._mutable: tuple[ContextVar[Any], ...] = ()
        self.enter(here.set, variables)

    def enter(self, function: Callable[..., T], *args: Any) -> T:
        """See `Environment.enter`."""
        try:
            return super().enter(function, *args)
        finally:
            self._mutable = contexts.mutable_in(self.context)
            # Nearly always nothing has to be looked after: then it is a function in C.
            self.new_context = self._copied if self._mutable else self.context.copy

    def _copied(self) -> Context:
        return contexts.copied(self.context, self._mutable)


class Environments:
    """All environments of a runtime, and the handles that keep them.

    ``server`` monitors the handles: each once, however many environments it holds. ``root`` are the
    variables of the root environment. Environments hand on to ``intake`` what is sent to them, and
    ``threaded`` says whether that runs in threads, where neither it nor they do.
    """

    def __init__(
        self,
        server: BaseProcess,
        intake: Intake,
        reader: Reader,
        root: Variables,
        *,
        threaded: bool = False,
    ) -> None:
        self.node: Final = server.node
        self.intake: Final = intake
        self.handles: Final = Handles(server)
        """What keeps them, and others."""
        self._reader = reader
        self._threaded = threaded
        self._builtin: Variables = {"__builtins__": builtins, "__name__": NAME}
        self._all: set[Environment] = set()
        self.root: Final = Root(self, root)
        """The one that others are copies of."""
        self.provide()

    def all(self) -> list[Environment]:
        """All of them, but for the root."""
        return list(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def own(self, environment: Environment) -> Variables:
        """The variables of ``environment`` that neither every one has nor the root's are."""
        root, builtin = self.root.variables, self._builtin
        variables = environment.variables.copy()  # at once: a thread may run code there
        return {
            name: value
            for name, value in variables.items()
            if name not in builtin and (name not in root or root[name] is not value)
        }

    def provide(self, **names: object) -> None:
        """Put ``names`` into every environment made from now on; ``only`` does not lose them."""
        self._builtin.update(names)
        self.root.variables.update(self._builtin)

    def make(
        self, variables: Variables, handle: Pid | None, *, threaded: bool | None = None
    ) -> Environment:
        """Make an environment around ``variables`` that lives as long as ``handle``."""
        if threaded is None:
            threaded = self._threaded
        environment = Environment(self, variables, self.root.new_context(), threaded=threaded)
        self._all.add(environment)
        self.set_handle(environment, handle)
        return environment

    def get(self, pid: object) -> Environment | None:
        """The environment with this pid."""
        found = self.node.find(pid) if isinstance(pid, Pid) else None
        return found if isinstance(found, Environment) else None

    def set_handle(self, environment: Environment, handle: Pid | None) -> None:
        """Make ``handle`` what keeps ``environment``; None keeps it until it is destroyed."""
        self.handles.set(environment, handle)

    def removed(self, environment: Environment) -> None:
        """``environment`` has ended."""
        self._all.discard(environment)
        self.handles.release(environment)

    # --- requests -------------------------------------------------------------------------------

    def make_requested(self, request: Request) -> bytes:
        """``{:make_env, vars}`` or ``{:make_env, vars, opts}``: ``{:ok, pid}``."""
        if request.arity not in (2, 3):
            raise BadRequest(f"a make_env request has 2 or 3 elements, not {request.arity}")
        if request.caller is None:
            raise BadRequest("make_env is a call: without an answer nobody would have the pid")
        if request.arity == 3:
            given, raw = self._reader.variables_and_options(request)
        else:
            given, raw = read_variables(self._reader.decoder, request.data, request.at)[0], None
        options = options_in(raw, ("from", "handle", "encoding_opts", "executor"))
        handle = options.get("handle", request.caller.pid)
        threaded = threaded_in(options.get("executor"))
        variables = self.root.variables.copy()
        copy_into(variables, self._sources(options.get("from")), self._builtin)
        variables.update(given)
        environment = self.make(variables, handle_in(handle), threaded=threaded)
        return OK_ + environment.pid.external

    def _sources(self, value: object) -> list[Source]:
        if value is None:
            return []
        return [self._source(one) for one in (value if isinstance(value, list) else [value])]

    def _source(self, value: object) -> Source:
        only = excluded = None
        pid = value
        if isinstance(value, tuple) and len(value) == 2:
            pid, raw = value
            options = options_in(raw, ("only", "except"))
            # An empty one restricts nothing.
            only = names_in(options.get("only", []), "only") or None
            excluded = names_in(options.get("except", []), "except") or None
            if only and excluded:
                raise BadRequest("from: only and except exclude each other")
        environment = self.get(pid)
        if environment is None:
            raise Failure("env_not_found", f"{inspect(pid)} is no environment of this node")
        return environment, only, excluded

    def destroy_requested(self, request: Request) -> bytes:
        """``{:destroy_env, env}``: ``:ok``, however often."""
        if request.arity != 2:
            raise BadRequest(f"a destroy_env request has 2 elements, not {request.arity}")
        pid = request.read(typed)
        if not isinstance(pid, Pid):
            raise BadRequest(f"destroy_env takes an environment's pid, not {inspect(pid)}")
        environment = self.get(pid)
        if environment is not None:
            environment.exit()
        return OK

    def handle_requested(self, request: Request) -> bytes:
        """``{:handle, pid}`` or ``{:handle, :none}`` to an environment: ``:ok``."""
        environment = request.process
        if not isinstance(environment, Environment):
            raise BadRequest("a handle request goes to an environment")
        if request.arity != 2:
            raise BadRequest(f"a handle request has 2 elements, not {request.arity}")
        self.set_handle(environment, handle_in(request.read(typed)))
        return OK


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
            # A copy, which is made at once: a thread may run code there.
            variables.update((k, v) for k, v in given.copy().items() if k not in without)
        else:
            variables.update(given)
    variables.update(builtin)


def names_in(value: object, option: str) -> list[str]:
    """The names of an ``only`` or ``except`` option. Raises `BadRequest`."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise BadRequest(f"{option} takes a list of variable names, not {inspect(value)}")
    return [str(name) for name in value]
