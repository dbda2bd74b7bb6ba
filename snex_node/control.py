"""Control messages: each as a type with its opcode, to and from external terms.

Source: "Protocol between Connected Nodes" in the distribution protocol chapter of the ERTS user's
guide. A control message is a tuple that begins with its opcode; some are followed by a payload, a
term of its own that this module does not touch.

The operations that carry a sequential-trace token are the plain ones with one element more: they
decode to the same types with ``token`` set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from snex_node.etf import DecodeError, Decoder, Encoder
from snex_node.terms import Atom, Pid, Reference

_decoder = Decoder()
_encode = Encoder().encode
_EMPTY = Atom("")


class ControlError(ValueError):
    """A control message that the protocol does not know, or of a shape it does not have."""


@dataclass(slots=True)
class Link:
    """LINK: ``from_`` links itself to ``to``."""

    opcode: ClassVar[int] = 1
    from_: Pid
    to: Pid


@dataclass(slots=True)
class Send:
    """SEND: the payload is a message to ``to``; the sender is not named."""

    opcode: ClassVar[int] = 2
    to: Pid
    token: object = None


@dataclass(slots=True)
class Exit:
    """EXIT: ``from_`` has ended and was linked to ``to`` (form without a payload)."""

    opcode: ClassVar[int] = 3
    from_: Pid
    to: Pid
    reason: object
    token: object = None


@dataclass(slots=True)
class Unlink:
    """UNLINK: the form before OTP 26; received, never sent."""

    opcode: ClassVar[int] = 4
    from_: Pid
    to: Pid


@dataclass(slots=True)
class NodeLink:
    """NODE_LINK: reserved; nothing sends it."""

    opcode: ClassVar[int] = 5


@dataclass(slots=True)
class RegSend:
    """REG_SEND: the payload is a message to the process registered as ``name``."""

    opcode: ClassVar[int] = 6
    from_: Pid
    name: Atom
    token: object = None


@dataclass(slots=True)
class GroupLeader:
    """GROUP_LEADER: ``leader`` becomes the group leader of ``to``."""

    opcode: ClassVar[int] = 7
    leader: Pid
    to: Pid


@dataclass(slots=True)
class Exit2:
    """EXIT2: ``from_`` called ``exit(to, reason)`` (form without a payload)."""

    opcode: ClassVar[int] = 8
    from_: Pid
    to: Pid
    reason: object
    token: object = None


@dataclass(slots=True)
class MonitorP:
    """MONITOR_P: ``from_`` monitors ``target``, a pid or a registered name."""

    opcode: ClassVar[int] = 19
    from_: Pid
    target: Pid | Atom
    ref: Reference


@dataclass(slots=True)
class DemonitorP:
    """DEMONITOR_P: ``from_`` takes its monitor ``ref`` back, or has ended."""

    opcode: ClassVar[int] = 20
    from_: Pid
    target: Pid | Atom
    ref: Reference


@dataclass(slots=True)
class MonitorPExit:
    """MONITOR_P_EXIT: what ``to`` monitored has ended (form without a payload)."""

    opcode: ClassVar[int] = 21
    from_: Pid | Atom
    to: Pid
    ref: Reference
    reason: object


@dataclass(slots=True)
class SendSender:
    """SEND_SENDER: the payload is a message from ``from_`` to ``to``."""

    opcode: ClassVar[int] = 22
    from_: Pid
    to: Pid
    token: object = None


@dataclass(slots=True)
class PayloadExit:
    """PAYLOAD_EXIT: `Exit` with its reason as payload."""

    opcode: ClassVar[int] = 24
    from_: Pid
    to: Pid
    token: object = None


@dataclass(slots=True)
class PayloadExit2:
    """PAYLOAD_EXIT2: `Exit2` with its reason as payload."""

    opcode: ClassVar[int] = 26
    from_: Pid
    to: Pid
    token: object = None


@dataclass(slots=True)
class PayloadMonitorPExit:
    """PAYLOAD_MONITOR_P_EXIT: `MonitorPExit` with its reason as payload (the DOWN signal)."""

    opcode: ClassVar[int] = 28
    from_: Pid | Atom
    to: Pid
    ref: Reference


@dataclass(slots=True)
class SpawnRequest:
    """SPAWN_REQUEST: start ``module:function/arity`` with the payload as its list of arguments."""

    opcode: ClassVar[int] = 29
    id: Reference
    from_: Pid
    group_leader: Pid
    mfa: tuple[Atom, Atom, int]
    options: list[object]
    token: object = None


@dataclass(slots=True)
class SpawnReply:
    """SPAWN_REPLY: ``result`` is the new pid, or an atom that says why there is none.

    ``flags``: 1 a link was set up, 2 a monitor.
    """

    LINK: ClassVar[int] = 1
    MONITOR: ClassVar[int] = 2
    opcode: ClassVar[int] = 31
    id: Reference
    to: Pid
    flags: int
    result: Pid | Atom
    token: object = None


@dataclass(slots=True)
class AliasSend:
    """ALIAS_SEND: the payload is a message to the process that owns ``alias``."""

    opcode: ClassVar[int] = 33
    from_: Pid
    alias: Reference
    token: object = None


@dataclass(slots=True)
class UnlinkId:
    """UNLINK_ID: ``from_`` drops its link to ``to``; answered by `UnlinkIdAck` with the same id."""

    opcode: ClassVar[int] = 35
    id: int
    from_: Pid
    to: Pid


@dataclass(slots=True)
class UnlinkIdAck:
    """UNLINK_ID_ACK: ``from_`` has seen the unlink ``id`` of ``to``."""

    opcode: ClassVar[int] = 36
    id: int
    from_: Pid
    to: Pid


@dataclass(slots=True)
class AltactSigSend:
    """ALTACT_SIG_SEND (OTP 28): a message, or with ``EXIT`` an exit signal, in one form for all.

    ``to`` is an alias, a name or a pid, as ``flags`` say.
    """

    PRIORITY: ClassVar[int] = 1
    TOKEN: ClassVar[int] = 2
    ALIAS: ClassVar[int] = 4
    NAME: ClassVar[int] = 8
    EXIT: ClassVar[int] = 16
    opcode: ClassVar[int] = 37
    flags: int
    from_: Pid
    to: Pid | Atom | Reference
    token: object = None


ControlMessage = (
    Link
    | Send
    | Exit
    | Unlink
    | NodeLink
    | RegSend
    | GroupLeader
    | Exit2
    | MonitorP
    | DemonitorP
    | MonitorPExit
    | SendSender
    | PayloadExit
    | PayloadExit2
    | PayloadMonitorPExit
    | SpawnRequest
    | SpawnReply
    | AliasSend
    | UnlinkId
    | UnlinkIdAck
    | AltactSigSend
)

MAX_UNLINK_ID = 2**64 - 1
"""Unlink ids are 1 to this; BEAM closes the connection for any other."""


# --- decoding -----------------------------------------------------------------------------------


def decode(data: bytes, offset: int = 0) -> tuple[ControlMessage, int]:
    """Decode the control message at ``offset``; returns it and the offset behind it.

    Raises `DecodeError` when the bytes are no term, `ControlError` when the term is no control
    message that we know: the frame can then be skipped, its boundaries are not in doubt.
    """
    fast = _FAST.get(data[offset : offset + 4])
    if fast is not None:
        try:
            found = fast(data, offset + 4)
        except IndexError:
            found = None
        if found is not None:
            return found
    term, end = _decoder.decode(data, offset)
    if not isinstance(term, tuple) or not term or not isinstance(term[0], int):
        raise ControlError(f"no control message: {_shorten(term)}")
    build = _BUILDERS.get((term[0], len(term)))
    if build is None:
        raise ControlError(f"unknown control message: {_shorten(term)}")
    return build(term), end


def _shorten(term: object) -> str:
    text = repr(term)
    return text if len(text) <= 200 else text[:200] + "..."


def _pid(term: object) -> Pid:
    if not isinstance(term, Pid):
        raise ControlError(f"{_shorten(term)} stands where a pid belongs")
    return term


def _ref(term: object) -> Reference:
    if not isinstance(term, Reference):
        raise ControlError(f"{_shorten(term)} stands where a reference belongs")
    return term


def _atom(term: object) -> Atom:
    if term is None or isinstance(term, bool):
        return Atom(_RESERVED[term])
    if not isinstance(term, Atom):
        raise ControlError(f"{_shorten(term)} stands where an atom belongs")
    return term


_RESERVED: dict[object, str] = {None: "nil", True: "true", False: "false"}


def _int(term: object) -> int:
    if type(term) is not int:
        raise ControlError(f"{_shorten(term)} stands where an integer belongs")
    return term


def _unlink_id(term: object) -> int:
    number = _int(term)
    if not 1 <= number <= MAX_UNLINK_ID:
        raise ControlError(f"{number} is no unlink id: 1 to 2^64-1")
    return number


def _pid_or_atom(term: object) -> Pid | Atom:
    return term if isinstance(term, Pid) else _atom(term)


def _mfa(term: object) -> tuple[Atom, Atom, int]:
    if not isinstance(term, tuple) or len(term) != 3:
        raise ControlError(f"{_shorten(term)} stands where module, function and arity belong")
    return _atom(term[0]), _atom(term[1]), _int(term[2])


def _list(term: object) -> list[object]:
    if not isinstance(term, list):
        raise ControlError(f"{_shorten(term)} stands where a list belongs")
    return term


def _build_altact(t: tuple[object, ...]) -> AltactSigSend:
    flags = _int(t[1])
    if bool(flags & AltactSigSend.TOKEN) != (len(t) == 5):
        raise ControlError(f"flags and length disagree: {_shorten(t)}")
    to: Pid | Atom | Reference
    if flags & AltactSigSend.ALIAS:
        to = _ref(t[3])
    elif flags & AltactSigSend.NAME:
        to = _atom(t[3])
    else:
        to = _pid(t[3])
    return AltactSigSend(flags, _pid(t[2]), to, t[4] if len(t) == 5 else None)


_BUILDERS: dict[tuple[int, int], Callable[[tuple[object, ...]], ControlMessage]] = {
    (1, 3): lambda t: Link(_pid(t[1]), _pid(t[2])),
    (2, 3): lambda t: Send(_pid(t[2])),
    (12, 4): lambda t: Send(_pid(t[2]), t[3]),
    (3, 4): lambda t: Exit(_pid(t[1]), _pid(t[2]), t[3]),
    (13, 5): lambda t: Exit(_pid(t[1]), _pid(t[2]), t[4], t[3]),
    (4, 3): lambda t: Unlink(_pid(t[1]), _pid(t[2])),
    (5, 1): lambda t: NodeLink(),
    (6, 4): lambda t: RegSend(_pid(t[1]), _atom(t[3])),
    (16, 5): lambda t: RegSend(_pid(t[1]), _atom(t[3]), t[4]),
    (7, 3): lambda t: GroupLeader(_pid(t[1]), _pid(t[2])),
    (8, 4): lambda t: Exit2(_pid(t[1]), _pid(t[2]), t[3]),
    (18, 5): lambda t: Exit2(_pid(t[1]), _pid(t[2]), t[4], t[3]),
    (19, 4): lambda t: MonitorP(_pid(t[1]), _pid_or_atom(t[2]), _ref(t[3])),
    (20, 4): lambda t: DemonitorP(_pid(t[1]), _pid_or_atom(t[2]), _ref(t[3])),
    (21, 5): lambda t: MonitorPExit(_pid_or_atom(t[1]), _pid(t[2]), _ref(t[3]), t[4]),
    (22, 3): lambda t: SendSender(_pid(t[1]), _pid(t[2])),
    (23, 4): lambda t: SendSender(_pid(t[1]), _pid(t[2]), t[3]),
    (24, 3): lambda t: PayloadExit(_pid(t[1]), _pid(t[2])),
    (25, 4): lambda t: PayloadExit(_pid(t[1]), _pid(t[2]), t[3]),
    (26, 3): lambda t: PayloadExit2(_pid(t[1]), _pid(t[2])),
    (27, 4): lambda t: PayloadExit2(_pid(t[1]), _pid(t[2]), t[3]),
    (28, 4): lambda t: PayloadMonitorPExit(_pid_or_atom(t[1]), _pid(t[2]), _ref(t[3])),
    (29, 6): lambda t: SpawnRequest(_ref(t[1]), _pid(t[2]), _pid(t[3]), _mfa(t[4]), _list(t[5])),
    (30, 7): lambda t: SpawnRequest(
        _ref(t[1]), _pid(t[2]), _pid(t[3]), _mfa(t[4]), _list(t[5]), t[6]
    ),
    (31, 5): lambda t: SpawnReply(_ref(t[1]), _pid(t[2]), _int(t[3]), _pid_or_atom(t[4])),
    (32, 6): lambda t: SpawnReply(_ref(t[1]), _pid(t[2]), _int(t[3]), _pid_or_atom(t[4]), t[5]),
    (33, 3): lambda t: AliasSend(_pid(t[1]), _ref(t[2])),
    (34, 4): lambda t: AliasSend(_pid(t[1]), _ref(t[2]), t[3]),
    (35, 4): lambda t: UnlinkId(_unlink_id(t[1]), _pid(t[2]), _pid(t[3])),
    (36, 4): lambda t: UnlinkIdAck(_unlink_id(t[1]), _pid(t[2]), _pid(t[3])),
    (37, 4): _build_altact,
    (37, 5): _build_altact,
}

# What one GenServer.call costs is a monitor, a registered send (or a send) and a demonitor. Their
# bytes are read here directly, 1 us each instead of 6 to 9 through the general decoder; anything
# unusual (an old pid form, a Latin-1 atom) returns None and goes the general way.

_PID = 88
_REF = 90
_SMALL_ATOM = 119

_MAX_CACHED = 4096
"""Pids and names kept to save building them anew: 4,096 entries of some 200 bytes are 800 KiB."""

_pids: dict[bytes, Pid] = {}
_names: dict[bytes, Atom] = {}


def _read_pid(data: bytes, start: int) -> tuple[Pid, int] | None:
    if data[start] != _PID or data[start + 1] != _SMALL_ATOM:
        return None
    end = start + 15 + data[start + 2]
    raw = data[start:end]
    pid = _pids.get(raw)
    if pid is None:
        found, at = _decoder.decode(data, start)
        if at != end or not isinstance(found, Pid):
            return None
        if len(_pids) >= _MAX_CACHED:
            _pids.clear()
        _pids[raw] = pid = found
    return pid, end


def _read_name(data: bytes, start: int) -> tuple[Atom, int] | None:
    if data[start] != _SMALL_ATOM:
        return None
    end = start + 2 + data[start + 1]
    raw = data[start:end]
    name = _names.get(raw)
    if name is None:
        found, at = _decoder.decode(data, start)
        if at != end or not isinstance(found, Atom):
            return None
        if len(_names) >= _MAX_CACHED:
            _names.clear()
        _names[raw] = name = found
    return name, end


def _read_ref(data: bytes, start: int) -> tuple[Reference, int] | None:
    words = data[start + 2]
    if (
        data[start] != _REF
        or data[start + 1]
        or data[start + 3] != _SMALL_ATOM
        or not 1 <= words <= 5
    ):
        return None
    end = start + 9 + data[start + 4] + 4 * words
    if end > len(data):
        return None
    return Reference.from_external(data[start:end]), end


def _read_monitor(
    data: bytes, start: int, kind: type[MonitorP] | type[DemonitorP]
) -> tuple[MonitorP | DemonitorP, int] | None:
    from_ = _read_pid(data, start)
    if from_ is None:
        return None
    at = from_[1]
    target = _read_name(data, at) if data[at] == _SMALL_ATOM else _read_pid(data, at)
    if target is None:
        return None
    ref = _read_ref(data, target[1])
    if ref is None:
        return None
    return kind(from_[0], target[0], ref[0]), ref[1]


def _fast_monitor(data: bytes, start: int) -> tuple[ControlMessage, int] | None:
    return _read_monitor(data, start, MonitorP)


def _fast_demonitor(data: bytes, start: int) -> tuple[ControlMessage, int] | None:
    return _read_monitor(data, start, DemonitorP)


def _fast_reg_send(data: bytes, start: int) -> tuple[ControlMessage, int] | None:
    from_ = _read_pid(data, start)
    if from_ is None:
        return None
    at = from_[1]
    if data[at] != _SMALL_ATOM or data[at + 1]:
        return None
    name = _read_name(data, at + 2)
    if name is None:
        return None
    return RegSend(from_[0], name[0]), name[1]


def _fast_send_sender(data: bytes, start: int) -> tuple[ControlMessage, int] | None:
    from_ = _read_pid(data, start)
    if from_ is None:
        return None
    to = _read_pid(data, from_[1])
    if to is None:
        return None
    return SendSender(from_[0], to[0]), to[1]


def _fast_alias_send(data: bytes, start: int) -> tuple[ControlMessage, int] | None:
    from_ = _read_pid(data, start)
    if from_ is None:
        return None
    alias = _read_ref(data, from_[1])
    if alias is None:
        return None
    return AliasSend(from_[0], alias[0]), alias[1]


_FAST: dict[bytes, Callable[[bytes, int], tuple[ControlMessage, int] | None]] = {
    b"h\x04a\x13": _fast_monitor,
    b"h\x04a\x14": _fast_demonitor,
    b"h\x04a\x06": _fast_reg_send,
    b"h\x03a\x16": _fast_send_sender,
    b"h\x03a\x21": _fast_alias_send,
}


# --- encoding -----------------------------------------------------------------------------------


def encode(message: ControlMessage) -> bytes:
    """The external form of ``message``, without the version byte."""
    return _ENCODERS[type(message)](message)


def _tuple(*elements: object) -> bytes:
    return _encode(elements)


def _traced(opcode: int, token: object, *elements: object) -> bytes:
    """With the token where the traced forms have it: behind sender and receiver."""
    if token is None:
        return _encode((opcode, *elements))
    traced = {2: 12, 3: 13, 6: 16, 8: 18, 22: 23, 24: 25, 26: 27, 29: 30, 31: 32, 33: 34}[opcode]
    if opcode in (3, 8):
        return _encode((traced, *elements[:2], token, *elements[2:]))
    return _encode((traced, *elements, token))


def _encode_altact(m: AltactSigSend) -> bytes:
    if m.token is None:
        return _tuple(37, m.flags & ~AltactSigSend.TOKEN, m.from_, m.to)
    return _tuple(37, m.flags | AltactSigSend.TOKEN, m.from_, m.to, m.token)


_ENCODERS: dict[type, Callable[..., bytes]] = {
    Link: lambda m: _tuple(1, m.from_, m.to),
    Send: lambda m: _traced(2, m.token, _EMPTY, m.to),
    Exit: lambda m: _traced(3, m.token, m.from_, m.to, m.reason),
    Unlink: lambda m: _tuple(4, m.from_, m.to),
    NodeLink: lambda m: _tuple(5),
    RegSend: lambda m: _traced(6, m.token, m.from_, _EMPTY, m.name),
    GroupLeader: lambda m: _tuple(7, m.leader, m.to),
    Exit2: lambda m: _traced(8, m.token, m.from_, m.to, m.reason),
    MonitorP: lambda m: _tuple(19, m.from_, m.target, m.ref),
    DemonitorP: lambda m: _tuple(20, m.from_, m.target, m.ref),
    MonitorPExit: lambda m: _tuple(21, m.from_, m.to, m.ref, m.reason),
    SendSender: lambda m: _traced(22, m.token, m.from_, m.to),
    PayloadExit: lambda m: _traced(24, m.token, m.from_, m.to),
    PayloadExit2: lambda m: _traced(26, m.token, m.from_, m.to),
    PayloadMonitorPExit: lambda m: _tuple(28, m.from_, m.to, m.ref),
    SpawnRequest: lambda m: _traced(29, m.token, m.id, m.from_, m.group_leader, m.mfa, m.options),
    SpawnReply: lambda m: _traced(31, m.token, m.id, m.to, m.flags, m.result),
    AliasSend: lambda m: _traced(33, m.token, m.from_, m.alias),
    UnlinkId: lambda m: _tuple(35, m.id, m.from_, m.to),
    UnlinkIdAck: lambda m: _tuple(36, m.id, m.from_, m.to),
    AltactSigSend: _encode_altact,
}


def alias_send(from_: Pid, alias: bytes) -> bytes:
    """ALIAS_SEND from the external form of an alias: what each answered call costs."""
    return b"h\x03a\x21" + from_.external + alias


def altact_alias_send(from_: Pid, alias: bytes) -> bytes:
    """The same as ALTACT_SIG_SEND, for peers that claim it."""
    return b"h\x04a\x25a\x04" + from_.external + alias


def send_sender(from_: Pid, to: Pid) -> bytes:
    """SEND_SENDER from external forms."""
    return b"h\x03a\x16" + from_.external + to.external


__all__ = [
    "AliasSend",
    "AltactSigSend",
    "ControlError",
    "ControlMessage",
    "DecodeError",
    "DemonitorP",
    "Exit",
    "Exit2",
    "GroupLeader",
    "Link",
    "MonitorP",
    "MonitorPExit",
    "NodeLink",
    "PayloadExit",
    "PayloadExit2",
    "PayloadMonitorPExit",
    "RegSend",
    "Send",
    "SendSender",
    "SpawnReply",
    "SpawnRequest",
    "Unlink",
    "UnlinkId",
    "UnlinkIdAck",
    "alias_send",
    "altact_alias_send",
    "decode",
    "encode",
    "send_sender",
]
