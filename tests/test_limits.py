"""What a process may have of its machine: each limit is set in a child, which it is the end of."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from snex_runtime import limits
from snex_runtime.limits import LimitError, apply, check_memory
from tests.support.forked import Ended, forked

MIB = 1024 * 1024


class TestResources:
    def test_both_limits_of_each_are_set(self) -> None:
        def test() -> None:
            apply({"rlimit_nofile": 64, "rlimit_cpu": 20, "rlimit_as": 2**40})
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 64)
            assert resource.getrlimit(resource.RLIMIT_CPU) == (20, 20)
            assert resource.getrlimit(resource.RLIMIT_AS) == (2**40, 2**40)

        assert forked(test) == Ended(0, "")

    @pytest.mark.parametrize(
        "without", [{}, {"rlimit_nofile": None, "cgroup": None}, {"name": "py", "kill_after": 5}]
    )
    def test_what_is_not_given_stays(self, without: Mapping[str, object]) -> None:
        def test() -> None:
            names = ("RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_CPU")
            before = [resource.getrlimit(getattr(resource, name)) for name in names]
            apply(without)
            assert [resource.getrlimit(getattr(resource, name)) for name in names] == before

        assert forked(test) == Ended(0, "")

    def test_memory_beyond_it_is_an_error_of_python(self) -> None:
        def test() -> None:
            apply({"rlimit_as": 65_536 * MIB})
            with pytest.raises(MemoryError):
                bytearray(70_000 * MIB)

        assert forked(test) == Ended(0, "")

    def test_files_beyond_it_are_an_error_of_the_system(self) -> None:
        def test() -> None:
            apply({"rlimit_nofile": 64})
            with pytest.raises(OSError, match="Too many open files"):
                [os.dup(0) for _ in range(65)]

        assert forked(test) == Ended(0, "")

    def test_processor_time_beyond_it_ends_the_process(self) -> None:
        program = (
            "from snex_runtime import limits\nlimits.apply({'rlimit_cpu': 1})\n"
            "print('limited', flush=True)\nwhile True: pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=False
        )
        assert done.stdout == b"limited\n"
        # The first of both limits is SIGXCPU's; they are one here, so the kernel kills.
        assert -done.returncode in (signal.SIGXCPU, signal.SIGKILL)

    def test_one_that_cannot_be_set(self) -> None:
        def test() -> None:
            apply({"rlimit_nofile": 64})
            with pytest.raises(LimitError, match=r"^rlimit_nofile cannot be 65: .+"):
                raise_again(65)

        def raise_again(number: int) -> None:
            if os.geteuid() == 0:  # root may raise it
                os.seteuid(65534)
            apply({"rlimit_nofile": number})

        assert forked(test) == Ended(0, "")

    def test_a_number_that_is_too_large(self) -> None:
        with pytest.raises(
            LimitError, match=r"^rlimit_nofile cannot be 1180591620717411303424: .+"
        ):
            apply({"rlimit_nofile": 2**70})

    @pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "64", b"64"])
    def test_what_is_no_limit(self, wrong: object) -> None:
        with pytest.raises(LimitError) as raised:
            apply({"rlimit_nofile": wrong})
        assert str(raised.value) == f"rlimit_nofile is a positive integer, not {wrong!r}"

    def test_a_system_that_does_not_know_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(resource, "RLIMIT_AS")
        with pytest.raises(LimitError, match=r"^rlimit_as is not known to this system$"):
            apply({"rlimit_as": 65_536 * MIB})

    def test_a_system_without_such_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "resource", None)
        with pytest.raises(LimitError, match=r"^rlimit_cpu is not known to this system$"):
            apply({"rlimit_cpu": 5})


class TestControlGroup:
    def test_it_is_joined_by_writing_its_number(self, tmp_path: Path) -> None:
        (tmp_path / "cgroup.procs").write_text("")
        apply({"cgroup": str(tmp_path)})
        assert (tmp_path / "cgroup.procs").read_text() == str(os.getpid())

    def test_before_resources_are_limited(self, tmp_path: Path) -> None:
        """Files may be what is limited."""
        (tmp_path / "cgroup.procs").write_text("")

        def test() -> None:
            [os.dup(0) for _ in range(64)]
            apply({"rlimit_nofile": 64, "cgroup": str(tmp_path)})
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)

        assert forked(test) == Ended(0, "")
        assert (tmp_path / "cgroup.procs").read_text().isdecimal()

    @pytest.mark.parametrize("place", ["missing", "file"])
    def test_one_that_is_none(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("")
        why = {"missing": "No such file or directory", "file": "Not a directory"}[place]
        with pytest.raises(LimitError) as raised:
            apply({"cgroup": str(tmp_path / place)})
        assert str(raised.value) == (
            f"cannot join the control group {tmp_path / place}: {why}. It has to be a directory of "
            "cgroup v2 that this user may write to"
        )

    def test_one_that_this_process_may_not_join(self, tmp_path: Path) -> None:
        """The kernel refuses what is written only when it is written."""
        (tmp_path / "cgroup.procs").symlink_to("/dev/full")
        with pytest.raises(LimitError, match="No space left on device"):
            apply({"cgroup": str(tmp_path)})


class TestMemory:
    def test_enough_is_none_of_its_business(self) -> None:
        check_memory(0, 0)
        check_memory(0, MIB)
        check_memory(2 * MIB, MIB)

    @pytest.mark.parametrize("have", [MIB, MIB + 1])
    def test_less_than_there_is_already(self, have: int) -> None:
        with pytest.raises(LimitError) as raised:
            check_memory(MIB, have)
        assert str(raised.value) == (
            f"max_memory is {MIB} bytes, and Python with its init script takes {have} already"
        )

    def test_a_system_that_does_not_tell(self) -> None:
        with pytest.raises(LimitError, match="a system that tells of memory in /proc"):
            check_memory(MIB, 0)


def test_it_is_an_error_of_what_was_given() -> None:
    assert issubclass(LimitError, ValueError)
    assert set(limits.RESOURCES) == {"rlimit_as", "rlimit_cpu", "rlimit_nofile"}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not tell")
def test_less_address_space_than_python_needs() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    have = pages * os.sysconf("SC_PAGE_SIZE")
    for most in (1, have, have + limits.FOR_THE_START // 2):
        with pytest.raises(LimitError, match=rf"^rlimit_as is {most} bytes, and Python takes \d+ "):
            apply({"rlimit_as": most})


def test_fewer_files_than_a_node_needs() -> None:
    with pytest.raises(LimitError, match=r"^rlimit_nofile is 63, and a node needs 64 open files$"):
        apply({"rlimit_nofile": 63})
