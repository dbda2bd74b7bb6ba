"""Generic server messages: calls, casts and system messages, and how to answer them.

Source: OTP's ``gen`` and ``sys`` modules. A call is ``{'$gen_call', {Pid, Tag}, Request}``; the
answer is ``{Tag, Reply}``, sent to the alias in the tag where there is one, so that an answer that
comes too late is dropped instead of lying in the caller's mailbox.
"""

from __future__ import annotations

from typing import Final

from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.terms import MAX_REFERENCE_WORDS, Atom, ImproperList, Pid, Reference

GEN_CALL: Final = Atom("$gen_call")
GEN_CAST: Final = Atom("$gen_cast")
SYSTEM: Final = Atom("system")
ALIAS: Final = Atom("alias")

_decoder = Decoder()
_encode = Encoder().encode

# {'$gen_call', {Pid, ...}, ...} up to the pid, in the one form that BEAM writes.
_CALL_HEAD: Final = b"h\x03w\x09$gen_callh\x02X"
_CAST_HEAD: Final = b"h\x02w\x09$gen_cast"
SYSTEM_HEAD: Final = b"h\x03w\x06system"
_ALIAS_TAG: Final = b"l\x00\x00\x00\x01w\x05aliasZ\x00"


class From:
    """Who made a call and waits for its answer: the ``from`` of ``handle_call``.

    ``tag`` is the external form of what identifies the call; ``alias`` that of the reference to
    answer to, or None when the answer goes to the pid. Hashable, comparable by pid and tag.
    """

    __slots__ = ("alias", "pid", "tag")

    def __init__(self, pid: Pid, tag: bytes, alias: bytes | None) -> None:
        self.pid = pid
        self.tag = tag
        self.alias = alias

    @classmethod
    def from_term(cls, term: object) -> From | None:
        """From the decoded ``{Pid, Tag}``; None when ``term`` is no such pair."""
        if not isinstance(term, tuple) or len(term) != 2 or not isinstance(term[0], Pid):
            return None
        pid, tag = term
        alias = alias_in(tag)
        return cls(pid, _encode(tag), alias.external if alias is not None else None)

    @property
    def ref(self) -> bytes | None:
        """External form of the reference with which the caller monitors while it waits."""
        if self.alias is not None:
            return self.alias
        return self.tag if self.tag[0] == 90 else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, From) and (self.pid, self.tag) == (other.pid, other.tag)

    def __hash__(self) -> int:
        return hash(self.tag)

    def __repr__(self) -> str:
        return f"<From {self.pid}>"


def alias_in(tag: object) -> Reference | None:
    """The alias to answer to: of ``[alias|Ref]``, and of ``[[alias|Ref]|_]`` as ``gen`` has it."""
    for _ in range(2):
        if isinstance(tag, ImproperList):
            if isinstance(tag.tail, Reference) and tag.elements == (ALIAS,):
                return tag.tail
            tag = tag.elements[0]
        elif isinstance(tag, list) and tag:
            tag = tag[0]
    return None


def call_head(pid: Pid, alias: Reference) -> bytes:
    """The external form of ``{'$gen_call', {pid, [alias|Ref]}, ...}`` up to the request."""
    return _CALL_HEAD[:-1] + pid.external + _ALIAS_TAG[:-2] + alias.external


def parse_call(data: bytes, offset: int) -> tuple[From, int] | None:
    """Read a call in external form up to its request, whose offset is returned beside its `From`.

    None when the message is no call. The common form is recognised by its bytes, without decoding
    (1 us; the general way takes 8). Raises `DecodeError` when the bytes are cut off.
    """
    if data.startswith(_CALL_HEAD, offset):
        try:
            return _parse_common(data, offset + 15) or _parse_general(data, offset)
        except IndexError:
            raise DecodeError("the message ends inside of a call", offset) from None
    if data.startswith(b"h\x03", offset) and data.find(b"$gen_call", offset + 4, offset + 14) > 0:
        return _parse_general(data, offset)
    return None


def _parse_common(data: bytes, start: int) -> tuple[From, int] | None:
    """A pid with a small UTF-8 node name at ``start``, then ``[alias|Ref]`` with one like it."""
    if data[start + 1] != 119:
        return None
    tag = start + 15 + data[start + 2]
    if not data.startswith(_ALIAS_TAG, tag):
        return None
    ref = tag + 12
    if data[ref + 3] != 119 or data[ref + 2] > MAX_REFERENCE_WORDS:
        return None
    end = ref + 9 + data[ref + 4] + 4 * data[ref + 2]
    if end >= len(data):
        return None
    return From(Pid.from_external(data[start:tag]), data[tag:end], data[ref:end]), end


def _parse_general(data: bytes, offset: int) -> tuple[From, int] | None:
    name, pair_at = _decoder.decode(data, offset + 2)
    if name != GEN_CALL:
        return None
    pair, end = _decoder.decode(data, pair_at)
    caller = From.from_term(pair)
    return None if caller is None else (caller, end)


def parse_cast(data: bytes, offset: int) -> int | None:
    """The offset of what a cast in external form carries; None when it is no cast."""
    return offset + 13 if data.startswith(_CAST_HEAD, offset) else None


def parse_term(message: object) -> tuple[From, object] | None:
    """The caller and the request of a decoded call; None when ``message`` is none."""
    if isinstance(message, tuple) and len(message) == 3 and message[0] == GEN_CALL:
        caller = From.from_term(message[1])
        if caller is not None:
            return caller, message[2]
    return None


def parse_system(message: object) -> tuple[From, object] | None:
    """The caller and the request of a decoded system message; None when it is none."""
    if isinstance(message, tuple) and len(message) == 3 and message[0] == SYSTEM:
        caller = From.from_term(message[1])
        if caller is not None:
            return caller, message[2]
    return None
