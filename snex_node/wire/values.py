"""Classes of a few fields, as `dataclasses` makes them, at a tenth of the time.

There are some thirty of them, which every start of a node would wait for: 0.5 ms for each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Callable[[Any], Any]:
        """Tell type checkers; Python has it from 3.11 on."""
        return lambda function: function


_T = TypeVar("_T")


@dataclass_transform()
def value_class(*hidden: str, frozen: bool = False) -> Callable[[type[_T]], type[_T]]:
    """Make a class with slots of one that names its fields, with their defaults.

    It gets ``__init__``, ``__repr__``, which leaves the ``hidden`` fields out, ``__eq__`` and
    ``__match_args__``. Objects of a ``frozen`` one can be hashed, and refuse assignment.

    >>> @value_class("secret")
    ... class Point:
    ...     x: int
    ...     y: int = 0
    ...     secret: str = ""
    >>> Point(1), Point(1) == Point(1, 0), Point(1) == Point(2)
    (Point(x=1, y=0), True, False)
    """

    def make(cls: type[_T]) -> type[_T]:
        kinds = inspect.get_annotations(cls)
        names = tuple(name for name, kind in kinds.items() if not str(kind).startswith("ClassVar"))
        members = {n: v for n, v in cls.__dict__.items() if n not in ("__dict__", "__weakref__")}
        defaults = {name: members.pop(name) for name in names if name in members}
        shown = tuple(name for name in names if name not in hidden)

        def represent(self: object) -> str:
            fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
            return f"{type(self).__qualname__}({fields})"

        def is_equal(self: object, other: object) -> bool:
            if type(self) is not type(other):
                return False
            return all(getattr(self, name) == getattr(other, name) for name in names)

        members.update(
            __slots__=names,
            __match_args__=names,
            __init__=_initializer(names, defaults, frozen),
            __repr__=represent,
            __eq__=is_equal,
            __hash__=None,
        )
        if frozen:
            members.update(
                __hash__=lambda self: hash(tuple(getattr(self, name) for name in names)),
                __setattr__=_refuse,
                __delattr__=_refuse,
                __reduce__=lambda self: (type(self), tuple(getattr(self, n) for n in names)),
            )
        return type(cls.__name__, cls.__bases__, {**members, "__qualname__": cls.__qualname__})

    return make


def _initializer(
    names: tuple[str, ...], defaults: dict[str, object], frozen: bool
) -> Callable[..., None]:
    """``__init__`` as one would write it: a general one would take three times as long."""
    parameters = "".join(f", {n}=_defaults[{n!r}]" if n in defaults else f", {n}" for n in names)
    assign = "_set(self, {0!r}, {0})" if frozen else "self.{0} = {0}"
    body = "; ".join(assign.format(name) for name in names) or "pass"
    scope: dict[str, Any] = {"_defaults": defaults, "_set": object.__setattr__}
    exec(f"def __init__(self{parameters}): {body}", scope)  # noqa: S102 - of names in our sources
    function: Callable[..., None] = scope["__init__"]
    return function


def _refuse(self: object, name: str, *_: object) -> None:
    raise AttributeError(f"{type(self).__name__} is immutable: cannot change {name!r}")
