"""Control messages: each as a type with its opcode, to and from external terms.

Source: "Protocol between Connected Nodes" in the distribution protocol chapter of the ERTS user's
guide. A control message is a tuple that begins with its opcode; some are followed by a payload, a
term of its own that this module does not touch.

The operations that carry a sequential-trace token are the plain ones with one element more: they
decode to the same types with ``token`` set, and a message with a token is encoded to them.

Messages are values: nobody changes one, because `decode` gives the same object for the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.terms import Atom, Pid, Reference
from snex_node.wire.values import value_class

_decoder = Decoder()
_encode = Encoder().encode


class ControlError(ValueError):
    """A control message that the protocol does not know, or of a shape it does not have."""


# Terms that a peer chooses freely are left out of what `repr` prints: it would not return for some.


@value_class()
class Link:
    """LINK: ``from_`` links itself to ``to``."""

    opcode: ClassVar[int] = 1
    from_: Pid
    to: Pid


@value_class("token")
class Send:
    """SEND: the payload is a message to ``to``; the sender is not named."""

    opcode: ClassVar[int] = 2
    to: Pid
    token: object = None


@value_class("reason", "token")
class Exit:
    """EXIT: ``from_`` has ended and was linked to ``to`` (form without a payload)."""

    opcode: ClassVar[int] = 3
    from_: Pid
    to: Pid
    reason: object
    token: object = None


@value_class()
class Unlink:
    """UNLINK: the form before OTP 26; received, never sent."""

    opcode: ClassVar[int] = 4
    from_: Pid
    to: Pid


@value_class()
class NodeLink:
    """NODE_LINK: reserved; nothing sends it."""

    opcode: ClassVar[int] = 5


@value_class("token")
class RegSend:
    """REG_SEND: the payload is a message to the process registered as ``name``."""

    opcode: ClassVar[int] = 6
    from_: Pid
    name: Atom
    token: object = None


@value_class()
class GroupLeader:
    """GROUP_LEADER: ``leader`` becomes the group leader of ``to``."""

    opcode: ClassVar[int] = 7
    leader: Pid
    to: Pid


@value_class("reason", "token")
class Exit2:
    """EXIT2: ``from_`` called ``exit(to, reason)`` (form without a payload)."""

    opcode: ClassVar[int] = 8
    from_: Pid
    to: Pid
    reason: object
    token: object = None


@value_class()
class MonitorP:
    """MONITOR_P: ``from_`` monitors ``target``, a pid or a registered name."""

    opcode: ClassVar[int] = 19
    from_: Pid
    target: Pid | Atom
    ref: Reference


@value_class()
class DemonitorP:
    """DEMONITOR_P: ``from_`` takes its monitor ``ref`` back, or has ended."""

    opcode: ClassVar[int] = 20
    from_: Pid
    target: Pid | Atom
    ref: Reference


@value_class("reason")
class MonitorPExit:
    """MONITOR_P_EXIT: what ``to`` monitored has ended (form without a payload)."""

    opcode: ClassVar[int] = 21
    from_: Pid | Atom
    to: Pid
    ref: Reference
    reason: object


@value_class("token")
class SendSender:
    """SEND_SENDER: the payload is a message from ``from_`` to ``to``."""

    opcode: ClassVar[int] = 22
    from_: Pid
    to: Pid
    token: object = None


@value_class("token")
class PayloadExit:
    """PAYLOAD_EXIT: `Exit` with its reason as payload."""

    opcode: ClassVar[int] = 24
    from_: Pid
    to: Pid
    token: object = None


@value_class("token")
class PayloadExit2:
    """PAYLOAD_EXIT2: `Exit2` with its reason as payload."""

    opcode: ClassVar[int] = 26
    from_: Pid
    to: Pid
    token: object = None


@value_class()
class PayloadMonitorPExit:
    """PAYLOAD_MONITOR_P_EXIT: `MonitorPExit` with its reason as payload (the DOWN signal)."""

    opcode: ClassVar[int] = 28
    from_: Pid | Atom
    to: Pid
    ref: Reference


@value_class("options", "token")
class SpawnRequest:
    """SPAWN_REQUEST: start ``module:function/arity`` with the payload as its list of arguments."""

    opcode: ClassVar[int] = 29
    id: Reference
    from_: Pid
    group_leader: Pid
    mfa: tuple[Atom, Atom, int]
    options: list[object]
    token: object = None


@value_class("token")
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


@value_class("token")
class AliasSend:
    """ALIAS_SEND: the payload is a message to the process that owns ``alias``."""

    opcode: ClassVar[int] = 33
    from_: Pid
    alias: Reference
    token: object = None


@value_class()
class UnlinkId:
    """UNLINK_ID: ``from_`` drops its link to ``to``; answered by `UnlinkIdAck` with the same id."""

    opcode: ClassVar[int] = 35
    id: int
    from_: Pid
    to: Pid


@value_class()
class UnlinkIdAck:
    """UNLINK_ID_ACK: ``from_`` has seen the unlink ``id`` of ``to``."""

    opcode: ClassVar[int] = 36
    id: int
    from_: Pid
    to: Pid


@value_class("token")
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

    >>> name = Pid("app@host", 7, 0, 1)
    >>> decode(encode(RegSend(name, Atom("snex"))))[0]
    RegSend(from_=#PID<app@host.7.0>, name=:snex)
    """
    fast = _FAST.get(data[offset : offset + 4])
    if fast is not None:
        try:
            return fast(data, offset)
        except IndexError:
            pass  # it ends before the lengths it should have: the decoder says where
    return _decode_any(data, offset)


def _decode_any(data: bytes, offset: int) -> tuple[ControlMessage, int]:
    term, end = _decoder.decode(data, offset)
    if not isinstance(term, tuple) or not term or type(term[0]) is not int:
        raise ControlError(f"no control message: {_describe(term)}")
    build = _BUILDERS.get((term[0], len(term)))
    if build is None:
        raise ControlError(f"unknown control message: {_describe(term)}")
    return build(term), end


def _describe(term: object) -> str:
    """What a term is, in a length and a time that do not depend on it."""
    if isinstance(term, tuple):
        elements = ", ".join(map(_describe_element, term[:8]))
        return f"{{{elements}{', ...' if len(term) > 8 else ''}}}"
    return _describe_element(term)


def _describe_element(term: object) -> str:
    if isinstance(term, (Atom, Pid, Reference)):
        return repr(term)
    if isinstance(term, int) and -(2**64) < term < 2**64:
        return str(term)
    return f"<{type(term).__name__}>"


def _misplaced(term: object, what: str) -> ControlError:
    return ControlError(f"{_describe(term)} stands where {what} belongs")


def _pid(term: object) -> Pid:
    if not isinstance(term, Pid):
        raise _misplaced(term, "a pid")
    return term


def _ref(term: object) -> Reference:
    if not isinstance(term, Reference):
        raise _misplaced(term, "a reference")
    return term


def _atom(term: object) -> Atom:
    if term is None or isinstance(term, bool):
        return _RESERVED[term]
    if not isinstance(term, Atom):
        raise _misplaced(term, "an atom")
    return term


_RESERVED: dict[object, Atom] = {None: Atom("nil"), True: Atom("true"), False: Atom("false")}


def _int(term: object) -> int:
    """Flags and arities: the protocol gives them no size, and none needs more than 32 bits."""
    if type(term) is not int or not 0 <= term < 2**32:
        raise _misplaced(term, "a number of 32 bits")
    return term


def _unlink_id(term: object) -> int:
    if type(term) is not int or not 1 <= term <= MAX_UNLINK_ID:
        raise _misplaced(term, "an unlink id, 1 to 2^64-1,")
    return term


def _pid_or_atom(term: object) -> Pid | Atom:
    return term if isinstance(term, Pid) else _atom(term)


def _mfa(term: object) -> tuple[Atom, Atom, int]:
    if not isinstance(term, tuple) or len(term) != 3:
        raise _misplaced(term, "{module, function, arity}")
    return _atom(term[0]), _atom(term[1]), _int(term[2])


def _list(term: object) -> list[object]:
    if not isinstance(term, list):
        raise _misplaced(term, "a list")
    return term


def _altact(t: tuple[object, ...]) -> AltactSigSend:
    flags = _int(t[1])
    if bool(flags & AltactSigSend.TOKEN) != (len(t) == 5):
        raise ControlError(f"flags and length disagree: {_describe(t)}")
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
    (37, 4): _altact,
    (37, 5): _altact,
}


# --- decoding what each call costs --------------------------------------------------------------
#
# A GenServer.call is a monitor, a registered send and a demonitor, and from one caller to one
# server their bytes are the same each time, up to the words of the reference. So they are
# recognised: 0.3 to 0.9 us each, and 2 to 3 us through the decoder.
#
# What follows only guesses where a message ends, from the lengths that it has in its usual shape (a
# pid whose node is a short atom, and so on). The guess needs no checks: bytes that the decoder has
# taken for a message of just this length are that message again, and all others go to the decoder.

_MAX_CACHED = 4096
"""Entries of each cache below: some 500 bytes each, so 2 MB (6 with the longest node names)."""

_Reader = Callable[[bytes, int], tuple[ControlMessage, int]]

_messages: dict[bytes, ControlMessage] = {}


def _reg_send(data: bytes, offset: int) -> tuple[ControlMessage, int]:
    name = offset + 21 + data[offset + 6]
    return _known(data, offset, name + 2 + data[name + 1])


def _send_sender(data: bytes, offset: int) -> tuple[ControlMessage, int]:
    to = offset + 19 + data[offset + 6]
    return _known(data, offset, to + 15 + data[to + 2])


def _known(data: bytes, offset: int, end: int) -> tuple[ControlMessage, int]:
    raw = data[offset:end]
    message = _messages.get(raw)
    if message is not None:
        return message, end
    message, true_end = _decode_any(data, offset)
    if true_end == end:
        if len(_messages) >= _MAX_CACHED:
            _messages.clear()
        _messages[raw] = message
    return message, true_end


def _ending_in_reference(
    kind: Callable[..., MonitorP | DemonitorP | AliasSend], *, target: bool
) -> _Reader:
    """For messages of a pid, perhaps a target, and a reference whose words are all that is new."""
    heads: dict[bytes, tuple[tuple[Any, ...], int]] = {}

    def read(data: bytes, offset: int) -> tuple[ControlMessage, int]:
        ref = offset + 19 + data[offset + 6]
        if target:
            ref += 2 + data[ref + 1] if data[ref] == 119 else 15 + data[ref + 2]
        words = ref + 9 + data[ref + 4]
        raw = data[offset:words]
        head = heads.get(raw)
        if head is not None:
            end = words + head[1]
            if end <= len(data):
                return kind(*head[0], Reference.from_external(data[ref:end])), end
        message, end = _decode_any(data, offset)
        *before, reference = (getattr(message, name) for name in names)
        if reference.external == data[ref:end]:
            if len(heads) >= _MAX_CACHED:
                heads.clear()
            heads[raw] = tuple(before), end - words
        return message, end

    names = ("from_", "target", "ref") if target else ("from_", "alias")
    return read


def _head(opcode: int, arity: int) -> bytes:
    return bytes((104, arity, 97, opcode))


_FAST: dict[bytes, _Reader] = {
    _head(MonitorP.opcode, 4): _ending_in_reference(MonitorP, target=True),
    _head(DemonitorP.opcode, 4): _ending_in_reference(DemonitorP, target=True),
    _head(AliasSend.opcode, 3): _ending_in_reference(AliasSend, target=False),
    _head(RegSend.opcode, 4): _reg_send,
    _head(SendSender.opcode, 3): _send_sender,
}


# --- encoding -----------------------------------------------------------------------------------


def encode(message: ControlMessage) -> bytes:
    """The external form of ``message``, without the version byte.

    Raises `EncodeError` for a reason, token or option that has none.
    """
    return _ENCODERS[type(message)](message)


@lru_cache(1024)
def _atom_bytes(name: Atom) -> bytes:
    return _encode(name)


def _either(target: Pid | Atom | Reference) -> bytes:
    return _atom_bytes(target) if isinstance(target, Atom) else target.external


def _traced(
    plain: bytes, traced: bytes, elements: bytes, token: object, last: bytes = b""
) -> bytes:
    """The plain form, or the traced one with the token behind sender and receiver."""
    if token is None:
        return plain + elements + last
    return traced + elements + _encode(token) + last


def _encode_altact(m: AltactSigSend) -> bytes:
    flags = m.flags & ~AltactSigSend.TOKEN | (0 if m.token is None else AltactSigSend.TOKEN)
    elements = _encode(flags) + m.from_.external + _either(m.to)
    return _traced(_head(37, 4), _head(37, 5), elements, m.token)


def _encode_spawn_request(m: SpawnRequest) -> bytes:
    elements = m.id.external + m.from_.external + m.group_leader.external
    elements += _encode(m.mfa) + _encode(m.options)
    return _traced(_head(29, 6), _head(30, 7), elements, m.token)


def _encode_spawn_reply(m: SpawnReply) -> bytes:
    elements = m.id.external + m.to.external + _encode(m.flags) + _either(m.result)
    return _traced(_head(31, 5), _head(32, 6), elements, m.token)


_ENCODERS: dict[type, Callable[..., bytes]] = {
    Link: lambda m: b"h\x03a\x01" + m.from_.external + m.to.external,
    Send: lambda m: _traced(b"h\x03a\x02w\x00", b"h\x04a\x0cw\x00", m.to.external, m.token),
    Exit: lambda m: _traced(
        b"h\x04a\x03", b"h\x05a\x0d", m.from_.external + m.to.external, m.token, _encode(m.reason)
    ),
    Unlink: lambda m: b"h\x03a\x04" + m.from_.external + m.to.external,
    NodeLink: lambda m: b"h\x01a\x05",
    RegSend: lambda m: _traced(
        b"h\x04a\x06", b"h\x05a\x10", m.from_.external + b"w\x00" + _atom_bytes(m.name), m.token
    ),
    GroupLeader: lambda m: b"h\x03a\x07" + m.leader.external + m.to.external,
    Exit2: lambda m: _traced(
        b"h\x04a\x08", b"h\x05a\x12", m.from_.external + m.to.external, m.token, _encode(m.reason)
    ),
    MonitorP: lambda m: b"h\x04a\x13" + m.from_.external + _either(m.target) + m.ref.external,
    DemonitorP: lambda m: b"h\x04a\x14" + m.from_.external + _either(m.target) + m.ref.external,
    MonitorPExit: lambda m: (
        b"h\x05a\x15" + _either(m.from_) + m.to.external + m.ref.external + _encode(m.reason)
    ),
    SendSender: lambda m: _traced(
        b"h\x03a\x16", b"h\x04a\x17", m.from_.external + m.to.external, m.token
    ),
    PayloadExit: lambda m: _traced(
        b"h\x03a\x18", b"h\x04a\x19", m.from_.external + m.to.external, m.token
    ),
    PayloadExit2: lambda m: _traced(
        b"h\x03a\x1a", b"h\x04a\x1b", m.from_.external + m.to.external, m.token
    ),
    PayloadMonitorPExit: lambda m: (
        b"h\x04a\x1c" + _either(m.from_) + m.to.external + m.ref.external
    ),
    SpawnRequest: _encode_spawn_request,
    SpawnReply: _encode_spawn_reply,
    AliasSend: lambda m: _traced(
        b"h\x03a\x21", b"h\x04a\x22", m.from_.external + m.alias.external, m.token
    ),
    UnlinkId: lambda m: b"h\x04a\x23" + _encode(m.id) + m.from_.external + m.to.external,
    UnlinkIdAck: lambda m: b"h\x04a\x24" + _encode(m.id) + m.from_.external + m.to.external,
    AltactSigSend: _encode_altact,
}


def alias_send(from_: Pid, alias: bytes) -> bytes:
    """ALIAS_SEND from the external form of an alias: what each answered call costs."""
    return b"h\x03a\x21" + from_.external + alias


def altact_alias_send(from_: Pid, alias: bytes) -> bytes:
    """The same as ALTACT_SIG_SEND, for peers that claim it."""
    return b"h\x04a\x25a\x04" + from_.external + alias


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
]
