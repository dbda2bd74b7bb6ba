"""Where inside an object something sits: for the errors of the encoder, found after the failure."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Final

from snex_node.terms import Atom, ImproperList, Record

__all__ = ["find_cycle", "find_place", "short"]

_MAX_STEPS: Final = 20  # of a longer path, the first and the last ten are shown
_CONTAINERS: Final = (list, tuple, dict, set, frozenset, ImproperList, Record)

_Step = tuple[str, object]


def find_place(root: object, culprit: object, replies: list[object]) -> str:
    """The place of ``culprit`` in ``root``, as `` (at ["users"][3])``; empty when it is the root itself.

    ``replies`` are the objects that the encoder was given for objects of unknown types, in its order: the walk
    goes the same way, so that they are met in that order again.
    """
    answers = iter(replies)
    path: list[str] = []
    stack: list[Iterator[_Step]] = [iter((("", root),))]
    while stack:
        for step, child in stack[-1]:
            found, inner = _visit(child, culprit, answers)
            if found:
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


def find_cycle(root: object) -> object | None:
    """A container that contains itself, or None. Looks into built-in containers and those of terms only."""
    open_ids: set[int] = set()
    closed_ids: set[int] = set()
    stack: list[tuple[int, Iterator[_Step]]] = [(0, iter((("", root),)))]
    while stack:
        identity, children = stack[-1]
        for _, child in children:
            if not isinstance(child, _CONTAINERS) or id(child) in closed_ids:
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


def short(value: object) -> str:
    """``repr(value)`` in a length fit for a message, whatever the value is."""
    return reprlib.repr(value)


def _visit(
    child: object, culprit: object, answers: Iterator[object]
) -> tuple[bool, Iterator[_Step] | None]:
    if isinstance(child, _CONTAINERS):
        return child is culprit, _children(child)
    if _is_leaf(child):
        return child is culprit, None
    for answer in answers:
        return False, iter((("", answer),))
    return child is culprit, None


def _is_leaf(value: object) -> bool:
    if value is None or isinstance(value, (str, int, float, bytes, bytearray, memoryview)):
        return True
    return type(value).__module__ == Atom.__module__


def _children(value: object) -> Iterator[_Step]:
    if isinstance(value, dict):
        for key, item in dict.items(value):
            yield f" key {short(key)}", key
            yield f"[{_key(key)}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield f" element {short(item)}", item
    elif isinstance(value, ImproperList):
        yield from _indexed(value.elements)
        yield " tail", value.tail
    elif isinstance(value, Record):
        for name, item in zip(value.fields, value.values):
            yield f".{str.__str__(name)}", item
    elif isinstance(value, (list, tuple)):
        yield from _indexed(value)


def _indexed(items: list[object] | tuple[object, ...]) -> Iterator[_Step]:
    for index, item in enumerate(items):
        yield f"[{index}]", item


def _key(key: object) -> str:
    if type(key) is not str:
        return short(key)
    text = key if len(key) <= 60 else key[:57] + "..."
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _written(path: list[str]) -> str:
    steps = [step for step in path if step]
    if len(steps) > _MAX_STEPS:
        half = _MAX_STEPS // 2
        steps = [*steps[:half], f"...{len(steps) - _MAX_STEPS} more...", *steps[-half:]]
    place = "".join(steps).strip()
    return f" (at {place})" if place else ""
