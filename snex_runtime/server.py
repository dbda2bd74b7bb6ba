"""The process registered as ``snex``: takes requests to run Python, and answers them.

Source: "The contract" in docs/architecture.md. Code that finishes without suspending is run, and
answered, in the read callback; a task exists only for code that awaits.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from importlib import import_module
from inspect import isawaitable
from struct import Struct
from struct import error as StructError  # noqa: N812 - its own name says too little
from typing import TYPE_CHECKING, Any, Final, NoReturn

import snex
from snex_node.errors import NodeError
from snex_node.processes.process import DOWN, EXIT, BaseProcess
from snex_node.services import UndefinedFunctionError, import_function
from snex_node.system import forks, tasks
from snex_node.wire.describe import inspect
from snex_node.wire.etf import DecodeError, Decoder
from snex_node.wire.gen import From, parse_call, parse_cast, parse_system
from snex_node.wire.terms import Atom, Pid
from snex_runtime import contexts, interface, namespace, serde, threads
from snex_runtime.code import Code, compile_code
from snex_runtime.environments import (
    Environment,
    Environments,
    Root,
    Source,
    copy_into,
    names_in,
)
from snex_runtime.errors import (
    BadRequest,
    Failure,
    bad_request,
    cancelled,
    from_exception,
)
from snex_runtime.interrupts import Deadline, Interrupted, Interrupter
from snex_runtime.namespace import Variables, here
from snex_runtime.origin import origin
from snex_runtime.requests import (
    NO_OPTIONS,
    EvalOptions,
    code_parts,
    encoding_options,
    handle_in,
    options_in,
    read_keywords,
    read_variables,
    typed,
)

if TYPE_CHECKING:
    from snex_node.cluster.remote import RemoteNode
    from snex_node.node import Node

MAX_CODES: Final = 1024
"""Snippets remembered by the bytes they came in, which spares decoding and looking them up."""

MAX_CODE: Final = 64 * 1024
"""Bytes above which a snippet is not: with `MAX_CODES` that bounds them to 64 MiB."""

MAX_REPLY: Final = 1024 * 1024 * 1024
"""Longest reply, in bytes; a longer one is answered with an error. It is what a node of ours takes
in one message, and it has to be held twice while it is sent."""

CLEANUP: Final = 1.0
"""Seconds that the ``finally`` blocks of cancelled work may block the loop, before they too are
interrupted; they may take any time that leaves the loop its turns."""

_SYSTEM_HEAD: Final = b"h\x03w\x06system"
_OK: Final = b"h\x02w\x02ok"
_OK_ATOM: Final = b"w\x02ok"
_PONG: Final = b"w\x04pong"
_ERROR: Final = b"h\x02w\x05error"
_u32 = Struct(">I").unpack_from

_bytes: Final = Decoder()

# Public for those who implement event loops; 0.15 us together.
_enter_task: Final[Callable[..., None]] = asyncio.tasks._enter_task
_leave_task: Final[Callable[..., None]] = asyncio.tasks._leave_task

_log = logging.getLogger(__name__)


class Call(Deadline):
    """A request under way that has suspended: ``work``, in the context of ``enter``."""

    __slots__ = (
        "begun",
        "caller",
        "continues",
        "enter",
        "remote",
        "sender",
        "stopped",
        "task",
        "timeout",
        "timer",
        "work",
    )

    def __init__(
        self,
        sender: BaseProcess,
        caller: From | None,
        remote: RemoteNode,
        options: EvalOptions,
        work: Coroutine[Any, Any, object],
    ) -> None:
        super().__init__(options.timeout)
        self.sender = sender
        self.caller = caller
        self.remote = remote
        self.timeout = options.timeout
        self.work = work
        # Of what is thrown away the context that this is made in is no other's, but entered yet.
        self.enter: contexts.Enter = (
            sender.enter if isinstance(sender, Environment) else copy_context().run
        )
        self.continues = options.continues
        self.begun = False
        self.stopped: str | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def stop(self, why: str) -> None:
        """Cancel the work; its `finally` blocks run."""
        self.stopped = why
        if self.task is not None and self.begun:
            # A task that is cancelled before it begins would not even clean up.
            self.task.cancel()
        if self.timer is not None:
            self.timer.cancel()
            self._grant_cleanup()

    def _grant_cleanup(self) -> None:
        """Put the deadline off as long as the loop has its turns."""
        self.deadline = time.monotonic() + CLEANUP
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(CLEANUP / 2, self._grant_cleanup)


class Server(BaseProcess):
    """The runtime of a node.

    ``options`` are the encoding options of requests that bring none of their own; ``max_reply``
    bounds the length of a reply, in bytes.
    """

    def __init__(
        self,
        node: Node,
        *,
        name: str = "snex",
        options: serde.Options = serde.DEFAULTS,
        max_reply: int = MAX_REPLY,
    ) -> None:
        super().__init__(node)
        self.trap_exit = True  # without it the node would be there, and answer nobody
        self._ended = asyncio.Event()
        self._max_reply = max_reply
        self.environments = Environments(self)
        self.options = options
        self._builtin: Variables = {"__builtins__": builtins, "__name__": namespace.NAME}
        self._module = namespace.Namespace()
        self.root: Variables = namespace.root_of(self._module)
        self._decoder = serde.decoder(options)
        self._codes: dict[bytes, Code] = {}
        self._calls: dict[bytes, Call] = {}
        self._running: set[Call] = set()
        self._guarded: set[Deadline] = set()  # what the guardian looks at: work with a time limit
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = time.monotonic()
        self._root = Root(self, self.root)
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self._standing_by = self._stand_by()
        self._requests = {
            b"eval": self._eval,
            b"init": self._init_root,
            b"call": self._call,
            b"make_env": self._make_env,
            b"destroy_env": self._destroy_env,
            b"handle": self._set_handle,
        }
        self.backend = interface.NodeBackend(node, self.pid, options)
        interface.set_backend(self.backend)
        self._log_records = self.backend.logs.records
        node.monitor_nodes(self)
        self.provide(snex=snex, Elixir=interface.Elixir)
        # The last one stands around a custom encoder.
        boundaries = (
            Code.run,
            Server._finish,
            Server._call,
            _await,
            serde._encode_unknown,
        )
        self._interrupter = Interrupter(self._guarded, [f.__code__ for f in boundaries])
        self._interrupter.install()
        namespace.install(self._module)
        threads.install()
        node.guardian.add_check(self._interrupter.check)
        self.register(name)

    def provide(self, **names: object) -> None:
        """Put ``names`` into every environment made from now on; ``only`` does not lose them."""
        self._builtin.update(names)
        self.root.update(self._builtin)

    def new_context(self) -> Context:
        """A copy of the context of the root environment."""
        root = self._root
        return contexts.copied(root.context, root.mutable) if root.mutable else root.context.copy()

    async def init(self, source: str, file: str, *, timeout: float | None = None) -> Failure | None:
        """Run the init script in the root environment; returns what went wrong, if anything.

        ``timeout`` is in seconds.
        """
        limit = Deadline(timeout)
        try:
            code = compile_code(source, file)
            result = self._root.enter(self._interrupter.run, limit, lambda: code.run(self.root))
            if code.is_async:
                await self._init_async(result, limit, timeout)
        except Interrupted:
            return _init_timeout(timeout)
        except asyncio.TimeoutError as error:
            own = time.monotonic() < limit.deadline  # the script's own, and not its time limit
            return from_exception(error) if own else _init_timeout(timeout)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # `sys.exit` too: what it says is worth more than its code
            return from_exception(error)
        return None

    async def _init_async(self, work: Any, limit: Deadline, timeout: float | None) -> None:
        limit.over = False
        self._guarded.add(limit)
        try:
            error = await asyncio.wait_for(self._init_in_steps(work, limit), timeout)
        finally:
            limit.over = True
            self._guarded.discard(limit)
        if error is not None:
            raise error

    async def _init_in_steps(self, work: Any, limit: Deadline) -> BaseException | None:
        return await contexts.in_steps(self._root.enter, limit, None, _error_of(work))

    # --- messages -------------------------------------------------------------------------------

    def receive_external(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take a request."""
        self.request_received(self, data, offset, remote)

    def receive(self, message: object) -> None:
        """Take a message from this node: of a handle, a node that is up, an exit signal."""
        if isinstance(message, tuple) and len(message) == 3 and message[0] == EXIT:
            _log.warning("an exit signal of %s does not end the runtime", message[1])
        elif isinstance(message, tuple) and len(message) == 5 and message[0] == DOWN:
            self.environments.handle_down(message)
        elif isinstance(message, tuple) and message[:1] == ("nodeup",):
            self.backend.connected()
            task = tasks.start(self._learn_sets(str(message[1])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(message, tuple) and message[:1] == ("nodedown",):
            self.backend.disconnected(str(message[1]))

    async def _learn_sets(self, name: str) -> None:
        """Ask a node that has just connected which fields its ``MapSet`` has."""
        with contextlib.suppress(NodeError):  # no Elixir there, or it has gone again
            struct = await self.node.rpc(name, "Elixir.MapSet", "__struct__", decoder=typed)
            old = isinstance(struct, dict) and "version" in struct
            self.node.remote(name).encoder = serde.encoder_v2 if old else serde.encoder

    def request_received(
        self, process: BaseProcess, data: bytes, offset: int, remote: RemoteNode
    ) -> None:
        """Handle a message to ``process``, this server or one of its environments."""
        call = parse_call(data, offset)
        if call is not None:
            caller, at = call
        elif data.startswith(_SYSTEM_HEAD, offset):
            system = parse_system(typed.decode(data, offset)[0])
            if system is not None:
                self.answer_system(process, *system)
            return
        else:
            caller, at = None, parse_cast(data, offset) or offset
        self.backend.last_origin = remote.name
        if process is self:
            root = self._root
            context = root.context.copy() if not root.mutable else self.new_context()
            enter: contexts.Enter = context.run
        else:
            enter = process.enter  # type: ignore[attr-defined]
        loop, standing_by = self._loop, self._standing_by
        try:
            _enter_task(loop, standing_by)
        except RuntimeError:
            answer = self._handle_in_task(enter, process, caller, data, at, remote)
        else:
            try:
                answer = enter(self._handle, process, caller, data, at, remote)
            finally:
                try:
                    _leave_task(loop, standing_by)
                except RuntimeError:  # user code has left it itself
                    _log.warning("evaluated code has changed which task is the current one")
        if isinstance(answer, Call):
            self._begin(answer)
        elif answer is not None and caller is not None:
            self._answer(process, caller, remote, answer)

    def _handle(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        remote: RemoteNode,
    ) -> bytes | Call | None:
        """Handle one request: the encoded answer, or the call that will answer."""
        # It is not reset: nothing runs in this context but requests, and each has its own.
        origin.set((remote, caller))
        try:
            return self._dispatch(process, caller, data, at, remote)
        except BadRequest as error:
            return self._failed(caller, bad_request(str(error)))
        except DecodeError as error:
            return self._failed(caller, bad_request(f"the request cannot be decoded: {error}"))
        except Failure as failure:
            return self._failed(caller, failure)
        except Interrupted:
            return self._failed(caller, cancelled("timeout"))
        except BaseException as error:
            if self.node.forked:
                forks.end_child(error)
            return self._failed(caller, from_exception(error))

    def _handle_in_task(self, enter: contexts.Enter, *request: Any) -> bytes | Call | None:
        """Handle a request that comes while a task of ours runs: user code must not see that."""
        task: Any = asyncio.current_task()
        _leave_task(self._loop, task)
        _enter_task(self._loop, self._standing_by)
        try:
            answer: bytes | Call | None = enter(self._handle, *request)
            return answer
        finally:
            _leave_task(self._loop, self._standing_by)
            _enter_task(self._loop, task)

    def _stand_by(self) -> asyncio.Task[None]:
        """The task that code which does not await finds itself in: `asyncio.current_task`.

        It does nothing, and nothing that such code does to it matters to others: to make a task for
        each request would cost twenty times as much.
        """
        task = _StandingBy(_until(self._closing), loop=self._loop, name="snex")
        # For `all_tasks` it is none: who cancels those, or waits for them, means what runs.
        asyncio.tasks._unregister_task(task)
        setattr(task, "_log_destroy_pending", False)  # noqa: B010 - of C; as `gather` does
        return task

    def _dispatch(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        remote: RemoteNode,
    ) -> bytes | Call | None:
        """What `_handle` gives, or raises."""
        end = _tag_end(data, at)
        if end:
            handler = self._requests.get(data[at + 4 : end])
            if handler is not None:
                return handler(process, caller, data, end, data[at + 1], remote)
        request = _bytes.decode(data, at)[0]
        if request == "ping":
            return _PONG
        if request == "info" and process is self:
            return _OK + serde.encoder.encode(self.info())
        raise BadRequest(f"unknown request: {inspect(request)}")

    def _answer(
        self,
        sender: BaseProcess,
        caller: From,
        remote: RemoteNode,
        answer: bytes,
        *,
        logged: bool = False,
    ) -> None:
        """Send an answer, when what its request logged has arrived (``logged``)."""
        if self._log_records and not logged:
            release = partial(self._answer, sender, caller, remote, answer, logged=True)
            if self.backend.logs.hold(caller, release):
                return
        if len(answer) > self._max_reply:
            answer = self._failed(caller, self._too_long(answer))
        connection = remote.connection
        if connection is not None and caller.alias is not None:
            # The way of nearly every answer: `Node.reply_encoded`, with what is known here.
            payload = b"h\x02" + caller.tag + answer
            connection.send(remote.alias_send(sender.pid, caller.alias), payload, sender.pid)
        else:
            self.node.reply_encoded(caller, answer, sender=sender.pid)

    def _too_long(self, answer: bytes) -> Failure:
        reason = (
            f"the result takes {len(answer)} bytes, and a reply has at most {self._max_reply}: "
            "return it in parts, or write it to a file"
        )
        return Failure("python_runtime_error", reason)

    def _failed(self, caller: From | None, failure: Failure) -> bytes:
        if caller is None:
            _log.error("a request without an answer failed: %s", failure.describe())
        return _ERROR + serde.encoder.encode(failure.to_term())

    def answer_system(self, process: BaseProcess, caller: From, request: object) -> None:
        """Answer a system message; ``GenServer.stop/1`` frees an environment."""
        if isinstance(request, tuple) and len(request) == 2 and request[0] == "terminate":
            if process is not self:
                self.node.reply(caller, Atom("ok"), sender=process.pid)
                process.exit(request[1])
                return
            answer: object = (Atom("error"), Atom("not_allowed"))
        else:
            answer = (Atom("error"), Atom("unknown_system_msg"))
        self.node.reply(caller, answer, sender=process.pid)

    # --- eval -----------------------------------------------------------------------------------

    def _eval(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        arity: int,
        remote: RemoteNode,
    ) -> bytes | Call | None:
        if arity not in (3, 4):
            raise BadRequest(f"an eval request has 3 or 4 elements, not {arity}")
        code, at = self._read_code(data, at)
        options = NO_OPTIONS
        given: Variables | None = None
        if arity == 4:
            given, raw = self._read_variables_and_options(data, at)
            options = EvalOptions(raw)
        elif data[at : at + 5] != b"t\0\0\0\0":
            given, _ = read_variables(self._decoder, data, at)
        if process is self:
            variables = self.root.copy()
            here.set(variables)
        else:
            variables = _variables_of(process)
            if here.get() is not variables:
                here.set(variables)
        if code is not None and code.is_async:
            work: Any = _run_with(code, variables, given) if given else code.run(variables)
            return Call(process, caller, remote, options, work)
        if given:
            variables.update(given)
        if code is None:
            return _OK + b"w\x03nil"
        if options.timeout is None:
            return _OK + remote.encoder.encode(code.run(variables))
        return self._interrupter.run(
            Deadline(options.timeout), lambda: _OK + remote.encoder.encode(code.run(variables))
        )

    def _init_root(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        arity: int,
        remote: RemoteNode,
    ) -> bytes | Call | None:
        """An eval that runs in the root environment, and so prepares all that are made later."""
        return self._root.enter(self._init, caller, data, at, arity, remote)

    def _init(
        self, caller: From | None, data: bytes, at: int, arity: int, remote: RemoteNode
    ) -> bytes | Call | None:
        token = origin.set(
            (remote, caller)
        )  # to be reset: environments made later copy this context
        try:
            return self._eval(self._root, caller, data, at, arity, remote)
        finally:
            origin.reset(token)

    def _read_variables_and_options(self, data: bytes, at: int) -> tuple[Variables, object]:
        """The variables at ``at`` and the options behind them, which say how to decode those.

        Passing over large variables costs as much as decoding them, so that is done only where
        the bytes can hold the one option that matters.
        """
        if data.find(b"encoding_opts", at) < 0:
            variables, end = read_variables(self._decoder, data, at)
            return variables, typed.decode(data, end)[0]
        raw = typed.decode(data, typed.skip(data, at))[0]
        encoding = encoding_options(raw, self.options)
        return read_variables(serde.decoder(encoding), data, at)[0], raw

    def _read_code(self, data: bytes, at: int) -> tuple[Code | None, int]:
        """The code at ``at`` (a binary, nil, or a ``Snex.Code``), and the offset behind it."""
        try:
            end = at + 5 + _u32(data, at + 1)[0] if data[at] == 109 else typed.skip(data, at)
        except (IndexError, StructError):
            raise BadRequest("the request ends before its code does") from None
        raw = data[at:end]
        code = self._codes.get(raw)
        if code is None:
            try:
                term, _ = _bytes.decode(raw)
            except DecodeError as error:
                raise BadRequest(f"the code cannot be decoded: {error}") from None
            if term is None:
                return None, end
            code = compile_code(*code_parts(term))
            if len(raw) <= MAX_CODE:
                if len(self._codes) >= MAX_CODES:
                    self._codes.clear()
                self._codes[raw] = code
        return code, end

    # --- call -----------------------------------------------------------------------------------

    def _call(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        arity: int,
        remote: RemoteNode,
    ) -> bytes | Call | None:
        if arity not in (4, 5):
            raise BadRequest(f"a call request has 4 or 5 elements, not {arity}")
        module, at = typed.decode(data, at)
        function, at = typed.decode(data, at)
        if not isinstance(module, str) or not isinstance(function, str):
            named = f"{inspect(module)} and {inspect(function)}"
            raise BadRequest(f"module and function of a call are atoms or binaries, not {named}")
        args, at = self._decoder.decode(data, at)
        kwargs: Any = read_keywords(self._decoder, data, at) if arity == 5 else {}
        if not isinstance(args, list):
            raise BadRequest(f"the arguments of a call are a list, not {inspect(args)}")
        if isinstance(process, Environment):
            here.set(process.variables)
        try:
            called = import_function(str(module), str(function))
        except UndefinedFunctionError as error:
            raise BadRequest(str(error)) from None
        result = called(*args, **kwargs)
        if isawaitable(result):
            return Call(process, caller, remote, NO_OPTIONS, _await(result))
        return _OK + remote.encoder.encode(result)

    # --- work that suspends ---------------------------------------------------------------------

    def _begin(self, call: Call) -> None:
        """Run it to its first suspension, or soon; outside of its context, which steps enter."""
        self._running.add(call)
        if call.timeout is not None:
            self._guarded.add(call)
            call.timer = self._loop.call_later(call.timeout, call.stop, "timeout")
        if call.caller is not None and call.caller.ref is not None:
            self._calls[call.caller.ref] = call
        try:
            call.task = task = _start_task(self._loop, self._complete(call))
        except RuntimeError:
            if self.node.forked:  # from 3.14 on: the loop that the task began on runs no more
                self._end_child(call)
            raise
        if not task.done():
            if self.node.forked:
                forks.end_waiting_child()
            tasks.hide(task)
        if call.stopped is not None:
            task.cancel()

    def _end_child(self, call: Call) -> NoReturn:
        if call.over:
            forks.end_child()
        forks.end_waiting_child()

    async def _complete(self, call: Call) -> None:
        call.begun = True
        asked = call.remote, call.caller
        answer = await contexts.in_steps(call.enter, call, asked, self._finish(call))
        if call.caller is not None:
            self._answer(call.sender, call.caller, call.remote, answer)

    async def _finish(self, call: Call) -> bytes:
        """The answer to ``call``."""
        caller = call.caller
        try:
            if call.stopped is not None:
                call.work.close()
                raise asyncio.CancelledError
            try:
                return _OK + call.remote.encoder.encode(await call.work)
            finally:
                call.over = True
        except Interrupted:
            return self._failed(caller, cancelled("timeout"))
        except asyncio.CancelledError as error:
            if call.stopped is None:
                return self._failed(caller, from_exception(error))
            return self._failed(caller, cancelled(call.stopped))
        except BaseException as error:
            if self.node.forked:
                forks.end_child(error)
            return self._failed(caller, from_exception(error))
        finally:
            self._running.discard(call)
            self._guarded.discard(call)
            if call.timer is not None:
                call.timer.cancel()
            if caller is not None and caller.ref is not None:
                self._calls.pop(caller.ref, None)

    def demonitored(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""
        self.given_up(ref)

    def given_up(self, ref: bytes) -> None:
        """The call that is tagged with ``ref`` has no caller any more: stop its work."""
        call = self._calls.get(ref)
        if call is not None and not call.continues:
            call.stop("its caller has given up")

    async def wait_ended(self) -> object:
        """Wait until this process has ended, and return why: ``killed`` by somebody, most likely.

        Nobody is answered from then on, so the node should end as well.
        """
        await self._ended.wait()
        return self.exit_reason

    def exited(self, reason: object) -> None:
        """Stop everything: environments are freed, work is cancelled."""
        self._ended.set()
        if reason not in ("shutdown", "normal"):
            _log.error("the runtime of %s has ended: %s", self.node.name, reason)
        if interface.current_backend() is self.backend:
            interface.set_backend(None, stopped=True)
        self.backend.close()
        self.node.guardian.remove_check(self._interrupter.check)
        self._interrupter.remove()
        threads.remove()
        namespace.remove(self._module)
        self._closing.set()
        for environment in self.environments.all():
            environment.exit(reason)
        for call in list(self._running):
            call.stop("the runtime stops")
            if call.task is not None:
                tasks.leave(call.task)
        for task in self._tasks:
            task.cancel()

    # --- environments ---------------------------------------------------------------------------

    def _make_env(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        arity: int,
        remote: RemoteNode,
    ) -> bytes | None:
        if arity not in (2, 3):
            raise BadRequest(f"a make_env request has 2 or 3 elements, not {arity}")
        if caller is None:
            raise BadRequest("make_env is a call: without an answer nobody would have the pid")
        if arity == 3:
            given, raw = self._read_variables_and_options(data, at)
        else:
            given, raw = read_variables(self._decoder, data, at)[0], None
        options = options_in(raw, ("from", "handle", "encoding_opts"))
        handle = options.get("handle", caller.pid)
        variables = self.root.copy()
        copy_into(variables, self._sources(options.get("from")), self._builtin)
        variables.update(given)
        environment = self.environments.make(variables, handle_in(handle))
        return _OK + environment.pid.external

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
        return self._environment(pid), only, excluded

    def _environment(self, pid: object) -> Environment:
        environment = self.environments.get(pid)
        if environment is None:
            raise Failure("env_not_found", f"{inspect(pid)} is no environment of this node")
        return environment

    def _destroy_env(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        arity: int,
        remote: RemoteNode,
    ) -> bytes | None:
        if arity != 2:
            raise BadRequest(f"a destroy_env request has 2 elements, not {arity}")
        pid, _ = typed.decode(data, at)
        if not isinstance(pid, Pid):
            raise BadRequest(f"destroy_env takes an environment's pid, not {inspect(pid)}")
        environment = self.environments.get(pid)
        if environment is not None:
            environment.exit()
        return _OK_ATOM

    def _set_handle(
        self,
        process: BaseProcess,
        caller: From | None,
        data: bytes,
        at: int,
        arity: int,
        remote: RemoteNode,
    ) -> bytes | None:
        if not isinstance(process, Environment):
            raise BadRequest("a handle request goes to an environment")
        if arity != 2:
            raise BadRequest(f"a handle request has 2 elements, not {arity}")
        handle = handle_in(typed.decode(data, at)[0])
        self.environments.set_handle(process, handle)
        return _OK_ATOM

    # --- info -----------------------------------------------------------------------------------

    def info(self) -> dict[Atom, object]:
        """What ``:info`` answers: versions, process id, uptime (ms), what there is and runs."""
        connections = [r.connection for r in self.node.remotes if r.connection is not None]
        return {
            Atom("node"): Atom(self.node.name),
            Atom("version"): version(),
            Atom("python_version"): platform.python_version(),
            Atom("python_implementation"): platform.python_implementation(),
            Atom("loop"): type(asyncio.get_running_loop()).__module__.partition(".")[0],
            Atom("executable"): sys.executable,
            Atom("os_pid"): os.getpid(),
            Atom("uptime_ms"): int((time.monotonic() - self._started) * 1000),
            Atom("environments"): len(self.environments),
            Atom("requests_running"): len(self._running),
            Atom("nodes"): [Atom(name) for name in self.node.nodes],
            Atom("bytes_in"): sum(c.bytes_in for c in connections),
            Atom("bytes_out"): sum(c.bytes_out for c in connections),
        }


def _tag_end(data: bytes, at: int) -> int:
    """Where the atom ends that a tuple at ``at`` begins with; 0 when there is no such tuple."""
    try:
        return at + 4 + data[at + 3] if data[at] == 104 and data[at + 2] == 119 else 0
    except IndexError:
        return 0


def _variables_of(process: BaseProcess) -> Variables:
    assert isinstance(process, Environment)
    return process.variables


def _init_timeout(timeout: float | None) -> Failure:
    return Failure("init_script_timeout", f"not done within {timeout} s")


async def _run_with(code: Code, variables: Variables, given: Variables) -> object:
    """Run code that awaits, and set its variables when it begins, which may be a turn later.

    Set any sooner, they would be those of whatever else begins in the environment in that turn.
    """
    variables.update(given)
    return await _await(code.run(variables))


async def _error_of(work: Any) -> BaseException | None:
    """What ``work`` raises. A task that raised `SystemExit` itself would end the event loop."""
    try:
        await _await(work)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return error
    return None


class _StandingBy(asyncio.Task[None]):
    """The task of `Server._stand_by`."""

    def set_name(self, value: object, /) -> None:
        """Nothing: the name that one caller gives it would be that of all."""


async def _until(closing: asyncio.Event) -> None:
    """Wait for ``closing``, whoever cancels that."""
    task: Any = asyncio.current_task()
    while not closing.is_set():
        try:
            await closing.wait()
        except asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                task.uncancel()


async def _await(awaitable: Any) -> object:
    return await awaitable


if sys.version_info >= (3, 12):

    def _start_task(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run ``work`` to its first suspension at once: most of it then needs no other turn."""
        return asyncio.Task(work, loop=loop, eager_start=True)

else:

    def _start_task(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        return loop.create_task(work)


def version() -> str:
    """The version of this package; ``unknown`` where it runs from its source alone."""
    global _version  # noqa: PLW0603 - read once
    if _version is None:
        # Imported only when it is asked for: it takes 1.2 MiB and 20 ms.
        metadata: Any = import_module("importlib.metadata")
        try:
            _version = str(metadata.version("snex-node"))
        except metadata.PackageNotFoundError:
            _version = "unknown"
    return _version


_version: str | None = None
