"""What forked children find of this process: nothing that a node lives by, and where they end.

Most tests fork a child, which sets things up and forks in its turn: that one is looked at. What
user code meets in a running node is in tests/interop/test_forks.py.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from snex_node.system import forks
from tests.support.forked import Ended, forked


def check(function: Callable[[], object]) -> None:
    """Run a test in a child of its own."""
    assert forked(function) == Ended(0, "")


def is_null(number: int) -> bool:
    return os.path.samestat(os.fstat(number), os.stat(os.devnull))


class File:
    """What owns a descriptor."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number


class TestDescriptors:
    def test_what_is_kept_becomes_the_null_device(self) -> None:
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        forks.keep_from_children(ours)
        kept = File(writer)
        forks.keep_from_children(kept)

        def child() -> None:
            assert is_null(ours.fileno())
            assert is_null(writer)
            assert not os.get_inheritable(writer)
            assert not is_null(theirs.fileno())
            assert not is_null(reader)

        check(child)
        ours.send(b"still there")
        assert theirs.recv(20) == b"still there"
        ours.close()
        theirs.close()
        os.close(reader)
        os.close(writer)

    def test_what_is_closed_or_gone_is_none_of_it(self) -> None:
        def test() -> None:
            closed, gone = File(-1), File(os.dup(2))
            number = gone.number
            forks.keep_from_children(closed)
            forks.keep_from_children(gone)
            del gone
            gc.collect()
            check(lambda: not is_null(number) or sys.exit("it is null"))

        check(test)

    def test_where_no_descriptor_is_left(self) -> None:
        def test() -> None:
            kept = [File(os.dup(1)) for _ in range(3)]
            for file in kept:
                forks.keep_from_children(file)
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (max(each.number for each in kept) + 1, hard)
            )
            with contextlib.suppress(OSError):
                while True:
                    os.dup(1)
            child = os.fork()
            if child == 0:
                os._exit(0 if all(is_null(file.number) for file in kept) else 1)
            assert os.waitpid(child, 0)[1] == 0

        check(test)

    def test_an_owned_one_is_kept_and_closed_once(self) -> None:
        def test() -> None:
            reader, writer = os.pipe()
            owned = forks.OwnedDescriptor(writer)
            assert owned.fileno() == writer
            check(lambda: is_null(writer) or sys.exit("it is not null"))
            owned.close()
            assert os.read(reader, 1) == b""
            assert owned.fileno() == -1
            again = os.dup(reader)
            assert again == writer, "the number is another's now"
            owned.close()
            os.fstat(again)

        check(test)


def test_who_asks_is_told_in_the_child_only() -> None:
    class Told:
        def __init__(self) -> None:
            self.times = 0

        def tell(self) -> None:
            self.times += 1

    def test() -> None:
        one, gone = Told(), Told()
        forks.tell_children(one.tell)
        forks.tell_children(gone.tell)
        del gone
        check(lambda: one.times == 1 or sys.exit(f"{one.times} times"))
        assert one.times == 0

    check(test)


def handler(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"signal {number}")


class TestSignals:
    def test_children_have_the_default_handlers(self) -> None:
        def child() -> None:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.getsignal(signal.SIGUSR1) is handler, "nobody said that it is ours"
            assert not forks.has_handler(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

        def test() -> None:
            forks.set_handler(signal.SIGTERM, handler)
            forks.set_handler(signal.SIGINT, handler)
            signal.signal(signal.SIGUSR1, handler)
            check(child)
            assert forks.has_handler(signal.SIGTERM)
            assert not forks.has_handler(signal.SIGUSR1)

        check(test)

    def test_a_handler_of_user_code_stays(self) -> None:
        def test() -> None:
            forks.set_handler(signal.SIGTERM, handler)
            theirs = signal.signal(signal.SIGTERM, signal.SIG_IGN)
            assert theirs is handler
            assert not forks.has_handler(signal.SIGTERM)
            check(lambda: signal.getsignal(signal.SIGTERM) is signal.SIG_IGN or sys.exit("reset"))

        check(test)

    def test_resetting_restores_what_was_before(self) -> None:
        def another(number: int, frame: FrameType | None) -> None:
            pass

        def test() -> None:
            usual = signal.getsignal(signal.SIGTERM)
            assert forks.set_handler(signal.SIGTERM, handler) is usual
            assert forks.set_handler(signal.SIGTERM, another) is handler
            forks.reset_handler(signal.SIGTERM, handler)
            assert signal.getsignal(signal.SIGTERM) is handler
            assert forks.has_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, another)
            assert not forks.has_handler(signal.SIGTERM), "it is ours no more"
            forks.reset_handler(signal.SIGTERM, usual)
            assert signal.getsignal(signal.SIGTERM) is usual
            assert not forks.has_handler(signal.SIGTERM)

        check(test)

    def test_one_that_comes_while_a_child_is_made_is_not_lost(self) -> None:
        def test() -> None:
            forks.set_handler(signal.SIGTERM, handler)
            # It is sent where all is as in the parent: it must not meet the parent's handler.
            os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
            assert forked(signal.pause).status == -signal.SIGTERM
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()

        check(test)

    def test_the_wakeup_descriptor_is_the_parents(self) -> None:
        def test() -> None:
            _, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            check(lambda: signal.set_wakeup_fd(-1) == -1 or sys.exit("it is still set"))
            assert signal.set_wakeup_fd(-1) == writer

        check(test)


# --- the loop -------------------------------------------------------------------------------------


def tell_status(child: int, of: str = "status") -> None:
    print(of, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def uvloops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    try:
        import uvloop
    except ImportError:
        return []
    return [uvloop.new_event_loop]


def run(
    main: Callable[[], Any], make: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> Callable[[], None]:
    """What runs the coroutine as a node's main loop is run, and prints the status of its child.

    ``main`` returns what `os.fork` did.
    """

    def test() -> None:
        with forks.owning_loop(make) as loop:
            asyncio.set_event_loop(loop)
            try:
                child = loop.run_until_complete(main())
            except BaseException as error:
                forks.end_if_inherited(loop, error)
                raise
            tell_status(child)
            loop.close()

    return test


@pytest.fixture(
    params=[asyncio.new_event_loop, *uvloops()], ids=["asyncio", "uvloop"][: 1 + len(uvloops())]
)
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


class TestWhereChildrenEnd:
    """At the first turn that the child's code gives to the loop of its parent."""

    def test_code_that_returns(self, make: Any) -> None:
        async def main() -> int:
            child = os.fork()
            if child == 0:
                print("in the child")
            return child

        assert forked(run(main, make)) == Ended(0, "in the child\nstatus 0\n")

    def test_code_that_awaits(self, make: Any) -> None:
        async def main() -> int:
            child = os.fork()
            await asyncio.sleep(0)
            if child == 0:
                print("it went on")
            return child

        assert forked(run(main, make)) == Ended(0, f"{forks.CAME_BACK}status 1\n")

    def test_code_of_a_task_that_raises(self, make: Any) -> None:
        async def work(children: list[int]) -> None:
            children.append(os.fork())
            if children == [0]:
                raise LookupError("of the child")

        async def main() -> int:
            children: list[int] = []
            await asyncio.create_task(work(children))
            return children[0]

        status, output = forked(run(main, make))
        assert status == 0
        assert output.endswith("LookupError: of the child\nstatus 1\n")

    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("", "status 0\n"),
            ("3", "status 3\n"),
            ("256 + 7", "status 7\n"),
            ("'no'", "no\nstatus 1\n"),
        ],
    )
    def test_sys_exit(self, make: Any, argument: str, expected: str) -> None:
        async def main() -> int:
            child = os.fork()
            if child == 0:
                exec(f"sys.exit({argument})")
            return child

        assert forked(run(main, make)) == Ended(0, expected)

    def test_code_in_a_callback(self, make: Any) -> None:
        async def main() -> int:
            child = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(lambda: child.set_result(os.fork()))
            return int(await child)

        assert forked(run(main, make)) == Ended(0, "status 0\n")

    def test_code_of_a_cancelled_task(self, make: Any) -> None:
        async def work(children: list[int]) -> None:
            children.append(os.fork())
            if children == [0]:
                raise asyncio.CancelledError

        async def main() -> int:
            children: list[int] = []
            await asyncio.wait([asyncio.create_task(work(children))])
            return children[0]

        assert forked(run(main, make)) == Ended(0, "status 0\n")

    def test_code_in_a_thread_of_an_executor(self, make: Any) -> None:
        def work() -> int:
            child = os.fork()
            if child == 0:
                print("in the child", flush=True)
            return child

        async def main() -> int:
            with concurrent.futures.ThreadPoolExecutor(1) as executor:
                run = asyncio.get_running_loop().run_in_executor
                child = run(executor, work)
                waits = run(executor, print, "this is the parent's to do")
                await waits
                return await child

        output = "in the child\nthis is the parent's to do\nstatus 0\n"
        ended = forked(run(main, make))
        assert (ended.status, sorted(ended.output.splitlines())) == (0, sorted(output.splitlines()))

    def test_a_thread_of_nobodys_goes_its_way(self) -> None:
        async def main() -> int:
            children: list[int] = []

            def work() -> None:
                children.append(os.fork())
                if children == [0]:
                    os._exit(5)

            thread = threading.Thread(target=work)
            thread.start()
            await asyncio.to_thread(thread.join)
            return children[0]

        assert forked(run(main)) == Ended(0, "status 5\n")

    def test_a_loop_of_its_own_runs(self, make: Any) -> None:
        async def sleeps() -> str:
            await asyncio.sleep(0.01)
            return "slept"

        async def main() -> int:
            child = os.fork()
            if child == 0:
                asyncio.events._set_running_loop(None)
                loop = asyncio.new_event_loop()
                print(loop.run_until_complete(sleeps()))
                loop.close()
            return child

        assert forked(run(main, make)) == Ended(0, "slept\nstatus 0\n")

    def test_what_was_ready_to_run_is_the_parents(self) -> None:
        async def main() -> int:
            asyncio.get_running_loop().call_soon(print, "once")
            child = os.fork()
            if child:
                await asyncio.sleep(0)
            return child

        assert forked(run(main)) == Ended(0, "once\nstatus 0\n")

    def test_the_poller_is_not_shared(self, make: Any) -> None:
        async def main() -> int:
            before = forks._pollers()
            child = os.fork()
            if child == 0:
                assert forks._pollers() == before
                for number in before:
                    # What the parent registered there is not in it.
                    poller = select.epoll.fromfd(os.dup(number))
                    assert poller.poll(0) == []
                    poller.close()
                return 0
            return child

        def test() -> None:
            ours, theirs = socket.socketpair()

            def owning() -> asyncio.AbstractEventLoop:
                loop: asyncio.AbstractEventLoop = make()
                loop.add_reader(ours, ours.recv, 10)
                return loop

            theirs.send(b"is ready")
            run(main, owning)()

        assert forked(test) == Ended(0, "status 0\n")

    def test_a_child_of_a_child_ends_as_well(self, make: Any) -> None:
        async def main() -> int:
            child = os.fork()
            if child == 0:
                inner = os.fork()
                if inner:
                    tell_status(inner, "inner")
            return child

        assert forked(run(main, make)) == Ended(0, "inner 0\nstatus 0\n")


class TestOwningALoop:
    def test_one_that_is_none_ends_nobody(self) -> None:
        def test() -> None:
            with forks.owning_loop(asyncio.new_event_loop) as loop:
                other = asyncio.new_event_loop()
                forks.end_if_inherited(other, ValueError())
                forks.end_if_inherited(loop, ValueError())  # this is its process
                other.close()
                loop.close()
            forks.end_if_inherited(loop, ValueError())
            print("here")

        assert forked(test) == Ended(0, "here\n")

    def test_it_is_over_when_the_block_is(self) -> None:
        def test() -> None:
            with forks.owning_loop(asyncio.new_event_loop) as loop:
                pass

            async def main() -> int:
                child = os.fork()
                if child == 0:  # it has further turns; from 3.14 on its tasks have none
                    loop.call_soon(os._exit, 4)
                return child

            tell_status(loop.run_until_complete(main()))
            loop.close()

        assert forked(test) == Ended(0, "status 4\n")


class TestEndChild:
    @pytest.mark.parametrize(
        ("error", "status", "text"),
        [
            (None, 0, ""),
            (SystemExit(), 0, ""),
            (SystemExit(9), 9, ""),
            (SystemExit("why"), 1, "why\n"),
            (ValueError("wrong"), 1, "ValueError: wrong\n"),
        ],
    )
    def test_the_status(self, error: BaseException | None, status: int, text: str) -> None:
        assert forked(lambda: forks.end_child(error)) == Ended(status, text)

    def test_what_was_printed_is_not_lost_and_atexit_is_the_parents(self) -> None:
        def test() -> None:
            import atexit

            atexit.register(print, "at exit")
            sys.stdout = open(1, "w", buffering=10_000, closefd=False)  # noqa: SIM115
            print("printed")
            forks.end_child()

        assert forked(test) == Ended(0, "printed\n")

    @pytest.mark.parametrize("stream", [None, "closed"])
    def test_without_streams(self, stream: str | None) -> None:
        def test() -> None:
            sys.stdout.close()
            sys.stdout = sys.stderr = sys.stdout if stream else None
            forks.end_waiting_child()

        assert forked(test) == Ended(1, "")
