"""How much memory values take."""

from __future__ import annotations

import math
import sys
import time
from collections import OrderedDict, deque
from typing import Any

import pytest

from snex_runtime import sizes
from snex_runtime.sizes import Budget, Size, size_of

TEXT = "x" * 1000


def size(*values: object) -> int:
    found = size_of(values, Budget())
    assert found.complete
    return found.bytes


def own(*values: object) -> int:
    return sum(map(sys.getsizeof, values))


class Plain:
    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("given", "missing")

    def __init__(self, given: object) -> None:
        self.given = given


class Tells(Plain):
    """One whose own code must not run."""

    def __sizeof__(self) -> int:
        raise SystemExit

    def __iter__(self) -> Any:
        raise SystemExit

    def __getattr__(self, name: str) -> Any:
        raise SystemExit


class Hides:
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit


class Listed(list[object]):
    def __iter__(self) -> Any:
        raise SystemExit


def test_values() -> None:
    assert size(1) == own(1)
    assert size(TEXT, b"bytes", None, 2.5) == own(TEXT, b"bytes", None, 2.5)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, deque])
def test_containers(kind: Any) -> None:
    value = kind([TEXT, 7])
    assert size(value) == own(value, TEXT, 7)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_maps(kind: Any) -> None:
    value = kind({"name": TEXT, 1: [TEXT]})
    held: list[object] = ["name", 1, TEXT, value[1]]
    expected = own(value, *held)
    assert expected <= size(value) <= expected + 200  # the attributes of an OrderedDict


def test_instances() -> None:
    plain = Plain(name=TEXT)
    assert size(plain) == own(plain, vars(plain), "name", TEXT)
    slotted = Slotted(TEXT)
    assert size(slotted) == own(slotted, TEXT)


def test_no_code_of_users_runs() -> None:
    value = Tells(name=TEXT)
    assert size(value) == object.__sizeof__(value) + own(vars(value), "name", TEXT)
    assert size(Hides()) > 0
    assert size(Listed([TEXT])) >= own(TEXT)


def test_each_counts_once() -> None:
    value: list[object] = [TEXT, TEXT]
    value.append(value)
    assert size(value, value) == own(value, TEXT)


def test_what_programs_share_counts_for_nothing() -> None:
    assert size(math, Plain, test_values, len, [].append, TestBudget().test_objects) == 0


def test_one_that_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: object) -> int:
        raise TypeError

    monkeypatch.setattr(sys, "getsizeof", fail)
    assert size_of([1], Budget()) == Size(0, True)


def test_one_that_is_changed_meanwhile() -> None:
    value = {1: 2}
    items = iter(value.items())
    value[3] = 4
    assert sizes._first(items, 5) == []


class TestBudget:
    def test_objects(self) -> None:
        budget = Budget(objects=1000)
        found = size_of([list(range(1000, 10_000))], budget)
        assert not found.complete
        assert budget.objects == 0
        assert own(list(range(1000, 10_000))) <= found.bytes

    def test_large_containers_are_not_looked_through(self) -> None:
        found = size_of([list(range(1_000_000))], Budget(objects=10))
        assert not found.complete
        assert found.bytes < own(list(range(1_000_000))) + 100 * own(10**6)

    def test_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at = iter(range(10**6))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(at)))
        found = size_of([[[each] for each in range(10_000)]], Budget(seconds=5.0))
        assert not found.complete

    def test_a_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        budget = Budget(objects=1000, seconds=2.0)
        share = budget.share(4)
        assert (share.objects, share.until) == (250, 100.5)
        assert not share.late
        monkeypatch.setattr(time, "monotonic", lambda: 102.5)
        assert share.late
        assert budget.share(2).until == 102.5
