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
the peer is a `HandshakeError`, and what is to be sent before closing is in `data_to_send` even
then; a call that does not fit the state is a `RuntimeError`: the caller's own mistake.
"""

from __future__ import annotations

import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from enum import Enum
from hashlib import md5
from struct import Struct
from typing import ClassVar

from snex_node.wire.flags import CLAIMED, Flag, expand, missing
from snex_node.wire.values import value_class

MAX_MESSAGE = 1024
"""Longest message accepted, in bytes: a name of 255 takes 270, the rest is for later versions.

It bounds what a stranger can make us hold before the cookie has been checked."""

MAX_NAME = 255
"""Longest full node name, in bytes."""

_NAME = Struct(">cQIH")
_CHALLENGE = Struct(">cQIIH")
_REPLY = Struct(">cI16s")
_ACK = Struct(">c16s")

# Names go into logs and terminals, so hosts are held to visible characters, which OTP does not do.
_NODE_NAME = re.compile(r"[0-9A-Za-z_-]+@[!-?A-~]+")


class HandshakeError(Exception):
    """The handshake has failed; ``reason`` is its short name.

    Reasons: ``closed``, ``cookie``, ``flags``, ``garbage``, ``name``, ``nok``, ``not_allowed``,
    ``alive`` (the peer keeps the connection it has), ``crossed`` (another connection between the
    two is the one that stays), ``reflection`` (the peer challenges us with a challenge of our own),
    ``tls`` and ``timeout``.
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

    WAIT_NAME = "wait_name"
    DECIDE = "decide"
    WAIT_STATUS = "wait_status"
    WAIT_ALIVE_ANSWER = "wait_alive_answer"
    WAIT_CHALLENGE = "wait_challenge"
    WAIT_REPLY = "wait_reply"
    WAIT_ACK = "wait_ack"
    DONE = "done"
    FAILED = "failed"


@value_class(frozen=True)
class Identity:
    """How a node presents itself: full name, creation (32 bits, not 0) and the flags it claims.

    A node without a name of its own has only its host in ``name`` and claims NAME_ME: the peer
    gives it name and creation then (`Completed` has them).
    """

    name: str
    creation: int
    flags: int = CLAIMED


@value_class(frozen=True)
class Peer:
    """The other side as the handshake found it; ``flags`` are those that both claim."""

    name: str
    creation: int
    flags: int


@value_class(frozen=True)
class NameReceived:
    """B: a name came in; answer with `Acceptor.decide`.

    ``wants_name`` is set for a node that has only a host and asks for a name (``name`` is the host
    then).
    """

    name: str
    creation: int
    wants_name: bool


@value_class(frozen=True)
class AliveAsked:
    """A: the peer has a connection of our name already; answer with `Initiator.answer_alive`."""


@value_class(frozen=True)
class Completed:
    """Both digests agree: ``peer`` is who it says, we are ``name`` and ``creation`` to it.

    Write `data_to_send` once more. ``trailing`` are bytes that came after the last message; they
    are the first of the connection.
    """

    peer: Peer
    name: str
    creation: int
    trailing: bytes


Event = NameReceived | AliveAsked | Completed


def digest(cookie: str, challenge: int) -> bytes:
    """MD5 of the cookie followed by the challenge in decimal (unsigned 32 bits).

    OTP takes each character of a cookie as one byte, and cannot use a cookie with larger ones;
    between nodes that can, such a cookie is UTF-8.
    """
    try:
        secret = cookie.encode("latin-1")
    except UnicodeEncodeError:
        secret = cookie.encode("utf-8")
    return md5(secret + str(challenge).encode("ascii"), usedforsecurity=False).digest()


def check_name(name: str) -> None:
    """Refuse with `HandshakeError` (``name``) what OTP refuses as a full node name.

    It is ``name@host``: letters, digits, ``_`` and ``-``, then one ``@``, then visible ASCII; at
    most 255 bytes together.

    >>> check_name("py@127.0.0.1")
    """
    if not _NODE_NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise HandshakeError(
            "name",
            f"{_shorten(name)} is no node name: it must look like name@host, the name of letters, "
            f"digits, _ and - in ASCII, and have {MAX_NAME} characters at the most",
        )


class Handshake(ABC):
    """What both sides share: message boundaries, the bytes to send, the state."""

    TRANSITIONS: ClassVar[Mapping[State, frozenset[State]]]
    """What may follow each state, the first one first. Nothing follows ``DONE`` and ``FAILED``."""

    def __init__(
        self,
        identity: Identity,
        cookie: str,
        challenge: int,
        *,
        length_size: int = 2,
        outstanding: Container[int] = (),
    ) -> None:
        """``challenge`` is 32 random bits, fresh for each handshake.

        ``outstanding`` are all challenges that this node waits for an answer to, looked at when one
        of the peer comes in. Whoever does not know the cookie could have us answer them ourselves:
        he connects to us in the name of a node that we dial, answers that dial, and passes on
        there what we ask him here.
        """
        self.state = next(iter(self.TRANSITIONS))
        self._identity = identity
        self._cookie = cookie
        self._challenge = challenge
        self._length_size = length_size
        self._outstanding = outstanding
        self._received = bytearray()
        self._to_send: list[bytes] = []
        self._peer: Peer | None = None

    def data_to_send(self) -> bytes:
        """Take what has to be written next; empty when there is nothing."""
        data = b"".join(self._to_send)
        self._to_send.clear()
        return data

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the peer; write `data_to_send` afterwards.

        Raises `HandshakeError` when the peer broke the protocol or refused; the handshake is over
        then: write `data_to_send` and close. What comes after a failure is discarded. After
        `Completed` the bytes belong to the connection, and giving them here is a `RuntimeError`.
        """
        if self.state is State.FAILED:
            return []
        if self.state is State.DONE:
            raise RuntimeError("the handshake is done: what comes now belongs to the connection")
        self._received += data
        try:
            return self._handle_received()
        except HandshakeError:
            self._fail()
            raise

    def connection_lost(self) -> HandshakeError:
        """Say what it means that the peer closed now; the handshake is over.

        Returns the error to raise: ``cookie`` where that is how a peer shows that the cookies
        differ, else ``closed``.
        """
        state = self.state
        self._fail()
        name = self._peer_name()
        if state is State.WAIT_ACK:
            return HandshakeError(
                "cookie",
                f"{name} closed the connection when it saw our digest: "
                "its cookie differs from ours. Give both nodes the same cookie",
            )
        if state is State.WAIT_REPLY:
            return HandshakeError(
                "closed",
                f"{name} closed the connection when it saw who answers: it looked for another name "
                f"than {self._identity.name}, or does not accept our flags; its log says which",
            )
        return HandshakeError(
            "closed", f"{name} closed the connection during the handshake (in {state.value})"
        )

    def _handle_received(self) -> list[Event]:
        events: list[Event] = []
        while self.state.name.startswith("WAIT"):
            message = self._next_message()
            if message is None:
                return events
            event = self._handle(message)
            if event is not None:
                events.append(event)
        if self.state is State.DECIDE and len(self._received) > MAX_MESSAGE:
            raise HandshakeError(
                "garbage",
                f"{self._peer_name()} sent {len(self._received)} bytes and should wait for us",
            )
        return events

    @abstractmethod
    def _peer_name(self) -> str: ...

    @abstractmethod
    def _handle(self, message: bytes) -> Event | None: ...

    def _next_message(self) -> bytes | None:
        received, size = self._received, self._length_size
        if len(received) < size:
            return None
        length = int.from_bytes(received[:size], "big")
        if length > MAX_MESSAGE:
            # A TLS record of an alert or a handshake: 5,379 or 5,635 as a length of two bytes.
            if size == 2 and received[0] in (0x15, 0x16) and received[1] == 3:
                raise HandshakeError(
                    "tls",
                    f"{self._peer_name()} speaks TLS, this side speaks plain TCP. "
                    "Start both with the same kind of distribution",
                )
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

    def _go(self, state: State) -> None:
        assert state in self.TRANSITIONS[self.state], (self.state, state)
        self.state = state

    def _fail(self) -> None:
        self.state = State.FAILED
        self._received.clear()

    def _complete(self) -> Completed:
        assert self._peer is not None
        self._go(State.DONE)
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

    def _check_challenge(self, challenge: int) -> None:
        if challenge == self._challenge or challenge in self._outstanding:
            raise HandshakeError(
                "reflection",
                f"who answers for {self._peer_name()} sent us a challenge of our own, as somebody "
                "does who lacks the cookie and wants us to answer it ourselves",
            )

    def _unexpected(self, message: bytes) -> HandshakeError:
        return HandshakeError(
            "garbage", f"{self._peer_name()} sent {message[:32]!r} in state {self.state.value}"
        )


class Initiator(Handshake):
    """Side A: connects to ``peer_name``. `data_to_send` holds its name from the start.

    >>> side = Initiator(Identity("py@host", 7), "secret", 12345, peer_name="app@host")
    >>> side.data_to_send()[:3]
    b'\\x00\\x16N'
    >>> side.receive_data(b"\\0\\3sok"), side.state.value
    ([], 'wait_challenge')
    """

    TRANSITIONS: ClassVar = {
        State.WAIT_STATUS: frozenset({State.WAIT_CHALLENGE, State.DECIDE, State.FAILED}),
        State.DECIDE: frozenset({State.WAIT_CHALLENGE, State.FAILED}),
        State.WAIT_CHALLENGE: frozenset({State.WAIT_ACK, State.FAILED}),
        State.WAIT_ACK: frozenset({State.DONE, State.FAILED}),
    }

    def __init__(
        self,
        identity: Identity,
        cookie: str,
        challenge: int,
        *,
        peer_name: str,
        length_size: int = 2,
        outstanding: Container[int] = (),
    ) -> None:
        super().__init__(
            identity, cookie, challenge, length_size=length_size, outstanding=outstanding
        )
        self._wanted = peer_name
        self._wants_name = bool(identity.flags & Flag.NAME_ME)
        name = identity.name.encode("ascii")
        self._send(_NAME.pack(b"N", identity.flags, identity.creation, len(name)) + name)

    def answer_alive(self, replace: bool) -> list[Event]:
        """Answer `AliveAsked`: True puts this connection in the place of the one the peer has.

        Returns events of messages that had come in already. After False the handshake is over:
        write `data_to_send` and close.
        """
        if self.state is not State.DECIDE:
            raise RuntimeError(f"nothing to answer in state {self.state.value}")
        self._send(b"strue" if replace else b"sfalse")
        if not replace:
            self._fail()
            return []
        self._go(State.WAIT_CHALLENGE)
        return self.receive_data(b"")

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
        if message == b"snok":
            raise HandshakeError(
                "nok", f"{self._wanted} is connecting to us at this moment and goes on with that"
            )
        if message == b"snot_allowed":
            raise HandshakeError(
                "not_allowed",
                f"{self._wanted} does not allow a connection from {self._identity.name}",
            )
        if self._wants_name:
            self._take_name(message)
        elif message == b"salive":
            self._go(State.DECIDE)
            return AliveAsked()
        elif message not in (b"sok", b"sok_simultaneous"):
            raise self._unexpected(message)
        self._go(State.WAIT_CHALLENGE)
        return None

    def _take_name(self, message: bytes) -> None:
        length = int.from_bytes(message[7:9], "big")
        if not message.startswith(b"snamed:") or len(message) < 9 + length + 4:
            raise self._unexpected(message)
        name = _text(message[9 : 9 + length])
        check_name(name)
        creation = int.from_bytes(message[9 + length : 13 + length], "big")
        self._identity = Identity(name, creation, self._identity.flags)

    def _handle_challenge(self, message: bytes) -> None:
        if len(message) < _CHALLENGE.size or message[:1] != b"N":
            raise self._unexpected(message)
        _, flags, challenge, creation, length = _CHALLENGE.unpack_from(message)
        name = _name_at(message, _CHALLENGE.size, length)
        if name != self._wanted:
            raise HandshakeError(
                "name", f"the node that answers for {self._wanted} calls itself {_shorten(name)}"
            )
        _check_flags(name, flags)
        self._check_challenge(challenge)
        self._peer = Peer(name, creation, expand(flags) & expand(self._identity.flags))
        self._send(_REPLY.pack(b"r", self._challenge, digest(self._cookie, challenge)))
        self._go(State.WAIT_ACK)

    def _handle_ack(self, message: bytes) -> Event:
        if len(message) != _ACK.size or message[:1] != b"a":
            raise self._unexpected(message)
        self._check_digest(message[1:])
        return self._complete()


class Acceptor(Handshake):
    """Side B: waits for a name, says what it thinks of it, and challenges."""

    TRANSITIONS: ClassVar = {
        State.WAIT_NAME: frozenset({State.DECIDE, State.FAILED}),
        State.DECIDE: frozenset({State.WAIT_REPLY, State.WAIT_ALIVE_ANSWER, State.FAILED}),
        State.WAIT_ALIVE_ANSWER: frozenset({State.WAIT_REPLY, State.FAILED}),
        State.WAIT_REPLY: frozenset({State.DONE, State.FAILED}),
    }

    def __init__(
        self,
        identity: Identity,
        cookie: str,
        challenge: int,
        *,
        length_size: int = 2,
        outstanding: Container[int] = (),
    ) -> None:
        super().__init__(
            identity, cookie, challenge, length_size=length_size, outstanding=outstanding
        )
        self._asked: NameReceived | None = None
        self._flags = 0

    @property
    def name(self) -> str | None:
        """The name that has come in or been given, None while there is none."""
        return self._asked.name if self._asked else None

    def decide(
        self, status: Status, *, name: str | None = None, creation: int | None = None
    ) -> list[Event]:
        """Answer `NameReceived`. A node that wants a name gets `Status.NAMED`, or is refused.

        ``name`` (full) and ``creation`` go with ``NAMED`` only. Returns events of messages that had
        come in already. After ``NOK`` and ``NOT_ALLOWED`` the handshake is over: write
        `data_to_send` and close.
        """
        asked = self._asked
        if self.state is not State.DECIDE or asked is None:
            raise RuntimeError(f"nothing to decide in state {self.state.value}")
        refused = status in (Status.NOK, Status.NOT_ALLOWED)
        if not refused and (status is Status.NAMED) != asked.wants_name:
            raise RuntimeError("a node that asks for a name, and only such a node, gets one")
        message = f"s{status.value}".encode("ascii")
        if status is Status.NAMED:
            if name is None or creation is None:
                raise RuntimeError("the status NAMED goes with a name and a creation")
            check_name(name)
            self._asked = asked = NameReceived(name, creation, wants_name=True)
            given = name.encode("ascii")
            message += b":" + len(given).to_bytes(2, "big") + given + creation.to_bytes(4, "big")
        self._send(message)
        if refused:
            self._fail()
            return []
        flags = expand(self._flags) & expand(self._identity.flags)
        self._peer = Peer(asked.name, asked.creation, flags)
        if status is Status.ALIVE:
            self._go(State.WAIT_ALIVE_ANSWER)
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
        wants_name = bool(flags & Flag.NAME_ME)
        name = _name_at(message, _NAME.size, length)
        full_name = f"x@{name}" if wants_name else name
        try:
            check_name(full_name)
            self._check_not_ours(name)
        except HandshakeError:
            # As OTP does: no word for what does not look like a name at all.
            if all(full_name.partition("@")) and full_name.count("@") == 1:
                self._send(b"snok")
            raise
        if missing(flags):
            self._send(b"snot_allowed")
            _check_flags(name, flags)
        self._flags = flags
        self._asked = NameReceived(name, creation, wants_name)
        self._go(State.DECIDE)
        return self._asked

    def _check_not_ours(self, name: str) -> None:
        if name == self._identity.name:
            raise HandshakeError(
                "name", f"the peer calls itself {name}, which is our own name. Give it another one"
            )

    def _handle_alive_answer(self, message: bytes) -> None:
        if message == b"sfalse":
            raise HandshakeError("alive", f"{self._peer_name()} keeps the connection it has")
        if message != b"strue":
            raise self._unexpected(message)
        self._send_challenge()

    def _send_challenge(self) -> None:
        assert self._asked is not None
        name = self._identity.name.encode("ascii")
        flags = int(self._identity.flags)
        if self._asked.wants_name:
            flags |= Flag.NAME_ME
        self._send(
            _CHALLENGE.pack(b"N", flags, self._challenge, self._identity.creation, len(name)) + name
        )
        self._go(State.WAIT_REPLY)

    def _handle_reply(self, message: bytes) -> Event:
        if len(message) != _REPLY.size or message[:1] != b"r":
            raise self._unexpected(message)
        _, challenge, received = _REPLY.unpack(message)
        self._check_digest(received)
        self._check_challenge(challenge)
        self._send(_ACK.pack(b"a", digest(self._cookie, challenge)))
        return self._complete()


def _name_at(message: bytes, offset: int, length: int) -> str:
    """The name at ``offset``; what follows it is for later versions and ignored."""
    if len(message) < offset + length:
        raise HandshakeError("garbage", f"a name of {length} bytes ends beyond its message")
    return _text(message[offset : offset + length])


def _text(name: bytes) -> str:
    return name.decode("latin-1")  # never fails; what is not ASCII is refused by `check_name`


def _check_flags(name: str, flags: int) -> None:
    names = missing(flags)
    if names:
        raise HandshakeError(
            "flags",
            f"{name} lacks what the protocol has required since OTP 25: {', '.join(names)}",
        )


def _shorten(name: str) -> str:
    return repr(name if len(name) <= MAX_NAME else name[:MAX_NAME] + "...")
