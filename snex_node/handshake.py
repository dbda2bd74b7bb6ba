"""The distribution handshake, version 6, for both sides: bytes in, events out.

Source: "Distribution Handshake" in the distribution protocol chapter of the ERTS user's guide.
A is the side that connects, B the one that accepts:

====  ===================================================================================
A->B  ``'N'`` flags:64 creation:32 name, the name ("send_name")
B->A  ``'s'`` and a status; after ``alive`` A answers ``'s' true`` or ``'s' false``
B->A  ``'N'`` flags:64 challenge:32 creation:32 name
A->B  ``'r'`` challenge:32 digest:16
B->A  ``'a'`` digest:16
====  ===================================================================================

Every message is preceded by its length: two bytes over TCP, four over TLS.

`Initiator` and `Acceptor` hold no socket, clock or randomness: the caller feeds `receive_data`,
writes `data_to_send`, keeps the time limit, and takes the one decision of its side. A violation by
the peer is a `HandshakeError`; what is to be sent before closing is in `data_to_send` even then.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import Enum
from hashlib import md5
from struct import Struct

from snex_node.flags import CLAIMED, Flag, missing

MAX_MESSAGE = 1024
"""Longest message accepted, in bytes: a name of 255 takes 270, the rest is for later versions.

It bounds what a stranger can make us hold before the cookie has been checked."""

MAX_NAME = 255
"""Longest full node name, in bytes."""

_NAME = Struct(">cQIH")
_CHALLENGE = Struct(">cQIIH")
_REPLY = Struct(">cI16s")
_ACK = Struct(">c16s")


class HandshakeError(Exception):
    """The handshake has failed; ``reason`` is its short name.

    Reasons: ``closed``, ``cookie``, ``flags``, ``garbage``, ``name``, ``nok``, ``not_allowed``,
    ``alive`` (the peer keeps the connection it has), ``tls`` and ``timeout``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Status(Enum):
    """What the accepting side says to a name."""

    OK = "ok"
    OK_SIMULTANEOUS = "ok_simultaneous"
    NOK = "nok"
    NOT_ALLOWED = "not_allowed"
    ALIVE = "alive"
    NAMED = "named"


class State(Enum):
    """Where a handshake stands. ``DECIDE`` waits for the caller, the ``WAIT_*`` for the peer."""

    START = "start"
    WAIT_NAME = "wait_name"
    DECIDE = "decide"
    WAIT_STATUS = "wait_status"
    WAIT_ALIVE_ANSWER = "wait_alive_answer"
    WAIT_CHALLENGE = "wait_challenge"
    WAIT_REPLY = "wait_reply"
    WAIT_ACK = "wait_ack"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Identity:
    """How a node presents itself: full name, creation (32 bits, not 0) and the flags it claims."""

    name: str
    creation: int
    flags: int = CLAIMED


@dataclass(frozen=True)
class Peer:
    """The other side as the handshake found it; ``flags`` are those that both claim."""

    name: str
    creation: int
    flags: int


@dataclass(frozen=True)
class NameReceived:
    """B: a name came in; answer with `Acceptor.decide`.

    ``wants_name`` is set for a node that has only a host and asks for a name (``name`` is the host
    then).
    """

    name: str
    creation: int
    wants_name: bool


@dataclass(frozen=True)
class AliveAsked:
    """A: the peer has a connection of our name already; answer with `Initiator.answer_alive`."""


@dataclass(frozen=True)
class Completed:
    """Both digests agree. ``trailing`` are bytes that came after the last message."""

    peer: Peer
    name: str
    creation: int
    trailing: bytes


Event = NameReceived | AliveAsked | Completed


def digest(cookie: str, challenge: int) -> bytes:
    """MD5 of the cookie followed by the challenge in decimal (unsigned 32 bits)."""
    text = cookie.encode("utf-8") + str(challenge).encode("ascii")
    return md5(text, usedforsecurity=False).digest()


def check_name(name: str) -> None:
    """Refuse with `HandshakeError` what OTP refuses as a full node name.

    It needs ASCII, one ``@`` with something on both sides, and at most 255 bytes.
    """
    alive, at, host = name.partition("@")
    if not (alive and at and host) or "@" in host or not name.isascii() or len(name) > MAX_NAME:
        raise HandshakeError(
            "name", f"{name[:MAX_NAME]!r} is no node name: it must look like name@host, in ASCII"
        )


class Handshake:
    """What both sides share: message boundaries, the bytes to send, the state."""

    def __init__(
        self, identity: Identity, cookie: str, challenge: int, *, length_size: int = 2
    ) -> None:
        self.state = State.START
        self._identity = identity
        self._cookie = cookie
        self._challenge = challenge
        self._length_size = length_size
        self._received = bytearray()
        self._to_send: list[bytes] = []
        self._peer: Peer | None = None

    def data_to_send(self) -> bytes:
        """Take what has to be written next; empty when there is nothing."""
        data = b"".join(self._to_send)
        self._to_send.clear()
        return data

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the peer.

        Raises `HandshakeError` when the peer broke the protocol or refused; the handshake is over
        then: write `data_to_send` and close.
        """
        self._received += data
        events: list[Event] = []
        while self.state not in (State.DONE, State.FAILED, State.DECIDE):
            message = self._next_message()
            if message is None:
                break
            try:
                event = self._handle(message)
            except HandshakeError:
                self.state = State.FAILED
                raise
            if event is not None:
                events.append(event)
        return events

    def connection_lost(self) -> HandshakeError:
        """Say what it means that the peer closed now; the handshake is over."""
        state, self.state = self.state, State.FAILED
        if state is State.WAIT_ACK:
            return HandshakeError(
                "cookie",
                f"{self._peer_name()} closed the connection when it saw our digest: "
                "its cookie differs from ours. Give both nodes the same cookie",
            )
        return HandshakeError(
            "closed",
            f"{self._peer_name()} closed the connection during the handshake "
            f"(while in {state.value})",
        )

    def _peer_name(self) -> str:
        return self._peer.name if self._peer else "the peer"

    def _handle(self, message: bytes) -> Event | None:
        raise NotImplementedError

    def _next_message(self) -> bytes | None:
        received, size = self._received, self._length_size
        if len(received) < size:
            return None
        length = int.from_bytes(received[:size], "big")
        if length > MAX_MESSAGE:
            self.state = State.FAILED
            if received[0] in (0x15, 0x16) and received[1] == 3:
                raise HandshakeError("tls", "the peer speaks TLS, this side speaks plain TCP")
            raise HandshakeError(
                "garbage",
                f"a handshake message of {length} bytes (at most {MAX_MESSAGE} are accepted): "
                "the peer does not speak the Erlang distribution protocol",
            )
        if len(received) < size + length:
            return None
        message = bytes(received[size : size + length])
        del received[: size + length]
        return message

    def _send(self, message: bytes) -> None:
        self._to_send.append(len(message).to_bytes(self._length_size, "big") + message)

    def _complete(self) -> Completed:
        assert self._peer is not None
        self.state = State.DONE
        trailing = bytes(self._received)
        self._received.clear()
        return Completed(self._peer, self._identity.name, self._identity.creation, trailing)

    def _check_digest(self, received: bytes) -> None:
        if not hmac.compare_digest(received, digest(self._cookie, self._challenge)):
            raise HandshakeError(
                "cookie",
                f"the cookie of {self._peer_name()} differs from ours. "
                "Give both nodes the same cookie",
            )


class Initiator(Handshake):
    """Side A: connects to ``peer_name``. `data_to_send` holds its name from the start."""

    def __init__(
        self,
        identity: Identity,
        cookie: str,
        challenge: int,
        *,
        peer_name: str,
        length_size: int = 2,
    ) -> None:
        super().__init__(identity, cookie, challenge, length_size=length_size)
        self._wanted = peer_name
        name = identity.name.encode("ascii")
        self._send(_NAME.pack(b"N", identity.flags, identity.creation, len(name)) + name)
        self.state = State.WAIT_STATUS

    def answer_alive(self, replace: bool) -> None:
        """Answer `AliveAsked`: True puts this connection in the place of the one the peer has."""
        if self.state is not State.DECIDE:
            raise RuntimeError(f"nothing to answer in state {self.state.value}")
        self._send(b"strue" if replace else b"sfalse")
        self.state = State.WAIT_CHALLENGE if replace else State.FAILED

    def _peer_name(self) -> str:
        return self._wanted

    def _handle(self, message: bytes) -> Event | None:
        if self.state is State.WAIT_STATUS:
            return self._handle_status(message)
        if self.state is State.WAIT_CHALLENGE:
            self._handle_challenge(message)
            return None
        return self._handle_ack(message)

    def _handle_status(self, message: bytes) -> Event | None:
        if message in (b"sok", b"sok_simultaneous"):
            self.state = State.WAIT_CHALLENGE
        elif message == b"salive":
            self.state = State.DECIDE
            return AliveAsked()
        elif message.startswith(b"snamed:") and self._identity.flags & Flag.NAME_ME:
            self._take_name(message[7:])
            self.state = State.WAIT_CHALLENGE
        elif message == b"snok":
            raise HandshakeError(
                "nok", f"{self._wanted} is connecting to us at this moment and goes on with that"
            )
        elif message == b"snot_allowed":
            raise HandshakeError(
                "not_allowed",
                f"{self._wanted} does not allow a connection from {self._identity.name}",
            )
        else:
            raise self._garbage(message)
        return None

    def _take_name(self, rest: bytes) -> None:
        length = int.from_bytes(rest[:2], "big")
        if len(rest) < 2 + length + 4:
            raise self._garbage(rest)
        name = _ascii(rest[2 : 2 + length])
        check_name(name)
        creation = int.from_bytes(rest[2 + length : 6 + length], "big")
        self._identity = Identity(name, creation, self._identity.flags)

    def _handle_challenge(self, message: bytes) -> None:
        if len(message) < _CHALLENGE.size or message[:1] != b"N":
            raise self._garbage(message)
        _, flags, challenge, creation, length = _CHALLENGE.unpack_from(message)
        name = _take(message, _CHALLENGE.size, length)
        if name != self._wanted:
            raise HandshakeError(
                "name", f"the node that answers for {self._wanted} calls itself {name!r}"
            )
        _check_flags(name, flags)
        self._peer = Peer(name, creation, flags & self._identity.flags)
        self._send(_REPLY.pack(b"r", self._challenge, digest(self._cookie, challenge)))
        self.state = State.WAIT_ACK

    def _handle_ack(self, message: bytes) -> Event:
        if len(message) != _ACK.size or message[:1] != b"a":
            raise self._garbage(message)
        self._check_digest(message[1:])
        return self._complete()

    def _garbage(self, message: bytes) -> HandshakeError:
        return HandshakeError(
            "garbage",
            f"{self._wanted} sent {message[:32]!r} in state {self.state.value}",
        )


class Acceptor(Handshake):
    """Side B: waits for a name, says what it thinks of it, and challenges."""

    def __init__(
        self, identity: Identity, cookie: str, challenge: int, *, length_size: int = 2
    ) -> None:
        super().__init__(identity, cookie, challenge, length_size=length_size)
        self._asked: NameReceived | None = None
        self._flags = 0
        self.state = State.WAIT_NAME

    def decide(
        self, status: Status, *, name: str | None = None, creation: int | None = None
    ) -> list[Event]:
        """Answer `NameReceived`; ``name`` and ``creation`` go with `Status.NAMED` only.

        Returns events of messages that had come in already. After ``NOK`` and ``NOT_ALLOWED``
        the handshake is over: write `data_to_send` and close.
        """
        asked = self._asked
        if self.state is not State.DECIDE or asked is None:
            raise RuntimeError(f"nothing to decide in state {self.state.value}")
        if (status is Status.NAMED) != asked.wants_name and status not in (
            Status.NOK,
            Status.NOT_ALLOWED,
        ):
            raise RuntimeError("a node that asks for a name, and only such a node, gets one")
        text = f"s{status.value}".encode("ascii")
        if status is Status.NAMED:
            assert name is not None
            assert creation is not None
            check_name(name)
            encoded = name.encode("ascii")
            text += b":" + len(encoded).to_bytes(2, "big") + encoded + creation.to_bytes(4, "big")
            self._asked = asked = NameReceived(name, creation, True)
        self._send(text)
        self._peer = Peer(asked.name, asked.creation, self._flags & self._identity.flags)
        if status in (Status.NOK, Status.NOT_ALLOWED):
            self.state = State.FAILED
            return []
        if status is Status.ALIVE:
            self.state = State.WAIT_ALIVE_ANSWER
        else:
            self._send_challenge()
        return self.receive_data(b"")

    def _peer_name(self) -> str:
        return self._asked.name if self._asked else "the peer"

    def _handle(self, message: bytes) -> Event | None:
        if self.state is State.WAIT_NAME:
            return self._handle_name(message)
        if self.state is State.WAIT_ALIVE_ANSWER:
            self._handle_alive_answer(message)
            return None
        return self._handle_reply(message)

    def _handle_name(self, message: bytes) -> Event:
        if len(message) < _NAME.size or message[:1] != b"N":
            raise HandshakeError(
                "garbage",
                f"{message[:32]!r} instead of a name: the peer does not speak the Erlang "
                "distribution handshake of OTP 23 and later",
            )
        _, flags, creation, length = _NAME.unpack_from(message)
        name = _take(message, _NAME.size, length)
        wants_name = bool(flags & Flag.NAME_ME) and "@" not in name
        check_name(f"x@{name}" if wants_name else name)
        if name == self._identity.name:
            self._send(b"snok")
            raise HandshakeError("name", f"the peer calls itself {name}, which is our own name")
        if missing(flags):
            self._send(b"snot_allowed")
            _check_flags(name, flags)
        self._flags = flags
        self._asked = NameReceived(name, creation, wants_name)
        self.state = State.DECIDE
        return self._asked

    def _handle_alive_answer(self, message: bytes) -> None:
        if message == b"strue":
            self._send_challenge()
        elif message == b"sfalse":
            raise HandshakeError("alive", f"{self._peer_name()} keeps the connection it has")
        else:
            raise HandshakeError(
                "garbage", f"{self._peer_name()} sent {message[:32]!r} in answer to alive"
            )

    def _send_challenge(self) -> None:
        assert self._asked is not None
        name = self._identity.name.encode("ascii")
        flags = self._identity.flags
        if self._asked.wants_name:
            flags |= Flag.NAME_ME
        self._send(
            _CHALLENGE.pack(b"N", flags, self._challenge, self._identity.creation, len(name)) + name
        )
        self.state = State.WAIT_REPLY

    def _handle_reply(self, message: bytes) -> Event:
        if len(message) != _REPLY.size or message[:1] != b"r":
            raise HandshakeError(
                "garbage", f"{self._peer_name()} sent {message[:32]!r} instead of its digest"
            )
        _, challenge, received = _REPLY.unpack(message)
        self._check_digest(received)
        self._send(_ACK.pack(b"a", digest(self._cookie, challenge)))
        return self._complete()


def _take(message: bytes, offset: int, length: int) -> str:
    """The name at ``offset``; what follows it is for later versions and ignored."""
    if len(message) < offset + length:
        raise HandshakeError("garbage", f"a name of {length} bytes ends beyond its message")
    return _ascii(message[offset : offset + length])


def _ascii(name: bytes) -> str:
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise HandshakeError(
            "name", f"{name[:MAX_NAME]!r} is no node name: only ASCII is allowed"
        ) from None


def _check_flags(name: str, flags: int) -> None:
    names = missing(flags)
    if names:
        raise HandshakeError(
            "flags",
            f"{name} lacks what the protocol has required since OTP 25: {', '.join(names)}",
        )
