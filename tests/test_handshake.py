"""The handshake: both sides against each other, against a real BEAM, and against anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import string
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire.flags import CLAIMED, MANDATORY, Flag
from snex_node.wire.handshake import (
    MAX_MESSAGE,
    Acceptor,
    AliveAsked,
    Completed,
    Event,
    Handshake,
    HandshakeError,
    Identity,
    Initiator,
    NameReceived,
    Peer,
    State,
    Status,
    check_name,
    digest,
)
from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd, executable
from tests.support.peer import ScriptedPeer, listening, port_of, shake
from tests.support.proxy import Proxy

A = Identity("a@127.0.0.1", 11)
B = Identity("b@127.0.0.1", 22)
NAMELESS = Identity("127.0.0.1", 0, CLAIMED | Flag.NAME_ME)
COOKIE = "secret"
CHALLENGE_A, CHALLENGE_B = 0xFFFF_FFFF, 1234
WITHOUT_DIGEST = int(CLAIMED) & ~int(Flag.MANDATORY_25_DIGEST)

REASONS = {"closed", "cookie", "flags", "garbage", "name", "nok", "not_allowed", "alive", "tls"}

lengths = pytest.mark.parametrize("length_size", [2, 4])
cuts = pytest.mark.parametrize("cut", [None, 1], ids=["whole", "byte by byte"])


def initiator(identity: Identity = A, cookie: str = COOKIE, length_size: int = 2) -> Initiator:
    return Initiator(identity, cookie, CHALLENGE_A, peer_name=B.name, length_size=length_size)


def acceptor(identity: Identity = B, cookie: str = COOKIE, length_size: int = 2) -> Acceptor:
    return Acceptor(identity, cookie, CHALLENGE_B, length_size=length_size)


def feed(side: Handshake, data: bytes, cut: int | None = None) -> list[Event]:
    events: list[Event] = []
    for position in range(0, len(data), cut or len(data) or 1):
        events += side.receive_data(data[position : position + (cut or len(data))])
    return events


def framed(message: bytes, length_size: int = 2) -> bytes:
    return len(message).to_bytes(length_size, "big") + message


def name_message(name: str | bytes, flags: int = CLAIMED, creation: int = 11) -> bytes:
    raw = name.encode("latin-1") if isinstance(name, str) else name
    head = b"N" + flags.to_bytes(8, "big") + creation.to_bytes(4, "big")
    return head + len(raw).to_bytes(2, "big") + raw


def challenge_message(name: str, flags: int = CLAIMED) -> bytes:
    numbers = flags.to_bytes(8, "big") + CHALLENGE_B.to_bytes(4, "big") + (22).to_bytes(4, "big")
    return b"N" + numbers + len(name).to_bytes(2, "big") + name.encode()


def reply_message(cookie: str = COOKIE) -> bytes:
    return b"r" + CHALLENGE_A.to_bytes(4, "big") + digest(cookie, CHALLENGE_B)


def ack_message(cookie: str = COOKIE) -> bytes:
    return b"a" + digest(cookie, CHALLENGE_A)


NAMED = b"snamed:\x00\x09x@1.2.3.4" + (77).to_bytes(4, "big")


# The pieces


@pytest.mark.parametrize(
    ("cookie", "challenge", "expected"),
    [
        # printf %s secret1234 | md5sum
        ("secret", 1234, "bdfc2db0aa599f5919e565c328216a51"),
        ("secret", 0, "175ec77a7f63082590987d0d8b051aff"),
        ("secret", 2**32 - 1, "5dfd181e69aa587cc812eb333e6536b6"),
        # printf '\xf8\xe95' | md5sum: one byte for each character, as in OTP
        ("\xf8\xe9", 5, "dfd22f887457246ebd9d17265885cc16"),
        # printf '€5' | md5sum
        ("\u20ac", 5, "4b14e6400b481fce89201e96ee43d16b"),
    ],
)
def test_digest(cookie: str, challenge: int, expected: str) -> None:
    assert digest(cookie, challenge).hex() == expected


GOOD_NAMES = ["a@b", "py_1-X@127.0.0.1", "a@[::1]", "x" * 250 + "@host", "1@2"]
BAD_NAMES = [
    "",
    "a",
    "@",
    "a@",
    "@b",
    "a@b@c",
    "a b@c",
    "a@b c",
    "a.b@c",
    "a@b\n",
    "a\n@b",
    "\xf8@b",
]
BAD_NAMES += ["a@\xf8", "a@b\x1b[2J", "x" * 251 + "@host", "a@\u20ac"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_are_fine(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(HandshakeError, match="is no node name") as caught:
        check_name(name)
    assert caught.value.reason == "name"
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_the_bytes_of_each_message() -> None:
    a, b = initiator(), acceptor()
    name = a.data_to_send()
    assert name == framed(name_message(A.name))
    b.receive_data(name)
    b.decide(Status.OK)
    answer = b.data_to_send()
    assert answer == framed(b"sok") + framed(challenge_message(B.name))
    a.receive_data(answer)
    reply = a.data_to_send()
    assert reply == framed(reply_message())
    b.receive_data(reply)
    assert b.data_to_send() == framed(ack_message())
    assert b.data_to_send() == b""


def test_the_name_that_otp_25_was_seen_to_send() -> None:
    seen = bytes.fromhex("4e0000000d07df7fbd6b02c74b000d") + b"b25@127.0.0.1"
    assert acceptor().receive_data(framed(seen)) == [
        NameReceived("b25@127.0.0.1", 0x6B02C74B, wants_name=False)
    ]


# Both sides against each other


def converse(
    a: Initiator,
    b: Acceptor,
    cut: int | None,
    decide: Callable[[Acceptor, NameReceived], list[Event]],
    *,
    replace: bool = True,
) -> tuple[Completed | None, Completed | None]:
    """Hand over what each side sends until both are silent."""
    done: dict[Handshake, Completed] = {}
    while True:
        silent = True
        for source, target in ((a, b), (b, a)):
            data = source.data_to_send()
            silent = silent and not data
            events = feed(target, data, cut)
            while events:
                event = events.pop(0)
                if isinstance(event, NameReceived):
                    events += decide(b, event)
                elif isinstance(event, AliveAsked):
                    events += a.answer_alive(replace)
                else:
                    done[target] = event
        if silent:
            return done.get(a), done.get(b)


@lengths
@cuts
@pytest.mark.parametrize("status", [Status.OK, Status.OK_SIMULTANEOUS, Status.ALIVE])
def test_a_handshake(length_size: int, cut: int | None, status: Status) -> None:
    a, b = initiator(length_size=length_size), acceptor(length_size=length_size)
    done_a, done_b = converse(a, b, cut, lambda side, _: side.decide(status))
    flags = int(CLAIMED)
    assert done_a == Completed(Peer(B.name, B.creation, flags), A.name, A.creation, b"")
    assert done_b == Completed(Peer(A.name, A.creation, flags), B.name, B.creation, b"")
    assert a.state is b.state is State.DONE


@lengths
@cuts
def test_a_node_without_a_name_gets_one(length_size: int, cut: int | None) -> None:
    a, b = initiator(NAMELESS, length_size=length_size), acceptor(length_size=length_size)

    def decide(side: Acceptor, event: NameReceived) -> list[Event]:
        assert event == NameReceived("127.0.0.1", 0, wants_name=True)
        return side.decide(Status.NAMED, name=f"word@{event.name}", creation=99)

    done_a, done_b = converse(a, b, cut, decide)
    assert done_a is not None
    assert done_b is not None
    assert (done_a.name, done_a.creation) == ("word@127.0.0.1", 99)
    assert (done_b.peer.name, done_b.peer.creation) == ("word@127.0.0.1", 99)


def test_the_challenge_for_a_node_without_a_name_shows_that_it_gets_one() -> None:
    b = acceptor()
    b.receive_data(framed(name_message("127.0.0.1", NAMELESS.flags)))
    b.decide(Status.NAMED, name="word@127.0.0.1", creation=99)
    sent = b.data_to_send()
    challenge = sent[2 + int.from_bytes(sent[:2], "big") + 2 :]
    assert challenge == challenge_message(B.name, CLAIMED | Flag.NAME_ME)


@cuts
@pytest.mark.parametrize("status", [Status.NOK, Status.NOT_ALLOWED])
def test_a_name_that_is_refused(cut: int | None, status: Status) -> None:
    a, b = initiator(), acceptor()
    b.receive_data(a.data_to_send())
    assert b.decide(status) == []
    assert b.state is State.FAILED
    with pytest.raises(HandshakeError) as caught:
        feed(a, b.data_to_send(), cut)
    assert caught.value.reason == status.value
    assert a.state is State.FAILED


@pytest.mark.parametrize("status", [Status.NOK, Status.NOT_ALLOWED])
def test_a_node_that_asks_for_a_name_may_be_refused(status: Status) -> None:
    a, b = initiator(NAMELESS), acceptor()
    b.receive_data(a.data_to_send())
    b.decide(status)
    with pytest.raises(HandshakeError) as caught:
        a.receive_data(b.data_to_send())
    assert caught.value.reason == status.value


@cuts
def test_a_connection_that_lives_is_kept(cut: int | None) -> None:
    a, b = initiator(), acceptor()
    with pytest.raises(HandshakeError, match="keeps the connection it has") as caught:
        converse(a, b, cut, lambda side, _: side.decide(Status.ALIVE), replace=False)
    assert caught.value.reason == "alive"
    assert a.state is b.state is State.FAILED


@pytest.mark.parametrize("status", [Status.OK, Status.ALIVE])
def test_a_wrong_cookie_shows_at_the_accepting_side_first(status: Status) -> None:
    a, b = initiator(cookie="other"), acceptor()
    with pytest.raises(HandshakeError, match=r"the cookie of a@127\.0\.0\.1 differs") as caught:
        converse(a, b, None, lambda side, _: side.decide(status))
    assert caught.value.reason == "cookie"
    assert b.data_to_send() == b""
    assert a.connection_lost().reason == "cookie"


def test_a_wrong_digest_in_the_acknowledgement() -> None:
    a = initiator()
    a.receive_data(framed(b"sok") + framed(challenge_message(B.name)))
    with pytest.raises(HandshakeError, match=r"the cookie of b@127\.0\.0\.1 differs") as caught:
        a.receive_data(framed(ack_message("other")))
    assert caught.value.reason == "cookie"


def test_a_challenge_of_our_own_is_not_answered() -> None:
    """Neither this handshake's own nor one of another, which somebody may have passed on."""
    for outstanding in ((CHALLENGE_B,), ()):
        own = CHALLENGE_A if outstanding else CHALLENGE_B
        side = Initiator(A, COOKIE, own, peer_name=B.name, outstanding=outstanding)
        side.data_to_send()
        side.receive_data(framed(b"sok"))
        with pytest.raises(HandshakeError, match="a challenge of our own") as caught:
            side.receive_data(framed(challenge_message(B.name)))
        assert caught.value.reason == "reflection"
        assert side.data_to_send() == b""


def test_a_challenge_of_our_own_in_a_reply_is_not_answered() -> None:
    side = Acceptor(B, COOKIE, CHALLENGE_B, outstanding={CHALLENGE_A})
    side.receive_data(framed(name_message(A.name)))
    side.decide(Status.OK)
    side.data_to_send()
    with pytest.raises(HandshakeError, match="a challenge of our own"):
        side.receive_data(framed(reply_message()))
    assert side.data_to_send() == b""


@lengths
@cuts
def test_bytes_behind_the_handshake_belong_to_the_connection(
    length_size: int, cut: int | None
) -> None:
    a, b = initiator(length_size=length_size), acceptor(length_size=length_size)
    b.receive_data(a.data_to_send())
    b.decide(Status.OK)
    a.receive_data(b.data_to_send())
    [done] = b.receive_data(a.data_to_send() + b"\0\0\0\0more")
    assert isinstance(done, Completed)
    assert done.trailing == b"\0\0\0\0more"
    [done] = feed(a, b.data_to_send(), cut)
    assert isinstance(done, Completed)
    assert done.trailing == b""


def test_what_follows_a_name_in_its_message_is_for_later_versions() -> None:
    b = acceptor()
    [event] = b.receive_data(framed(name_message(A.name) + b"later"))
    assert event == NameReceived(A.name, 11, wants_name=False)
    a = initiator()
    a.receive_data(framed(b"sok") + framed(challenge_message(B.name) + b"later"))
    assert a.state is State.WAIT_ACK
    named = initiator(NAMELESS)
    named.receive_data(framed(NAMED + b"later"))
    assert named.state is State.WAIT_CHALLENGE


def test_messages_that_come_before_they_are_asked_for_are_read_in_their_turn() -> None:
    b = acceptor()
    b.receive_data(framed(name_message(A.name)) + framed(b"strue") + framed(reply_message()) + b"x")
    [done] = b.decide(Status.ALIVE)
    assert isinstance(done, Completed)
    assert done.trailing == b"x"
    a = initiator()
    [event] = a.receive_data(framed(b"salive") + framed(challenge_message(B.name)))
    assert event == AliveAsked()
    assert a.answer_alive(True) == []
    assert a.state is State.WAIT_ACK


# Flags


def test_flags_of_both_and_what_the_digest_stands_for() -> None:
    few = int(Flag.MANDATORY_25_DIGEST | Flag.SPAWN | Flag.PUBLISHED)
    a, b = initiator(Identity(A.name, 1, few)), acceptor()
    done_a, done_b = converse(a, b, None, lambda side, _: side.decide(Status.OK))
    assert done_a is not None
    assert done_b is not None
    both = int(Flag.MANDATORY_25_DIGEST | Flag.SPAWN | MANDATORY)
    assert done_a.peer.flags == done_b.peer.flags == both
    assert type(done_a.peer.flags) is type(done_b.peer.flags) is int  # `&` with a Flag is slow


def test_flags_that_the_connecting_side_lacks_are_named() -> None:
    b = acceptor()
    flags = WITHOUT_DIGEST & ~int(Flag.MAP_TAG) & ~int(Flag.FUN_TAGS)
    with pytest.raises(HandshakeError, match=r"a@127.0.0.1 lacks .*: FUN_TAGS, MAP_TAG") as caught:
        b.receive_data(framed(name_message(A.name, flags)))
    assert caught.value.reason == "flags"
    assert b.data_to_send() == framed(b"snot_allowed")


def test_flags_that_the_accepting_side_lacks_are_named() -> None:
    a = initiator()
    a.data_to_send()
    flags = WITHOUT_DIGEST & ~int(Flag.UTF8_ATOMS)
    with pytest.raises(HandshakeError, match=r"b@127.0.0.1 lacks .*: UTF8_ATOMS") as caught:
        a.receive_data(framed(b"sok") + framed(challenge_message(B.name, flags)))
    assert caught.value.reason == "flags"
    assert a.data_to_send() == b""


# Names that come in


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("ab", b""),
        ("@b", b""),
        ("a@", b""),
        ("a@b@c", b""),
        ("", b""),
        ("\xf8@b", b"snok"),
        ("a b@c", b"snok"),
        ("a\n@c", b"snok"),
        ("a@c\xff", b"snok"),
        ("x" * 251 + "@host", b"snok"),
        (B.name, b"snok"),
    ],
)
def test_names_are_refused_as_otp_refuses_them(name: str, answer: bytes) -> None:
    b = acceptor()
    with pytest.raises(HandshakeError) as caught:
        b.receive_data(framed(name_message(name)))
    assert caught.value.reason == "name"
    assert b.data_to_send() == (framed(answer) if answer else b"")


@pytest.mark.parametrize("host", ["x@h", "", "a b", "x" * 254])
def test_hosts_of_nodes_without_a_name_are_refused_as_well(host: str) -> None:
    b = acceptor()
    with pytest.raises(HandshakeError) as caught:
        b.receive_data(framed(name_message(host, NAMELESS.flags)))
    assert caught.value.reason == "name"


def test_another_node_answers() -> None:
    a = initiator()
    with pytest.raises(HandshakeError, match=r"calls itself 'c@127\.0\.0\.1'") as caught:
        a.receive_data(framed(b"sok") + framed(challenge_message("c@127.0.0.1")))
    assert caught.value.reason == "name"


@pytest.mark.parametrize("given", ["bad", "a b@c", "\xf8@b"])
def test_a_name_given_to_us_that_is_none(given: str) -> None:
    a = initiator(NAMELESS)
    raw = given.encode("latin-1")
    with pytest.raises(HandshakeError) as caught:
        a.receive_data(framed(b"snamed:" + len(raw).to_bytes(2, "big") + raw + bytes(4)))
    assert caught.value.reason == "name"


@pytest.mark.parametrize("cut_at", range(7, len(NAMED)))
def test_a_name_given_to_us_that_is_cut_off(cut_at: int) -> None:
    with pytest.raises(HandshakeError) as caught:
        initiator(NAMELESS).receive_data(framed(NAMED[:cut_at]))
    assert caught.value.reason == "garbage"


# Other protocols, and too much


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="b")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def alert() -> bytes:
    """What a TLS server says to the first message of a node that speaks plain TCP."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(initiator().data_to_send())
    with pytest.raises(ssl.SSLError):
        server.do_handshake()
    return outgoing.read() or b"\x15\x03\x01\x00\x02\x02\x46"


@cuts
def test_a_peer_that_speaks_tls(cut: int | None) -> None:
    for side, data in ((acceptor(), client_hello()), (initiator(), alert())):
        with pytest.raises(HandshakeError, match="speaks TLS") as caught:
            feed(side, data, cut)
        assert caught.value.reason == "tls"


def test_inside_of_tls_the_same_bytes_are_garbage() -> None:
    with pytest.raises(HandshakeError) as caught:
        acceptor(length_size=4).receive_data(client_hello())
    assert caught.value.reason == "garbage"


@cuts
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff" * 100,
        bytes(100),
        framed(b"n" + bytes(20)),  # the name message of version 5
        framed(b"N" + bytes(13)),
        framed(name_message("a@b")[:-1]),
        framed(b"x" * MAX_MESSAGE),
    ],
)
def test_garbage_instead_of_a_name(cut: int | None, data: bytes) -> None:
    b = acceptor()
    with pytest.raises(HandshakeError) as caught:
        feed(b, data, cut)
    assert caught.value.reason == "garbage"
    assert b.state is State.FAILED
    assert b.data_to_send() == b""


@lengths
def test_the_longest_message(length_size: int) -> None:
    padding = MAX_MESSAGE - len(name_message(A.name))
    b = acceptor(length_size=length_size)
    assert feed(b, framed(name_message(A.name) + bytes(padding), length_size), 1)
    b = acceptor(length_size=length_size)
    with pytest.raises(HandshakeError, match="1025 bytes"):
        b.receive_data((MAX_MESSAGE + 1).to_bytes(length_size, "big"))


def test_what_comes_before_a_decision_is_bounded() -> None:
    for side, first in ((acceptor(), name_message(A.name)), (initiator(), b"salive")):
        side.receive_data(framed(first) + bytes(MAX_MESSAGE))
        assert side.state is State.DECIDE
        with pytest.raises(HandshakeError, match="should wait for us") as caught:
            side.receive_data(b"1")
        assert caught.value.reason == "garbage"


# What the caller may not do


def test_calls_that_do_not_fit_the_state() -> None:
    with pytest.raises(RuntimeError, match="nothing to decide in state wait_name"):
        acceptor().decide(Status.OK)
    with pytest.raises(RuntimeError, match="nothing to answer in state wait_status"):
        initiator().answer_alive(True)
    b = in_state(Acceptor, State.WAIT_REPLY)
    assert isinstance(b, Acceptor)
    with pytest.raises(RuntimeError, match="nothing to decide in state wait_reply"):
        b.decide(Status.OK)


@pytest.mark.parametrize("status", [Status.OK, Status.OK_SIMULTANEOUS, Status.ALIVE])
def test_a_node_that_asks_for_a_name_gets_one(status: Status) -> None:
    b = acceptor()
    b.receive_data(framed(name_message("127.0.0.1", NAMELESS.flags)))
    with pytest.raises(RuntimeError, match="only such a node"):
        b.decide(status)
    with pytest.raises(RuntimeError, match="goes with a name"):
        b.decide(Status.NAMED, name="x@y")
    with pytest.raises(HandshakeError, match="is no node name"):
        b.decide(Status.NAMED, name="x", creation=1)
    assert b.decide(Status.NAMED, name="x@y", creation=1) == []  # all that changed nothing


def test_a_node_with_a_name_gets_none() -> None:
    b = acceptor()
    b.receive_data(framed(name_message(A.name)))
    with pytest.raises(RuntimeError, match="only such a node"):
        b.decide(Status.NAMED, name="x@y", creation=1)


# Every state with every message

STATES = [
    (Initiator, State.WAIT_STATUS),
    (Initiator, State.DECIDE),
    (Initiator, State.WAIT_CHALLENGE),
    (Initiator, State.WAIT_ACK),
    (Initiator, State.DONE),
    (Initiator, State.FAILED),
    (Acceptor, State.WAIT_NAME),
    (Acceptor, State.DECIDE),
    (Acceptor, State.WAIT_ALIVE_ANSWER),
    (Acceptor, State.WAIT_REPLY),
    (Acceptor, State.DONE),
    (Acceptor, State.FAILED),
]

MESSAGES = {
    "name": name_message(A.name),
    "host": name_message("127.0.0.1", NAMELESS.flags),
    "ok": b"sok",
    "ok_simultaneous": b"sok_simultaneous",
    "nok": b"snok",
    "not_allowed": b"snot_allowed",
    "alive": b"salive",
    "named": NAMED,
    "true": b"strue",
    "false": b"sfalse",
    "challenge": challenge_message(B.name),
    "reply": reply_message(),
    "ack": ack_message(),
    "bad reply": reply_message("other"),
    "bad ack": ack_message("other"),
    "complement": b"c" + bytes(8),
    "old name": b"n\x00\x05" + bytes(4) + b"a@b",
    "empty": b"",
    "unknown": b"sunknown",
}

# What is right: the next state, and the event if there is one.
RIGHT: dict[tuple[type, State, str], tuple[State, type | None]] = {
    (Initiator, State.WAIT_STATUS, "ok"): (State.WAIT_CHALLENGE, None),
    (Initiator, State.WAIT_STATUS, "ok_simultaneous"): (State.WAIT_CHALLENGE, None),
    (Initiator, State.WAIT_STATUS, "alive"): (State.DECIDE, AliveAsked),
    (Initiator, State.WAIT_CHALLENGE, "challenge"): (State.WAIT_ACK, None),
    (Initiator, State.WAIT_ACK, "ack"): (State.DONE, Completed),
    (Acceptor, State.WAIT_NAME, "name"): (State.DECIDE, NameReceived),
    (Acceptor, State.WAIT_NAME, "host"): (State.DECIDE, NameReceived),
    (Acceptor, State.WAIT_ALIVE_ANSWER, "true"): (State.WAIT_REPLY, None),
    (Acceptor, State.WAIT_REPLY, "reply"): (State.DONE, Completed),
}
# What is wrong with a reason of its own; everything else is garbage.
WRONG: dict[tuple[type, State, str], str] = {
    (Initiator, State.WAIT_STATUS, "nok"): "nok",
    (Initiator, State.WAIT_STATUS, "not_allowed"): "not_allowed",
    (Initiator, State.WAIT_ACK, "bad ack"): "cookie",
    (Acceptor, State.WAIT_ALIVE_ANSWER, "false"): "alive",
    (Acceptor, State.WAIT_REPLY, "bad reply"): "cookie",
    # A name as a challenge: its creation is taken for the challenge, and no name follows.
    (Initiator, State.WAIT_CHALLENGE, "name"): "garbage",
    # A challenge as a name: an empty one.
    (Acceptor, State.WAIT_NAME, "challenge"): "name",
}


def in_state(side: type, state: State) -> Handshake:
    """A handshake that has come to a state the ordinary way."""
    if side is Initiator:
        a = initiator()
        if state is State.FAILED:
            a.connection_lost()
        elif state is State.DECIDE:
            a.receive_data(framed(b"salive"))
        elif state is not State.WAIT_STATUS:
            steps = [b"sok", challenge_message(B.name), ack_message()]
            order = [State.WAIT_CHALLENGE, State.WAIT_ACK, State.DONE]
            for message in steps[: order.index(state) + 1]:
                a.receive_data(framed(message))
        result: Handshake = a
    else:
        b = acceptor()
        if state is State.FAILED:
            b.connection_lost()
        elif state is not State.WAIT_NAME:
            b.receive_data(framed(name_message(A.name)))
            if state is State.WAIT_ALIVE_ANSWER:
                b.decide(Status.ALIVE)
            elif state is not State.DECIDE:
                b.decide(Status.OK)
            if state is State.DONE:
                b.receive_data(framed(reply_message()))
        result = b
    assert result.state is state
    result.data_to_send()
    return result


@cuts
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize(("side", "state"), STATES)
def test_every_message_in_every_state(
    side: type, state: State, message: str, cut: int | None
) -> None:
    handshake = in_state(side, state)
    data = framed(MESSAGES[message])
    key = (side, state, message)
    if state is State.DONE:
        with pytest.raises(RuntimeError):
            feed(handshake, data, cut)
    elif state in (State.DECIDE, State.FAILED):
        assert feed(handshake, data, cut) == []
        assert handshake.state is state
    elif key in RIGHT:
        following, kind = RIGHT[key]
        events = feed(handshake, data, cut)
        assert [type(event) for event in events] == ([] if kind is None else [kind])
        assert handshake.state is following
    else:
        with pytest.raises(HandshakeError) as caught:
            feed(handshake, data, cut)
        assert caught.value.reason == WRONG.get(key, "garbage")
        assert handshake.state is State.FAILED
        assert feed(handshake, data, cut) == []


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_to_a_node_that_asked_for_a_name(message: str) -> None:
    handshake = initiator(NAMELESS)
    if message == "named":
        assert handshake.receive_data(framed(MESSAGES[message])) == []
        assert handshake.state is State.WAIT_CHALLENGE
        return
    with pytest.raises(HandshakeError) as caught:
        handshake.receive_data(framed(MESSAGES[message]))
    expected = message if message in ("nok", "not_allowed") else "garbage"
    assert caught.value.reason == expected


@pytest.mark.parametrize("side", [Initiator, Acceptor])
def test_the_table_of_transitions_is_what_happens(side: type[Initiator] | type[Acceptor]) -> None:
    seen: dict[State, set[State]] = {state: {State.FAILED} for state in side.TRANSITIONS}
    for (kind, state, _), (following, _) in RIGHT.items():
        if kind is side:
            seen[state].add(following)
    # The caller's part.
    if side is Initiator:
        seen[State.DECIDE].add(State.WAIT_CHALLENGE)
    else:
        seen[State.DECIDE] |= {State.WAIT_REPLY, State.WAIT_ALIVE_ANSWER}
    assert seen == {state: set(following) for state, following in side.TRANSITIONS.items()}
    assert {state for kind, state in STATES if kind is side} == {
        *side.TRANSITIONS,
        State.DONE,
        State.FAILED,
    }


@pytest.mark.parametrize(("side", "state"), STATES)
def test_the_peer_closes_in_any_state(side: type, state: State) -> None:
    handshake = in_state(side, state)
    error = handshake.connection_lost()
    assert error.reason == ("cookie" if state is State.WAIT_ACK else "closed")
    assert handshake.state is State.FAILED
    if state is State.WAIT_REPLY:
        assert "looked for another name than b@127.0.0.1" in str(error)


fragments = st.sampled_from(
    [
        *map(framed, MESSAGES.values()),
        *(framed(message, 4) for message in MESSAGES.values()),
        b"\x16\x03\x01",
        b"\0",
        b"\0\0",
        b"\xff\xff",
    ]
)


@given(
    st.sampled_from(STATES),
    st.lists(fragments | st.binary(max_size=40), max_size=6),
    st.integers(1, 40),
    st.sampled_from(list(Status)),
    st.booleans(),
)
def test_anything_gives_an_event_or_the_documented_error(
    start: tuple[type, State], parts: list[bytes], cut: int, status: Status, replace: bool
) -> None:
    handshake = in_state(*start)
    data = b"".join(parts)
    position = 0
    failure = None
    while position < len(data) and handshake.state is not State.DONE and failure is None:
        try:
            for event in handshake.receive_data(data[position : position + cut]):
                answer(handshake, event, status, replace)
        except HandshakeError as error:
            failure = error
        assert len(handshake._received) <= MAX_MESSAGE + 4
        position += cut
    if failure is not None:
        assert failure.reason in REASONS
        assert handshake.state is State.FAILED
    handshake.data_to_send()


def answer(handshake: Handshake, event: Event, status: Status, replace: bool) -> None:
    if isinstance(event, AliveAsked):
        assert isinstance(handshake, Initiator)
        handshake.answer_alive(replace)
    elif isinstance(event, NameReceived):
        assert isinstance(handshake, Acceptor)
        if status not in (Status.NOK, Status.NOT_ALLOWED):
            status = Status.NAMED if event.wants_name else Status.OK
        handshake.decide(status, name="given@host", creation=5)


@given(st.binary(max_size=3000), st.integers(1, 3000))
def test_arbitrary_bytes_from_a_stranger(data: bytes, cut: int) -> None:
    for side in (acceptor(), initiator(), acceptor(length_size=4), initiator(length_size=4)):
        with contextlib.suppress(HandshakeError):
            events = feed(side, data, cut)
            assert all(isinstance(event, (AliveAsked, NameReceived)) for event in events)
        assert side.state is not State.DONE


# A real BEAM

interop = pytest.mark.interop


async def raw_answer(port: int, message: bytes) -> bytes:
    """What a BEAM says to one first message before it closes, or at all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(framed(message))
        head = await asyncio.wait_for(reader.read(2), 10)
        return await reader.readexactly(int.from_bytes(head, "big")) if head else b""
    finally:
        writer.close()


def identity(prefix: str = "p", flags: int = CLAIMED) -> Identity:
    return Identity(f"{prefix}{os.urandom(4).hex()}@127.0.0.1", 4711, flags)


async def wait_for_node(beam: Beam, name: str) -> None:
    """Return when the BEAM counts `name` among its hidden nodes."""
    await beam.eval(
        """
        wait = fn wait -> if node in Node.list(:hidden), do: :ok, else: wait.(wait) end
        wait.(wait)
        """,
        node=Atom(name),
    )


@interop
async def test_connecting_to_a_beam(beam: Beam, epmd: RealEpmd) -> None:
    async with await ScriptedPeer.connect_to(beam, epmd.port, identity()) as peer:
        await wait_for_node(beam, peer.name)
        assert peer.peer.name == beam.name
        assert peer.peer.creation == await beam.eval(":erlang.system_info(:creation)")
        release = int(beam.otp_release)
        since_29 = Flag.ALTACT_SIG | Flag.NATIVE_RECORDS
        assert peer.peer.flags == int(CLAIMED) & ~(0 if release >= 29 else int(since_29))


@interop
async def test_a_beam_connects(beam: Beam, epmd: RealEpmd) -> None:
    us = identity()
    async with listening(us, epmd.port) as connections:
        connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(us.name)))
        streams = await asyncio.wait_for(connections.get(), 10)
        async with await ScriptedPeer.accept(*streams, us, beam.cookie) as peer:
            assert await connecting is True
            assert peer.peer.name == beam.name


@interop
@pytest.mark.parametrize("direction", ["we connect", "it connects"])
async def test_a_line_that_delivers_single_bytes(
    beam: Beam, epmd: RealEpmd, direction: str
) -> None:
    us = identity()
    if direction == "we connect":
        async with Proxy(await port_of(beam, epmd.port)) as proxy:
            proxy.to_target.chop = proxy.to_client.chop = 1
            peer = await ScriptedPeer.connect(us, beam.cookie, beam.name, proxy.port)
            await wait_for_node(beam, us.name)
            peer.close()
        return
    inner: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: inner.put_nowait((r, w)), "127.0.0.1", 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        proxy.to_target.chop = proxy.to_client.chop = 1
        async with listening(us, epmd.port, proxy.port):
            connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(us.name)))
            async with await ScriptedPeer.accept(*await inner.get(), us, beam.cookie):
                assert await connecting is True
    server.close()


@interop
async def test_a_beam_with_another_cookie(beam: Beam, epmd: RealEpmd) -> None:
    port = await port_of(beam, epmd.port)
    with pytest.raises(HandshakeError, match="closed the connection when it saw our") as caught:
        await ScriptedPeer.connect(identity(), "wrong", beam.name, port)
    assert caught.value.reason == "cookie"
    us = identity()
    async with listening(us, epmd.port) as connections:
        connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(us.name)))
        reader, writer = await asyncio.wait_for(connections.get(), 10)
        with pytest.raises(HandshakeError, match=r"the cookie of .* differs from ours") as caught:
            await ScriptedPeer.accept(reader, writer, us, "wrong")
        assert caught.value.reason == "cookie"
        writer.close()
        assert await connecting is False


@interop
async def test_cookies_are_hashed_as_a_beam_does_it(beam: Beam, epmd: RealEpmd) -> None:
    us = identity()
    set_cookie = ":erlang.set_cookie(node, :erlang.list_to_atom([0xF8, 0xE9]))"
    await beam.eval(set_cookie, node=Atom(us.name))
    port = await port_of(beam, epmd.port)
    async with await ScriptedPeer.connect(us, "\xf8\xe9", beam.name, port):
        await wait_for_node(beam, us.name)


@interop
async def test_a_beam_asks_whether_a_connection_lives(beam: Beam, epmd: RealEpmd) -> None:
    us = identity()
    async with await ScriptedPeer.connect_to(beam, epmd.port, us) as old:
        await wait_for_node(beam, us.name)
        port = await port_of(beam, epmd.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        second = Initiator(us, beam.cookie, 1, peer_name=beam.name)
        writer.write(second.data_to_send())
        [event] = second.receive_data(await reader.read(100))
        assert event == AliveAsked()
        second.answer_alive(False)
        writer.write(second.data_to_send())
        assert await reader.read() == b""
        writer.close()
        # The first one lives; a third takes its place.
        async with await ScriptedPeer.connect_to(beam, epmd.port, us):
            await old.wait_closed()
            await wait_for_node(beam, us.name)


@interop
async def test_a_beam_is_asked_whether_a_connection_lives(beam: Beam, epmd: RealEpmd) -> None:
    us = identity()
    async with listening(us, epmd.port) as connections:
        connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(us.name)))
        streams = await asyncio.wait_for(connections.get(), 10)
        async with await ScriptedPeer.accept(*streams, us, beam.cookie, Status.ALIVE):
            assert await connecting is True


@interop
@pytest.mark.parametrize("status", [Status.NOK, Status.NOT_ALLOWED])
async def test_a_beam_is_refused(beam: Beam, epmd: RealEpmd, status: Status) -> None:
    us = identity()
    async with listening(us, epmd.port) as connections:
        connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(us.name)))
        reader, writer = await asyncio.wait_for(connections.get(), 10)
        side = Acceptor(us, beam.cookie, 1)
        while not side.receive_data(await reader.read(100)):
            pass
        side.decide(status)
        writer.write(side.data_to_send())
        if status is Status.NOK:
            # It waits for the connection that it was told of; and here that is.
            async with await ScriptedPeer.connect_to(beam, epmd.port, us):
                assert await connecting is True
        else:
            assert await connecting is False


@interop
@pytest.mark.parametrize(("prefix", "wins"), [("aa", False), ("zz", True)])
async def test_both_connect_at_once(beam: Beam, epmd: RealEpmd, prefix: str, wins: bool) -> None:
    """The BEAM's names begin with b: it refuses the smaller name and gives way to the greater."""
    us = identity(prefix)
    async with listening(us, epmd.port) as connections:
        connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(us.name)))
        theirs = await asyncio.wait_for(connections.get(), 10)
        if wins:
            async with await ScriptedPeer.connect_to(beam, epmd.port, us):
                assert await connecting is True
                # Its name and then the end; or the end, if ours came before it had said that.
                assert (await theirs[0].read())[:1] in (b"\0", b"")
        else:
            with pytest.raises(HandshakeError) as caught:
                await ScriptedPeer.connect_to(beam, epmd.port, us)
            assert caught.value.reason == "nok"
            async with await ScriptedPeer.accept(*theirs, us, beam.cookie):
                assert await connecting is True


@interop
async def test_a_beam_gives_us_a_name(beam: Beam, epmd: RealEpmd) -> None:
    async with await ScriptedPeer.connect_to(beam, epmd.port, NAMELESS) as peer:
        assert peer.name.endswith("@127.0.0.1")
        check_name(peer.name)
        assert peer.creation != 0
        await wait_for_node(beam, peer.name)


@contextlib.contextmanager
def nameless_erl(home: Path, epmd_port: int, cookie: str, target: str) -> Iterator[Any]:
    (home / ".erlang.cookie").write_text(cookie)
    (home / ".erlang.cookie").chmod(0o400)
    process = subprocess.Popen(
        [
            executable("erl"),
            *("-noinput", "-name", "undefined@127.0.0.1", "-start_epmd", "false"),
            *("-eval", f"net_kernel:connect_node('{target}')."),
        ],
        env={**os.environ, "HOME": str(home), "ERL_EPMD_PORT": str(epmd_port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@interop
async def test_a_beam_gets_a_name_from_us(epmd: RealEpmd, tmp_path: Path) -> None:
    us = identity()
    async with listening(us, epmd.port) as connections:
        with nameless_erl(tmp_path, epmd.port, COOKIE, us.name):
            streams = await asyncio.wait_for(connections.get(), 20)
            async with await ScriptedPeer.accept(*streams, us, COOKIE, Status.NAMED) as peer:
                assert peer.peer.name == "given@127.0.0.1"
                assert peer.peer.creation == 4321


@interop
async def test_a_beam_looked_for_another_name(beam: Beam, epmd: RealEpmd) -> None:
    us, wanted = identity(), identity()
    async with listening(wanted, epmd.port) as connections:
        connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(wanted.name)))
        reader, writer = await asyncio.wait_for(connections.get(), 10)
        with pytest.raises(HandshakeError, match="looked for another name") as caught:
            await shake(Acceptor(us, beam.cookie, 1), reader, writer)
        assert caught.value.reason == "closed"
        assert await connecting is False


@interop
async def test_a_beam_misses_a_flag(beam: Beam, epmd: RealEpmd) -> None:
    us = identity(flags=WITHOUT_DIGEST & ~int(Flag.MAP_TAG))
    with pytest.raises(HandshakeError) as caught:
        await ScriptedPeer.connect_to(beam, epmd.port, us)
    assert caught.value.reason == "not_allowed"
    await beam.wait_log("MAP_TAG")
    async with listening(us, epmd.port) as connections:
        connecting = asyncio.ensure_future(beam.eval("Node.connect(node)", node=Atom(us.name)))
        with pytest.raises(HandshakeError, match="does not accept our flags") as caught:
            await ScriptedPeer.accept(*await connections.get(), us, beam.cookie)
        assert caught.value.reason == "closed"
        assert await connecting is False


@interop
async def test_the_digest_flag_stands_for_others_at_a_beam_too(beam: Beam, epmd: RealEpmd) -> None:
    few = Flag.MANDATORY_25_DIGEST | Flag.UNLINK_ID | Flag.V4_NC
    async with await ScriptedPeer.connect_to(beam, epmd.port, identity(flags=few)) as peer:
        assert peer.peer.flags == int(few | MANDATORY)


@interop
async def test_a_beam_refuses_the_names_that_we_refuse(beam: Beam, epmd: RealEpmd) -> None:
    port = await port_of(beam, epmd.port)
    letters = string.printable + "\x00\x1b\x7f\xf8\xff"
    for letter in letters.replace("@", ""):
        name = f"x{letter}{os.urandom(3).hex()}@127.0.0.1"
        answer = await raw_answer(port, name_message(name))
        ours = acceptor()
        try:
            ours.receive_data(framed(name_message(name)))
        except HandshakeError:
            assert answer == ours.data_to_send()[2:] == b"snok", name
        else:
            assert answer == b"sok", name
    for name in ("ab", "@b", "a@", "a@b@c", ""):
        assert await raw_answer(port, name_message(name)) == b""
    assert await raw_answer(port, name_message(beam.name)) == b"snok"
    assert await raw_answer(port, name_message("a@b", NAMELESS.flags)) == b""
