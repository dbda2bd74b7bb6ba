"""Control messages: every type both ways, what a real BEAM sends, and what nobody should."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snex_node.wire import control
from snex_node.wire.control import (
    AliasSend,
    AltactSigSend,
    ControlError,
    ControlMessage,
    DemonitorP,
    Exit,
    Exit2,
    GroupLeader,
    Link,
    MonitorP,
    MonitorPExit,
    NodeLink,
    PayloadExit,
    PayloadExit2,
    PayloadMonitorPExit,
    RegSend,
    Send,
    SendSender,
    SpawnReply,
    SpawnRequest,
    Unlink,
    UnlinkId,
    UnlinkIdAck,
    alias_send,
    altact_alias_send,
    decode,
    encode,
)
from snex_node.wire.etf import DecodeError, Decoder, EncodeError, Encoder
from snex_node.wire.flags import Flag
from snex_node.wire.terms import Atom, ImproperList, Pid, Reference
from tests.golden.control import Record, read_records
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.peer import ScriptedPeer

term = Encoder().encode

US = Pid("py@127.0.0.1", 7, 0, 1807884199)
THEY = Pid("app@127.0.0.1", 117, 3, 1807884107)
LEADER = Pid("app@127.0.0.1", 64, 0, 1807884107)
REF = Reference("app@127.0.0.1", 1807884107, (0x2E102, 0x152AD1529 & 0xFFFFFFFF, 77))
LONG_REF = Reference("app@127.0.0.1", 1807884107, (1, 2, 3, 4, 5))
NAME = Atom("snex")
EMPTY = Atom("")
TOKEN = (1, 17, 3, THEY, 0)
MFA = (Atom("erpc"), Atom("execute_call"), 4)
OPTIONS: list[object] = [Atom("monitor"), (Atom("priority"), Atom("high"))]

# Each message and the tuple that "Protocol between Connected Nodes" gives for it.
FORMS: list[tuple[ControlMessage, tuple[object, ...]]] = [
    (Link(THEY, US), (1, THEY, US)),
    (Send(US), (2, EMPTY, US)),
    (Send(US, TOKEN), (12, EMPTY, US, TOKEN)),
    (Exit(THEY, US, Atom("boom")), (3, THEY, US, Atom("boom"))),
    (Exit(THEY, US, Atom("boom"), TOKEN), (13, THEY, US, TOKEN, Atom("boom"))),
    (Unlink(THEY, US), (4, THEY, US)),
    (NodeLink(), (5,)),
    (RegSend(THEY, NAME), (6, THEY, EMPTY, NAME)),
    (RegSend(THEY, NAME, TOKEN), (16, THEY, EMPTY, NAME, TOKEN)),
    (GroupLeader(THEY, US), (7, THEY, US)),
    (Exit2(THEY, US, (1, [2])), (8, THEY, US, (1, [2]))),
    (Exit2(THEY, US, (1, [2]), TOKEN), (18, THEY, US, TOKEN, (1, [2]))),
    (MonitorP(THEY, US, REF), (19, THEY, US, REF)),
    (MonitorP(THEY, NAME, LONG_REF), (19, THEY, NAME, LONG_REF)),
    (DemonitorP(THEY, US, REF), (20, THEY, US, REF)),
    (DemonitorP(THEY, NAME, LONG_REF), (20, THEY, NAME, LONG_REF)),
    (MonitorPExit(THEY, US, REF, Atom("normal")), (21, THEY, US, REF, Atom("normal"))),
    (MonitorPExit(NAME, US, REF, None), (21, NAME, US, REF, None)),
    (SendSender(THEY, US), (22, THEY, US)),
    (SendSender(THEY, US, TOKEN), (23, THEY, US, TOKEN)),
    (PayloadExit(THEY, US), (24, THEY, US)),
    (PayloadExit(THEY, US, TOKEN), (25, THEY, US, TOKEN)),
    (PayloadExit2(THEY, US), (26, THEY, US)),
    (PayloadExit2(THEY, US, TOKEN), (27, THEY, US, TOKEN)),
    (PayloadMonitorPExit(THEY, US, REF), (28, THEY, US, REF)),
    (PayloadMonitorPExit(NAME, US, LONG_REF), (28, NAME, US, LONG_REF)),
    (SpawnRequest(REF, THEY, LEADER, MFA, OPTIONS), (29, REF, THEY, LEADER, MFA, OPTIONS)),
    (
        SpawnRequest(REF, THEY, LEADER, MFA, [], TOKEN),
        (30, REF, THEY, LEADER, MFA, [], TOKEN),
    ),
    (SpawnReply(REF, US, 2, THEY), (31, REF, US, 2, THEY)),
    (SpawnReply(REF, US, 0, Atom("notsup")), (31, REF, US, 0, Atom("notsup"))),
    (SpawnReply(REF, US, 3, THEY, TOKEN), (32, REF, US, 3, THEY, TOKEN)),
    (AliasSend(THEY, REF), (33, THEY, REF)),
    (AliasSend(THEY, LONG_REF, TOKEN), (34, THEY, LONG_REF, TOKEN)),
    (UnlinkId(1, THEY, US), (35, 1, THEY, US)),
    (UnlinkId(2**64 - 1, THEY, US), (35, 2**64 - 1, THEY, US)),
    (UnlinkIdAck(300, THEY, US), (36, 300, THEY, US)),
    (AltactSigSend(4, THEY, REF), (37, 4, THEY, REF)),
    (AltactSigSend(5, THEY, LONG_REF), (37, 5, THEY, LONG_REF)),
    (AltactSigSend(8, THEY, NAME), (37, 8, THEY, NAME)),
    (AltactSigSend(1, THEY, US), (37, 1, THEY, US)),
    (AltactSigSend(17, THEY, US), (37, 17, THEY, US)),
    (AltactSigSend(7, THEY, REF, TOKEN), (37, 7, THEY, REF, TOKEN)),
]
form_ids = [f"{elements[0]}-{type(message).__name__}" for message, elements in FORMS]
each_form = pytest.mark.parametrize(("message", "elements"), FORMS, ids=form_ids)


# What is right


@each_form
def test_decoded(message: ControlMessage, elements: tuple[object, ...]) -> None:
    data = term(elements)
    assert decode(data) == (message, len(data))


@each_form
def test_encoded(message: ControlMessage, elements: tuple[object, ...]) -> None:
    assert encode(message) == term(elements)
    if elements[0] < 40 and getattr(message, "token", None) is None:  # type: ignore[operator]
        assert type(message).opcode == elements[0]


@each_form
def test_decoded_from_the_middle(message: ControlMessage, elements: tuple[object, ...]) -> None:
    data = term(elements)
    for _ in range(2):  # the second time it is remembered
        assert decode(b"\x83D\x00" + data + b"m\0\0\0\1x", 3) == (message, 3 + len(data))


def test_there_is_a_form_for_every_opcode_and_type() -> None:
    opcodes = {elements[0] for _, elements in FORMS}
    assert opcodes == {number for number, _ in control._BUILDERS}
    assert {type(message) for message, _ in FORMS} == set(control._ENCODERS)


@pytest.mark.parametrize("name", ["nil", "true", "false"])
def test_names_that_are_python_constants_elsewhere(name: str) -> None:
    for message in (RegSend(THEY, Atom(name)), MonitorP(THEY, Atom(name), REF)):
        found = decode(encode(message))[0]
        assert found == message
        assert type(found) is type(message)
    assert type(decode(encode(RegSend(THEY, Atom(name))))[0].name) is Atom  # type: ignore[union-attr]


def test_a_token_may_be_an_empty_list() -> None:
    message = SendSender(THEY, US, [])
    assert encode(message) == term((23, THEY, US, []))
    assert decode(encode(message))[0] == message


def test_the_flag_of_a_token_goes_with_the_token() -> None:
    assert encode(AltactSigSend(6, THEY, REF)) == term((37, 4, THEY, REF))
    assert encode(AltactSigSend(4, THEY, REF, TOKEN)) == term((37, 6, THEY, REF, TOKEN))


def test_the_third_element_of_a_registered_send_is_ignored() -> None:
    data = term((6, THEY, 77, NAME))
    assert decode(data) == (RegSend(THEY, NAME), len(data))


def test_answers_to_an_alias_from_its_external_form() -> None:
    assert alias_send(US, REF.external) == encode(AliasSend(US, REF))
    assert altact_alias_send(US, REF.external) == encode(AltactSigSend(4, US, REF))


def test_a_reason_that_is_no_term_is_the_senders_error() -> None:
    with pytest.raises(EncodeError):
        encode(Exit(US, THEY, object()))


def test_old_forms_of_pids_and_atoms() -> None:
    """Node names as ATOM_EXT (Latin-1) and pids as PID_EXT, as OTP before 23 sent them."""
    old_node = b"d\x00\x0dapp@127.0.0.1"
    old_pid = b"g" + old_node + (117).to_bytes(4, "big") + bytes(4) + b"\x03"
    data = b"h\x04a\x06" + old_pid + b"d\x00\x00" + b"d\x00\x04snex"
    assert decode(data) == (RegSend(Pid("app@127.0.0.1", 117, 0, 3), NAME), len(data))


@pytest.mark.parametrize("kind", [MonitorP, DemonitorP, AliasSend])
def test_old_forms_of_references(kind: Any) -> None:
    """NEW_REFERENCE_EXT behind a pid of today."""
    target = (NAME,) if kind is not AliasSend else ()
    head = encode(kind(THEY, *target, REF))[: -len(REF.external)]
    ref = b"r\0\1w\x0dapp@127.0.0.1" + b"\x03" + bytes(4)
    expected = kind(THEY, *target, Reference("app@127.0.0.1", 3, (0,)))
    for _ in range(2):
        assert decode(head + ref) == (expected, len(head + ref))


def test_names_too_long_for_the_usual_form_are_told_apart() -> None:
    """Beyond 255 bytes a name is ATOM_UTF8_EXT: what is quick to see of the messages is equal."""
    for letter in "ab":
        name = Atom("\U0001f600" * 100 + letter)
        for message in (RegSend(THEY, name), MonitorP(THEY, name, REF)):
            for _ in range(2):
                assert decode(encode(message))[0] == message


# What a real BEAM sends

RECORDS = read_records()


class Names(dict[str, Any]):
    """What the expectations of the records are written in: any other name is an atom."""

    def __missing__(self, name: str) -> Atom:
        return Atom(name)


@pytest.mark.parametrize("record", RECORDS, ids=[record.title for record in RECORDS])
def test_what_a_real_beam_sent(record: Record) -> None:
    types = {kind.__name__: kind for kind in control._ENCODERS}
    names = Names(**types, **record.knows, Atom=Atom, ImproperList=ImproperList)
    assert len(record.frames) == len(record.expected)
    for (head, payload), expected in zip(record.frames, record.expected):
        text, _, payload_text = expected.partition(" | ")
        message = eval(text, {"__builtins__": {}}, names)
        assert decode(head) == (message, len(head))
        assert encode(message) == head
        if payload_text:
            found = Decoder().decode(payload)
            assert found == (eval(payload_text, {"__builtins__": {}}, names), len(payload))
        else:
            assert payload == b""


def test_records_show_what_can_be_made_to_be_sent() -> None:
    seen = {decode(head)[0].__class__ for record in RECORDS for head, _ in record.frames}
    # Nothing sends NODE_LINK, and ALTACT_SIG_SEND began with OTP 28.
    assert set(control._ENCODERS) - seen == {NodeLink, AltactSigSend}
    traced = {
        type(message)
        for record in RECORDS
        for message in (decode(head)[0] for head, _ in record.frames)
        if getattr(message, "token", None) is not None
    }
    # OTP sends no token with exit/2, neither in the old form nor in the new one.
    carries_token = {kind for kind in seen if "token" in kind.__match_args__}
    assert carries_token - traced == {Exit2, PayloadExit2}


# What is wrong


def outcome(
    read: Callable[[bytes, int], tuple[ControlMessage, int]], data: bytes, offset: int
) -> tuple[object, object]:
    try:
        return read(data, offset)
    except (ControlError, DecodeError) as error:
        return type(error), str(error)


def no_terms_for(element: object) -> list[object]:
    """Terms that must not stand where ``element`` does."""
    candidates: list[object] = [THEY, REF, NAME, b"binary", 2.5, [1], (1, 2), -1, 2**70, {}]
    return [one for one in candidates if type(one) is not type(element)]


def positions_checked(elements: tuple[object, ...]) -> list[int]:
    """Positions whose type matters: not reasons, tokens, and what the protocol leaves unused."""
    unused = {2: {1}, 12: {1}, 6: {2}, 16: {2}}.get(elements[0], set())  # type: ignore[call-overload]
    free = {3: {3}, 13: {3, 4}, 8: {3}, 18: {3, 4}, 21: {4}, 12: {3}, 16: {4}, 23: {3}, 25: {3}}
    free |= {27: {3}, 30: {6}, 32: {5}, 34: {3}, 37: {4}}
    skipped = unused | free.get(elements[0], set())  # type: ignore[call-overload]
    return [position for position in range(1, len(elements)) if position not in skipped]


@each_form
def test_elements_of_a_wrong_type(message: ControlMessage, elements: tuple[object, ...]) -> None:
    for position in positions_checked(elements):
        element = elements[position]
        for wrong in no_terms_for(element):
            changed = (*elements[:position], wrong, *elements[position + 1 :])
            found = outcome(decode, term(changed), 0)
            if isinstance(found[0], type(message)):
                # A pid where a name may stand as well, or the other way round.
                assert {type(wrong), type(element)} == {Pid, Atom}
            else:
                assert found[0] is ControlError
                assert "stands where" in str(found[1]) or "disagree" in str(found[1])


@each_form
def test_too_few_and_too_many_elements(
    message: ControlMessage, elements: tuple[object, ...]
) -> None:
    for changed in ((*elements, 1, 2), elements[:1], elements[:-2]):
        if changed != elements and changed != (5,):
            with pytest.raises(ControlError):
                decode(term(changed))


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        (99, THEY, US),
        (0,),
        (-1, THEY, US),
        (2**100, THEY, US),
        (True, THEY, US),
        (1.0, THEY, US),
        (NAME, THEY, US),
        [1, THEY, US],
        1,
        b"abc",
        {1: THEY},
        (14, THEY, US),
        (38, THEY, US),
        (35, 0, THEY, US),
        (36, 2**64, THEY, US),
        (37, 2, THEY, US),
        (37, 0, THEY, US, TOKEN),
        (31, REF, US, 2**32, THEY),
        (29, REF, THEY, LEADER, (NAME, NAME), []),
        (29, REF, THEY, LEADER, (NAME, NAME, 1), ImproperList([1], 2)),
    ],
)
def test_terms_that_are_no_control_message(wrong: object) -> None:
    with pytest.raises(ControlError):
        decode(term(wrong))


def test_errors_show_the_message_shortened() -> None:
    with pytest.raises(ControlError, match=r"unknown control message: \{99, #PID<app@") as caught:
        decode(term((99, THEY, NAME, "text", 1, 2, 3, 4, 5, 6)))
    assert str(caught.value).endswith(", :snex, <bytes>, 1, 2, 3, 4, ...}")


@pytest.mark.parametrize(
    "nasty",
    [
        b"h\x01" + b"l\0\0\0\1" * 50_000 + b"j" + b"j" * 50_000,
        b"h\x01" + b"h\x01" * 50_000 + b"j",
        b"h\x03o" + (4_000_000).to_bytes(4, "big") + b"\0" + b"\xff" * 4_000_000 + b"jj",
        b"h\x03a\x63o" + (4_000_000).to_bytes(4, "big") + b"\0" + b"\xff" * 4_000_000 + b"j",
        term((31, REF, US, 1 << 100_000, THEY)),
        term((35, 1 << 100_000, THEY, US)),
        term([[1] * 100_000] * 10),
    ],
    ids=["deep list", "deep tuple", "huge opcode", "huge number", "flags", "id", "wide"],
)
def test_errors_take_no_time_and_no_recursion_whatever_the_term(nasty: bytes) -> None:
    with pytest.raises(ControlError) as caught:
        decode(nasty)
    started = time.perf_counter()
    assert len(str(caught.value)) < 1000
    assert time.perf_counter() - started < 0.1


def test_free_terms_are_left_out_of_repr() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    messages: list[ControlMessage] = [
        Exit(THEY, US, deep, deep),
        MonitorPExit(THEY, US, REF, deep),
        SpawnRequest(REF, THEY, US, MFA, deep, deep),
        AliasSend(THEY, REF, deep),
    ]
    for message in messages:
        assert repr(message).startswith(type(message).__name__)


@each_form
def test_cut_off_anywhere(message: ControlMessage, elements: tuple[object, ...]) -> None:
    data = term(elements)
    assert decode(data)[0] == message  # from here on it is remembered
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode(data[:end])


# The quick way and the general one

latin = st.characters(min_codepoint=32, max_codepoint=255)
nodes = st.builds("{}@{}".format, st.text(latin, min_size=1, max_size=100), st.just("host"))
names = st.text(max_size=255).map(Atom) | st.sampled_from([Atom("nil"), Atom("true"), NAME, EMPTY])
words = st.integers(0, 2**32 - 1)
pids = st.builds(Pid, nodes, words, words, words)
refs = st.builds(Reference, nodes, words, st.lists(words, min_size=1, max_size=5))
targets = pids | names
hot_messages = st.one_of(
    st.builds(MonitorP, pids, targets, refs),
    st.builds(DemonitorP, pids, targets, refs),
    st.builds(RegSend, pids, names),
    st.builds(SendSender, pids, pids),
    st.builds(AliasSend, pids, refs),
)


@given(hot_messages, st.binary(max_size=30), st.binary(max_size=30))
def test_the_quick_way_agrees_with_the_general_one(
    message: ControlMessage, before: bytes, after: bytes
) -> None:
    data = before + encode(message) + after
    end = len(data) - len(after)
    for _ in range(2):
        assert decode(data, len(before)) == (message, end)
    assert control._decode_any(data, len(before)) == (message, end)


@pytest.mark.untraced
@given(
    hot_messages,
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 2000),
)
def test_the_quick_way_fails_as_the_general_one_does(
    message: ControlMessage, changes: list[tuple[int, int]], cut: int
) -> None:
    data = encode(message)
    decode(data)  # now it is remembered
    corrupted = bytearray(data)
    for position, value in changes:
        corrupted[position % len(data)] = value
    for candidate in (bytes(corrupted), bytes(corrupted)[: cut % len(data)], data + data):
        assert outcome(decode, candidate, 0) == outcome(control._decode_any, candidate, 0)


@given(st.binary(max_size=60))
@example(b"h\x04a\x13")
@example(b"h\x04a\x13" + b"\xff" * 60)
def test_arbitrary_bytes_give_the_documented_errors(data: bytes) -> None:
    for head in (b"", *control._FAST):
        assert outcome(decode, head + data, 0) == outcome(control._decode_any, head + data, 0)


@pytest.mark.untraced
@given(st.recursive(st.integers() | names | pids | refs, st.lists, max_leaves=8), st.data())
def test_arbitrary_tuples_give_the_documented_errors(filler: object, data: st.DataObject) -> None:
    elements = (
        data.draw(st.integers(0, 40)),
        *data.draw(st.lists(pids | refs | names, max_size=6)),
    )
    for candidate in (elements, (*elements, filler)):
        encoded = term(candidate)
        try:
            message, end = decode(encoded)
        except ControlError:
            continue
        assert end == len(encoded)
        assert decode(encode(message))[0] == message


def test_the_same_bytes_give_the_same_object() -> None:
    data = encode(RegSend(THEY, NAME))
    assert decode(data)[0] is decode(b"x" + data, 1)[0]


@pytest.mark.untraced
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MAX_CACHED", 50)

    def decode_many(creation: int) -> None:
        for number in range(2000):
            sender = Pid("app@127.0.0.1", number, 0, creation)
            ref = Reference("app@127.0.0.1", creation, (number,))
            for message in (
                MonitorP(sender, NAME, ref),
                DemonitorP(sender, NAME, ref),
                AliasSend(sender, ref),
                RegSend(sender, NAME),
                SendSender(sender, US),
            ):
                assert decode(encode(message))[0] == message

    decode_many(1)  # the decoder beneath has caches of its own, with bounds of their own
    tracemalloc.start()
    try:
        decode_many(2)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(control._messages) <= 50
    # 10,000 messages remembered would take 5 MB, and 50 of each kind take 100 KB.
    assert held < 500_000


@pytest.mark.interop
@pytest.mark.parametrize("traced", [False, True])
async def test_how_a_beam_sends_to_an_alias(beam: Beam, epmd: RealEpmd, traced: bool) -> None:
    """By ALIAS_SEND, or by ALTACT_SIG_SEND where both claim that (OTP 28 began with it)."""
    async with await ScriptedPeer.connect_to(beam, epmd.port) as peer:
        alias = peer.make_ref()
        trace = ":seq_trace.set_token(:label, 17); :seq_trace.set_token(:send, true); "
        source = f"{trace if traced else ''}send(alias, :hello); self()"
        me = await beam.eval(source, alias=alias)
        assert isinstance(me, Pid)
        token = (1, 17, 1, me, 0) if traced else None
        expected: ControlMessage = AliasSend(me, alias, token)
        if peer.peer.flags & Flag.ALTACT_SIG:
            flags = AltactSigSend.ALIAS | (AltactSigSend.TOKEN if traced else 0)
            expected = AltactSigSend(flags, me, alias, token)
        message = await peer.read()
        assert message.control == expected
        assert encode(expected) in message.data
        assert message.data.endswith(term(Atom("hello")))
