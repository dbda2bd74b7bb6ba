"""Standard input, output and errors that were closed are the null device."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence

import pytest

from snex_runtime import standard_files
from tests.support.forked import forked

NAMES = ("stdin", "stdout", "stderr")


def without(closed: Sequence[int]) -> None:
    """Do what Python would find and do with these descriptors closed, and look at the outcome."""
    report = os.dup(2)
    before = {number: os.fstat(number) for number in range(3)}
    streams = [getattr(sys, name) for name in NAMES]
    for number in closed:
        os.close(number)
        setattr(sys, NAMES[number], None)
    standard_files.open_missing()
    try:
        null = os.stat(os.devnull)
        for number in range(3):
            found = os.fstat(number)
            if number in closed:
                assert os.path.samestat(found, null), number
                assert os.get_inheritable(number)
                stream = getattr(sys, NAMES[number])
                assert stream.fileno() == number
                assert stream.mode == ("r" if number == 0 else "w")
            else:
                assert os.path.samestat(found, before[number]), number
                assert getattr(sys, NAMES[number]) is streams[number]
    finally:
        os.dup2(report, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


@pytest.mark.parametrize(
    "closed",
    [which for count in range(4) for which in itertools.combinations(range(3), count)],
    ids=lambda which: "".join(map(str, which)) or "none",
)
def test_what_was_closed_is_the_null_device_and_what_was_not_is_left(closed: list[int]) -> None:
    assert forked(lambda: without(closed)) == (0, "")


def test_a_stream_that_was_replaced_stays() -> None:
    def replaced() -> None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - of the program that starts us
        mine = sys.stdout
        os.close(1)
        standard_files.open_missing()
        assert sys.stdout is mine
        assert os.path.samestat(os.fstat(1), os.stat(os.devnull))

    assert forked(replaced) == (0, "")


def test_output_that_nobody_reads_any_more_goes_nowhere() -> None:
    def printed() -> None:
        ours, theirs = os.pipe()
        os.dup2(theirs, 1)
        os.close(ours)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stdout.write("text")
        standard_files.flush_output()
        assert os.path.samestat(os.fstat(1), os.stat(os.devnull))
        sys.stdout.write("more")
        standard_files.flush_output()

    assert forked(printed) == (0, "")


def test_output_that_somebody_reads_is_written() -> None:
    def printed() -> None:
        ours, theirs = os.pipe()
        before, sys.stdout = sys.stdout, open(theirs, "w")  # noqa: SIM115
        sys.stdout.write("text")
        standard_files.flush_output()
        assert os.read(ours, 10) == b"text"
        sys.stdout.close()
        standard_files.flush_output()
        sys.stdout = None
        standard_files.flush_output()
        sys.stdout = before

    assert forked(printed) == (0, "")
