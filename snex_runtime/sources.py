"""The text of evaluated code: read from files, kept for `inspect`, shown in tracebacks.

Callers name the file of their code themselves, and Python reads lines of it in many places: when a
traceback is formatted, a warning is shown, a syntax error is raised, and when `inspect` is asked.
So code in a file that cannot be read within bounds (a device, a FIFO, what has gigabytes) is
compiled under a name that nothing can open, and its own name is put back where it is shown.
"""

from __future__ import annotations

import io
import linecache
import os
import stat
import sys
import threading
from collections.abc import Iterable
from importlib.util import decode_source
from types import CodeType
from typing import Any, Final, final

__all__ = [
    "MAX_FILE",
    "MAX_KEPT",
    "MAX_LINES",
    "MAX_SNIPPETS",
    "VIRTUAL_FILE",
    "Kept",
    "VirtualFile",
    "decode_script",
    "file_of_class",
    "forget_lines",
    "is_bounded",
    "is_read",
    "keep",
    "openable",
    "read_script",
    "shown",
]

VIRTUAL_FILE: Final = "<Snex.Code>"
"""The file of code that names none. In angle brackets, so that no source is looked for."""

MAX_FILE: Final = 4 * 1024 * 1024
"""Longest file, in bytes, whose lines are shown in tracebacks. Python reads the whole of a file for
one line, and never finds the end of ``/dev/zero``; 4 MiB take some 40 ms."""

MAX_LINES: Final = 16 * 1024 * 1024
"""Bytes of files whose lines stay in memory after tracebacks: beyond it they are read again. Named
by callers, they could be all files of the machine."""

MAX_KEPT: Final = 16 * 1024 * 1024
"""Characters of snippets that are kept for `inspect.getsource`; the oldest go first. Only those
that define functions or classes are, and the lines take about twice that."""

MAX_SNIPPETS: Final = 1024
"""Snippets that are kept so, however short they are: each is a list of lines, and a key."""

_UNOPENABLE: Final = "<unread>"
_READ: Final = 4  # values in an entry of linecache that holds lines: size, time, lines, name


@final
class VirtualFile(str):
    """The name of the file that one snippet is in, which is that of all: `VIRTUAL_FILE`.

    It equals its text, but has a hash of its own: as a key it finds what is kept for that snippet
    only. The code object holds it, so that whoever has the code finds its lines in `linecache`.
    """

    __slots__ = ()

    # C code: tracemalloc hashes the names of files in the middle of allocating memory.
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickled it is text, as code objects are sent to processes that have no such class."""
        return str, (str.__str__(self),)


class Kept:
    """Snippets whose text is kept, the oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classes: dict[VirtualFile, tuple[int, frozenset[tuple[str, int]]]] = {}
        self._length = 0

    def add(self, file: VirtualFile, text: str, classes: Iterable[tuple[str, int]]) -> None:
        """Keep ``text``, unless it is longer than `MAX_KEPT`; ``classes`` are those it defines."""
        if len(text) > MAX_KEPT:
            return
        lines = io.StringIO(text, newline=None).readlines()
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        with self._lock:
            self._length += len(text)
            self._classes[file] = (len(text), frozenset(classes))
            # Without a time of modification it is not compared with any file.
            linecache.cache[file] = (len(text), None, lines, file)
            while self._length > MAX_KEPT or len(self._classes) > MAX_SNIPPETS:
                self._drop(next(iter(self._classes)))

    def _drop(self, file: VirtualFile) -> None:
        length, _ = self._classes.pop(file)
        self._length -= length
        linecache.cache.pop(file, None)

    def newest_with(self, name: str, line: int | None) -> VirtualFile | None:
        """The snippet kept last that `holds` the class."""
        with self._lock:
            for file in reversed(self._classes):
                if self.holds(file, name, line):
                    return file
        return None

    def holds(self, file: VirtualFile, name: str, line: int | None) -> bool:
        """Whether a snippet defines class ``name``, in that line where one is given."""
        _, classes = self._classes.get(file, (0, ()))
        return any(name == each and line in (None, first) for each, first in classes)


_kept = Kept()


def keep(file: VirtualFile, text: str, classes: Iterable[tuple[str, int]]) -> None:
    """Keep the text of a snippet for `inspect.getsource`: `MAX_KEPT` and `MAX_SNIPPETS` bound it.

    ``classes`` are the names of those that it defines, each with its first line.
    """
    _kept.add(file, text, classes)


def file_of_class(definition: type) -> VirtualFile | None:
    """The file of the snippet that defined a class, as far as that is kept.

    A class does not tell its file, as functions do: its methods know, or else it is the newest
    snippet that defines one of that name (and, from Python 3.13 on, in that line).
    """
    name, members = definition.__name__, vars(definition)
    line = members.get("__firstlineno__")
    for member in members.values():
        code = getattr(getattr(member, "__func__", member), "__code__", None)
        file = code.co_filename if isinstance(code, CodeType) else None
        if isinstance(file, VirtualFile) and _kept.holds(file, name, line):
            return file
    return _kept.newest_with(name, line)


# --- files that callers name ----------------------------------------------------------------------


def openable(file: str) -> str:
    """The name to compile code under that says it is in ``file``; `shown` undoes it.

    >>> openable("lib/app.ex"), openable("/dev/zero")
    ('lib/app.ex', '<unread>/dev/zero')
    """
    return file if is_bounded(file) else _UNOPENABLE + file


def shown(file: str) -> str:
    """The name of the file as the caller gave it.

    >>> shown("<unread>/dev/zero")
    '/dev/zero'
    """
    return file.removeprefix(_UNOPENABLE)


def is_bounded(file: str) -> bool:
    """Whether Python, when it looks for lines of ``file``, reads `MAX_FILE` at most, and at once.

    True for a regular file of that size, and where there is none. Files of ``/proc`` say that they
    are empty.
    """
    found = _status(file)
    if found is None and not os.path.isabs(file) and not file.startswith("<"):
        # linecache looks for those on sys.path, too
        places = (os.path.join(str(each), file) for each in sys.path)
        return all(map(_is_bounded, filter(None, map(_status, places))))
    return found is None or _is_bounded(found)


def _status(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)
    except (OSError, ValueError):
        return None


def _is_bounded(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_FILE


def is_read(file: str) -> bool:
    """Whether `linecache` has the lines of ``file``."""
    return len(linecache.cache.get(file, ())) == _READ


def forget_lines(files: Iterable[str]) -> None:
    """Have `linecache` forget the lines of ``files``, which it had not read before.

    Those of Python's modules stay, as they are asked for again, up to `MAX_LINES` bytes in all.
    """
    cache = linecache.cache
    read_now = [file for file in files if file in cache]
    for file in read_now:
        if not file.endswith(".py"):
            cache.pop(file, None)
    if not read_now:
        return
    read = {file: _length_read(entry) for file, entry in list(cache.items())}
    if sum(read.values()) > MAX_LINES:
        for file, length in read.items():
            if length:
                cache.pop(file, None)


def _length_read(entry: tuple[Any, ...]) -> int:
    """The bytes of the file that it was read from: others have no time of modification."""
    return int(entry[0]) if len(entry) == _READ and entry[1] is not None else 0


def read_script(path: str | os.PathLike[str]) -> str:
    """The text of a Python file. Raises ``OSError``, and what `decode_script` raises."""
    with open(path, "rb") as file:
        return decode_script(file.read())


def decode_script(data: bytes) -> str:
    """The text of Python code, as Python has it: a byte order mark or a coding cookie counts.

    Raises ``UnicodeDecodeError``, and ``SyntaxError`` for an encoding that is unknown.
    """
    return decode_source(data)
