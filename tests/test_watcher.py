"""The watcher: another process, which ends this one where nothing in it can.

Each test has a child that is watched, because that is what gets killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from snex_node.system import forks
from snex_runtime import watcher
from snex_runtime.forwarding import Ledger, Verdict
from tests.support.forked import Ended, forked

LAST = 0.2
"""Seconds that a watched process has here, instead of 4.5."""

LONGER = 1.0
"""Seconds that one has which is to be left alone: even a busy machine lets it answer in those."""

SECONDS = 20.0
KILLED = Ended(-signal.SIGKILL, "")
LOCKED = 10**13  # sum(range(LOCKED)) keeps the interpreter's lock for a day


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LAST", LAST)
    monkeypatch.setattr(watcher, "MARGIN", LAST)
    monkeypatch.setattr(watcher, "_POLL", 0.02)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LAST", LONGER)
    monkeypatch.setattr(watcher, "MARGIN", LONGER)


@pytest.fixture(params=[True, False], ids=["pidfd", "no pidfd"])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux from 5.3 on tells of the end of a process; elsewhere it has to be looked for."""
    if not request.param:
        monkeypatch.delattr(os, "pidfd_open", raising=False)


def ignore(number: int, frame: FrameType | None) -> None:
    """A handler."""


def watched() -> watcher.Signals:
    """Start the watcher of this process, which has a handler of ours for SIGTERM."""
    forks.set_handler(signal.SIGTERM, ignore)
    return watcher.start()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def told(signals: watcher.Signals) -> None:
    """Wait until there is something to tell."""
    assert select.select([signals], [], [], SECONDS)[0]


def live_on() -> None:
    """Be there for longer than a process that is to end; a signal handler does not end that."""
    time.sleep(1.5 * LONGER)


@contextlib.contextmanager
def held() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A descriptor for children to hold, and what waits until none of them does any more."""
    reader, writer = os.pipe()

    def let_go() -> bool:
        os.close(writer)
        ready, _, _ = select.select([reader], [], [], SECONDS)
        return bool(ready) and os.read(reader, 1) == b""

    yield writer, let_go
    os.close(reader)


class TestStart:
    def test_it_tells_of_sigterm(self) -> None:
        def test() -> None:
            signals = watched()
            assert select.select([signals], [], [], 0)[0] == []
            terminate()
            told(signals)
            assert signals.terminated()
            signals.close()

        assert forked(test) == Ended(0, "")

    @pytest.mark.usefixtures("later")
    def test_a_handler_of_users_is_theirs(self) -> None:
        def test() -> None:
            signals = watched()
            signal.signal(signal.SIGTERM, lambda *_: print("theirs"))
            terminate()
            told(signals)
            assert not signals.terminated()
            live_on()  # it was answered, so nothing is killed

        assert forked(test) == Ended(0, "theirs\n")

    def test_other_signals_are_none_of_its_business(self) -> None:
        def test() -> None:
            signal.signal(signal.SIGUSR1, ignore)
            signals = watched()
            os.kill(os.getpid(), signal.SIGUSR1)
            live_on()
            assert select.select([signals], [], [], 0)[0] == []

        assert forked(test) == Ended(0, "")

    def test_who_was_woken_up_before_still_is(self) -> None:
        def test() -> None:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            signal.signal(signal.SIGUSR1, ignore)
            signals = watched()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert os.read(reader, 1) == bytes([signal.SIGUSR1])
            signals.close()
            assert signal.set_wakeup_fd(-1) == writer

        assert forked(test) == Ended(0, "")

    @pytest.mark.usefixtures("later")
    def test_it_ends_when_it_is_let_go(self) -> None:
        def test() -> None:
            signals = watched()
            signals.close()
            told(signals)
            with pytest.raises(EOFError, match="the watcher has gone"):
                signals.terminated()
            terminate()
            live_on()

        assert forked(test) == Ended(0, "")

    def test_this_process_can_tell_itself(self) -> None:
        def test() -> None:
            signals = watched()
            signals.terminate()
            told(signals)
            assert signals.terminated()

        assert forked(test) == Ended(0, "")

    def test_it_is_nobodys_child_and_holds_no_files(self) -> None:
        with held() as (file, let_go):

            def test() -> None:
                signals = watched()
                with pytest.raises(ChildProcessError):
                    os.wait()
                os.close(file)
                os.kill(os.getppid(), 0)
                sys.stdin.close()
                told(signals)  # until it is killed

            # Its end is that of the file: the watcher, which lives on, does not have it.
            child = os.fork()
            if child == 0:
                try:
                    test()
                finally:
                    os._exit(1)
            assert let_go()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.usefixtures("any_system")
class TestKilling:
    def test_what_keeps_the_lock_after_sigterm(self) -> None:
        def test() -> None:
            watched()
            terminate()
            sum(range(LOCKED))

        began = time.monotonic()
        assert forked(test) == KILLED
        assert time.monotonic() - began >= LAST

    @pytest.mark.usefixtures("later")
    def test_not_what_answers(self) -> None:
        def test() -> None:
            signals = watched()
            terminate()
            signals.answer()
            live_on()
            print("still here")

        assert forked(test) == Ended(0, "still here\n")

    def test_the_group_when_the_leash_ends(self) -> None:
        with held() as (file, let_go):

            def test() -> None:
                os.setpgid(0, 0)
                leash, end = os.pipe()
                watched_by = watcher.start(leash=forks.OwnedDescriptor(leash), group=True)
                child = os.fork()
                os.close(end)
                if child == 0:
                    signal.pause()
                watched_by.answer()  # no answer helps
                sum(range(LOCKED))

            assert forked(test) == KILLED
            os.fstat(file)
            assert let_go(), "its child has gone as well"

    def test_the_group_when_the_process_has_ended(self) -> None:
        with held() as (_, let_go):

            def test() -> None:
                os.setpgid(0, 0)
                leash, _ = os.pipe()
                watcher.start(leash=forks.OwnedDescriptor(leash), group=True)
                if os.fork() == 0:
                    null = os.open(os.devnull, os.O_RDWR)
                    os.dup2(null, 1)
                    os.dup2(null, 2)
                    signal.pause()

            assert forked(test).status == 0
            assert let_go()

    def test_a_group_is_watched_though_signals_are_let_go(self) -> None:
        with held() as (_, let_go):

            def test() -> None:
                os.setpgid(0, 0)
                leash, end = os.pipe()
                signals = watcher.start(leash=forks.OwnedDescriptor(leash), group=True)
                signals.close()
                os.close(end)
                sum(range(LOCKED))

            assert forked(test) == KILLED
            assert let_go()


def page() -> tuple[Ledger, int]:
    """A page that a watcher writes why it kills to, and its descriptor."""
    with tempfile.TemporaryFile() as file:
        file.truncate(Ledger.SIZE)
        number = os.dup(file.fileno())
    return Ledger(number), number


@pytest.mark.usefixtures("any_system")
class TestLimits:
    """A request has gone beyond its last limit, or the process has too much memory."""

    @pytest.mark.parametrize("code", ["sum(range(LOCKED))", "while True: pass"])
    def test_a_request_beyond_its_last_limit(self, code: str) -> None:
        ledger, number = page()

        def test() -> None:
            signals = watcher.start(limits=watcher.Limits(ledger=number))
            signals.killer.arm(60.0, 6)
            signals.killer.arm(0.1, 7)
            exec(code, {"LOCKED": LOCKED})

        began = time.monotonic()
        assert forked(test) == Ended(-watcher.OVERTIME, "")
        assert 0.1 <= time.monotonic() - began < 5
        assert ledger.verdict == (Verdict.OVERTIME, 7)
        os.close(number)

    def test_it_is_done_in_time(self) -> None:
        ledger, number = page()

        def test() -> None:
            killer = watcher.start(limits=watcher.Limits(ledger=number)).killer
            tokens = [killer.arm(LONGER, culprit) for culprit in (1, 2, 3)]
            for token in tokens:
                killer.disarm(token)
            killer.disarm(99)
            live_on()
            print("still here")

        assert forked(test) == Ended(0, "still here\n")
        assert ledger.verdict == (Verdict.NONE, 0)
        os.close(number)

    def test_nobody_asks_why(self) -> None:
        def test() -> None:
            watcher.start().killer.arm(0.05, 0)
            live_on()

        assert forked(test) == Ended(-watcher.OVERTIME, "")

    def test_very_many_of_them(self) -> None:
        """More than are read at once."""

        def test() -> None:
            killer = watcher.start().killer
            for _ in range(5000):
                killer.disarm(killer.arm(60.0, 1))
            killer.arm(0.05, 2)
            live_on()

        assert forked(test) == Ended(-watcher.OVERTIME, "")

    def test_a_signal_has_stopped_it(self) -> None:
        ledger, number = page()

        def test() -> None:
            watcher.start(limits=watcher.Limits(ledger=number)).killer.arm(0.3, 5)
            os.kill(os.getpid(), signal.SIGSTOP)
            live_on()

        assert forked(test) == Ended(-watcher.OVERTIME, "")
        assert ledger.verdict == (Verdict.OVERTIME, 5)
        os.close(number)

    def test_it_takes_no_notice(self) -> None:
        """Then it is killed as all else is, and the page says why all the same."""
        ledger, number = page()

        def test() -> None:
            signal.signal(watcher.OVERTIME, signal.SIG_IGN)
            os.setpgid(0, 0)
            limits = watcher.Limits(ledger=number)
            leash, _ = os.pipe()
            signals = watcher.start(leash=forks.OwnedDescriptor(leash), group=True, limits=limits)
            signals.killer.arm(0.05, 5)
            sum(range(LOCKED))

        assert forked(test) == KILLED
        assert ledger.verdict == (Verdict.OVERTIME, 5)
        os.close(number)

    def test_its_children_go_with_it(self) -> None:
        with held() as (_, let_go):

            def test() -> None:
                os.setpgid(0, 0)
                leash, _ = os.pipe()
                signals = watcher.start(leash=forks.OwnedDescriptor(leash), group=True)
                if os.fork() == 0:
                    signal.pause()
                signals.killer.arm(0.05, 1)
                sum(range(LOCKED))

            assert forked(test).status == -watcher.OVERTIME
            assert let_go()

    def test_too_much_memory(self) -> None:
        ledger, number = page()

        def test() -> None:
            most = watcher.resident_memory(os.getpid()) + 50 * 1024 * 1024
            watcher.start(limits=watcher.Limits(most, number))
            kept = bytearray(100 * 1024 * 1024)
            kept[:: os.sysconf("SC_PAGE_SIZE")] = bytes(len(kept[:: os.sysconf("SC_PAGE_SIZE")]))
            sum(range(LOCKED))

        assert forked(test) == Ended(-watcher.MEMORY, "")
        assert ledger.verdict == (Verdict.MEMORY, 0)
        os.close(number)

    def test_less_than_it_may_have(self) -> None:
        def test() -> None:
            most = watcher.resident_memory(os.getpid()) + 200 * 1024 * 1024
            watcher.start(limits=watcher.Limits(most))
            live_on()

        assert forked(test) == Ended(0, "")

    def test_a_watcher_that_has_gone_is_told_nothing(self) -> None:
        def test() -> None:
            signals = watched()
            killer = signals.killer
            os.dup2(os.open(os.devnull, os.O_WRONLY), signals._wakeup.fileno())
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, killer._tells.fileno())
            killer.disarm(killer.arm(0.0, 1))
            print("here")

        assert forked(test) == Ended(0, "here\n")

    def test_signals_of_users_end_nothing(self) -> None:
        """Those that it ends a process by are none that anybody else is likely to send."""
        assert len({watcher.OVERTIME, watcher.MEMORY, signal.SIGKILL, signal.SIGTERM}) == 4


class TestMemory:
    def test_of_this_process(self) -> None:
        before = watcher.resident_memory(os.getpid())
        assert before > 5 * 1024 * 1024
        kept = b"x" * (64 * 1024 * 1024)
        assert watcher.resident_memory(os.getpid()) > before + len(kept) // 2

    def test_of_one_that_has_gone(self) -> None:
        child = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(child, 0)
        assert watcher.resident_memory(child) == 0


class TestGuard:
    @pytest.mark.usefixtures("later")
    def test_it_ends_python_code_that_goes_on(self) -> None:
        def test() -> None:
            forks.set_handler(signal.SIGTERM, ignore)
            with watcher.guard(0.05):
                terminate()
                while True:
                    pass

        assert forked(test) == Ended(128 + signal.SIGTERM, "")

    def test_and_code_in_c(self) -> None:
        def test() -> None:
            forks.set_handler(signal.SIGTERM, ignore)
            with watcher.guard(0.05):
                terminate()
                sum(range(LOCKED))

        assert forked(test) == KILLED

    def test_and_code_that_gets_into_c_after_the_signal(self) -> None:
        def test() -> None:
            forks.set_handler(signal.SIGTERM, ignore)
            with watcher.guard(0.1):
                terminate()
                began = time.monotonic()
                while time.monotonic() - began < 0.05:  # threads do run
                    time.sleep(0.001)
                sum(range(LOCKED))

        assert forked(test) == KILLED

    @pytest.mark.usefixtures("later")
    def test_who_ends_in_time_is_left_alone(self) -> None:
        def test() -> None:
            forks.set_handler(signal.SIGTERM, ignore)
            with watcher.guard(10 * SECONDS):
                terminate()
            with watcher.guard(0.0):
                pass
            live_on()
            print("here")

        assert forked(test) == Ended(0, "here\n")

    @pytest.mark.usefixtures("later")
    def test_user_code_with_a_handler_goes_on(self) -> None:
        def test() -> None:
            with watcher.guard(0.0):
                signal.signal(signal.SIGTERM, lambda *_: print("theirs"))
                terminate()
                live_on()

        assert forked(test) == Ended(0, "theirs\n")


class TestExists:
    def test_this_process_does(self) -> None:
        assert watcher._exists(os.getpid())

    def test_one_that_was_waited_for_does_not(self) -> None:
        child = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(child, 0)
        assert not watcher._exists(child)

    def test_one_of_others_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(process: int, number: int) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "kill", refuse)
        assert watcher._exists(1)
