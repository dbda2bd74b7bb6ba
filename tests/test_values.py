"""Classes of a few fields are what dataclasses would be, as far as they are used."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest

from snex_node.wire.values import value_class


@value_class("hidden")
class Message:
    """A message."""

    opcode: ClassVar[int] = 7
    first: int
    second: str = "two"
    hidden: object = None

    def both(self) -> str:
        return f"{self.first} {self.second}"


@value_class(frozen=True)
class Name:
    """A name."""

    name: str
    number: int = 1


@value_class()
class Nothing:
    pass


class Outer:
    @value_class()
    class Inner:
        x: int


def test_fields_and_defaults() -> None:
    message = Message(1)
    assert (message.first, message.second, message.hidden) == (1, "two", None)
    message = Message(1, "b", hidden=3)
    assert (message.first, message.second, message.hidden) == (1, "b", 3)
    assert message.both() == "1 b"
    assert Message.opcode == message.opcode == 7
    message.second = "c"
    assert message.second == "c"
    assert Message.__doc__ == "A message."
    assert Message.__module__ == __name__


@pytest.mark.parametrize("args", [(), (1, 2, 3, 4)])
def test_other_numbers_of_arguments(args: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match="argument"):
        Message(*args)  # type: ignore[arg-type]


def test_there_are_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Message(1).other = 1  # type: ignore[attr-defined]
    assert not hasattr(Message(1), "__dict__")


def test_representation() -> None:
    assert repr(Message(1, "a", hidden="secret")) == "Message(first=1, second='a')"
    assert repr(Nothing()) == "Nothing()"
    assert repr(Outer.Inner(3)) == "Outer.Inner(x=3)"


def test_equality() -> None:
    assert Message(1) == Message(1)
    assert Message(1) != Message(1, hidden=2)
    other: object = Name("1")
    assert Message(1) != other
    assert Name("a") == Name("a", 1)
    assert Nothing() == Nothing()
    with pytest.raises(TypeError, match="unhashable"):
        hash(Message(1))


def test_matching() -> None:
    match Message(1, "b"):
        case Message(first, second):
            assert (first, second) == (1, "b")
        case _:
            pytest.fail("it does not match")


def test_frozen_ones() -> None:
    name = Name("a", number=2)
    with pytest.raises(AttributeError, match="Name is immutable: cannot change 'name'"):
        name.name = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del name.number
    assert name == Name("a", 2)
    assert {name: 1}[Name("a", 2)] == 1


@pytest.mark.parametrize("made", [Message(1, "b", 3), Name("a", 2), Nothing()], ids=repr)
def test_copies(made: object) -> None:
    assert copy.copy(made) == copy.deepcopy(made) == made
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(made, protocol)) == made
