"""Where a node's cookie comes from. It is never taken from a command line, and never shown.

Source: "Security" under "Distributed Erlang" in the Erlang reference manual.
"""

from __future__ import annotations

import os
import re
import stat
import string
from collections.abc import Mapping, MutableMapping

from snex_node.errors import NodeError

VARIABLE = "SNEX_COOKIE"
"""The environment variable that may hold a cookie."""

MAX_COOKIE = 255
"""Longest cookie, in characters: BEAM keeps it as an atom."""

_REMEDY = (
    f"Set HOME to a directory that you can write to, put the cookie in {VARIABLE}, or name a file "
    "that holds it with --cookie-file"
)

_FILE = re.compile(r"([ -~]*)[\n\r ]*")  # as auth:check_cookie/2 reads it


class CookieError(NodeError):
    """There is no usable cookie; the message says where it was looked for."""


_taken: str | None = None  # what was in the variable


def find_cookie(file: str | None = None, environ: MutableMapping[str, str] = os.environ) -> str:
    """The cookie: of ``file`` if one is named, else of ``SNEX_COOKIE``, else ``~/.erlang.cookie``.

    The last is made, as OTP makes it, when it is missing. Raises `CookieError`.

    ``SNEX_COOKIE`` is taken out of ``environ``, so that no program that is started later, and no
    code that prints its environment, has the cookie without having asked for it. What was in
    `os.environ` is remembered for the next time.
    """
    variable = take_variable(environ)
    if file is not None:
        return read_cookie(file)
    if variable:
        cookie = variable.rstrip("\r\n")  # as a script that reads a file leaves it
        return _checked(cookie, f"the environment variable {VARIABLE}")
    path = default_path(environ)
    try:
        if not os.path.lexists(path):
            make_cookie(path)
        return read_cookie(path)
    except CookieError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise CookieError(f"{error}. {_REMEDY}") from error.__cause__


def take_variable(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """What ``SNEX_COOKIE`` held; it is there no more."""
    global _taken  # noqa: PLW0603 - as there is one environment
    value = environ.pop(VARIABLE, None)
    if environ is not os.environ:
        return value
    if value is not None:
        _taken = value
    return _taken


def default_path(environ: Mapping[str, str] = os.environ) -> str:
    """``.erlang.cookie`` in the home directory, where OTP keeps it. Raises `CookieError`."""
    home = environ.get("HOME") or os.path.expanduser("~")
    if home == "~":
        raise CookieError(f"there is no home directory to look for .erlang.cookie in. {_REMEDY}")
    return os.path.join(home, ".erlang.cookie")


def read_cookie(path: str | os.PathLike[str]) -> str:
    """The cookie in a file: its text without the line ends behind it. Raises `CookieError`.

    The rules are OTP's: printable ASCII on one line, blanks included, and nobody but its owner may
    have access to the file.
    """
    try:
        with open(path, encoding="latin-1") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4 * MAX_COOKIE)
    except OSError as error:
        raise CookieError(f"cannot read the cookie file {path}: {error.strerror}") from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CookieError(
            f"the cookie file {path} is open to others than its owner: run chmod 400 on it"
        )
    found = _FILE.fullmatch(text)
    if found is None:
        raise CookieError(
            f"the cookie file {path} is not one line of printable ASCII, which is all that Erlang "
            "takes from it: put nothing but the cookie there"
        )
    return _checked(found[1], f"the cookie file {path}")


def make_cookie(path: str | os.PathLike[str]) -> None:
    """Write a new cookie of 20 random capitals to ``path``, mode 0400. Raises `CookieError`.

    A file that another process made in the meantime is left as it is.
    """
    number = int.from_bytes(os.urandom(32), "big")  # 26^20 is less than 2^95
    cookie = "".join(string.ascii_uppercase[number // 26**place % 26] for place in range(20))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    except FileExistsError:
        return
    except OSError as error:
        raise CookieError(f"cannot make the cookie file {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(cookie)


def _checked(cookie: str, where: str) -> str:
    if not cookie:
        raise CookieError(f"{where} is empty: put the cluster's cookie there")
    if len(cookie) > MAX_COOKIE:
        raise CookieError(f"{where} holds more than {MAX_COOKIE} characters")
    return cookie
