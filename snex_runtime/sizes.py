"""How much memory values take, with all that they hold, within a time.

It looks into containers and the attributes of instances. What whole programs share (modules,
classes, functions) counts for nothing, and each object once. No code of users runs: their
``__sizeof__`` is not asked, nor are their properties.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterable
from itertools import islice
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, Final, NamedTuple

__all__ = ["MAX_OBJECTS", "PATIENCE", "Budget", "Size", "size_of"]

MAX_OBJECTS: Final = 100_000
"""Objects that are looked at for one answer."""

PATIENCE: Final = 0.05
"""Seconds that this may take: the event loop does nothing else meanwhile."""

_OFTEN: Final = 64
"""Objects between two looks at the clock."""

_SHARED: Final = (ModuleType, type, FunctionType, BuiltinFunctionType, MethodType, CodeType)


class Size(NamedTuple):
    """Bytes that something takes; `complete` when all of it was looked at."""

    bytes: int
    complete: bool


class Budget:
    """What sizing may cost: so many objects, until a time (`time.monotonic`)."""

    def __init__(self, objects: int = MAX_OBJECTS, seconds: float = PATIENCE) -> None:
        self.objects = objects
        self.until = time.monotonic() + seconds

    def share(self, number: int) -> Budget:
        """The part for one of ``number`` things of which none is to take it all from the others."""
        left = self.until - time.monotonic()
        return Budget(self.objects // number, max(0.0, left / number))

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.until


def size_of(values: Iterable[object], budget: Budget) -> Size:
    """How much ``values`` take together; what they use is taken from ``budget``."""
    found = looked = 0
    seen: set[int] = set()
    shapes: dict[type, _Shape] = {}
    left = deque(values)
    while left:
        if budget.objects <= 0 or (looked % _OFTEN == 0 and budget.late):
            return Size(found, False)
        value = left.popleft()
        looked += 1
        budget.objects -= 1
        if id(value) in seen or isinstance(value, _SHARED):
            continue
        seen.add(id(value))
        kind = type(value)
        shape = shapes.get(kind)
        if shape is None:
            shape = shapes[kind] = _Shape(kind)
        found += shape.size(value)
        if shape.holds:
            left.extend(shape.parts(value, max(0, budget.objects - len(left)) + 1))
    return Size(found, True)


class _Shape:
    """What objects of the class ``kind`` hold, and where."""

    def __init__(self, kind: type) -> None:
        bases = kind.__mro__
        self._getsizeof = not isinstance(getattr(kind, "__sizeof__", None), FunctionType)
        self._items = next((each for each in _CONTAINERS if each in bases), None)
        # Of a property of that name, or of slots of extension types, nothing is known.
        named = [(name, found) for base in bases for name, found in vars(base).items()]
        slots = [found for _, found in named if isinstance(found, MemberDescriptorType)]
        self._slots = [] if kind.__module__ == "builtins" else slots
        first = next((found for name, found in named if name == "__dict__"), None)
        self._dict = first if isinstance(first, GetSetDescriptorType) else None
        self.holds = bool(self._items or self._slots or self._dict)
        """Whether they hold anything that is looked at."""

    def size(self, value: object) -> int:
        """The size of one, without what it holds; where its class has a ``__sizeof__`` in Python,
        that of any object of this shape.
        """
        try:
            return sys.getsizeof(value) if self._getsizeof else object.__sizeof__(value)
        except Exception:  # an extension type that cannot tell
            return 0

    def parts(self, value: Any, most: int) -> list[object]:
        """What one holds directly: at most so many."""
        parts: list[object] = []
        if self._items is dict:
            parts += _first(dict.keys(value), most)
            parts += _first(dict.values(value), most - len(parts))
        elif self._items is not None:
            items: Iterable[object] = self._items.__iter__(value)
            parts += _first(items, most)
        for descriptor in (*self._slots, *(() if self._dict is None else (self._dict,))):
            with contextlib.suppress(AttributeError):  # it is not set
                parts.append(descriptor.__get__(value))
        return parts


_CONTAINERS: Final[tuple[Any, ...]] = (dict, list, tuple, set, frozenset, deque)


def _first(values: Iterable[object], most: int) -> list[object]:
    try:
        return list(islice(values, max(0, most)))
    except RuntimeError:  # a thread has changed it meanwhile
        return []
