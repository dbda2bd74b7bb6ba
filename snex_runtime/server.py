"""The process registered as ``snex``: a runtime, from its start to its end.

Here its rooms are put together, and here is the table of the requests that it takes. What they are
is "The contract" in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

import snex
from snex_node.errors import NodeError, RemoteError
from snex_node.node import Node
from snex_node.processes.process import DOWN, EXIT, BaseProcess
from snex_node.system import tasks
from snex_node.wire.describe import inspect
from snex_node.wire.gen import From
from snex_node.wire.terms import Atom
from snex_runtime import (
    coroutines,
    evaluation,
    executors,
    info,
    interface,
    namespace,
    serde,
    streams,
    threads,
)
from snex_runtime.answers import MAX_REPLY, OK_, PONG, Answers
from snex_runtime.blocking import Watch
from snex_runtime.coroutines import Coroutines
from snex_runtime.dispatch import Dispatcher, Kinds
from snex_runtime.environments import Environments
from snex_runtime.errors import BadRequest, Failure
from snex_runtime.evaluation import Evaluator
from snex_runtime.executors import Executor, Pool
from snex_runtime.interrupts import Interrupter
from snex_runtime.lending import Arena, Lending
from snex_runtime.namespace import Variables
from snex_runtime.objects import Objects
from snex_runtime.pulse import Pulse
from snex_runtime.requests import (
    Asker,
    Place,
    Reader,
    Receiver,
    Request,
    receive_from_here,
    typed,
)
from snex_runtime.shared import Drops
from snex_runtime.streams import Streams

__all__ = ["Server"]

_BOUNDARIES: Final = (
    *evaluation.BOUNDARIES,
    *coroutines.BOUNDARIES,
    *executors.BOUNDARIES,
    *streams.BOUNDARIES,
    *serde.BOUNDARIES,
)

_log = logging.getLogger(__name__)


class Server(BaseProcess):
    """The runtime of a node.

    ``options`` are the encoding options of requests that bring none of their own; ``max_reply``
    bounds the length of a reply, in bytes. ``executor`` says where requests run that do not say:
    on the event ``loop`` or in one of at most ``threads`` threads. ``max_queue`` bounds how many
    wait, those for a thread and those that await on the loop, each; for a thread they wait
    ``queue_timeout`` seconds at most. ``max_time`` is the time limit, in seconds, of requests that
    bring none. None is no bound, and for ``threads`` what `default_threads` gives.
    ``killer`` kills this process where a request goes beyond its last limit, ``kill_after`` seconds
    beyond its time limit if it does not say itself. What takes ``slow`` seconds or more is told of
    in the log.
    """

    def __init__(
        self,
        node: Node,
        *,
        name: str = "snex",
        options: serde.Options = serde.DEFAULTS,
        max_reply: int = MAX_REPLY,
        killer: evaluation.Killer | None = None,
        kill_after: float | None = None,
        executor: Executor = "loop",
        threads: int | None = None,
        max_queue: int | None = None,
        queue_timeout: float | None = None,
        max_time: float | None = None,
        slow: float | None = None,
    ) -> None:
        super().__init__(node)
        self.trap_exit = True  # without it the node would be there, and answer nobody
        self.variables: Final[Variables | None] = None
        """None: each request has a copy of its own of the root's."""
        self.place: Final[Place | None] = None
        self.threaded: Final = executor == "thread"
        """Whether requests run in threads, where they do not say."""
        self._started, self._ended = time.monotonic(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._module, self._interrupter = namespace.Namespace(), Interrupter(_BOUNDARIES)
        self.backend = interface.NodeBackend(node, self.pid, options)
        """What `snex.send`, `snex.call` and `snex.cast` go through."""
        answers = self._answers = self._make_answers(max_reply, slow)
        self._pulse = Pulse(node)
        self._coroutines = Coroutines(node, answers, self._interrupter, self, max_queue=max_queue)
        self.watch: Final = Watch(node, self.pid, self._interrupter, self._coroutines)
        """What looks after the event loop."""
        self._pool = Pool(node, threads, max_queue=max_queue, queue_timeout=queue_timeout)
        self._dispatcher = Dispatcher(node, answers, self._coroutines, self.backend)
        reader = Reader(options, max_time)
        self.root: Final = namespace.root_of(self._module)
        """The variables of the root environment."""
        self.environments = Environments(
            self, self._dispatcher, reader, self.root, threaded=self.threaded
        )
        self._root = self.environments.root
        self._lending = Lending(Arena(self.pid), Drops(node), opens=options.tensor_as != "term")
        self._evaluator = Evaluator(
            self._root, reader, self._interrupter, self._pool, killer, kill_after, self._lending
        )
        self._streams = Streams(node, reader, self.root, self._coroutines, self._pool)
        self._objects = self._evaluator.keeps = self._make_objects(answers)
        self._dispatcher.open(self._kinds())
        self._install(name)

    def _make_answers(self, max_reply: int, slow: float | None) -> Answers:
        return Answers(self.node, self.backend.logs, max_reply, slow)

    def _make_objects(self, answers: Answers) -> Objects:
        """The objects, which have a dispatcher of their own."""
        handles = self.environments.handles
        dispatcher = Dispatcher(self.node, answers, self._coroutines, self.backend)
        self._about_objects = dispatcher
        made = Objects(
            self, handles, dispatcher, self._evaluator, self._root, threaded=self.threaded
        )
        dispatcher.open(Kinds(made.tuples, made.atoms))
        return made

    def _kinds(self) -> Kinds:
        """Every kind of request, and who handles it."""
        return Kinds(
            tuples={
                b"eval": self._evaluator.eval,
                b"init": self._evaluator.init,
                b"call": self._evaluator.call,
                b"stream": self._streams.requested,
                b"make_env": self.environments.make_requested,
                b"destroy_env": self.environments.destroy_requested,
                b"handle": self.environments.handle_requested,
                b"info": self._part_of_info_requested,
                b"shared": self._lending.requested,
            },
            atoms={
                b"ping": lambda request: PONG,
                b"info": self._info_requested,
            },
        )

    def _install(self, name: str) -> None:
        """Take the place in this process that `exited` gives up, and the name."""
        interface.set_backend(self.backend)
        self.node.monitor_nodes(self)
        self.provide(snex=snex, Elixir=interface.Elixir)
        self._interrupter.install()
        namespace.install(self._module)
        threads.install()
        for check in self._checks:
            self.node.guardian.add_check(check)
        self.register(name)

    @property
    def _checks(self) -> tuple[Callable[[], float | None], ...]:
        """What the guardian is to look after."""
        return self._interrupter.check, self._pool.check, self.watch.check, self._lending.check

    def provide(self, **names: object) -> None:
        """Put ``names`` into every environment made from now on; ``only`` does not lose them."""
        self.environments.provide(**names)

    async def init(self, source: str, file: str, *, timeout: float | None = None) -> Failure | None:
        """Run the init script in the root environment; returns what went wrong, if anything.

        ``timeout`` is in seconds.
        """
        return await self._evaluator.run_init_script(source, file, timeout=timeout)

    # --- messages -------------------------------------------------------------------------------

    def external_received(self, data: bytes, offset: int, remote: Asker) -> None:
        """Take a request."""
        self._dispatcher.received(self, self._root.new_context().run, data, offset, remote)

    def _dispatch(
        self,
        process: Receiver,
        data: bytes,
        offset: int,
        remote: Asker,
        make: Callable[..., Request],
    ) -> None:
        """Take a request that ``make`` makes, as one to ``process``."""
        enter = self._root.new_context().run
        self._dispatcher.received(process, enter, data, offset, remote, make)

    def system_received(self, caller: From, request: object) -> None:
        """Answer a system message: ``GenServer.stop/1`` does not end the runtime."""
        stop = isinstance(request, tuple) and len(request) == 2 and request[0] == "terminate"
        why = Atom("not_allowed" if stop else "unknown_system_msg")
        self.node.reply(caller, (Atom("error"), why), sender=self.pid)

    def demonitored(self, ref: bytes) -> None:
        """Whoever called with ``ref`` waits no more."""
        self._coroutines.given_up(ref)

    def message_received(self, message: object) -> None:
        """Take a message from this node: of a handle, a node that is up, an exit signal, a call."""
        if isinstance(message, tuple) and len(message) == 3 and message[0] == EXIT:
            _log.warning("an exit signal of %s does not end the runtime", message[1])
        elif isinstance(message, tuple) and len(message) == 5 and message[0] == DOWN:
            if not self._coroutines.caller_down(message[1]):
                self.environments.handles.down(message)
        elif isinstance(message, tuple) and message[:1] == ("nodeup",):
            self.backend.connected()
            task = tasks.start(self._learn_encoder(str(message[1])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(message, tuple) and message[:1] == ("nodedown",):
            self.backend.disconnected(str(message[1]))
            self._lending.node_down(str(message[1]))
        else:
            receive_from_here(self, message)

    async def _learn_encoder(self, name: str) -> None:
        """Ask a node that has just connected which structs it has: what is sent depends on it."""
        with contextlib.suppress(NodeError):  # it has gone again
            mapset = await self._struct_of(name, "Elixir.MapSet")
            new = isinstance(mapset, dict) and "version" not in mapset
            duration = await self._struct_of(name, "Elixir.Duration") if new else None
            self.node.remote(name).encoder = serde.encoder_for(mapset, duration)

    async def _struct_of(self, name: str, module: str) -> object:
        """The struct as it is without fields given; None on a node that does not have it."""
        try:
            return await self.node.rpc(name, module, "__struct__", decoder=typed)
        except RemoteError:
            return None

    def _info_requested(self, request: Request) -> bytes:
        if request.variables is not None:  # it came to an environment
            raise BadRequest("unknown request: :info")
        return serde.encoder.encode(self.info(), OK_)

    def _part_of_info_requested(self, request: Request) -> bytes:
        """``{:info, :environments}``: ``{:ok, list}``."""
        if request.variables is not None or request.arity != 2:
            raise BadRequest("an info request is :info or {:info, :environments}, to the server")
        part = request.read(typed)
        if part != "environments":
            raise BadRequest(f"info there is of :environments, not of {inspect(part)}")
        return serde.encoder.encode(info.environments(self.environments), OK_)

    @property
    def held(self) -> int:
        """How many processes there are here that others know the pids of."""
        return len(self.environments) + len(self._streams) + len(self._objects)

    def info(self) -> dict[Atom, object]:
        """What ``:info`` answers: versions, process id, uptime (ms), what there is and runs."""
        return info.about(
            self.node,
            uptime=time.monotonic() - self._started,
            environments=len(self.environments),
            streams=len(self._streams),
            objects=len(self._objects),
            requests_running=len(self._coroutines),
            threads=self._pool.counts,
            blocked=self.watch.blocked,
            pulse=self._pulse,
            works=self._coroutines.all(),
            latency=self._answers.latency.counts,
        )

    # --- the end --------------------------------------------------------------------------------

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
        for check in self._checks:
            self.node.guardian.remove_check(check)
        self._interrupter.remove()
        threads.remove()
        namespace.remove(self._module)
        self._pulse.close()
        self._lending.close()
        self._dispatcher.close()
        self._about_objects.close()
        for environment in self.environments.all():
            environment.exit(reason)
        self._streams.close(reason)
        self._objects.close(reason)
        self._coroutines.close()
        self._pool.close()
        for task in self._tasks:
            task.cancel()
