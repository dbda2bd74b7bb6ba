"""The messages between epmd and nodes, as pure functions: bytes in, bytes out.

A request is `u16 length` and a body; the functions named `encode_..._request` include the length,
and `parse_request` takes the body. An answer has no length: its first byte says how long it is, or
the end of the connection does.

Source: Erlang distribution protocol, "Protocol between epmd and Nodes",
https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterable

from snex_node.wire.values import value_class

MAX_NAME_BYTES = 255
"""Longest name part of a node name that epmd registers."""

MAX_REQUEST_BYTES = 1024
"""Longest request body. The longest one in use, ALIVE2 with a name of 255 bytes and no extra
field, has 268; a client that announces 65,535 does not make us hold them."""

MAX_PORT_ANSWER_BYTES = 2048
"""Longest answer to PORT_PLEASE2: 14 bytes, a name of 255, and an extra field, which came to epmd
in a request of at most 1,024 bytes."""

MAX_NAMES_ANSWER_BYTES = 1 << 20
"""Longest answer to NAMES: about 3,500 of the longest names, 30,000 usual ones."""


OUR_NAME = "snex_node.epmd"
"""A name that no node can register with an epmd of ours, which answers a question for it: that is
how it is told from the epmd of OTP, to which the name is unknown."""


class Opcode(enum.IntEnum):
    """First byte of a request or an answer."""

    ALIVE2_REQ = 120
    ALIVE2_RESP = 121
    ALIVE2_X_RESP = 118
    PORT_PLEASE2_REQ = 122
    PORT2_RESP = 119
    NAMES_REQ = 110
    DUMP_REQ = 100
    KILL_REQ = 107
    STOP_REQ = 115


class NodeType(enum.IntEnum):
    """What a node says it is."""

    NORMAL = 77
    HIDDEN = 72


class MalformedError(ValueError):
    """The bytes are not a message of epmd's protocol; the text says where they differ."""


@value_class(frozen=True)
class NodeInfo:
    """A node as epmd knows it.

    `name` is the part before the `@`; `port` the TCP port it listens on for other nodes;
    `node_type` a `NodeType` (other numbers are passed on as they are); the versions are those of
    the distribution protocol: 6 for OTP 23 and later, whose `lowest_version` still is 5.
    """

    name: str
    port: int
    node_type: int = NodeType.HIDDEN
    protocol: int = 0
    highest_version: int = 6
    lowest_version: int = 5
    extra: bytes = b""


@value_class(frozen=True)
class AliveRequest:
    """ALIVE2: register a node for as long as the connection is open."""

    node: NodeInfo


@value_class(frozen=True)
class PortRequest:
    """PORT_PLEASE2: where does the node of this name listen?"""

    name: str


@value_class(frozen=True)
class NamesRequest:
    """NAMES: which nodes are registered?"""


@value_class(frozen=True)
class DebugRequest:
    """DUMP, KILL or STOP, which serve the control of a stand-alone epmd."""

    opcode: Opcode


Request = AliveRequest | PortRequest | NamesRequest | DebugRequest


@value_class(frozen=True)
class AliveAnswer:
    """Answer to ALIVE2. `result` 0 is success; `creation` tells incarnations of a name apart."""

    result: int
    creation: int


_LENGTH = struct.Struct(">H")
_NODE = struct.Struct(">HBBHHH")  # port, type, protocol, highest, lowest, length of the name
_ALIVE2_RESP = struct.Struct(">BBH")
_ALIVE2_X_RESP = struct.Struct(">BBI")
_PORT_BODY = struct.Struct(">I")
# A name must not break the lines of a NAMES answer, nor contain what separates name and host.
_BAD_NAME = re.compile(r"[\x00-\x20\x7f-\xa0@]")
_NAMES_LINE = re.compile(rb"name (.*) at port (\d{1,5})")


def check_name(name: str) -> str:
    """Return `name`, if it can be the name part of a node name.

    Raises `ValueError` if it is empty, longer than 255 bytes in UTF-8, or contains blanks, control
    characters or `@`.

    >>> check_name("py")
    'py'
    """
    if not name:
        raise ValueError("the name of a node must not be empty")
    if found := _BAD_NAME.search(name):
        raise ValueError(f"the name of a node must not contain {found[0]!r}: {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the name of a node must be Unicode text: {name!r}") from None
    if size > MAX_NAME_BYTES:
        raise ValueError(f"the name of a node has at most {MAX_NAME_BYTES} bytes, not {size}")
    return name


def encode_alive_request(node: NodeInfo) -> bytes:
    """Encode ALIVE2. Raises `ValueError` for a bad name and for numbers out of range.

    >>> encode_alive_request(NodeInfo("py25", 0x8A29)).hex()
    '0011788a2948000006000500047079323500' + '00'
    """
    return _request(Opcode.ALIVE2_REQ, _encode_node(node))


def encode_port_request(name: str) -> bytes:
    """Encode PORT_PLEASE2. Raises `ValueError` for a bad name."""
    return _request(Opcode.PORT_PLEASE2_REQ, check_name(name).encode())


def encode_names_request() -> bytes:
    """Encode NAMES."""
    return _request(Opcode.NAMES_REQ, b"")


def parse_request(body: bytes) -> Request:
    """Parse the body of a request, without its length.

    Raises `MalformedError` if it is none.
    """
    if not body:
        raise MalformedError("empty request")
    if body[0] == Opcode.ALIVE2_REQ:
        return AliveRequest(_parse_node(body, 1))
    if body[0] == Opcode.PORT_PLEASE2_REQ:
        return PortRequest(_parse_name(body[1:]))
    if body[0] == Opcode.NAMES_REQ:
        return NamesRequest()
    if body[0] in (Opcode.DUMP_REQ, Opcode.KILL_REQ, Opcode.STOP_REQ):
        return DebugRequest(Opcode(body[0]))
    raise MalformedError(f"unknown request {body[0]}")


def encode_alive_answer(answer: AliveAnswer, highest_version: int) -> bytes:
    """Encode the answer to ALIVE2 in the form that a client of this version reads.

    From version 6 on that has a creation of 32 bits, before it one of 16.
    """
    if highest_version >= 6:
        return _ALIVE2_X_RESP.pack(Opcode.ALIVE2_X_RESP, answer.result, answer.creation)
    return _ALIVE2_RESP.pack(Opcode.ALIVE2_RESP, answer.result, answer.creation)


def alive_answer_size(opcode: int) -> int:
    """Return how many bytes an answer to ALIVE2 with this first byte has.

    Raises `MalformedError` if no such answer begins with it.
    """
    if opcode == Opcode.ALIVE2_X_RESP:
        return _ALIVE2_X_RESP.size
    if opcode == Opcode.ALIVE2_RESP:
        return _ALIVE2_RESP.size
    raise MalformedError(f"an answer to ALIVE2 begins with 118 or 121, not with {opcode}")


def parse_alive_answer(data: bytes) -> AliveAnswer:
    """Parse an answer to ALIVE2 in either form. Raises `MalformedError`."""
    size = alive_answer_size(data[0]) if data else 1
    if len(data) != size:
        raise MalformedError(f"an answer to ALIVE2 of {len(data)} bytes instead of {size}")
    form = _ALIVE2_X_RESP if size == _ALIVE2_X_RESP.size else _ALIVE2_RESP
    _, result, creation = form.unpack(data)
    return AliveAnswer(result, creation)


def encode_port_answer(node: NodeInfo | None) -> bytes:
    """Encode the answer to PORT_PLEASE2; None is a node that is not registered."""
    if node is None:
        return bytes((Opcode.PORT2_RESP, 1))
    return bytes((Opcode.PORT2_RESP, 0)) + _encode_node(node)


def parse_port_answer(data: bytes) -> NodeInfo | None:
    """Parse the whole answer to PORT_PLEASE2. None: not registered. Raises `MalformedError`."""
    if len(data) < 2 or data[0] != Opcode.PORT2_RESP:
        raise MalformedError(f"an answer to PORT_PLEASE2 begins with 119, not with {data[:2]!r}")
    if data[1] != 0:
        return None
    return _parse_node(data, 2)


def encode_names_answer(epmd_port: int, nodes: Iterable[NodeInfo]) -> bytes:
    """Encode the answer to NAMES."""
    lines = "".join(f"name {node.name} at port {node.port}\n" for node in nodes)
    return _PORT_BODY.pack(epmd_port) + lines.encode()


def parse_names_answer(data: bytes) -> list[tuple[str, int]]:
    """Parse the whole answer to NAMES into pairs of name and port. Raises `MalformedError`."""
    if len(data) < _PORT_BODY.size:
        raise MalformedError(f"an answer to NAMES has at least 4 bytes, not {len(data)}")
    names = []
    for line in data[_PORT_BODY.size :].split(b"\n")[:-1]:
        found = _NAMES_LINE.fullmatch(line)
        if found is None:
            raise MalformedError(f"not a line of an answer to NAMES: {line[:300]!r}")
        names.append((_text(found[1]), int(found[2])))
    return names


def _request(opcode: Opcode, rest: bytes) -> bytes:
    return _LENGTH.pack(1 + len(rest)) + bytes((opcode,)) + rest


def _encode_node(node: NodeInfo) -> bytes:
    name = check_name(node.name).encode()
    try:
        head = _NODE.pack(
            node.port,
            node.node_type,
            node.protocol,
            node.highest_version,
            node.lowest_version,
            len(name),
        )
        return head + name + _LENGTH.pack(len(node.extra)) + node.extra
    except struct.error as error:
        raise ValueError(f"{node} does not fit the fields of an epmd message: {error}") from None


def _parse_node(data: bytes, offset: int) -> NodeInfo:
    name_at = offset + _NODE.size
    if len(data) < name_at:
        raise MalformedError(f"a node's fields end after {len(data)} of {name_at} bytes")
    port, node_type, protocol, highest, lowest, name_size = _NODE.unpack_from(data, offset)
    extra_at = name_at + name_size + _LENGTH.size
    if len(data) < extra_at:
        raise MalformedError(f"a name of {name_size} bytes in a message of {len(data)}")
    (extra_size,) = _LENGTH.unpack_from(data, extra_at - _LENGTH.size)
    if len(data) < extra_at + extra_size:
        raise MalformedError(f"an extra field of {extra_size} bytes in a message of {len(data)}")
    name = _parse_name(data[name_at : name_at + name_size])
    extra = data[extra_at : extra_at + extra_size]
    return NodeInfo(name, port, node_type, protocol, highest, lowest, extra)


def _parse_name(data: bytes) -> str:
    try:
        return check_name(data.decode())
    except UnicodeDecodeError:
        raise MalformedError(f"a name that is not UTF-8: {data[:MAX_NAME_BYTES]!r}") from None
    except ValueError as error:
        raise MalformedError(str(error)) from None


def _text(name: bytes) -> str:
    # The epmd of OTP registers any bytes; a list of names must not fail because of one.
    return name.decode("utf-8", "backslashreplace")
