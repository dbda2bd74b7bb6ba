"""The soak, for some seconds: that it works, and tells what is wrong."""

from __future__ import annotations

import pytest

from tests.soak import __main__ as soaking


@pytest.mark.timeout(120)
async def test_some_seconds_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert await soaking.soak(5.0, callers=10, seed=1, workers=2) == []
    assert " right\n" in capsys.readouterr().out


@pytest.mark.timeout(180)
async def test_some_seconds_of_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    assert await soaking.soak_pool(5.0, callers=10, seed=1, size=2) == []
    assert " right\n" in capsys.readouterr().out


def test_what_is_wrong_is_told() -> None:
    counts = {"right": 5, "loop killed": 2, "twice": 1, "segfault as_it_should": 3, "lost": 0}
    assert soaking.wrong_outcomes(counts) == ["2 times: loop killed", "1 times: twice"]
    assert soaking.wrong_outcomes({"lost": 3}) == ["3 times: lost", "no call at all was answered"]
    info = {"requests_running": 1, "requests_queued": 0, "environments": 2, "workers": [1]}
    assert soaking.wrong_counts(info, workers=2) == [
        "1 requests_running at the end",
        "2 environments at the end",
        "1 workers at the end",
    ]
