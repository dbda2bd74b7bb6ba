"""The module behind the ``__name__`` of evaluated code.

Every environment says that it is the module ``__snex__``, as every script says ``__main__``: what
is defined in one has a name that does not depend on the environment's life, so that pickles of it
load in another one, or after a restart, where the same is defined. What stands in `sys.modules`
under that name is a module that is, for the code that asks, the environment which that code runs
in: `pickle`, `dataclasses`, `typing.get_type_hints`, `enum` and `inspect` find what was defined
there. Where no environment's code runs it is the root environment.
"""

from __future__ import annotations

import inspect
import sys
from contextvars import ContextVar
from types import FrameType, ModuleType
from typing import Any, Final, cast

from snex_runtime.sources import file_of_class

__all__ = ["NAME", "Namespace", "Variables", "here", "install", "remove", "root_of"]

NAME: Final = "__snex__"
"""The ``__name__`` of all evaluated code."""

Variables = dict[str, object]

here: ContextVar[Variables | None] = ContextVar("snex_environment", default=None)
"""The variables of the environment whose code runs; its tasks and threads inherit them."""

_frame: Final = sys._getframe  # noqa: SLF001 - documented

# They send by value what is defined in no module that others can import, as is the case here.
_BY_VALUE: Final = frozenset({"cloudpickle", "dill"})


class Namespace(ModuleType):
    """The module `NAME` of one runtime; `root_of` gives the variables of its root environment.

    >>> module = Namespace()
    >>> root_of(module)["x"] = 1
    >>> module.x, vars(module) is root_of(module)
    (1, True)
    """

    def __init__(self) -> None:
        super().__init__(NAME)
        root = root_of(self)
        root.clear()  # of `__spec__` and the like: there is none
        root["__name__"] = NAME

    def __getattribute__(self, name: str) -> Any:
        variables = here.get()
        if variables is None:
            variables = root_of(self)
        if name == "__dict__":
            return variables
        if not name.startswith("__") and _is_sent_by_value(_frame(1)):
            raise AttributeError(name)
        if name in variables:
            return variables[name]
        if name == "__file__":
            return _file_asked_for(_frame(1))
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self.__dict__:
            raise AttributeError(name)
        del self.__dict__[name]


_installed: list[Namespace] = []


def install(module: Namespace) -> None:
    """Make ``module`` the one of its name; of several the last that was installed is."""
    _installed.append(module)
    sys.modules[NAME] = module


def remove(module: Namespace) -> None:
    """Undo `install`."""
    _installed.remove(module)
    if sys.modules.get(NAME) is module:
        del sys.modules[NAME]
        if _installed:
            sys.modules[NAME] = _installed[-1]


def root_of(module: Namespace) -> Variables:
    """The variables of the root environment, whatever environment's code runs."""
    return cast(Variables, ModuleType.__getattribute__(module, "__dict__"))


def _is_sent_by_value(frame: FrameType | None) -> bool:
    """Whether a pickler asks that sends definitions themselves, unless a module has them.

    Its workers run elsewhere, and have no such module.
    """
    for _ in range(2):  # it asks itself, or through a function of `pickle`
        if frame is None:
            return False
        if not _BY_VALUE.isdisjoint(str(frame.f_globals.get("__name__")).split(".")):
            return True
        frame = frame.f_back
    return False


def _file_asked_for(frame: FrameType) -> str:
    """For `inspect.getfile`, which takes the file of a class to be that of its module."""
    if frame.f_code is inspect.getfile.__code__:
        asked = frame.f_locals.get("object")
        file = file_of_class(asked) if isinstance(asked, type) else None
        if file is not None:
            return file
    raise AttributeError("__file__")
