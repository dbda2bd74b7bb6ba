"""A request, and what is in it: code, variables and options, read and checked.

Source: "The contract" in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from time import perf_counter_ns
from types import CodeType
from typing import Any, ClassVar, Final, Protocol, TypeVar

from snex_node.cluster.connection import Ahead
from snex_node.processes.host import Host
from snex_node.processes.process import BaseProcess
from snex_node.wire.describe import inspect, short
from snex_node.wire.etf import DecodeError, Decoder
from snex_node.wire.gen import GEN_CALL, GEN_CAST, From, parse_system
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom, ImproperList, Pid
from snex_runtime import serde, tracing
from snex_runtime.contexts import Enter
from snex_runtime.errors import BadRequest, Failure
from snex_runtime.kept import held, put_in
from snex_runtime.namespace import Variables
from snex_runtime.origin import Origin, OriginNode
from snex_runtime.sources import VIRTUAL_FILE, shown

MAX_TIMEOUT: Final = 2**32 - 1
"""Longest time limit, in milliseconds (49 days): a BEAM waits for no longer itself. Larger numbers
are mistakes, and those of thousands of digits fit no clock."""

MAX_EVAL_OPTIONS: Final = 4096
"""Bytes of the options of an eval request: all that there are take some 200."""

MAX_EVAL_OPTIONS_KNOWN: Final = 256
"""Options that are remembered."""

_u32 = Struct(">I").unpack_from

# Requests and options are read with pids as pids and text as str, whatever the user's options are.
typed: Final = Decoder(binary_as="str")
_bytes: Final = Decoder()

_LISTS: Final = (b"l", b"j")
"""How a list begins."""


class Line(Protocol):
    """A connection."""

    def look_ahead(self) -> Ahead:
        """What has come while the event loop is blocked, from another thread."""

    def send(
        self, message: bytes, payload: Payload = b"", sender: object = None, before: bytes = b""
    ) -> None:
        """Send a control message and its payload; those of one ``sender`` keep their order.

        ``before`` is what the payload begins with, for one that is too large to be copied for that.
        """


class Encodes(Protocol):
    """Encodes values."""

    def encode(self, term: object, before: bytes = b"") -> bytes:
        """The external form of ``term``, behind ``before``. Raises `EncodeError`."""

    def encode_payload(self, term: object, before: bytes = b"") -> Payload:
        """The same for a message: in pieces where much is in it."""


class Asker(OriginNode, Protocol):
    """The node that a request came from."""

    @property
    def encoder(self) -> Encodes:
        """What encodes values for it."""

    @property
    def connection(self) -> Line | None:
        """The connection to it, if there is one."""

    @property
    def alias_send(self) -> Callable[[Pid, bytes], bytes]:
        """Makes the control message from a pid to an alias, in external form, as it wants it."""


class Place(Protocol):
    """Where requests that run in threads run one after another: an environment."""

    def lend(self) -> Enter:
        """What enters its context, in another thread, until that has been given back."""

    def give_back(self, enter: Enter) -> None:
        """That is over."""


class Receiver(Protocol):
    """A process that takes requests."""

    @property
    def pid(self) -> Pid:
        """Its pid, which answers come from."""

    @property
    def variables(self) -> Variables | None:
        """What its requests run in; None: each in a copy of its own of the root's."""

    @property
    def threaded(self) -> bool:
        """Whether its requests run in threads, where they do not say."""

    @property
    def place(self) -> Place | None:
        """Where they run one after another in threads; None: nothing of them has to wait."""

    def system_received(self, caller: From, request: object) -> None:
        """Answer a system message."""

    def is_monitored_with(self, ref: bytes) -> bool:
        """Whether somebody monitors it with the reference of this external form."""


class Request:
    """One request, from its bytes to its answer; `make_request` makes one."""

    __slots__ = (
        "arity",
        "at",
        "began",
        "caller",
        "continues",
        "data",
        "enter",
        "kind",
        "process",
        "progress",
        "remote",
        "runs",
        "traceparent",
        "variables",
    )

    watched_elsewhere: ClassVar[bool] = False
    """Whether others look after its caller, and tell when that has given up."""

    answered: ClassVar[bool] = False
    """Whether whoever asked has an answer before it is done."""

    process: Receiver
    """Whom it came to."""

    variables: Variables | None
    """What it runs in; None: in a copy of its own of the root's."""

    enter: Enter
    """Calls functions in the context that it runs in."""

    caller: From | None
    """Who waits for the answer, if anybody does."""

    remote: Asker
    """Where it came from."""

    data: bytes
    at: int
    """Where in ``data`` the next part of it begins."""

    arity: int
    """The number of all its parts, its kind among them; 0 of an atom."""

    began: int
    """When it was read, in nanoseconds of `time.perf_counter_ns`."""

    kind: str
    """What it asks for, ``eval`` say; set when that has been read: see `called`."""

    runs: object
    """What it runs, set once that is known: a snippet, or module and function of a call."""

    traceparent: str
    """Where it stands in a trace; set where it says so."""

    progress: object
    """Who is told how far it has come; set where it says so."""

    continues: bool
    """Set, to True, where it goes on when its caller has given up: see `goes_on`."""

    @property
    def takers(self) -> Sequence[tuple[Line | None, From]]:
        """Who it works for besides, each with the connection to its node. From any thread."""
        return ()

    @property
    def goes_on(self) -> bool:
        """Whether it goes on when its caller has given up."""
        return getattr(self, "continues", False)

    @property
    def asked(self) -> Origin:
        """Where it came from."""
        traceparent = getattr(self, "traceparent", None)
        if traceparent is None:
            return self.remote, self.caller
        return self.remote, self.caller, traceparent

    @property
    def called(self) -> str:
        """Its `kind`, for people; of one that has none, ``unknown``."""
        return getattr(self, "kind", "unknown")

    @property
    def place(self) -> str | None:
        """Where what it runs is: file and line of a snippet, or the function; None: not known."""
        return _place_of(getattr(self, "runs", None))

    def read(self, decoder: Decoder) -> Any:
        """The next part."""
        value, self.at = decoder.decode(self.data, self.at)
        return value

    def let_go(self) -> None:
        """Forget the bytes, which may be large: all that counts of them has been read."""
        self.data = b""


_LONG: Final = 300


def _place_of(runs: object) -> str | None:
    if isinstance(runs, tuple):
        place = ".".join(map(str.__str__, runs))
    else:
        code = getattr(runs, "code", None)
        if not isinstance(code, CodeType):
            return None
        place = f"{shown(code.co_filename)}:{code.co_firstlineno}"
    return place if len(place) < _LONG and place.isprintable() else short(place)


class Served(Protocol):
    """Who takes requests, on a node."""

    @property
    def node(self) -> Host:
        """The node that it is on."""

    def system_received(self, caller: From, request: object) -> None:
        """A system message."""

    def external_received(self, data: bytes, offset: int, remote: Asker) -> None:
        """A message in external form."""


def receive_from_here(process: Served, message: object) -> None:
    """Have a system message, a call or a cast of a process of this node taken as one of another
    node is.

    Other messages are dropped. Raises `EncodeError` for what has no external form.
    """
    system = parse_system(message)
    if system is not None:
        process.system_received(*system)
    elif isinstance(message, tuple) and message[:1] in ((GEN_CALL,), (GEN_CAST,)):
        node = process.node
        process.external_received(node.encoder.encode(message), 0, node.remote(node.name))


def stopped_or_refused(process: BaseProcess, caller: From, request: object) -> None:
    """Answer a system message: ``GenServer.stop/1`` ends ``process``, others are not known."""
    if isinstance(request, tuple) and len(request) == 2 and request[0] == "terminate":
        process.node.reply(caller, Atom("ok"), sender=process.pid)
        process.exit(request[1])
    else:
        unknown = (Atom("error"), Atom("unknown_system_msg"))
        process.node.reply(caller, unknown, sender=process.pid)


class AskerWith:
    """A node that has asked, for whom values are encoded in another way."""

    def __init__(self, remote: Asker, encoder: Encodes) -> None:
        self._remote = remote
        self.name: Final = remote.name
        self.encoder: Final = encoder

    @property
    def connection(self) -> Line | None:
        """The connection to it, if there is one."""
        return self._remote.connection

    @property
    def alias_send(self) -> Callable[[Pid, bytes], bytes]:
        """Makes the control message from a pid to an alias, in external form, as it wants it."""
        return self._remote.alias_send


R = TypeVar("R", bound=Request)


def make_request(
    process: Receiver,
    enter: Enter,
    caller: From | None,
    remote: Asker,
    data: bytes,
    at: int,
    kind: type[R] = Request,  # type: ignore[assignment]
) -> R:
    """A request to ``process``, of which nothing has been read: it is at ``data[at]``.

    0.3 us; with an ``__init__`` it would be 0.4, as Python up to 3.12 has it.
    """
    request = kind()
    request.process = process
    request.variables = process.variables
    request.enter = enter
    request.caller = caller
    request.remote = remote
    request.data = data
    request.at = at
    request.arity = 0
    request.began = perf_counter_ns()
    return request


class Reader:
    """Reads variables, by the encoding options of a runtime or those of the request.

    ``max_time`` is the time limit, in seconds, of requests that bring none.
    """

    def __init__(self, options: serde.Options, max_time: float | None = None) -> None:
        self._options = options
        self._max_time = max_time
        self.no_options: Final = EvalOptions(None, max_time)
        """The options of a request that brings none."""
        self.decoder: Final = serde.decoder(options)
        """Decodes what comes without options of its own."""
        self._eval_options: dict[bytes, EvalOptions] = {}

    def eval_options(self, raw: object) -> EvalOptions:
        """These options, checked."""
        return EvalOptions(raw, self._max_time)

    def decoder_for(self, raw: object) -> Decoder:
        """The decoder by the encoding options among these options."""
        return serde.decoder(encoding_options(raw, self._options))

    def variables_and_options(self, request: Request) -> tuple[Variables, object]:
        """The variables that come next, and the options, which say how to decode those.

        Options come behind them, or before, as a list then. Passing over large variables costs as
        much as decoding them, so that is done only where the bytes can hold the one option that
        matters. Raises `BadRequest`, `Failure`.
        """
        data, at = request.data, request.at
        if data[at : at + 1] in _LISTS:
            raw, at = typed.decode(data, at)
            encoding = encoding_options(raw, self._options)
            return read_variables(serde.decoder(encoding), data, at)[0], raw
        if data.find(b"encoding_opts", at) < 0:
            variables, end = read_variables(self.decoder, data, at)
            return variables, typed.decode(data, end)[0]
        raw = typed.decode(data, typed.skip(data, at))[0]
        encoding = encoding_options(raw, self._options)
        return read_variables(serde.decoder(encoding), data, at)[0], raw

    def variables_and_eval_options(self, request: Request) -> tuple[Variables, EvalOptions]:
        """The same for an eval request, whose options are few, short, and nearly always the same.

        So they are remembered by their bytes: to read them took a fifth of all that a call takes.
        """
        data, at = request.data, request.at
        if (
            data.find(b"encoding_opts", max(at, len(data) - MAX_EVAL_OPTIONS)) >= 0
            or data[at : at + 1] in _LISTS
        ):
            variables, raw = self.variables_and_options(request)
            return variables, EvalOptions(raw, self._max_time)
        variables, end = read_variables(self.decoder, data, at)
        tail = data[end:]
        options = self._eval_options.get(tail)
        if options is None:
            options = EvalOptions(typed.decode(data, end)[0], self._max_time)
            if len(tail) > MAX_EVAL_OPTIONS:
                raise BadRequest(f"options of {len(tail)} bytes: more than {MAX_EVAL_OPTIONS}")
            if options.is_single:
                return variables, options
            if len(self._eval_options) >= MAX_EVAL_OPTIONS_KNOWN:
                self._eval_options.clear()
            self._eval_options[tail] = options
        return variables, options


class EvalOptions:
    """The options of a request that runs code, checked; ``max_time`` is the limit where they give
    none.
    """

    __slots__ = (
        *("continues", "handle", "keep", "kill_after", "limited", "progress", "shared"),
        *("special", "threaded", "timeout", "traceparent"),
    )

    def __init__(self, raw: object = None, max_time: float | None = None) -> None:
        known = (
            *("encoding_opts", "timeout", "on_timeout", "kill_after", "executor"),
            *("traceparent", "keep", "handle", "progress", "shared"),
        )
        options = options_in(raw, known)
        self.limited = options.get("timeout") is not None
        """Whether they say how long it may take."""
        self.timeout = _seconds_in(options, "timeout") if self.limited else max_time
        self.kill_after = _seconds_in(options, "kill_after")
        self.threaded = threaded_in(options.get("executor"))
        """Whether it is to run in a thread; None: as it is where it runs."""
        on_timeout = options.get("on_timeout", "cancel")
        if on_timeout not in ("cancel", "continue"):
            raise BadRequest(f"on_timeout takes :cancel or :continue, not {inspect(on_timeout)}")
        self.continues = on_timeout == "continue"
        self.traceparent = _traceparent_in(options.get("traceparent"))
        """Where the request stands in a trace, if it says so."""
        self.shared = _flag_in(options, "shared")
        """Whether large data of the answer may be lent: see `lending`."""
        self.keep = options.get("keep", False)
        """Whether the result stays here, as an object; ``"shown"``: and is described."""
        if self.keep not in (True, False, "shown"):
            raise BadRequest(f"keep takes true or false, not {inspect(self.keep)}")
        self.handle = options.get("handle")
        """What keeps that object; None: the caller."""
        self.progress = options.get("progress")
        """Who is told how far it has come: a pid or a name, if anybody is."""
        self.special = bool(self.keep or self.shared or self.progress or self.traceparent)
        """Whether there is any of these, which few have."""

    @property
    def is_single(self) -> bool:
        """Whether there is something among them that will hardly come again."""
        return not (self.traceparent is None and self.handle is None and self.progress is None)


def _traceparent_in(value: object) -> str | None:
    if value is None:
        return None
    try:
        return tracing.checked(value)
    except ValueError as error:
        raise BadRequest(f"{error}, not {inspect(value)}") from None


def _flag_in(options: Mapping[str, object], name: str) -> bool:
    value = options.get(name, False)
    if type(value) is not bool:
        raise BadRequest(f"{name} takes true or false, not {inspect(value)}")
    return value


def _seconds_in(options: Mapping[str, object], name: str) -> float | None:
    """The time limit ``name``, in seconds; None where there is none. Raises `BadRequest`."""
    value = options.get(name)
    if value is None or value == "infinity":
        return None
    if type(value) is not int or not 0 <= value <= MAX_TIMEOUT:
        raise BadRequest(
            f"{name} takes milliseconds, 0 to {MAX_TIMEOUT}, or :infinity, not {inspect(value)}"
        )
    return value / 1000


def options_in(raw: object, known: tuple[str, ...]) -> dict[str, Any]:
    """Options given as a keyword list or a map. Raises `BadRequest` for others than ``known``."""
    options: dict[str, Any] = {}
    for name, value in _pairs(raw, "options"):
        if name not in known:
            told = name if isinstance(name, Atom) else inspect(name)
            raise BadRequest(f"unknown option {told}: there are {', '.join(known)}")
        options.setdefault(str(name), value)  # the first counts, as in a keyword list
    return options


def _pairs(raw: object, what: str) -> list[tuple[object, object]]:
    """A keyword list or a map as pairs; nil is an empty one. Raises `BadRequest`."""
    if raw is None:
        return []
    if isinstance(raw, dict):
        return list(raw.items())
    if isinstance(raw, list) and all(type(pair) is tuple and len(pair) == 2 for pair in raw):
        return raw
    raise BadRequest(f"{what} are a keyword list or a map, not {inspect(raw)}")


def encoding_options(raw: object, base: serde.Options) -> serde.Options:
    """The encoding options among the options of a request, over ``base``. Raises `BadRequest`."""
    pairs = _pairs(raw, "options")
    given = next((value for name, value in pairs if name == "encoding_opts"), None)
    try:
        return serde.merge_options(given, base)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def threaded_in(value: object) -> bool | None:
    """Whether an ``executor`` option asks for threads; None without one. Raises `BadRequest`."""
    if value is None:
        return None
    if value in ("loop", "thread"):
        return value == "thread"
    raise BadRequest(f"executor takes :loop or :thread, not {inspect(value)}")


def handle_in(value: object) -> Pid | None:
    """The handle that a request names; None for ``:none``. Raises `BadRequest`."""
    if value is None or value == "none":
        return None
    if isinstance(value, Pid):
        return value
    raise BadRequest(f"handle takes a pid or :none, not {inspect(value)}")


def code_parts(term: object) -> tuple[str, str, int]:
    """Source, file and line of what a request gives as code, with binaries as ``bytes``.

    Raises `BadRequest`.
    """
    if isinstance(term, bytes):
        return _source(term), VIRTUAL_FILE, 0
    if isinstance(term, dict) and term.get("__struct__") == "Elixir.Snex.Code":
        source, file, line = _join(term.get("src")), term.get("file"), term.get("line")
        if source is not None and isinstance(file, bytes) and type(line) is int and line >= 0:
            return _source(source), file.decode("utf-8", "replace"), line
    if isinstance(term, list) and term and all(type(each) is int for each in term[:_LOOKED_AT]):
        raise BadRequest(
            f"code is a binary, nil or a %Snex.Code{{}}, not the charlist {_charlist(term)}: "
            "give it in double quotes, or through List.to_string/1"
        )
    raise BadRequest(f"code is a binary, nil or a %Snex.Code{{}}, not {inspect(term)}")


_LOOKED_AT: Final = 200


def _charlist(term: list[int]) -> str:
    characters = (each if 0 <= each < 0x110000 else 0xFFFD for each in term[:_LOOKED_AT])
    return f"~c{inspect(''.join(map(chr, characters)))}"


def _source(code: bytes) -> str:
    try:
        return code.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"code is not UTF-8: the byte {code[error.start]:#04x} at {error.start} belongs to no "
            "character; `:unicode.characters_to_binary(code, :latin1)` converts Latin-1"
        ) from None


def _join(iodata: object) -> bytes | None:
    """A binary, or lists of binaries and bytes, as one; None for all else."""
    if not isinstance(iodata, bytes | list | ImproperList):
        return None
    parts: list[bytes] = []
    stack: list[object] = [iodata]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(reversed(part))
        elif isinstance(part, ImproperList):
            stack += (part.tail, *reversed(part.elements))
        elif isinstance(part, bytes):
            parts.append(part)
        elif type(part) is int and 0 <= part < 256:
            parts.append(bytes((part,)))
        else:
            return None
    return b"".join(parts)


def read_variables(decoder: Decoder, data: bytes, at: int) -> tuple[Variables, int]:
    """The variables of a request, by name, and the offset behind them.

    Raises `BadRequest`, `Failure`.
    """
    try:
        variables, end = decoder.decode(data, at)
    except DecodeError as error:
        raise _locate(decoder, data, at, error) from None
    if not isinstance(variables, dict):
        raise BadRequest(f"variables are a map, not {inspect(variables)}")
    if held:
        put_in(variables)
    for name in variables:
        if type(name) is not str:
            return _with_names(variables), end
    return variables, end


def read_keywords(decoder: Decoder, data: bytes, at: int) -> Variables:
    """The keyword arguments of a request: a map or a keyword list, in which the first counts.

    Raises `BadRequest`.
    """
    if data[at : at + 1] == b"t":
        return read_variables(decoder, data, at)[0]
    given: dict[object, object] = {}
    for name, value in _pairs(decoder.decode(data, at)[0], "keyword arguments"):
        if not isinstance(name, str | bytes):
            raise BadRequest(f"a keyword argument's name is an atom, not {inspect(name)}")
        given.setdefault(name, value)
    return _with_names(given)


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
            raise BadRequest(f"a variable's name is a binary or an atom, not {inspect(name)}")
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
                reason = f"variable {inspect(name)} cannot be converted: {found}"
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
