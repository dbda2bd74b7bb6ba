"""Log lines that strangers cause are few, and none is forgotten."""

from __future__ import annotations

import logging

import pytest

from snex_node.system.log_limit import LogLimit

logger = logging.getLogger("snex_node.test")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limit(clock: Clock) -> LogLimit:
    return LogLimit(logger, lines=2, seconds=10, clock=clock)


def test_what_is_beyond_is_counted_and_told_later(
    limit: LogLimit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2314):
        limit.warning("refused %d", number)
    assert caplog.messages == ["refused 0", "refused 1"]
    assert limit.left_out == 2312
    clock.now += 9.9
    limit.warning("refused %s", "still")
    clock.now += 0.1
    limit.warning("refused %s", "again")
    assert caplog.messages[2:] == ["... and 2,313 more lines like these", "refused again"]
    assert limit.left_out == 0


def test_few_lines_are_all_told(
    limit: LogLimit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        limit.warning("refused %d", number)
        clock.now += 5
    assert caplog.messages == [f"refused {number}" for number in range(10)]


def test_the_count_can_be_told_at_once(limit: LogLimit, caplog: pytest.LogCaptureFixture) -> None:
    limit.flush()
    assert caplog.messages == []
    for _ in range(5):
        limit.log(logging.ERROR, "refused")
    limit.flush()
    limit.flush()
    assert caplog.messages == ["refused", "refused", "... and 3 more lines like these"]
    assert [record.levelno for record in caplog.records] == [40, 40, 30]


def test_lines_that_nobody_wants_count_for_nothing(
    limit: LogLimit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger.name)
    for _ in range(5):
        limit.log(logging.INFO, "fine")
    assert limit.left_out == 0
    limit.warning("refused")
    assert caplog.messages == ["refused"]
