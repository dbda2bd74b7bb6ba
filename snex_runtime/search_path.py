"""Keeps modules of users from taking the place of ours while the runtime starts.

``python -m snex_runtime`` puts the current directory in front of everything else, and the client
starts Python in a directory of its user: a ``logging.py`` there would be what we get. So while the
runtime starts the standard library comes first, and the directory is put back, where evaluated code
expects it, when all that we need has been imported. Modules that Python itself imports before any
code of ours runs are beyond that; see `SAFE`.

This module is imported while users' modules can still get in the way: it imports nothing but what
is built in, or loaded already.
"""

import sys

SAFE = "snex"
"""The value of ``PYTHONSAFEPATH`` by which the client says that the current directory is to be put
in front after the start.

From Python 3.11 on the variable keeps Python from doing so itself, which is too early: with ``-m``
it imports ``types`` and a few others before the first line of the package."""

LATER = (
    "concurrent.futures.thread",
    "encodings.idna",
    "stringprep",
    # For what tracebacks of syntax errors suggest.
    *(("codeop", "difflib") if sys.version_info >= (3, 14) else ()),
)
"""Modules that the standard library imports when it first needs them, and that we use."""

_given: list[str] | None = None


def hide() -> None:
    """Put the standard library first and take the current directory away, until `restore`."""
    global _given  # noqa: PLW0603 - there is one search path
    given, first = list(sys.path), sys.path[:1]
    if getattr(sys.flags, "safe_path", sys.flags.isolated):  # the former from 3.11 on
        first = []  # it is not there
    root = __file__.rpartition("/snex_runtime/")[0]
    if first != [root]:  # else we were found there: somebody works on a clone of ours
        sys.path[: len(first)] = []
    import os  # noqa: PLC0415 - it was loaded by `site`, or comes from the standard library now

    if os.environ.get("PYTHONSAFEPATH") == SAFE:
        del os.environ["PYTHONSAFEPATH"]  # it is not for the programs that users start
        try:
            given.insert(0, os.getcwd())
        except OSError:  # it has been deleted: nothing is there to be imported
            pass
    library = os.path.dirname(os.__file__)
    sys.path.sort(key=lambda entry: not _is_of(library, entry))
    _given = given


def _is_of(library: str, entry: str) -> bool:
    """Whether ``entry`` is a part of the standard library; additional packages may lie below it."""
    zipped = "/python{}{}.zip".format(*sys.version_info)
    return entry in (library, library + "/lib-dynload") or entry.endswith(zipped)


def restore() -> None:
    """Give users the search path that they asked for, once nothing of ours is still missing."""
    global _given  # noqa: PLW0603
    if _given is not None:
        for name in LATER:
            __import__(name)
        sys.path[:] = _given
        _given = None
