"""What is in a request: code, variables and options, read and checked.

Source: "The contract" in docs/architecture.md.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from snex_node.etf import DecodeError, Decoder
from snex_node.terms import Atom, Pid
from snex_runtime import serde
from snex_runtime.errors import BadRequest, Failure
from snex_runtime.namespace import Variables

_u32 = Struct(">I").unpack_from

# Requests and options are read with pids as pids and text as str, whatever the user's options are.
typed: Final = Decoder(binary_as="str")
_bytes: Final = Decoder()


class EvalOptions:
    """The options of an eval request, checked."""

    __slots__ = ("continues", "timeout")

    def __init__(self, raw: object = None) -> None:
        options = options_in(raw, ("encoding_opts", "timeout", "on_timeout"))
        self.timeout: float | None = None
        timeout = options.get("timeout")
        if timeout is not None and timeout != "infinity":
            if type(timeout) is not int or timeout < 0:
                raise BadRequest(f"timeout takes milliseconds or :infinity, not {timeout!r}")
            self.timeout = timeout / 1000
        on_timeout = options.get("on_timeout", "cancel")
        if on_timeout not in ("cancel", "continue"):
            raise BadRequest(f"on_timeout takes :cancel or :continue, not {on_timeout!r}")
        self.continues = on_timeout == "continue"


def options_in(raw: object, known: tuple[str, ...]) -> dict[str, Any]:
    """Options given as a keyword list or a map. Raises `BadRequest` for others than ``known``."""
    if not raw:
        return {}
    options: dict[str, Any] = {}
    try:
        for name, value in raw.items() if isinstance(raw, dict) else raw:  # type: ignore[attr-defined]
            options.setdefault(str(name), value)  # the first counts, as in a keyword list
    except (TypeError, ValueError):
        raise BadRequest(f"options are a keyword list or a map, not {raw!r}") from None
    for name in options:
        if name not in known:
            raise BadRequest(f"unknown option {name}: there are {', '.join(known)}")
    return options


def encoding_options(raw: object, base: serde.Options) -> serde.Options:
    """The encoding options among the options of a request, over ``base``. Raises `BadRequest`."""
    try:
        pairs = raw.items() if isinstance(raw, dict) else raw or ()
        given = next((value for name, value in pairs if name == "encoding_opts"), None)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return base  # no options at all, which `options_in` complains about
    try:
        return serde.merge_options(given, base)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def handle_in(value: object) -> Pid | None:
    """The handle that a request names; None for ``:none``. Raises `BadRequest`."""
    if value is None or value == "none":
        return None
    if isinstance(value, Pid):
        return value
    raise BadRequest(f"handle takes a pid or :none, not {value!r}")


def code_parts(term: object) -> tuple[str, str, int]:
    """Source, file and line of what a request gives as code. Raises `BadRequest`."""
    if isinstance(term, str) and not isinstance(term, Atom):
        return term, "<Snex.Code>", 0
    if isinstance(term, dict) and term.get("__struct__") == "Elixir.Snex.Code":
        source, file, line = _text(term.get("src")), term.get("file"), term.get("line")
        if source is not None and isinstance(file, str) and type(line) is int and line >= 0:
            return source, file, line
    raise BadRequest(f"code is a binary, nil or a %Snex.Code{{}}, not {repr(term)[:200]}")


def _text(iodata: object) -> str | None:
    """Text given as iodata: a binary, or lists of binaries and code points."""
    if isinstance(iodata, str):
        return iodata
    if not isinstance(iodata, list):
        return None
    parts: list[str] = []
    stack: list[object] = [iodata]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(reversed(part))
        elif isinstance(part, str):
            parts.append(part)
        elif isinstance(part, int) and 0 <= part < 256:
            parts.append(chr(part))
        else:
            return None
    return "".join(parts)


def read_variables(decoder: Decoder, data: bytes, at: int) -> tuple[Variables, int]:
    """The variables of a request, by name, and the offset behind them.

    Raises `BadRequest`, `Failure`.
    """
    try:
        variables, end = decoder.decode(data, at)
    except DecodeError as error:
        raise _locate(decoder, data, at, error) from None
    if not isinstance(variables, dict):
        raise BadRequest(f"variables are a map, not {repr(variables)[:200]}")
    for name in variables:
        if type(name) is not str:
            return _with_names(variables), end
    return variables, end


def _with_names(variables: dict[Any, object]) -> Variables:
    named: Variables = {}
    for name, value in variables.items():
        if isinstance(name, serde.Term):  # a binary under `binary_as: :bytearray`
            name = serde.to_typed(name)
        if isinstance(name, bytes):
            named[bytes(name).decode("utf-8", "replace")] = value
        elif isinstance(name, str):
            named[str.__str__(name)] = value
        else:
            raise BadRequest(f"a variable's name is a binary or an atom, not {name!r}")
    return named


def _locate(decoder: Decoder, data: bytes, at: int, error: DecodeError) -> Exception:
    """Which variable of a map it is that cannot be decoded."""
    try:
        if data[at] != 116:
            return error
        count, position = _u32(data, at + 1)[0], at + 5
        for _ in range(count):
            name, position = typed.decode(data, position)
            try:
                _, position = decoder.decode(data, position)
            except DecodeError as found:
                reason = f"variable {str(name)!r} cannot be converted: {found}"
                return Failure("python_runtime_error", reason + _remedy(data, position))
    except (DecodeError, IndexError):
        return error
    return error


def _remedy(data: bytes, at: int) -> str:
    """What to do about a value that only its texts keep from being decoded; else nothing."""
    try:
        _bytes.decode(data, at)
    except DecodeError:
        return ""
    return ". Send `encoding_opts: [binary_as: :bytes]` with the request to have it as bytes"


NO_OPTIONS: Final = EvalOptions()
"""The options of a request that brings none."""
