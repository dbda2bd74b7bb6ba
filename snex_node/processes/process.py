"""Processes of this node: pids, links, monitors, mailboxes.

Source: "Processes" in the Erlang reference manual. A process here is an object on the event loop;
it has no thread and no task of its own unless what it does needs one, so that a hundred thousand
of them cost memory only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from snex_node.cluster.remote import RemoteNode
from snex_node.errors import ProcessExitError
from snex_node.processes.host import Host
from snex_node.processes.mailbox import Mailbox
from snex_node.processes.router import Destination
from snex_node.ties import Target
from snex_node.wire.etf import Decoder
from snex_node.wire.terms import Atom, Pid, Reference

Match = Callable[[object], bool]
"""Says whether a message is one that is waited for."""

NORMAL = Atom("normal")
KILL = Atom("kill")
KILLED = Atom("killed")
EXIT = Atom("EXIT")
DOWN = Atom("DOWN")
PROCESS = Atom("process")

_ALIVE = object()

MAX_MAILBOX = 1_000_000
"""Messages that may wait in one process. One more ends it with reason ``system_limit``: nobody
reads them, and at some 500 bytes each they hold half a GiB."""


class BaseProcess(Mailbox):
    """A process without a mailbox: subclasses say in `message_received` what a message does.

    It exists from its construction to `exit`. All methods belong to the node's event loop. Names
    with an underscore are this package's: subclasses choose others.

    ``node`` is the `Node` that it is on, ``pid`` its pid; ``ties`` are this package's too.
    """

    __slots__ = ("__weakref__", "_exit_reason", "node", "trap_exit")

    def __init__(self, node: Host) -> None:
        self.node = node
        self.ties = None
        self._exit_reason: object = _ALIVE
        self.trap_exit = False
        """Exit signals become ``(EXIT, pid, reason)`` messages instead of ending the process."""
        self.pid = node.admit(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"

    # --- for subclasses -------------------------------------------------------------------------

    def message_received(self, message: object) -> None:
        """Take a message. The default ignores it. What this raises is logged, and no more."""

    def external_received(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take a message of another node in external form, a bare term at ``data[offset]``.

        The default decodes it with the node's decoder and calls `message_received`. Raises
        `DecodeError`.
        """
        message, _ = self.node.decoder.decode(data, offset)
        self.message_received(message)

    def demonitored(self, ref: bytes) -> None:
        """A monitor of this process was withdrawn: its owner took it back, ended, or was lost.

        ``ref`` is the external form of its reference. `GenServer` callers monitor while they wait,
        with the reference that tags their call, so this is how a server learns that they gave up.
        """

    def reason_decoder(self, ref: Reference) -> Decoder:
        """What decodes the reason when the monitor ``ref`` fires: by default the node's decoder."""
        return self.node.decoder

    def exited(self, reason: object) -> None:
        """The process has just ended; release what it holds. Must not raise."""

    # --- what a process can do ------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the process exists."""
        return self._exit_reason is _ALIVE

    @property
    def exit_reason(self) -> object:
        """Why it has ended; None while it lives."""
        return None if self._exit_reason is _ALIVE else self._exit_reason

    def register(self, name: str) -> None:
        """Give the process a name; ``ValueError`` when it is taken."""
        self.node.register(name, self)

    def send(self, to: Destination, message: object) -> None:
        """Send ``message``; nothing happens when there is no such process.

        Connects first where there is no connection. Raises `EncodeError`.
        """
        self.node.send(to, message, sender=self.pid)

    def monitor(self, target: Target) -> Reference:
        """Watch ``target``: when it ends, ``(DOWN, ref, process, target, reason)`` comes.

        The reason is ``noproc`` when it does not exist, ``noconnection`` when its node is lost.
        """
        ref = self.node.make_ref()
        self.node.signals.monitor(self, target, ref)
        return ref

    def demonitor(self, ref: Reference) -> None:
        """Take a monitor back. A DOWN message that has arrived already stays; again: nothing."""
        self.node.signals.demonitor(self, ref)

    def is_monitored_with(self, ref: bytes) -> bool:
        """Whether somebody monitors this process with the reference of this external form."""
        ends = self.ties
        return ends is not None and ends.watchers is not None and ref in ends.watchers

    def link(self, pid: Pid) -> None:
        """Link this process and ``pid``: when one ends, the other gets an exit signal."""
        self.node.signals.link(self, pid)

    def unlink(self, pid: Pid) -> None:
        """Undo `link`; no exit signal of ``pid`` arrives after this."""
        self.node.signals.unlink(self, pid)

    def exit_signal(self, pid: Pid, reason: object) -> None:
        """Send ``pid`` an exit signal, as ``Process.exit/2`` does; ``kill`` cannot be trapped."""
        self.node.exit_signal(pid, reason, sender=self.pid)

    def exit(self, reason: object = NORMAL) -> None:
        """End this process: monitors fire, links break, names are free. Again: nothing."""
        if self._exit_reason is not _ALIVE:
            return
        self._exit_reason = reason
        self.node.signals.ended(self, reason)
        self.exited(reason)

    # --- signals, as the node delivers them -----------------------------------------------------

    def exit_received(self, sender: Pid, reason: object, *, linked: bool) -> None:
        """An exit signal; ``linked``: because of a link. The default is what OTP's processes do."""
        if self._exit_reason is not _ALIVE:
            return
        if not linked and _is_atom(reason, KILL):
            self.exit(KILLED)
        elif self.trap_exit:
            self.message_received((EXIT, sender, reason))
        elif not _is_atom(reason, NORMAL) or sender == self.pid:
            self.exit(reason)

    def down_received(self, ref: Reference, target: Target, reason: object) -> None:
        """The monitor ``ref`` has fired: the default makes a message of it."""
        self.message_received((DOWN, ref, PROCESS, target, reason))


class Process(BaseProcess):
    """A process with a mailbox, to be read by one or more tasks.

    ``max_mailbox`` messages may wait in it; one more ends it with reason ``system_limit``.

    >>> async def main(node: Node) -> None:
    ...     process = Process(node)
    ...     process.send(("logger", "app@host"), (Atom("hello"), process.pid))
    ...     reply = await process.receive(lambda m: isinstance(m, tuple), timeout=5)
    ...     async for message in process:
    ...         print(message)
    """

    __slots__ = ("_mailbox", "_max_mailbox", "_waiters")

    def __init__(
        self, node: Host, *, name: str | None = None, max_mailbox: int = MAX_MAILBOX
    ) -> None:
        super().__init__(node)
        self._mailbox: deque[object] = deque()
        self._max_mailbox = max_mailbox
        # In the order in which they began to wait; one whose future is done is on its way out.
        self._waiters: list[tuple[Match | None, asyncio.Future[object]]] = []
        if name is not None:
            self.register(name)

    def __len__(self) -> int:
        """The number of messages that wait."""
        return len(self._mailbox)

    def __bool__(self) -> bool:
        """True, also where no message waits: ``process or other`` is about None."""
        return True

    def message_received(self, message: object) -> None:
        """Put ``message`` into the mailbox, or hand it to who waits for one like it."""
        if self._waiters and self._hand_over(message):
            return
        if len(self._mailbox) >= self._max_mailbox:
            self.exit(Atom("system_limit"))
            return
        self._mailbox.append(message)

    async def receive(self, match: Match | None = None, *, timeout: float | None = None) -> object:
        """Take the first message, or the first that ``match`` is true of; others stay.

        ``timeout`` is in seconds. Raises ``TimeoutError`` when it passes, `ProcessExitError` when
        the process has ended and nothing that matches is left, and what ``match`` raises. A
        cancelled call takes no message.
        """
        for index, message in enumerate(self._mailbox):
            if match is None or match(message):
                del self._mailbox[index]
                return message
        if not self.alive:
            raise ProcessExitError(self.exit_reason, str(self.pid))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        waiter = (match, future)
        self._waiters.append(waiter)
        timer = None if timeout is None else loop.call_later(timeout, self._expire, future, timeout)
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                self._give_back(future.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _expire(self, future: asyncio.Future[object], timeout: float) -> None:
        if not future.done():
            text = f"no message that was waited for came to {self.pid} within {timeout:g} s"
            future.set_exception(TimeoutError(text))

    def _hand_over(self, message: object) -> bool:
        """Give ``message`` to the first who waits for one like it, if anybody does."""
        for match, future in self._waiters:
            if future.done():
                continue
            try:
                matches = match is None or match(message)
            except Exception as error:
                # Of the one who wrote it, not of who sent the message, or of the others.
                future.set_exception(error)
                continue
            if matches:
                future.set_result(message)
                return True
        return False

    def _give_back(self, message: object) -> None:
        """A wait was cancelled with the message in its hands: it is the oldest there is."""
        if not self._hand_over(message):
            self._mailbox.appendleft(message)

    def __aiter__(self) -> Process:
        return self

    async def __anext__(self) -> object:
        try:
            return await self.receive()
        except ProcessExitError:
            raise StopAsyncIteration from None

    def exited(self, reason: object) -> None:
        """Wake everybody who waits."""
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(ProcessExitError(reason, str(self.pid)))


def _is_atom(term: object, atom: Atom) -> bool:
    """Whether ``term`` is that atom, and no text that reads like it."""
    return isinstance(term, Atom) and term == atom
