"""Streams: what a generator yields, for consumers that ask for it.

A stream is a process that speaks the producer's part of GenStage's protocol. It makes items when
they have been asked for, and no others; what nobody wants any more is closed.

Source: "Streams" in elixir/guides/streams.md; the protocol is that of gen_stage.ex.
"""

from __future__ import annotations

import asyncio
import inspect as inspect_
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

from snex_node.errors import NodeError
from snex_node.processes.host import Host
from snex_node.processes.process import DOWN, NORMAL, BaseProcess
from snex_node.system import forks
from snex_node.wire.describe import inspect, type_repr
from snex_node.wire.etf import Decoder, EncodeError, Encoder
from snex_node.wire.gen import SYSTEM_HEAD, From, parse_call, parse_system
from snex_node.wire.terms import Atom, Pid, Reference
from snex_runtime import contexts, journal, lifetimes
from snex_runtime.answers import OK_
from snex_runtime.code import Code
from snex_runtime.coroutines import Work
from snex_runtime.errors import BadRequest, Failure, bad_request, cancelled, from_exception
from snex_runtime.evaluation import Snippets, Threads
from snex_runtime.interrupts import Interrupted
from snex_runtime.namespace import Variables, here
from snex_runtime.origin import Origin
from snex_runtime.requests import (
    NO_OPTIONS,
    Asker,
    Line,
    Place,
    Reader,
    Request,
    make_request,
    options_in,
    read_variables,
    stopped_or_refused,
    threaded_in,
)

__all__ = ["BOUNDARIES", "MAX_BATCH", "MAX_CHUNK_BYTES", "MAX_CONSUMERS", "Stream", "Streams"]

MAX_BATCH: Final = 1000
"""Items that are made before those made are sent."""

MAX_CHUNK_BYTES: Final = 1024 * 1024
"""Bytes that a message with items has at most, unless a request says another number; one item may
have more."""

MAX_CONSUMERS: Final = 10_000
"""Consumers of one stream; further ones are refused."""

SUBSCRIBE_TIMEOUT: Final = 60.0
"""Seconds after which a stream ends that nobody has subscribed to, unless the request says."""

SLICE: Final = 0.001
"""Seconds for which items are made before the event loop has its turn."""

IN_THREAD: Final = 0.010
"""The same in a thread, which holds up nobody."""

PRODUCER: Final = Atom("$gen_producer")
CONSUMER: Final = Atom("$gen_consumer")
_CANCEL: Final = Atom("cancel")
_SUBSCRIBE: Final = Atom("subscribe")
_ASK: Final = Atom("ask")

_log = logging.getLogger(__name__)
_plain: Final = Decoder()
_encode: Final = Encoder().encode
_HEAD: Final = b"h\x03" + _encode(CONSUMER)


class Begins(Protocol):
    """Runs what awaits."""

    def begin(self, work: Work) -> None:
        """Run it, or begin to."""


class _Consumer:
    """Who takes items: its process, and the tag of its subscription.

    ``to`` is where they are sent: that process, or the tag itself where that is an alias.
    """

    __slots__ = ("demand", "monitor", "pid", "tag", "to")

    def __init__(self, pid: Pid, tag: object, monitor: Reference, to: Pid | Reference) -> None:
        self.pid = pid
        self.tag = tag
        self.monitor = monitor
        self.to = to
        self.demand = 0


class Running(Request):
    """A stream's code, under way: whoever asked for it has the answer already."""

    __slots__ = ("first",)

    answered = True

    first: Request
    """That request."""

    @property
    def asked(self) -> Origin:
        """Where it came from."""
        return self.first.asked

    @property
    def takers(self) -> Sequence[tuple[Line | None, From]]:
        """Who takes what it makes."""
        assert isinstance(self.process, Stream)
        return self.process.takers


class _Items:
    """Makes items out of what code gives: `make` calls user code."""

    def __init__(self, found: Any) -> None:
        self.is_async = hasattr(found, "__aiter__")
        try:
            self.found: Any = aiter(found) if self.is_async else iter(found)
        except TypeError:
            raise TypeError(
                f"a stream is of what a generator yields, or of what an iterable has; the code "
                f"returned an object of {type_repr(type(found))}"
            ) from None

    def make(self, made: list[object], most: int, seconds: float) -> bool:
        """Put at most so many into ``made``, for so long; whether there are no more."""
        found: Iterator[object] = self.found
        end = time.perf_counter() + seconds
        for _ in range(most):
            try:
                made.append(next(found))
            except StopIteration:
                return True
            if time.perf_counter() >= end:
                return False
        return False

    async def await_some(self, made: list[object], most: int) -> bool:
        """The same where each is awaited. They are in ``made`` as soon as they are there."""
        found: AsyncIterator[object] = self.found
        end = time.perf_counter() + SLICE
        for _ in range(most):
            try:
                made.append(await anext(found))
            except StopAsyncIteration:
                return True
            if time.perf_counter() >= end:
                return False
        return False

    def close_here(self) -> object:
        """No more are wanted: its ``finally`` blocks run."""
        close = getattr(self.found, "aclose" if self.is_async else "close", None)
        return None if close is None else close()

    async def close(self) -> None:
        """The same, and await what there is to await."""
        closing: Any = self.close_here()
        if self.is_async and closing is not None:
            await closing


class Stream(BaseProcess):
    """One stream: its code, who takes its items, and what they have asked for."""

    __slots__ = (
        "_batch",
        "_broadcast",
        "_code",
        "_consumers",
        "_failure",
        "_flushing",
        "_given",
        "_home",
        "_made",
        "_max_bytes",
        "_over",
        "_request",
        "_timer",
        "_wanted",
        "_work",
        "threaded",
        "variables",
    )

    def __init__(
        self, home: Streams, request: Request, code: Code, given: Variables, options: _Options
    ) -> None:
        super().__init__(home.node)
        self._home = home
        self._code = code
        self._given = given
        self._broadcast = options.broadcast
        self._max_bytes = options.max_bytes
        self._consumers: dict[tuple[Pid, bytes], _Consumer] = {}
        # What has been made and not been sent; the end comes behind it.
        self._made: list[object] = []
        self._batch = MAX_BATCH
        self._over = False
        self._failure: Failure | None = None
        self._flushing: asyncio.TimerHandle | None = None
        self._wanted: asyncio.Future[None] | None = None
        self._work: Work | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(options.subscribe_timeout, self._nobody_came)
        variables = request.variables
        self.variables: Final = home.root.copy() if variables is None else variables
        self.threaded: Final = options.threaded
        self._request = running = make_request(
            self, request.enter, None, request.remote, b"", 0, Running
        )
        running.first, running.kind, running.runs = request, "stream", code

    @property
    def place(self) -> Place | None:
        """Where its code runs, one after another with what else is run there in threads."""
        return self._request.first.process.place

    @property
    def takers(self) -> list[tuple[Line | None, From]]:
        """Who takes items, each with the connection to its node; none where one is of this node,
        which cannot end while the loop is blocked. From any thread.
        """
        consumers, node = list(self._consumers), self.node
        if any(pid.node == node.name for pid, _ in consumers):
            return []
        return [(node.remote(pid.node).connection, From(pid, tag, None)) for pid, tag in consumers]

    # --- messages -------------------------------------------------------------------------------

    def external_received(self, data: bytes, offset: int, remote: Asker) -> None:
        """Take a message of a consumer."""
        call = parse_call(data, offset)
        if call is not None:
            answer = bad_request("a stream takes no calls: subscribe to it, as GenStage does")
            self.node.reply(call[0], (Atom("error"), answer.to_term()), sender=self.pid)
            return
        if data.startswith(SYSTEM_HEAD, offset):
            system = parse_system(_plain.decode(data, offset)[0])
            if system is not None:
                self.system_received(*system)
            return
        self.message_received(_plain.decode(data, offset)[0])

    def message_received(self, message: object) -> None:
        """Take a message, of a consumer or of a monitor; others are dropped."""
        match message:
            case (Atom() as head, (Pid() as pid, tag), (Atom() as what, *details)):
                if head == PRODUCER:
                    self._consumer_says(pid, tag, str(what), details)
            case (Atom() as head, ref, _, Pid(), _):
                if head == DOWN:
                    self._consumer_down(ref)
            case _:
                pass

    def system_received(self, caller: From, request: object) -> None:
        """``GenServer.stop/1`` ends the stream."""
        stopped_or_refused(self, caller, request)

    def is_monitored_with(self, ref: bytes) -> bool:
        """Nobody waits for an answer of a stream."""
        return True

    def _consumer_says(self, pid: Pid, tag: object, what: str, details: list[object]) -> None:
        key = pid, _plain_bytes(tag)
        consumer = self._consumers.get(key)
        match what, details:
            case "subscribe", [old, options]:
                self._subscribe(key, tag, old, options)
            case "ask", [int() as demand] if demand > 0:
                if consumer is None:
                    self._tell(pid, tag, (_CANCEL, Atom("unknown_subscription")))
                    return
                consumer.demand += demand
                self._want()
            case "cancel", [reason]:
                if consumer is not None:
                    self._tell(consumer.to, tag, (_CANCEL, reason))
                    self._remove(key)
            case _:
                _log.warning("%s dropped what %s has said to a stream", self.pid, pid)

    def _subscribe(self, key: tuple[Pid, bytes], tag: object, old: object, options: object) -> None:
        pid = key[0]
        refused = None
        if key in self._consumers:
            refused = "duplicated_subscription"
        elif len(self._consumers) >= MAX_CONSUMERS:
            refused = "system_limit"
        elif _option(options, "selector") is not None:
            refused = "selector_is_not_supported"
        if refused is not None:
            self._tell(pid, tag, (_CANCEL, Atom(refused)))
            return
        if isinstance(old, tuple) and len(old) == 2 and isinstance(old[0], Pid):
            before = old[0], _plain_bytes(old[1])
            if before in self._consumers:
                self._tell(old[0], old[1], (_CANCEL, Atom("resubscribed")))
                self._remove(before, stop=False)
        self._timer.cancel()
        to = tag if isinstance(tag, Reference) and _option(options, "alias") is True else pid
        self._consumers[key] = _Consumer(pid, tag, self.monitor(pid), to)

    def _consumer_down(self, ref: object) -> None:
        for key, consumer in self._consumers.items():
            if consumer.monitor == ref:
                self._remove(key)
                return

    def _remove(self, key: tuple[Pid, bytes], *, stop: bool = True) -> None:
        consumer = self._consumers.pop(key)
        self.demonitor(consumer.monitor)
        if not self._consumers and stop:
            self.exit(NORMAL)
        elif self._consumers:  # what it has not taken is for others
            self._want()

    def _nobody_came(self) -> None:
        self.exit((Atom("shutdown"), Atom("subscribe_timeout")))

    def _tell(self, to: Pid | Reference, tag: object, what: object) -> None:
        try:
            self.node.send(to, (CONSUMER, (self.pid, tag), what), sender=self.pid)
        except NodeError:  # too much waits for its node: it is lost, and the monitor tells
            pass

    # --- items ----------------------------------------------------------------------------------

    @property
    def _demand(self) -> int:
        """How many items may be made: what has been asked for, of those that were not made."""
        demands = [consumer.demand for consumer in self._consumers.values()]
        if not demands:
            return 0
        return (min(demands) if self._broadcast else sum(demands)) - len(self._made)

    def _want(self) -> None:
        """Something has been asked for: begin, or go on."""
        if self._made or self._over:
            self._flush()
        if self._work is None:
            if self._demand > 0:
                # Code in a thread enters the context of the request there: this does not, then.
                self._work = work = Work(self._request, self._run(), threaded=self._in_threads)
                self._home.works.begin(work)
        elif self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    async def _run(self) -> None:
        """Make items, as long as anybody wants some."""
        items: _Items | None = None
        try:
            items = await self._open()
            while not await self._make(items):
                self._flush()
                while self._demand <= 0:
                    await self._until_wanted()
        except BaseException as error:
            self._fail(error)
        if items is not None:
            await self._close(items)
        self._over = True
        lifetimes.release(self._request)
        if self.alive:
            self._flush()

    def _fail(self, error: BaseException) -> None:
        """The code has raised; or nobody wants its items any more, and then that is no failure."""
        if self.node.forked:
            forks.end_child(error)
        if not self.alive or self._failure is not None:
            return
        if isinstance(error, Interrupted | asyncio.CancelledError):
            self._failure = cancelled("the stream was stopped")
        else:
            self._failure = from_exception(error)

    async def _until_wanted(self) -> None:
        self._wanted = asyncio.get_running_loop().create_future()
        try:
            await self._wanted
        finally:
            self._wanted = None

    async def _open(self) -> _Items:
        """Run the code, as far as it goes without making items."""
        here.set(self.variables)
        self.variables.update(self._given)
        self._given = {}
        if self._in_threads:
            found: list[object] = []
            await self._in_thread(lambda: found.append(self._code.run(self.variables)))
            return _Items(found[0])
        value = self._code.run(self.variables)
        return _Items(await value if self._code.is_async else value)  # type: ignore[misc]

    async def _make(self, items: _Items) -> bool:
        """Make some; whether there are no more."""
        most = min(self._demand, self._batch)
        made = self._made
        if items.is_async:
            self._flush_soon()
            over: bool = await self._on_loop(items.await_some(made, most))
            return over
        if not self._in_threads:
            over = items.make(made, most, SLICE)
            if self.node.forked:
                forks.end_child()
            if not over and self._demand > 0:
                self._flush()
                await asyncio.sleep(0)
            return over
        ended: list[bool] = []
        self._flush_soon()
        await self._in_thread(lambda: ended.append(items.make(made, most, IN_THREAD)))
        return ended[0]

    @property
    def _in_threads(self) -> bool:
        """Whether its code runs in threads: what awaits does not."""
        flags = inspect_.CO_COROUTINE | inspect_.CO_ASYNC_GENERATOR
        return self.threaded and not self._code.code.co_flags & flags

    async def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await ``work`` in the context of the request, where this is not in it."""
        if not self._in_threads:
            return await work
        assert self._work is not None
        request = self._request
        return await contexts.in_steps(request.enter, self._work, request.asked, work)

    async def _in_thread(self, function: Callable[[], object]) -> None:
        """Call ``function`` in a thread. Raises what it raises."""
        raised: list[BaseException] = []
        running = partial(_call, function, raised, self.variables)
        work = self._home.threads.work(self._request, running, self.place, NO_OPTIONS)
        await work.awaited
        if raised:
            raise raised[0]

    async def _close(self, items: _Items) -> None:
        try:
            if self._in_threads and not items.is_async:
                await self._in_thread(items.close_here)
            else:
                await self._on_loop(items.close())
        except BaseException as error:
            if self.alive and self._failure is None:
                self._fail(error)
            else:
                failure = from_exception(error)
                _log.error("a stream failed when it was closed: %s", failure.describe())

    # --- what has been made ---------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """What has been made by then is sent, though the next one takes its time."""
        if self._flushing is None:
            loop = asyncio.get_running_loop()
            self._flushing = loop.call_later(SLICE, self._flush_late)

    def _flush_late(self) -> None:
        self._flushing = None
        if not self.alive:
            return
        self._flush()
        if self._work is not None and not self._over:
            self._flush_soon()

    def _flush(self) -> None:
        """Send what has been made, as far as it was asked for; then the end, if it has come."""
        made = self._made
        while made and self._consumers and self.alive:
            takers = list(self._consumers.values())
            if not self._broadcast:
                takers = [max(takers, key=lambda each: each.demand)]
            count = min(len(made), *(each.demand for each in takers))
            if not count:
                return
            items = made[:count]
            del made[:count]
            for each in takers:
                each.demand -= count
                self._send(each, items)
        if self._over and self.alive and not made:
            self._end()

    def _send(self, consumer: _Consumer, items: list[object]) -> None:
        """Send them, in as many messages as their size needs."""
        encoder = self.node.remote(consumer.pid.node).encoder
        head = _HEAD + encoder.encode((self.pid, consumer.tag))
        try:
            payload = encoder.encode_payload(items, head)
        except EncodeError:
            if len(items) > 1:
                self._send_halves(consumer, items)
            elif self._failure is None:
                self._failure = _failure_of(encoder, items[0])
                self._stop()
            return
        if len(payload) > self._max_bytes and len(items) > 1:
            self._batch = max(1, min(self._batch, len(items) * self._max_bytes // len(payload)))
            self._send_halves(consumer, items)
            return
        if consumer.pid.node == self.node.name:
            self._tell(consumer.to, consumer.tag, items)
        else:
            self.node.router.send_encoded(consumer.to, payload, self.pid)

    def _send_halves(self, consumer: _Consumer, items: list[object]) -> None:
        half = len(items) // 2
        self._send(consumer, items[:half])
        if self._failure is None:
            self._send(consumer, items[half:])

    def _stop(self) -> None:
        """What was made cannot be sent: nothing more is."""
        self._made.clear()
        self._over = True
        if self._work is not None:
            self._work.stop("an item cannot be sent")

    def _end(self) -> None:
        failure = self._failure
        reason: object = NORMAL
        if failure is not None:
            journal.told_failure(self._request, failure)
            reason = Atom("error"), failure.to_term()
        for consumer in self._consumers.values():
            self._tell(consumer.to, consumer.tag, (_CANCEL, reason))
        self.exit(NORMAL if failure is None else (Atom("shutdown"), reason))

    def exited(self, reason: object) -> None:
        """Nobody wants any more: the generator is closed."""
        self._timer.cancel()
        if self._flushing is not None:
            self._flushing.cancel()
        self._made.clear()
        self._consumers.clear()
        self._home.removed(self)
        if self._work is not None and not self._over:
            self._work.stop("nobody takes what the stream makes")


class _Options:
    """The options of a request for a stream. Raises `BadRequest`."""

    def __init__(self, raw: object, threaded: bool) -> None:
        options = options_in(
            raw, ("broadcast", "encoding_opts", "executor", "max_chunk_bytes", "subscribe_timeout")
        )
        asked = threaded_in(options.get("executor"))
        self.threaded = threaded if asked is None else asked
        self.broadcast = options.get("broadcast", False)
        if not isinstance(self.broadcast, bool):
            raise BadRequest(f"broadcast is true or false, not {inspect(self.broadcast)}")
        self.max_bytes = _number(options, "max_chunk_bytes", MAX_CHUNK_BYTES, "bytes")
        default = int(SUBSCRIBE_TIMEOUT * 1000)
        milliseconds = _number(options, "subscribe_timeout", default, "milliseconds")
        self.subscribe_timeout = milliseconds / 1000


def _number(options: dict[str, Any], name: str, default: int, unit: str) -> int:
    value = options.get(name, default)
    if type(value) is not int or not 0 < value < 2**32:
        raise BadRequest(f"{name} takes {unit}, 1 to {2**32 - 1}, not {inspect(value)}")
    return value


class Streams:
    """All streams of a runtime. ``root`` are the variables of the root environment, ``works`` runs
    their code on the event loop, and ``threads`` in threads.
    """

    def __init__(
        self, node: Host, reader: Reader, root: Variables, works: Begins, threads: Threads
    ) -> None:
        self.node: Final = node
        self.root: Final = root
        self.works: Final = works
        self.threads: Final = threads
        self._reader = reader
        self._snippets = Snippets(yields=True)
        self._all: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._all)

    def requested(self, request: Request) -> bytes:
        """``{:stream, code, vars}`` or ``{:stream, code, vars, opts}``: ``{:ok, pid}``."""
        if request.arity not in (3, 4):
            raise BadRequest(f"a stream request has 3 or 4 elements, not {request.arity}")
        if request.caller is None:
            raise BadRequest("stream is a call: without an answer nobody would have the pid")
        code = self._snippets.read(request)
        if code is None:
            raise BadRequest("a stream takes code that yields, or returns what can be iterated")
        if request.arity == 4:
            given, raw = self._reader.variables_and_options(request)
        else:
            given, raw = read_variables(self._reader.decoder, request.data, request.at)[0], None
        stream = Stream(self, request, code, given, _Options(raw, request.process.threaded))
        request.let_go()
        self._all.add(stream)
        return OK_ + stream.pid.external

    def removed(self, stream: Stream) -> None:
        """``stream`` has ended."""
        self._all.discard(stream)

    def close(self, reason: object) -> None:
        """The runtime stops."""
        for stream in list(self._all):
            stream.exit(reason)


def _call(
    function: Callable[[], object],
    raised: list[BaseException],
    variables: Variables,
    request: Request,
) -> bytes:
    """In a thread: what it raises is for the stream, not for an answer."""
    here.set(variables)
    try:
        function()
    except Interrupted:
        raise
    except BaseException as error:
        raised.append(error)
    return b""


def _plain_bytes(tag: object) -> bytes:
    try:
        return _encode(tag)
    except EncodeError:
        return b""


def _option(options: object, name: str) -> object:
    """An option of a subscription, which are a keyword list; None where it is not there."""
    for each in options if isinstance(options, list) else ():
        if isinstance(each, tuple) and len(each) == 2 and each[0] == Atom(name):
            return each[1]
    return None


def _failure_of(encoder: Encoder, item: object) -> Failure:
    """Why an item cannot be sent; by itself, or places in the message would be told."""
    try:
        encoder.encode(item)
    except EncodeError as error:
        return from_exception(error)
    return Failure("python_runtime_error", "an item could not be sent, and now it could")


BOUNDARIES: Final = (
    _Items.make.__code__,
    _Items.await_some.__code__,
    _Items.close_here.__code__,
    _Items.close.__code__,
)
"""What calls user code, for `interrupts`."""
