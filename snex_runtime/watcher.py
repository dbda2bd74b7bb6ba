"""A process that kills this one when nothing in it can: C code keeps the interpreter's lock.

It is told of signals by `signal.set_wakeup_fd`: what writes there is a handler in C, which needs no
lock. SIGTERM gives the process some seconds from then on, and so does the end of a leash. What the
process had as its wakeup descriptor before gets the same bytes: uvloop lives by them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final, NoReturn

from snex_node.system import forks
from snex_runtime.ending import LAST

MARGIN: Final = 0.5
"""Seconds that a thread which is to end this process has to do so, before the watcher does."""

_POLL: Final = 0.5  # seconds, where the system cannot tell of the end of a process
_TERMINATED: Final = b"t"
_ENDING: Final = b"e"


class Signals:
    """Tells of SIGTERM, whatever the main thread does. Any thread may wait for its ``fileno``."""

    def __init__(self, told: int, tells: int, answers: int, wakeup: int, before: int) -> None:
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
        for descriptor in (self._wakeup, self._answers, self._tells):
            descriptor.close()

    def terminate(self) -> None:
        """Tell of it without a watcher."""
        os.write(self._tells.fileno(), _TERMINATED)


def start(
    *, leash: forks.HasFileno | None = None, group: bool = False, ending: float = 0.0
) -> Signals:
    """Start the watcher of this process. Call it on the main thread, before there are others.

    It kills this process `LAST` seconds after SIGTERM, or the end of ``leash``, and ``ending``
    seconds after the answer that it is ending by itself. It is no child of this process (which may
    wait for its children). With ``group`` it kills the whole process group, also when this process
    has ended; then it is in the group, so that the group's number is not given to others.
    """
    told, tells = os.pipe()
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
                ).run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    for number in (*copies, signals, answered):
        os.close(number)
    return Signals(told, tells, answers, wakeup, before)


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
    ) -> None:
        self._main = main
        self._ending = ending
        self._group = group
        self._leash = leash
        self._forward = forward
        self._signals = signals
        self._tells = tells
        self._answered = answered
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
            _close_all_but({self._leash, self._forward, self._signals, self._tells, self._answered})
            with contextlib.suppress(AttributeError, OSError):
                self._process = os.pidfd_open(self._main)
            self._watch()
        finally:
            self._kill()
            os._exit(0)

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            if self._group:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            elif self._process >= 0:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            elif self._deadline is not None:
                os.kill(self._main, signal.SIGKILL)

    def _watch(self) -> None:
        """Return when the process has ended, or has to."""
        poll = select.poll()
        if self._leash >= 0:
            poll.register(self._leash, 0)  # hang-ups are always told
        for number in (self._signals, self._answered):
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
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return

    def _wait(self) -> float | None:
        """Milliseconds to wait."""
        waits = [] if self._process >= 0 else [_POLL]
        if self._deadline is not None:
            waits.append(max(0.0, self._deadline - time.monotonic()))
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


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


__all__ = ["Signals", "guard", "start"]
