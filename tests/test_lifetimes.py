"""What requests have, and that it ends with them."""

from __future__ import annotations

from snex_node.wire.terms import Atom
from snex_runtime import lifetimes
from tests.support.requests import request_of


class Thing:
    """Notes its end; ``others`` are dropped with it."""

    def __init__(self) -> None:
        self.ended = 0

    def end(self) -> None:
        self.ended += 1


def test_all_that_a_request_has_ends_with_it() -> None:
    request, other = (request_of((Atom("eval"), b"1", {})) for _ in range(2))
    one, two, three = (Thing() for _ in range(3))
    lifetimes.hold(request, one)
    lifetimes.hold(request, two)
    lifetimes.hold(request, two)
    lifetimes.hold(other, three)
    lifetimes.release(request)
    assert [each.ended for each in (one, two, three)] == [1, 1, 0]
    lifetimes.release(request)
    lifetimes.release(other)
    assert [each.ended for each in (one, two, three)] == [1, 1, 1]
    assert not lifetimes.holds


def test_what_has_ended_by_itself_is_forgotten() -> None:
    request = request_of((Atom("eval"), b"1", {}))
    one, two = Thing(), Thing()
    lifetimes.hold(request, one)
    lifetimes.hold(request, two)
    lifetimes.drop(request, one)
    lifetimes.drop(request, one)
    assert lifetimes.holds == {request: {two}}
    lifetimes.drop(request, two)
    lifetimes.drop(request, two)
    assert not lifetimes.holds


def test_what_ends_drops_itself() -> None:
    class Dropping(Thing):
        def end(self) -> None:
            super().end()
            lifetimes.drop(request, self)

    request = request_of((Atom("eval"), b"1", {}))
    things = [Dropping() for _ in range(3)]
    for each in things:
        lifetimes.hold(request, each)
    lifetimes.release(request)
    assert [each.ended for each in things] == [1, 1, 1]
    assert not lifetimes.holds


def test_what_belongs_to_no_request() -> None:
    it = Thing()
    lifetimes.hold(None, it)
    lifetimes.drop(None, it)
    assert not lifetimes.holds
    assert it.ended == 0
