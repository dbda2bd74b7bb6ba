"""Where inside an object something sits: for the errors of the encoder, found after the failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from snex_node.wire.describe import short
from snex_node.wire.terms import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    Pid,
    Port,
    Record,
    Reference,
)

__all__ = ["KNOWN", "find_cycle", "find_place"]

_MAX_STEPS: Final = 20  # of a longer path, the first and the last ten are shown

_CONTAINERS: Final = frozenset((list, tuple, dict, set, frozenset, ImproperList, Record))

_LEAVES: Final = frozenset(
    (str, bytes, bytearray, memoryview, int, float, bool, type(None), Pid, Port, Reference, Fun)
)

KNOWN: Final = _CONTAINERS | _LEAVES | {Export, BitString}
"""Types that the encoder knows, besides atoms, opaque terms and what is derived from those two."""

# How a step on the way is written, and with what: only those of the final path are.
_Step = tuple[Callable[[Any], str], object]
_Children = Iterator[tuple[_Step, object]]


def find_place(root: object, culprit: object, replies: list[tuple[object, object]]) -> str:
    """The place of ``culprit`` in ``root``, as `` (at ["users"][3])``; empty at the top level.

    ``replies`` are objects of unknown types with what the encoder took for each, in its order. This
    walk goes the encoder's way, so that it meets those in the same order. Of what was encoded by
    columns there is no reply: nothing went wrong there.
    """
    answers = deque(replies)
    path: list[_Step] = []
    stack: list[_Children] = [iter((((_nothing, None), root),))]
    while stack:
        for step, child in stack[-1]:
            inner = _inside(child, answers)
            if child is culprit and (inner is None or _is_container(child)):
                return _written([*path, step])
            if inner is not None:
                path.append(step)
                stack.append(inner)
                break
        else:
            stack.pop()
            if path:
                path.pop()
    return ""


def find_cycle(root: object, depth: int) -> object | None:
    """The first container that contains itself, or None if a way of ``depth`` levels has none.

    The walk goes the encoder's way and ends where it first gets so deep, because what the encoder
    has on its stack then is that very way: nothing is walked that was not encoded before.
    """
    open_ids: set[int] = set()
    closed_ids: set[int] = set()
    stack: list[tuple[int, _Children]] = [(0, iter((((_nothing, None), root),)))]
    while stack and len(stack) <= depth + 1:
        identity, children = stack[-1]
        for _, child in children:
            if not _is_container(child) or id(child) in closed_ids:
                continue
            if id(child) in open_ids:
                return child
            open_ids.add(id(child))
            stack.append((id(child), _children(child)))
            break
        else:
            stack.pop()
            open_ids.discard(identity)
            closed_ids.add(identity)
    return None


def _inside(child: object, answers: deque[tuple[object, object]]) -> _Children | None:
    if _is_container(child):
        return _children(child)
    if answers and answers[0][0] is child:
        return iter((((_nothing, None), answers.popleft()[1]),))
    return None


def _is_container(value: object) -> bool:
    return type(value) in _CONTAINERS


def _children(value: object) -> _Children:
    """What the container holds, in the order in which the encoder writes it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (_key, key), key
            yield (_value, key), item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield (_element, item), item
    elif isinstance(value, (list, tuple)):
        yield from _indexed(value)
    elif isinstance(value, ImproperList):
        yield from _indexed(value.elements)
        yield (_tail, None), value.tail
    elif isinstance(value, Record):
        for name, item in zip(value.fields, value.values, strict=True):
            yield (_field, name), item


def _indexed(items: Sequence[object]) -> _Children:
    for index, item in enumerate(items):
        yield (_index, index), item


def _nothing(_: None) -> str:
    return ""


def _index(index: int) -> str:
    return f"[{index}]"


def _key(key: object) -> str:
    return f" key {short(key)}"


def _value(key: object) -> str:
    if type(key) is not str:
        return f"[{short(key)}]"
    text = key if len(key) <= 60 else key[:57] + "..."
    return '["' + text.replace("\\", "\\\\").replace('"', '\\"') + '"]'


def _element(element: object) -> str:
    return f" element {short(element)}"


def _field(name: Atom) -> str:
    return f".{str.__str__(name)}"


def _tail(_: None) -> str:
    return " tail"


def _gap(count: int) -> str:
    return f" ... {count} more ... "


def _written(path: list[_Step]) -> str:
    path = [step for step in path if step[0] is not _nothing]
    left_out = len(path) - _MAX_STEPS
    if left_out > 0:
        half = _MAX_STEPS // 2
        path = [*path[:half], (_gap, left_out), *path[-half:]]
    steps = [write(subject) for write, subject in path]
    place = "".join(steps).strip()
    return f" (at {place})" if place else ""
