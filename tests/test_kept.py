"""Objects in the place of their pids, and of the structs that stand for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from snex_node.wire.terms import Pid, Term
from snex_runtime import kept, serde

A = serde.Atom
PID = Pid("py@host", 7, 0, 5)


class Thing:
    pass


@pytest.fixture
def thing() -> Iterator[Thing]:
    made = Thing()
    kept.held[PID.external] = made
    yield made
    del kept.held[PID.external]


def term() -> Any:
    return serde.Term(PID.external)


class TestStructs:
    def test_are_the_object(self, thing: Thing) -> None:
        assert kept.load({"id": term(), "shown": "x"}) is thing

    def test_wherever_they_are(self, thing: Thing) -> None:
        struct = {A("__struct__"): A(kept.NAME), A("id"): term()}
        sent = serde.encoder.encode({"a": [struct, (1, {"b": struct})]})
        found: Any = serde.decoder().decode(sent)[0]
        assert found["a"][0] is thing
        assert found["a"][1][1]["b"] is thing

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({}, "the id of a Snex.Object is a pid, not nil"),
            ({"id": 5}, "the id of a Snex.Object is a pid, not 5"),
            (
                {"id": serde.Term(Pid("py@host", 8, 0, 5).external)},
                "#PID<py@host.8.0> is no object of this node",
            ),
        ],
        ids=range(3),
    )
    def test_that_are_none(self, thing: Thing, fields: dict[str, object], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            kept.load(fields)


class TestVariables:
    def test_objects_are_put_in_place_of_their_pids(self, thing: Thing) -> None:
        other = serde.Term(Pid("py@host", 8, 0, 5).external)
        values: dict[str, Any] = {"a": term(), "b": other, "c": 1, "d": [term()]}
        kept.put_in(values)
        assert values["a"] is thing
        assert values["b"] == other
        assert values["c"] == 1
        assert type(values["d"][0]) is serde.Term

    def test_where_nothing_is_kept(self) -> None:
        values = {"a": term()}
        kept.put_in(values)
        assert isinstance(values["a"], Term)
