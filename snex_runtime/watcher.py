"""A process that kills this one when nothing in it can: C code keeps the interpreter's lock.

It is told of signals by `signal.set_wakeup_fd`: what writes there is a handler in C, which needs no
lock. SIGTERM gives the process some seconds from then on, and so does the end of a leash. What the
process had as its wakeup descriptor before gets the same bytes: uvloop lives by them.

It also kills the process when a request has gone beyond its last limit (`Killer`), or when it has
more memory than it may have. Whoever waits for the process reads from its exit status which of
both it was: the signal is one that nothing else sends, `OVERTIME` or `MEMORY`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple, NoReturn

from snex_node.system import forks
from snex_runtime.ending import LAST
from snex_runtime.forwarding import Ledger, Verdict

MARGIN: Final = 0.5
"""Seconds that a thread which is to end this process has to do so, before the watcher does."""

OVERTIME: Final = getattr(signal, "SIGRTMAX", signal.SIGKILL + 1) - 1
"""The signal that ends a process with a request beyond its `kill_after`; SIGKILL where a system has
none that nobody uses."""

MEMORY: Final = OVERTIME - 1 if OVERTIME > signal.SIGKILL else OVERTIME
"""The signal that ends a process with more memory than it may have."""

MEMORY_INTERVAL: Final = 0.1
"""Seconds between two looks at the memory of the process."""

_ENOUGH: Final = 0.1  # seconds in which a process ends that has been sent one of these signals
_POLL: Final = 0.5  # seconds, where the system cannot tell of the end of a process
_limit: Final = Struct("<QQd")
_SIGNALS: Final = {Verdict.OVERTIME: OVERTIME, Verdict.MEMORY: MEMORY}
_TERMINATED: Final = b"t"
_ENDING: Final = b"e"


class Limits(NamedTuple):
    """What a watcher kills for: ``max_memory`` is in bytes, resident; 0 is no limit."""

    max_memory: int = 0
    ledger: int = -1
    """The descriptor of the `Ledger` that is told why; -1: there is none."""


NO_LIMITS: Final = Limits()


class Killer:
    """Has the watcher kill this process at a time, whatever runs then. From any thread."""

    def __init__(self, tells: int) -> None:
        self._tells = forks.OwnedDescriptor(tells)
        self._tokens = itertools.count(1)

    def arm(self, seconds: float, culprit: int) -> int:
        """Kill in so many seconds, because of the request ``culprit``; the token is to `disarm`."""
        token = next(self._tokens)
        self._tell(token, culprit, time.monotonic() + seconds)
        return token

    def disarm(self, token: int) -> None:
        """The request is done in time."""
        self._tell(token, 0, 0.0)

    def _tell(self, token: int, culprit: int, deadline: float) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has gone: this process is about to end
            os.write(self._tells.fileno(), _limit.pack(token, culprit, deadline))

    def close(self) -> None:
        """The watcher is let go."""
        self._tells.close()


class Signals:
    """Tells of SIGTERM, whatever the main thread does. Any thread may wait for its ``fileno``."""

    def __init__(
        self, told: int, tells: int, answers: int, wakeup: int, before: int, killer: Killer
    ) -> None:
        self.killer: Final = killer
        """What kills this process when a request goes beyond its last limit."""
        self._told = forks.OwnedDescriptor(told)
        self._tells = forks.OwnedDescriptor(tells)
        self._answers = forks.OwnedDescriptor(answers)
        self._wakeup = forks.OwnedDescriptor(wakeup)
        self._before = before

    def fileno(self) -> int:
        """Becomes readable when there is something to tell."""
        return self._told.fileno()

    def terminated(self) -> bool:
        """Whether this process is to end. User code may have a handler of its own for SIGTERM."""
        if not os.read(self._told.fileno(), 64):
            raise EOFError("the watcher has gone")
        if forks.has_handler(signal.SIGTERM):
            return True
        self.answer()
        return False

    def answer(self, *, ending: bool = False) -> None:
        """Tell the watcher that threads do run here: this process is not to end, or is ``ending``
        by itself.
        """
        with contextlib.suppress(OSError):
            os.write(self._answers.fileno(), _ENDING if ending else _TERMINATED)

    def close(self) -> None:
        """Let the watcher go, which ends. On the main thread; `terminated` raises ``EOFError``."""
        signal.set_wakeup_fd(self._before)
        for descriptor in (self._wakeup, self._answers, self._tells, self.killer):
            descriptor.close()

    def terminate(self) -> None:
        """Tell of it without a watcher."""
        os.write(self._tells.fileno(), _TERMINATED)


def start(
    *,
    leash: forks.HasFileno | None = None,
    group: bool = False,
    ending: float = 0.0,
    limits: Limits = NO_LIMITS,
) -> Signals:
    """Start the watcher of this process. Call it on the main thread, before there are others.

    It kills this process `LAST` seconds after SIGTERM, or the end of ``leash``, and ``ending``
    seconds after the answer that it is ending by itself. It is no child of this process (which may
    wait for its children). With ``group`` it kills the whole process group, also when this process
    has ended; then it is in the group, so that the group's number is not given to others.
    ``limits`` are what else it kills for.
    """
    told, tells = os.pipe()
    limited, limiting = os.pipe()
    answered, answers = os.pipe()
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    # Copies, because what is kept from forked children is kept from this one as well.
    copies = [os.dup(n) for n in (leash.fileno() if leash else -1, before) if n >= 0]
    main = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            if os.fork() == 0:
                rest = iter(copies)
                _Watcher(
                    main,
                    ending=ending,
                    group=group,
                    leash=next(rest) if leash else -1,
                    forward=next(rest, -1),
                    signals=signals,
                    tells=tells,
                    answered=answered,
                    limited=limited,
                    limits=limits,
                ).run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    for number in (*copies, signals, answered, limited):
        os.close(number)
    return Signals(told, tells, answers, wakeup, before, Killer(limiting))


@contextlib.contextmanager
def guard(grace: float) -> Iterator[None]:
    """Have SIGTERM end this process, which has a handler for it, where that does not get to run.

    In code that does not return a thread ends it ``grace`` seconds after the signal. Where C code
    keeps the interpreter's lock a watcher kills it: after `LAST`, or, where that code came later,
    `MARGIN` seconds after the thread was to do so.
    """
    signals = start(ending=grace + MARGIN)

    def wait() -> None:
        while True:
            select.select([signals.fileno()], [], [])
            try:
                terminated = signals.terminated()
            except EOFError:
                return
            if terminated:
                ending = threading.Timer(grace, os._exit, (128 + signal.SIGTERM,))
                ending.daemon = True
                ending.start()
                signals.answer(ending=True)

    threading.Thread(target=wait, name="snex-signals", daemon=True).start()
    try:
        yield
    finally:
        signals.close()


class _Watcher:
    def __init__(
        self,
        main: int,
        *,
        ending: float,
        group: bool,
        leash: int,
        forward: int,
        signals: int,
        tells: int,
        answered: int,
        limited: int,
        limits: Limits,
    ) -> None:
        self._main = main
        self._ending = ending
        self._group = group
        self._leash = leash
        self._forward = forward
        self._signals = signals
        self._tells = tells
        self._answered = answered
        self._limited = limited
        self._limits = limits
        # When to kill, and because of which request, by token.
        self._kills: dict[int, tuple[float, int]] = {}
        self._verdict = Verdict.NONE
        self._culprit = 0
        self._process = -1
        self._deadline: float | None = None
        self._let_go = False

    def run(self) -> NoReturn:
        """Watch, kill, and exit."""
        try:
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_IGN)
            # Standard output too: BEAM takes its end for the end of the program.
            _close_all_but(
                {self._leash, self._forward, self._signals, self._tells, self._answered}
                | {self._limited, self._limits.ledger}
            )
            with contextlib.suppress(AttributeError, OSError):
                self._process = os.pidfd_open(self._main)
            self._watch()
        finally:
            self._kill()
            os._exit(0)

    def _kill(self) -> None:
        if self._verdict is not Verdict.NONE:
            self._execute()
        with contextlib.suppress(OSError):
            if self._group:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            elif self._process >= 0:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            elif self._deadline is not None:
                os.kill(self._main, signal.SIGKILL)

    def _execute(self) -> None:
        """Say why the process ends, and end it by the signal that says so."""
        if self._limits.ledger >= 0:
            Ledger(self._limits.ledger).judge(self._verdict, self._culprit)
        with contextlib.suppress(OSError):
            for number in (_SIGNALS[self._verdict], signal.SIGCONT):  # it may be stopped
                os.kill(self._main, number)
            if self._process >= 0:
                select.select([self._process], [], [], _ENOUGH)

    def _watch(self) -> None:
        """Return when the process has ended, or has to."""
        poll = select.poll()
        if self._leash >= 0:
            poll.register(self._leash, 0)  # hang-ups are always told
        for number in (self._signals, self._answered, self._limited):
            poll.register(number, select.POLLIN)
        if self._process >= 0:
            poll.register(self._process, select.POLLIN)
        while True:
            events = dict(poll.poll(self._wait()))
            if self._process in events or not _exists(self._main):
                return
            if self._leash in events:
                poll.unregister(self._leash)
                self._let_go = True
                self._begin()
            if self._signals in events and not self._signalled():
                if not self._group:
                    os._exit(0)  # let go
                poll.unregister(self._signals)
            if self._answered in events:
                answers = os.read(self._answered, 64)
                if not answers:
                    poll.unregister(self._answered)
                elif _ENDING in answers:
                    self._deadline = time.monotonic() + self._ending
                elif not self._let_go:
                    self._deadline = None
            if self._limited in events and not self._limit():
                poll.unregister(self._limited)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return
            if self._is_over_limits():
                return

    def _limit(self) -> bool:
        """Take limits of requests; False when no more will come."""
        data = os.read(self._limited, 256 * _limit.size)  # each is written at once
        for token, culprit, deadline in _limit.iter_unpack(data):
            if deadline:
                self._kills[token] = deadline, culprit
            else:
                self._kills.pop(token, None)
        return bool(data)

    def _is_over_limits(self) -> bool:
        now = time.monotonic()
        for deadline, culprit in self._kills.values():
            if now >= deadline:
                self._verdict, self._culprit = Verdict.OVERTIME, culprit
                return True
        most = self._limits.max_memory
        if most and resident_memory(self._main) > most:
            self._verdict = Verdict.MEMORY
            return True
        return False

    def _wait(self) -> float | None:
        """Milliseconds to wait."""
        waits = [] if self._process >= 0 else [_POLL]
        now = time.monotonic()
        if self._limits.max_memory:
            waits.append(MEMORY_INTERVAL)
        if self._deadline is not None:
            waits.append(max(0.0, self._deadline - now))
        waits += [max(0.0, deadline - now) for deadline, _ in self._kills.values()]
        return min(waits) * 1000 if waits else None

    def _signalled(self) -> bool:
        """Take the numbers of signals; False when no more will come."""
        numbers = os.read(self._signals, 4096)
        if self._forward >= 0:
            with contextlib.suppress(OSError):
                os.write(self._forward, numbers)
        if signal.SIGTERM in numbers:
            with contextlib.suppress(OSError):
                os.write(self._tells, _TERMINATED)
            self._begin()
        return bool(numbers)

    def _begin(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + LAST


def _close_all_but(kept: Iterable[int]) -> None:
    for name in os.listdir("/dev/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def resident_memory(process: int) -> int:
    """Bytes of memory that ``process`` has; 0 where it has gone, or the system does not tell."""
    try:
        with open(f"/proc/{process}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


__all__ = [
    "MEMORY",
    "OVERTIME",
    "Killer",
    "Limits",
    "Signals",
    "guard",
    "resident_memory",
    "start",
]
