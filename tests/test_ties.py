"""Links and monitors as tables: each operation by itself, and any number of them in any order.

The second half drives two nodes whose signals cross against what OTP promises: a monitor fires
once and not after it was taken back, no exit signal comes after an unlink, what is gone is told
``noproc`` or ``noconnection``, both ends of a link agree when all is quiet, and nothing is left.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from snex_node.ties import Down, Exited, Sent, Tied, Ties, Withdrawn
from snex_node.wire.control import (
    ControlMessage,
    DemonitorP,
    Link,
    MonitorP,
    PayloadExit,
    PayloadMonitorPExit,
    UnlinkId,
    UnlinkIdAck,
)
from snex_node.wire.terms import Atom, Pid, Reference
from tests.support.examples import examples
from tests.support.tied import links_of, monitors_of, watchers_of

HERE, THERE, ELSEWHERE = "here@host", "there@host", "elsewhere@host"
BOOM = Atom("boom")


class Member(Tied):
    """A process with nothing but ties; it keeps what it is told."""

    __slots__ = ("told",)

    def __init__(self, pid: Pid) -> None:
        self.pid = pid
        self.ties = None
        self.told: list[object] = []

    def down_received(self, ref: Reference, target: object, reason: object) -> None:
        self.told.append(("down", ref, target, reason))

    def exit_received(self, sender: Pid, reason: object, *, linked: bool) -> None:
        assert linked
        self.told.append(("exit", sender, reason))

    def demonitored(self, ref: bytes) -> None:
        self.told.append(("demonitored", ref))


class House:
    """The processes of one node, and their ties."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[Pid | str, Member] = {}
        self.ties: Ties[Member] = Ties(name, self.members.get)
        self._count = 0

    def member(self, name: str | None = None) -> Member:
        self._count += 1
        member = Member(Pid(self.name, self._count, 0, 1))
        self.members[member.pid] = member
        if name is not None:
            self.members[name] = member
        return member

    def exit(self, member: Member, reason: object) -> Any:
        for key in [key for key, other in self.members.items() if other is member]:
            del self.members[key]
        return self.ties.exited(member, reason)

    def ref(self) -> Reference:
        self._count += 1
        return Reference(self.name, 1, (self._count, 0, 0))


@pytest.fixture
def house() -> House:
    return House(HERE)


def theirs(number: int = 1, node: str = THERE) -> Pid:
    return Pid(node, number, 0, 1)


def their_ref(number: int = 1, node: str = THERE) -> Reference:
    return Reference(node, 1, (number, 0, 0))


class TestMonitorsOfOurs:
    def test_one_there(self, house: House) -> None:
        one, ref = house.member(), house.ref()
        sent = Sent(THERE, MonitorP(one.pid, theirs(), ref), one.pid)
        assert house.ties.monitor(one, theirs(), ref) == (sent,)
        assert monitors_of(one) == {ref.external: theirs()}
        assert house.ties.who_monitors(THERE, ref) is one
        down = Down(one, ref, theirs(), BOOM)
        assert house.ties.down_received(THERE, ref, BOOM) == (down,)
        assert house.ties.down_received(THERE, ref, BOOM) == ()
        assert house.ties.demonitor(one, ref) == ()
        assert len(house.ties) == 0

    def test_by_name(self, house: House) -> None:
        one, ref = house.member(), house.ref()
        target = ("server", THERE)
        sent = Sent(THERE, MonitorP(one.pid, Atom("server"), ref), one.pid)
        assert house.ties.monitor(one, target, ref) == (sent,)
        assert house.ties.down_received(THERE, ref, BOOM) == (Down(one, ref, target, BOOM),)

    def test_another_node_cannot_fire_it(self, house: House) -> None:
        one, ref = house.member(), house.ref()
        house.ties.monitor(one, theirs(), ref)
        assert house.ties.down_received(ELSEWHERE, ref, BOOM) == ()
        assert house.ties.who_monitors(ELSEWHERE, ref) is None
        assert house.ties.who_monitors(THERE, ref) is one

    def test_taken_back(self, house: House) -> None:
        one, ref = house.member(), house.ref()
        house.ties.monitor(one, theirs(), ref)
        sent = Sent(THERE, DemonitorP(one.pid, theirs(), ref), one.pid)
        assert house.ties.demonitor(one, ref) == (sent,)
        assert house.ties.demonitor(one, ref) == ()
        assert house.ties.down_received(THERE, ref, BOOM) == ()
        assert len(house.ties) == 0

    def test_one_here(self, house: House) -> None:
        one, two, ref = house.member(), house.member(), house.ref()
        assert house.ties.monitor(one, two.pid, ref) == ()
        assert watchers_of(two) == {ref.external: (one.pid, two.pid)}
        assert house.ties.count(HERE) == 2
        # Sent to this node: it comes after the messages that were sent before.
        down = PayloadMonitorPExit(two.pid, one.pid, ref)
        assert house.exit(two, BOOM) == [Sent(HERE, down, two.pid, BOOM)]
        assert house.ties.down_received(HERE, ref, BOOM) == (Down(one, ref, two.pid, BOOM),)
        assert len(house.ties) == 0

    def test_one_here_by_name(self, house: House) -> None:
        one, two, ref = house.member(), house.member("two"), house.ref()
        assert house.ties.monitor(one, "two", ref) == ()
        del house.members["two"]  # a name that is free does not end a monitor
        down = PayloadMonitorPExit(Atom("two"), one.pid, ref)
        assert house.exit(two, BOOM) == [Sent(HERE, down, two.pid, BOOM)]
        assert house.ties.down_received(HERE, ref, BOOM) == (Down(one, ref, "two", BOOM),)

    def test_taken_back_here(self, house: House) -> None:
        one, two, ref = house.member(), house.member(), house.ref()
        house.ties.monitor(one, two.pid, ref)
        assert house.ties.demonitor(one, ref) == (Withdrawn(two, ref.external),)
        assert house.exit(two, BOOM) == []
        assert len(house.ties) == 0

    def test_nobody_here(self, house: House) -> None:
        one, ref = house.member(), house.ref()
        gone = Pid(HERE, 99, 0, 1)
        down = PayloadMonitorPExit(gone, one.pid, ref)
        assert house.ties.monitor(one, gone, ref) == (Sent(HERE, down, None, "noproc"),)

    def test_who_watches_ends(self, house: House) -> None:
        one, two = house.member(), house.member()
        first, second = house.ref(), house.ref()
        house.ties.monitor(one, theirs(), first)
        house.ties.monitor(one, two.pid, second)
        assert house.exit(one, BOOM) == [
            Sent(THERE, DemonitorP(one.pid, theirs(), first), one.pid),
            Sent(HERE, DemonitorP(one.pid, two.pid, second), one.pid),
        ]
        assert house.ties.demonitor_received(HERE, second) is two
        assert len(house.ties) == 0

    def test_set_up_by_the_other_side(self, house: House) -> None:
        one, ref = house.member(), house.ref()
        house.ties.add_monitor(one, theirs(), ref)
        assert house.ties.down_received(THERE, ref, BOOM) == (Down(one, ref, theirs(), BOOM),)


class TestMonitorsOfTheirs:
    @pytest.mark.parametrize("by_name", [False, True])
    def test_fires(self, house: House, by_name: bool) -> None:
        one, ref = house.member("one"), their_ref()
        target = Atom("one") if by_name else one.pid
        assert house.ties.monitor_received(THERE, theirs(), target, ref) == ()
        down = PayloadMonitorPExit(target, theirs(), ref)
        assert house.exit(one, BOOM) == [Sent(THERE, down, one.pid, BOOM)]
        assert house.ties.demonitor_received(THERE, ref) is None
        assert len(house.ties) == 0

    def test_there_is_no_such_process(self, house: House) -> None:
        down = PayloadMonitorPExit(Atom("nobody"), theirs(), their_ref())
        signals = house.ties.monitor_received(THERE, theirs(), Atom("nobody"), their_ref())
        assert signals == (Sent(THERE, down, None, "noproc"),)
        assert len(house.ties) == 0

    def test_taken_back(self, house: House) -> None:
        one, ref = house.member(), their_ref()
        house.ties.monitor_received(THERE, theirs(), one.pid, ref)
        assert house.ties.demonitor_received(ELSEWHERE, ref) is None
        assert house.ties.demonitor_received(THERE, ref) is one
        assert house.ties.demonitor_received(THERE, ref) is None
        assert house.exit(one, BOOM) == []

    def test_a_reference_that_is_used_twice(self, house: House) -> None:
        """No BEAM does it; nothing must be left of the first when the connection goes."""
        one, two, ref = house.member(), house.member(), their_ref()
        house.ties.monitor_received(THERE, theirs(), one.pid, ref)
        house.ties.monitor_received(THERE, theirs(), two.pid, ref)
        assert watchers_of(one) == {}
        house.ties.monitor_received(THERE, theirs(), two.pid, ref)
        assert house.ties.node_lost(THERE) == [Withdrawn(two, ref.external)]
        assert watchers_of(two) == {}


class TestLinks:
    def test_ours(self, house: House) -> None:
        one = house.member()
        assert house.ties.link(one, theirs()) == (Sent(THERE, Link(one.pid, theirs()), one.pid),)
        assert house.ties.link(one, theirs()) == ()
        assert house.ties.exit_received(THERE, theirs(), one.pid, BOOM) == (
            Exited(one, theirs(), BOOM),
        )
        assert house.ties.exit_received(THERE, theirs(), one.pid, BOOM) == ()
        assert len(house.ties) == 0

    def test_to_itself(self, house: House) -> None:
        one = house.member()
        assert house.ties.link(one, one.pid) == ()
        assert len(house.ties) == 0

    def test_theirs(self, house: House) -> None:
        one = house.member()
        assert house.ties.link_received(THERE, theirs(), one.pid) == ()
        exit_ = PayloadExit(one.pid, theirs())
        assert house.exit(one, BOOM) == [Sent(THERE, exit_, one.pid, BOOM)]
        assert len(house.ties) == 0

    def test_theirs_to_nobody(self, house: House) -> None:
        gone = Pid(HERE, 99, 0, 1)
        sent = Sent(THERE, PayloadExit(gone, theirs()), gone, "noproc")
        assert house.ties.link_received(THERE, theirs(), gone) == (sent,)

    def test_here(self, house: House) -> None:
        one, two = house.member(), house.member()
        assert house.ties.link(one, two.pid) == ()
        assert links_of(one) == {two.pid: None}
        assert links_of(two) == {one.pid: None}
        sent = Sent(HERE, PayloadExit(one.pid, two.pid), one.pid, BOOM)
        assert house.exit(one, BOOM) == [sent]
        assert house.ties.exit_received(HERE, one.pid, two.pid, BOOM) == (
            Exited(two, one.pid, BOOM),
        )
        assert len(house.ties) == 0

    def test_here_to_nobody(self, house: House) -> None:
        one, gone = house.member(), Pid(HERE, 99, 0, 1)
        sent = Sent(HERE, PayloadExit(gone, one.pid), gone, "noproc")
        assert house.ties.link(one, gone) == (sent,)
        assert house.ties.exit_received(HERE, gone, one.pid, "noproc") == (
            Exited(one, gone, "noproc"),
        )

    def test_unlinking_here_while_the_exit_is_on_its_way(self, house: House) -> None:
        one, two = house.member(), house.member()
        house.ties.link(one, two.pid)
        house.exit(one, BOOM)
        assert house.ties.unlink(two, one.pid) == ()
        assert house.ties.exit_received(HERE, one.pid, two.pid, BOOM) == ()
        assert len(house.ties) == 0

    def test_unlinking_here(self, house: House) -> None:
        one, two = house.member(), house.member()
        house.ties.link(one, two.pid)
        assert house.ties.unlink(two, one.pid) == ()
        assert house.ties.unlink(two, one.pid) == ()
        assert house.exit(one, BOOM) == []

    def test_an_unlink_counts_until_it_is_acknowledged(self, house: House) -> None:
        one = house.member()
        house.ties.link(one, theirs())
        sent = Sent(THERE, UnlinkId(1, one.pid, theirs()), one.pid)
        assert house.ties.unlink(one, theirs()) == (sent,)
        assert house.ties.unlink(one, theirs()) == ()
        # Made before they have seen it.
        assert house.ties.link_received(THERE, theirs(), one.pid) == ()
        assert house.ties.unlink_ack_received(THERE, theirs(), one.pid, 7) == ()
        assert links_of(one) == {theirs(): 1}
        assert house.ties.unlink_ack_received(THERE, theirs(), one.pid, 1) == ()
        assert links_of(one) == {}
        assert house.ties.unlink_ack_received(THERE, theirs(), one.pid, 1) == ()
        # Made after.
        assert house.ties.link_received(THERE, theirs(), one.pid) == ()
        assert links_of(one) == {theirs(): None}

    def test_an_exit_after_an_unlink_does_not_count(self, house: House) -> None:
        one = house.member()
        house.ties.link(one, theirs())
        house.ties.unlink(one, theirs())
        assert house.ties.exit_received(THERE, theirs(), one.pid, BOOM) == ()
        assert len(house.ties) == 0

    def test_linking_again_clears_an_unlink(self, house: House) -> None:
        one = house.member()
        house.ties.link(one, theirs())
        house.ties.unlink(one, theirs())
        assert house.ties.link(one, theirs()) == (Sent(THERE, Link(one.pid, theirs()), one.pid),)
        house.ties.unlink_ack_received(THERE, theirs(), one.pid, 1)
        assert links_of(one) == {theirs(): None}

    def test_who_unlinked_ends(self, house: House) -> None:
        one = house.member()
        house.ties.link(one, theirs())
        house.ties.unlink(one, theirs())
        assert house.exit(one, BOOM) == []
        assert len(house.ties) == 0

    @pytest.mark.parametrize("number", [None, 5])
    def test_theirs_unlinked(self, house: House, number: int | None) -> None:
        one = house.member()
        house.ties.link_received(THERE, theirs(), one.pid)
        acks = [Sent(THERE, UnlinkIdAck(number, one.pid, theirs()), one.pid)] if number else []
        assert list(house.ties.unlink_received(THERE, theirs(), one.pid, number)) == acks
        assert list(house.ties.unlink_received(THERE, theirs(), one.pid, number)) == acks
        assert house.exit(one, BOOM) == []

    def test_both_unlink_and_one_links_again(self) -> None:
        """What one of them did before it saw the other's unlink is undone: both ends agree."""
        here, there = House(HERE), House(THERE)
        one, two = here.member(), there.member()
        here.ties.link(one, two.pid)
        there.ties.link_received(HERE, one.pid, two.pid)
        here.ties.unlink(one, two.pid)
        there.ties.unlink(two, one.pid)
        there.ties.link(two, one.pid)
        here.ties.unlink_received(THERE, two.pid, one.pid, 1)
        here.ties.link_received(THERE, two.pid, one.pid)
        assert links_of(one) == {two.pid: 1}
        there.ties.unlink_received(HERE, one.pid, two.pid, 1)
        there.ties.unlink_ack_received(HERE, one.pid, two.pid, 1)
        here.ties.unlink_ack_received(THERE, two.pid, one.pid, 1)
        assert links_of(one) == links_of(two) == {}
        assert len(here.ties) == len(there.ties) == 0

    def test_another_node_cannot_break_it(self, house: House) -> None:
        one = house.member()
        house.ties.link(one, theirs())
        assert house.ties.exit_received(ELSEWHERE, theirs(), one.pid, BOOM) == ()
        house.ties.unlink_received(ELSEWHERE, theirs(), one.pid, 1)
        assert links_of(one) == {theirs(): None}


class TestLoss:
    def test_everything_across_breaks(self, house: House) -> None:
        one, two = house.member(), house.member()
        ref = house.ref()
        house.ties.monitor_received(THERE, theirs(), one.pid, their_ref())
        house.ties.monitor(one, theirs(), ref)
        house.ties.link(one, theirs())
        house.ties.link(two, theirs(2))
        house.ties.unlink(two, theirs(2))
        house.ties.link(one, theirs(3, ELSEWHERE))
        house.ties.link(one, two.pid)
        assert house.ties.node_lost(THERE) == [
            Withdrawn(one, their_ref().external),
            Down(one, ref, theirs(), "noconnection"),
            Exited(one, theirs(), "noconnection"),
        ]
        assert house.ties.node_lost(THERE) == ()
        assert house.ties.count(THERE) == 0
        assert links_of(one) == {theirs(3, ELSEWHERE): None, two.pid: None}
        assert links_of(two) == {one.pid: None}

    def test_what_is_delivered(self, house: House) -> None:
        one, ref = house.member(), house.ref()
        for signal in (Down(one, ref, "two", BOOM), Exited(one, theirs(), BOOM)):
            signal.deliver()
        Withdrawn(one, b"ref").deliver()
        assert one.told == [
            ("down", ref, "two", BOOM),
            ("exit", theirs(), BOOM),
            ("demonitored", b"ref"),
        ]

    def test_a_process_may_leave_it_all_alone(self, house: House) -> None:
        silent = Tied()
        silent.pid, silent.ties = theirs(), None
        assert silent.line == silent.pid
        silent.down_received(house.ref(), "two", BOOM)
        silent.exit_received(theirs(), BOOM, linked=True)
        silent.demonitored(b"ref")


class Watch:
    """What a monitor may do: fire once, until it is taken back or its owner ends."""

    def __init__(self, owner: Member, target: Member) -> None:
        self.owner = owner
        self.target = target
        self.fired = 0
        self.over = False


class TwoNodes(RuleBasedStateMachine):
    """Two nodes and the line between them; ``alive``, ``reasons`` and ``watches`` are the model."""

    members = Bundle("members")
    refs = Bundle("refs")

    @initialize(target=members)
    def begin(self) -> Any:
        self.houses = {name: House(name) for name in (HERE, THERE)}
        # Signals under way: in order from node to node; those to the own node come later, too.
        self.lines: dict[tuple[str, str], deque[tuple[ControlMessage, object]]] = {
            (a, b): deque() for a in self.houses for b in self.houses
        }
        self.alive: set[Member] = set()
        self.reasons: dict[Pid, object] = {}
        self.watches: dict[Reference, Watch] = {}
        self.by_pid: dict[Pid, Member] = {}
        self.seen: dict[Member, int] = {}
        # Who must hear nothing of whom: unlinked, and nobody has linked them since.
        self.unlinked: set[tuple[Pid, Pid]] = set()
        self.lost = False
        self.withdrawals: dict[bytes, int] = {}
        return multiple(self._member(HERE), self._member(THERE))

    def _member(self, node: str) -> Member:
        member = self.houses[node].member()
        self.alive.add(member)
        self.by_pid[member.pid] = member
        self.seen[member] = 0
        return member

    def _follow(self, node: str, signals: Any) -> None:
        for signal in signals:
            if isinstance(signal, Sent):
                self.lines[node, signal.node].append((signal.message, signal.reason))
            else:
                assert signal.process in self.alive, "the dead are told nothing"
                signal.deliver()

    def _house(self, member: Member) -> House:
        return self.houses[member.pid.node]

    @rule(target=members, node=st.sampled_from([HERE, THERE]))
    def starts(self, node: str) -> Member:
        return self._member(node)

    @rule(one=members, other=members)
    def links(self, one: Member, other: Member) -> None:
        if one in self.alive:
            self.unlinked.discard((one.pid, other.pid))
            self.unlinked.discard((other.pid, one.pid))
            self._follow(one.pid.node, self._house(one).ties.link(one, other.pid))

    @rule(one=members, other=members)
    def unlinks(self, one: Member, other: Member) -> None:
        if one in self.alive:
            if other.pid in links_of(one):  # else a link that is on its way is a new one
                self.unlinked.add((one.pid, other.pid))
            self._follow(one.pid.node, self._house(one).ties.unlink(one, other.pid))

    @rule(target=refs, one=members, other=members)
    def monitors(self, one: Member, other: Member) -> Any:
        if one not in self.alive:
            return multiple()
        ref = self._house(one).ref()
        self.watches[ref] = Watch(one, other)
        self._follow(one.pid.node, self._house(one).ties.monitor(one, other.pid, ref))
        return ref

    @rule(ref=consumes(refs))
    def demonitors(self, ref: Reference) -> None:
        watch = self.watches[ref]
        if watch.owner in self.alive:
            ties = self._house(watch.owner).ties
            self._follow(watch.owner.pid.node, ties.demonitor(watch.owner, ref))
            watch.over = True

    @rule(member=members, reason=st.sampled_from([BOOM, Atom("normal"), Atom("other")]))
    def ends(self, member: Member, reason: object) -> None:
        if member in self.alive:
            self.alive.remove(member)
            self.reasons[member.pid] = reason
            for watch in self.watches.values():
                watch.over = watch.over or watch.owner is member
            self._follow(member.pid.node, self._house(member).exit(member, reason))

    @rule(line=st.sampled_from([(a, b) for a in (HERE, THERE) for b in (HERE, THERE)]))
    def arrives(self, line: tuple[str, str]) -> None:
        if self.lines[line]:
            message, reason = self.lines[line].popleft()
            self._receive(*line, message, reason)

    def _receive(self, node: str, to: str, message: Any, reason: object) -> None:
        ties = self.houses[to].ties
        signals: Any
        match message:
            case MonitorP():
                signals = ties.monitor_received(node, message.from_, message.target, message.ref)
            case DemonitorP():
                watched = ties.demonitor_received(node, message.ref)
                signals = () if watched is None else (Withdrawn(watched, message.ref.external),)
            case PayloadMonitorPExit():
                signals = ties.down_received(node, message.ref, reason)
            case Link():
                signals = ties.link_received(node, message.from_, message.to)
            case PayloadExit():
                signals = ties.exit_received(node, message.from_, message.to, reason)
            case UnlinkId():
                signals = ties.unlink_received(node, message.from_, message.to, message.id)
            case UnlinkIdAck():
                signals = ties.unlink_ack_received(node, message.from_, message.to, message.id)
            case _:
                raise AssertionError(message)
        self._follow(to, signals)

    @precondition(lambda self: self.lines[HERE, THERE] or self.lines[THERE, HERE])
    @rule()
    def the_line_is_cut(self) -> None:
        """What is on its way is lost; both sides see the end."""
        self.lost = True
        for node, other in ((HERE, THERE), (THERE, HERE)):
            self.lines[node, other].clear()
        for node, other in ((HERE, THERE), (THERE, HERE)):
            self._follow(node, self.houses[node].ties.node_lost(other))

    @invariant()
    def what_was_told_is_right(self) -> None:
        for member, seen in list(getattr(self, "seen", {}).items()):
            for told in member.told[seen:]:
                self._check(member, told)
            self.seen[member] = len(member.told)

    def _check(self, member: Member, told: Any) -> None:
        kind, *rest = told
        if kind == "down":
            ref, target, reason = rest
            watch = self.watches[ref]
            assert watch.owner is member
            assert target == watch.target.pid
            assert not watch.over, "a monitor that was taken back has fired"
            watch.fired += 1
            assert watch.fired == 1
            self._check_reason(target, reason, member)
        elif kind == "exit":
            sender, reason = rest
            assert (member.pid, sender) not in self.unlinked, "it had been unlinked"
            self._check_reason(sender, reason, member)
        else:
            self.withdrawals[rest[0]] = self.withdrawals.get(rest[0], 0) + 1
            assert self.withdrawals[rest[0]] == 1

    def _check_reason(self, of: Pid, reason: object, told: Member) -> None:
        if reason == "noconnection":
            assert self.lost
            assert of.node != told.pid.node
        else:
            assert of in self.reasons, "it lives"
            assert reason in (self.reasons[of], "noproc")

    def teardown(self) -> None:
        if not hasattr(self, "lines"):
            return
        self._settle()
        self._check_links()
        for ref, watch in self.watches.items():
            dead = watch.target not in self.alive
            if watch.over or watch.fired:
                assert ref.external not in monitors_of(watch.owner)
            else:
                assert not dead, "nobody was told of its end"
                assert ref.external in monitors_of(watch.owner)
                if watch.target.pid.node == watch.owner.pid.node or not self.lost:
                    assert ref.external in watchers_of(watch.target)
        for member in list(self.alive):
            self.ends(member, BOOM)
            self._settle()
        for house in self.houses.values():
            assert len(house.ties) == 0

    def _settle(self) -> None:
        while any(self.lines.values()):
            for line in self.lines:
                self.arrives(line)
        self.what_was_told_is_right()

    def _check_links(self) -> None:
        """When all is quiet both ends agree, and no unlink waits to be acknowledged."""
        for member in self.alive:
            for pid, pending in links_of(member).items():
                assert pending is None
                other = self.by_pid[pid]
                assert other in self.alive, "it was not told of the end"
                assert member.pid in links_of(other)


TestTwoNodes = TwoNodes.TestCase
TestTwoNodes.settings = settings(max_examples=examples(1), stateful_step_count=40, deadline=None)
