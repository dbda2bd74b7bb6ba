"""What forked children of this process may keep: nothing that a node lives by.

A child made by ``os.fork()`` has everything that its parent has open. Two processes that read the
same sockets lose each other's messages, and a child that outlives its parent keeps connections, the
port and the registered name of a node that is gone. So in every forked child, before any other code
of it runs:

* each descriptor that was given to `keep_from_children` becomes the null device. It keeps its
  number, because the object that owns it is still there and closes it some day;
* objects that asked for it (`tell_children`) are told that they are in a child now;
* signal handlers that were set by `set_handler` are the default again: a pool that ends its workers
  by SIGTERM must not end the node;
* the event loop that `owning_loop` names ends the child when the child's code gives it a turn.

So a child may do what it likes, `asyncio.run` and `multiprocessing` included, and ends where the
code that forked returns to what called it. Programs that are started (`subprocess`) are no
children in this sense: they inherit no descriptor anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Final, NoReturn, Protocol

Handler = Callable[[int, FrameType | None], object]

CAME_BACK: Final = (
    "snex: a forked child awaited, or came back to the event loop, which is its parent's: it ends "
    "here. What awaits in a child needs a loop of its own: asyncio.run(...)\n"
)


class HasFileno(Protocol):
    """What owns a descriptor; ``fileno`` gives -1 when it has closed it."""

    def fileno(self) -> int:
        """The descriptor."""


class OwnedDescriptor:
    """A bare descriptor as an object, so that its number is known to be its own."""

    def __init__(self, number: int) -> None:
        self._number = number
        keep_from_children(self)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._number

    def close(self) -> None:
        """Close it; again: nothing."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)


class _Loop:
    """The event loop that ends forked children, on the thread that runs it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pollers: frozenset[int]) -> None:
        self.loop = loop
        self.pollers = pollers
        self.thread = threading.get_ident()
        self.inherited = False
        """Whether this process is a child of the one that runs it."""


_kept: set[weakref.ref[HasFileno]] = set()
_told: set[weakref.WeakMethod[Callable[[], None]]] = set()
# Those of ours, the one that was set last at the end.
_handlers: dict[int, list[Handler]] = {}
_owner: _Loop | None = None
# Loops of other threads, by those.
_adopted: dict[int, _Loop] = {}


class _Forking(threading.local):
    """What a thread notes before it forks: its signal mask, and the task that it runs."""

    mask: Iterable[int] = ()
    task: asyncio.Task[Any] | None = None


_forking = _Forking()


def keep_from_children(file: HasFileno) -> None:
    """See to it that no forked child has the descriptor of ``file``, as long as that lives."""
    _kept.add(weakref.ref(file, _kept.discard))


def tell_children(method: Callable[[], None]) -> None:
    """Have the bound ``method`` called in every forked child, as long as its object lives."""
    _told.add(weakref.WeakMethod(method, _told.discard))


def set_handler(number: int, handler: Handler) -> Any:
    """Set a signal handler, as `signal.signal` does; forked children have the default one."""
    before = signal.signal(number, handler)
    _handlers.setdefault(number, []).append(handler)
    return before


def reset_handler(number: int, before: Any) -> None:
    """Set a signal handler that `set_handler` gave back, one of ours or another."""
    signal.signal(number, before)
    ours = _handlers.get(number, [])
    del ours[ours.index(before) + 1 if before in ours else 0 :]


def has_handler(number: int) -> bool:
    """Whether the handler of a signal was set by `set_handler`, and is not a user's."""
    return signal.getsignal(number) in _handlers.get(number, ())


@contextlib.contextmanager
def owning_loop(make: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Any]:
    """Make an event loop that ends forked children when their code gives it a turn.

    Call it where no other thread opens files.
    """
    global _owner  # noqa: PLW0603 - one main loop for the process
    before = _pollers()
    loop = make()
    owner, _owner = _owner, _Loop(loop, _pollers() - before)
    try:
        yield loop
    finally:
        _owner = owner


def adopt_loop(loop: asyncio.AbstractEventLoop, pollers: Iterable[int]) -> None:
    """Have ``loop``, which this thread runs, end children that are forked here, until `leave_loop`.

    ``pollers`` are the descriptors that it waits with and a child inherits.
    """
    _adopted[threading.get_ident()] = _Loop(loop, frozenset(pollers))


def leave_loop() -> None:
    """Undo `adopt_loop`."""
    _adopted.pop(threading.get_ident(), None)


def end_if_inherited(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """End this process if ``loop``, which ``error`` came out of, is that of its parent."""
    if _owner is not None and _owner.loop is loop and _owner.inherited:
        end_child(error)


def end_child(error: BaseException | None = None) -> NoReturn:
    """End this process, a forked child, at once: status 0, or what ``error`` says.

    What `sys.exit` was given counts as it does elsewhere; other errors are shown, and give 1.
    Functions registered with `atexit` are the parent's.
    """
    status = 0
    if isinstance(error, SystemExit):
        status = _exit_status(error)
    elif error is not None:
        traceback.print_exception(error)
        status = 1
    _flush()
    os._exit(status)


def end_waiting_child() -> NoReturn:
    """End this process, a forked child whose code waits for the event loop of its parent."""
    with contextlib.suppress(Exception):
        sys.stderr.write(CAME_BACK)
    _flush()
    os._exit(1)


def _exit_status(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{error.code}\n")
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or None, or nobody reads
            stream.flush()


# --- around a fork ------------------------------------------------------------------------------


def _before_fork() -> None:
    # A signal that comes to a child before it has the default handler would be lost.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _handlers)
    _forking.task = None
    if _owner is None:
        return
    # What waits to be written would be written by both.
    _flush()
    with contextlib.suppress(RuntimeError):
        _forking.task = asyncio.current_task()


def _in_child() -> None:
    try:
        _become_child()
    finally:
        _unblock()


def _become_child() -> None:
    _take_away(file.fileno() for file in _living(_kept))
    for method in _living(_told):
        method()
    for number in _handlers:
        if has_handler(number):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    # It leads to the parent's loop. asyncio forgets it as well, from 3.12 on.
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
    if _owner is not None and not _owner.inherited:
        _owner.inherited = True
        _end_at_next_turn(_owner)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _living(references: Iterable[Callable[[], Any]]) -> list[Any]:
    return [found for reference in list(references) if (found := reference()) is not None]


def _take_away(descriptors: Iterable[int]) -> None:
    numbers = [number for number in descriptors if number >= 0]
    if not numbers:
        return
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:  # none is left: then it takes the place of the first
        os.close(numbers[0])
        null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        if number != null:
            os.dup2(null, number, inheritable=False)
    if null not in numbers:
        os.close(null)


def _end_at_next_turn(owner: _Loop) -> None:
    # A poller is shared with the parent, and so is what is registered with it. An empty one takes
    # its place; libuv would abort on anything else.
    for number in owner.pollers.union(*(each.pollers for each in _adopted.values())):
        with contextlib.suppress(OSError):
            empty = select.epoll()
            os.dup2(empty.fileno(), number, inheritable=False)
            empty.close()
    if threading.get_ident() != owner.thread:  # which is not in this process
        adopted = _adopted.get(threading.get_ident())
        if adopted is None or not adopted.loop.is_running():
            _end_worker()
            return
        owner = adopted
    # What was ready to run is the parent's to run. (uvloop shows nobody what is: there the rest of
    # one turn runs here too, without a socket to speak through.)
    ready = getattr(owner.loop, "_ready", None)
    if ready is not None:
        ready.clear()
    owner.loop.call_soon(_came_back, _forking.task)


class _End:
    """What a thread of an executor is given to do when its child's code has returned."""

    def run(self, *_: object) -> None:
        """End the child."""
        end_child()


def _end_worker() -> None:
    """A thread of a `ThreadPoolExecutor` would do in the child too what waits in its queue."""
    executors = sys.modules.get("concurrent.futures.thread")
    work = getattr(executors, "_threads_queues", {}).get(threading.current_thread())
    if work is not None:
        with contextlib.suppress(queue.Empty):
            while True:
                work.get_nowait()
        work.put(_End())


def _came_back(task: asyncio.Task[Any] | None) -> None:
    """The child's code has given the loop a turn."""
    if task is None or (task.done() and (task.cancelled() or task.exception() is None)):
        end_child()
    if task.done():
        end_child(task.exception())
    end_waiting_child()


def _pollers() -> frozenset[int]:
    """The descriptors of all epolls of this process; a kqueue is inherited by nobody."""
    folder = "/proc/self/fd"
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}") == "anon_inode:[eventpoll]":
                    found.add(int(name))
    return frozenset(found)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_unblock, after_in_child=_in_child)


__all__ = [
    "HasFileno",
    "OwnedDescriptor",
    "adopt_loop",
    "end_child",
    "end_if_inherited",
    "end_waiting_child",
    "has_handler",
    "keep_from_children",
    "leave_loop",
    "owning_loop",
    "reset_handler",
    "set_handler",
    "tell_children",
]
