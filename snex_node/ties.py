"""Ties: the links and monitors of the processes of one node, among each other and across nodes.

Source: "Links and Monitors" under "Processes" in the Erlang reference manual, and "Protocol between
Connected Nodes" in the ERTS user's guide.

Here they are tables, and nothing else: what happens goes in, and the signals that follow from it
come out, to be sent or to be delivered. A signal from one process of this node to another is sent
to this node, and goes in again when it arrives: so it comes after the messages sent before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

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
from snex_node.wire.describe import inspect
from snex_node.wire.terms import Atom, Pid, Reference

Target = Pid | str | tuple[str, str]
"""What can be monitored: a pid, a name registered here, or ``(name, node)``."""

NOPROC: Final = Atom("noproc")
NOCONNECTION: Final = Atom("noconnection")


def check_pair(target: object, known: str) -> tuple[str, str]:
    """``target`` as ``(name, node)``, or a ``TypeError`` that tells what is ``known``."""
    if isinstance(target, tuple) and len(target) == 2:
        name, node = target
        if isinstance(name, str) and isinstance(node, str):
            return name, node
    raise TypeError(f"expected {known}, not {inspect(target)}")


def check_pid(target: object) -> Pid:
    """``target``, if it is a pid; else ``TypeError``."""
    if isinstance(target, Pid):
        return target
    raise TypeError(f"expected a pid, not {inspect(target)}")


class Ends:
    """What ties one process. Each table is None until it is needed: a process is to be small."""

    __slots__ = ("links", "monitors", "watchers")

    def __init__(self) -> None:
        # Linked pid -> None, or the id of an unlink that is not acknowledged yet.
        self.links: dict[Pid, int | None] | None = None
        # Its monitors: external form of the reference -> what it watches, as DOWN will name it.
        self.monitors: dict[bytes, Target] | None = None
        # Who monitors it: external form of the reference -> watcher, and the name it used.
        self.watchers: dict[bytes, tuple[Pid, Pid | Atom]] | None = None


class Tied:
    """A process, as far as its ties go, and what it is told of them."""

    __slots__ = ("pid", "ties")

    pid: Pid
    ties: Ends | None

    @property
    def line(self) -> object:
        """Signals of the same line keep their order on a connection: those of this process."""
        return self.pid

    def down_received(self, ref: Reference, target: Target, reason: object) -> None:
        """The monitor ``ref`` of this process has fired: ``target`` has ended with ``reason``."""

    def exit_received(self, sender: Pid, reason: object, *, linked: bool) -> None:
        """An exit signal: of a process that was linked to this one, or sent by ``exit/2``."""

    def demonitored(self, ref: bytes) -> None:
        """A monitor of this process was withdrawn: its owner took it back, ended, or was lost.

        ``ref`` is the external form of its reference.
        """


class Sent(NamedTuple):
    """A signal on its way to ``node``, with ``reason`` as its payload if ``message`` has one.

    Those of the same ``line`` must keep their order.
    """

    node: str
    message: ControlMessage
    line: object
    reason: object = None


class Down(NamedTuple):
    """A monitor has fired."""

    process: Tied
    ref: Reference
    target: Target
    reason: object

    def deliver(self) -> None:
        """Tell the process."""
        self.process.down_received(self.ref, self.target, self.reason)


class Exited(NamedTuple):
    """What ``process`` was linked to has ended."""

    process: Tied
    sender: Pid
    reason: object

    def deliver(self) -> None:
        """Tell the process."""
        self.process.exit_received(self.sender, self.reason, linked=True)


class Withdrawn(NamedTuple):
    """``process`` is monitored once less."""

    process: Tied
    ref: bytes

    def deliver(self) -> None:
        """Tell the process."""
        self.process.demonitored(self.ref)


Delivered = Down | Exited | Withdrawn
Signal = Sent | Delivered
Signals = Sequence[Signal]

P = TypeVar("P", bound=Tied)
_NONE: Final[Signals] = ()


class _Across(Generic[P]):
    """The ties between processes here and those of one node, which may be this one."""

    __slots__ = ("links", "monitors", "watchers")

    def __init__(self) -> None:
        # Ours and theirs.
        self.links: dict[tuple[P, Pid], None] = {}
        # Reference of a monitor -> who of ours watches, and who of ours is watched.
        self.monitors: dict[bytes, P] = {}
        self.watchers: dict[bytes, P] = {}


class Ties(Generic[P]):
    """The ties of the processes of ``node``; ``find`` finds one that lives, by its pid or name."""

    def __init__(self, node: str, find: Callable[[Pid | Atom], P | None]) -> None:
        self._node = node
        self._find = find
        self._across: dict[str, _Across[P]] = {}
        self._unlink_ids = itertools.count(1)

    def __len__(self) -> int:
        """How many ties there are; one between two processes here counts at both ends."""
        return sum(map(self.count, self._across))

    def count(self, node: str) -> int:
        """How many there are to processes of ``node``."""
        across = self._across.get(node)
        if across is None:
            return 0
        return len(across.links) + len(across.monitors) + len(across.watchers)

    def place(self, target: Target) -> tuple[str, Pid | Atom]:
        """The node of ``target``, and what that node calls it."""
        if isinstance(target, Pid):
            return target.node, target
        if isinstance(target, str):
            return self._node, Atom(target)
        name, node = check_pair(target, "a pid, a name registered here, or (name, node)")
        return node, Atom(name)

    # --- monitors -------------------------------------------------------------------------------

    def monitor(self, process: P, target: Target, ref: Reference) -> Signals:
        """``process`` begins to monitor ``target``."""
        node, there = self.place(target)
        self.add_monitor(process, target, ref)
        if node != self._node:
            return (Sent(node, MonitorP(process.pid, there, ref), process.line),)
        watched = self._find(there)
        if watched is None:
            down = PayloadMonitorPExit(there, process.pid, ref)
            return (Sent(node, down, None, NOPROC),)
        self.add_watcher(watched, node, process.pid, ref, there)
        return _NONE

    def add_monitor(self, process: P, target: Target, ref: Reference) -> None:
        """A monitor of ``process`` that the other side knows of already."""
        ends = _ends(process)
        if ends.monitors is None:
            ends.monitors = {}
        ends.monitors[ref.external] = target
        self._to(self.place(target)[0]).monitors[ref.external] = process

    def demonitor(self, process: P, ref: Reference) -> Signals:
        """``process`` takes a monitor back; if it has fired, or was taken back, nothing."""
        target = _forget_monitor(process, ref.external)
        if target is None:
            return _NONE
        sent = self._take_back(process, target, ref)
        if sent.node != self._node:
            return (sent,)
        watched = self.demonitor_received(sent.node, ref)
        return _NONE if watched is None else (Withdrawn(watched, ref.external),)

    def _take_back(self, process: P, target: Target, ref: Reference) -> Sent:
        node, there = self.place(target)
        self._to(node).monitors.pop(ref.external, None)
        return Sent(node, DemonitorP(process.pid, there, ref), process.line)

    def who_monitors(self, node: str, ref: Reference) -> P | None:
        """Whose monitor of a process of ``node`` this is."""
        return self._to(node).monitors.get(ref.external)

    def monitor_received(
        self, node: str, watcher: Pid, target: Pid | Atom, ref: Reference
    ) -> Signals:
        """A process of ``node`` begins to monitor ``target`` here."""
        process = self._find(target)
        if process is None:
            return (Sent(node, PayloadMonitorPExit(target, watcher, ref), None, NOPROC),)
        self.add_watcher(process, node, watcher, ref, target)
        return _NONE

    def add_watcher(
        self, process: P, node: str, watcher: Pid, ref: Reference, target: Pid | Atom
    ) -> None:
        """``watcher``, of ``node``, monitors ``process``, which it named ``target``."""
        # Each call of a server begins with this, so it calls nothing that it can do without.
        ends = process.ties
        if ends is None:
            ends = process.ties = Ends()
        if ends.watchers is None:
            ends.watchers = {}
        key = ref.external
        ends.watchers[key] = (watcher, target)
        watchers = (self._across.get(node) or self._to(node)).watchers
        if watchers.setdefault(key, process) is not process:
            # A reference names one monitor: what is left of another would stay for ever.
            _forget_watcher(watchers[key], key)
            watchers[key] = process

    def demonitor_received(self, node: str, ref: Reference) -> P | None:
        """A process of ``node`` takes a monitor back: who is to be told, if anybody.

        Each call of a server ends with this: there is one signal at most, and no time to wrap it.
        """
        key = ref.external
        process = (self._across.get(node) or self._to(node)).watchers.pop(key, None)
        if process is None:
            return None
        ends = process.ties
        if ends is None or ends.watchers is None or ends.watchers.pop(key, None) is None:
            return None
        return process

    def down_received(self, node: str, ref: Reference, reason: object) -> Signals:
        """What is monitored with ``ref``, on ``node``, has ended."""
        key = ref.external
        process = self._to(node).monitors.pop(key, None)
        if process is None:
            return _NONE
        target = _forget_monitor(process, key)
        return _NONE if target is None else (Down(process, ref, target, reason),)

    # --- links ----------------------------------------------------------------------------------

    def link(self, process: P, pid: Pid) -> Signals:
        """``process`` links itself to ``pid``; to itself, or if it is linked: nothing."""
        if check_pid(pid) == process.pid or _is_linked(process, pid):
            return _NONE
        self.add_link(process, pid)
        node = pid.node
        if node != self._node:
            return (Sent(node, Link(process.pid, pid), process.line),)
        other = self._find(pid)
        if other is None:
            return (Sent(node, PayloadExit(pid, process.pid), pid, NOPROC),)
        self.add_link(other, process.pid)
        return _NONE

    def add_link(self, process: P, pid: Pid) -> None:
        """A link that the other side knows of already."""
        ends = _ends(process)
        if ends.links is None:
            ends.links = {}
        ends.links[pid] = None
        self._to(pid.node).links[process, pid] = None

    def unlink(self, process: P, pid: Pid) -> Signals:
        """``process`` drops its link: from now on no exit signal of ``pid`` counts."""
        if not _is_linked(process, check_pid(pid)):
            return _NONE
        node = pid.node
        if node == self._node:
            self._drop(process, pid)
            other = self._find(pid)
            if other is not None:
                self._drop(other, process.pid)
            return _NONE
        # Until it is acknowledged: a link of theirs that comes meanwhile was made before it.
        ends = _ends(process)
        assert ends.links is not None
        number = ends.links[pid] = next(self._unlink_ids)
        return (Sent(node, UnlinkId(number, process.pid, pid), process.line),)

    def link_received(self, node: str, sender: Pid, to: Pid) -> Signals:
        """``sender``, of ``node``, links itself to ``to`` here."""
        process = self._find(to)
        if process is None:
            return (Sent(node, PayloadExit(to, sender), to, NOPROC),)
        ends = process.ties
        if ends is None or not ends.links or ends.links.get(sender) is None:
            self.add_link(process, sender)
        return _NONE

    def unlink_received(self, node: str, sender: Pid, to: Pid, number: int | None) -> Signals:
        """``sender``, of ``node``, drops its link to ``to``; None is the form without a number."""
        process = self._linked(node, sender, to)
        if process is not None and _is_linked(process, sender):
            self._drop(process, sender)
        if number is None:
            return _NONE
        return (Sent(node, UnlinkIdAck(number, to, sender), to),)

    def unlink_ack_received(self, node: str, sender: Pid, to: Pid, number: int) -> Signals:
        """``sender``, of ``node``, has seen that ``to`` dropped the link."""
        process = self._linked(node, sender, to)
        links = process.ties.links if process is not None and process.ties else None
        if process is not None and links and links.get(sender) == number:
            self._drop(process, sender)
        return _NONE

    def exit_received(self, node: str, sender: Pid, to: Pid, reason: object) -> Signals:
        """``sender``, of ``node``, has ended, and says so because of a link to ``to``."""
        process = self._linked(node, sender, to)
        if process is None:
            return _NONE
        return (Exited(process, sender, reason),) if self._drop(process, sender) else _NONE

    def _linked(self, node: str, sender: Pid, to: Pid) -> P | None:
        """The process ``to``, if it is linked to ``sender``, or was until just now."""
        process = self._find(to)
        return (
            process if process is not None and (process, sender) in self._to(node).links else None
        )

    def _drop(self, process: P, pid: Pid) -> bool:
        """Forget a link; whether it counted until now."""
        self._to(pid.node).links.pop((process, pid), None)
        return _forget_link(process, pid)

    # --- ends -----------------------------------------------------------------------------------

    def exited(self, process: P, reason: object) -> Signals:
        """``process`` has ended: who is linked to it or monitors it is told."""
        ends, process.ties = process.ties, None
        if ends is None:
            return _NONE
        signals: list[Signal] = []
        pid = process.pid
        for other, pending in (ends.links or {}).items():
            self._to(other.node).links.pop((process, other), None)
            if pending is None:
                signals.append(Sent(other.node, PayloadExit(pid, other), pid, reason))
        for ref, (watcher, target) in (ends.watchers or {}).items():
            self._to(watcher.node).watchers.pop(ref, None)
            down = PayloadMonitorPExit(target, watcher, Reference.from_external(ref))
            signals.append(Sent(watcher.node, down, pid, reason))
        for ref, watched in (ends.monitors or {}).items():
            signals.append(self._take_back(process, watched, Reference.from_external(ref)))
        return signals

    def node_lost(self, node: str) -> Signals:
        """The connection to ``node`` is gone: whatever ties us to it breaks, ``noconnection``."""
        across = self._across.pop(node, None)
        if across is None:
            return _NONE
        signals: list[Signal] = []
        for ref, process in across.watchers.items():
            if _forget_watcher(process, ref):
                signals.append(Withdrawn(process, ref))
        for ref, process in across.monitors.items():
            target = _forget_monitor(process, ref)
            if target is not None:
                down = Down(process, Reference.from_external(ref), target, NOCONNECTION)
                signals.append(down)
        for process, pid in across.links:
            if _forget_link(process, pid):
                signals.append(Exited(process, pid, NOCONNECTION))
        return signals

    def _to(self, node: str) -> _Across[P]:
        across = self._across.get(node)
        if across is None:
            across = self._across[node] = _Across()
        return across


def _ends(process: Tied) -> Ends:
    ends = process.ties
    if ends is None:
        ends = process.ties = Ends()
    return ends


def _is_linked(process: Tied, pid: Pid) -> bool:
    ends = process.ties
    return ends is not None and ends.links is not None and ends.links.get(pid, 0) is None


def _forget_link(process: Tied, pid: Pid) -> bool:
    """Whether there was one, and no unlink on its way."""
    ends = process.ties
    return ends is not None and ends.links is not None and ends.links.pop(pid, 0) is None


def _forget_monitor(process: Tied, ref: bytes) -> Target | None:
    """What was monitored with it."""
    ends = process.ties
    return ends.monitors.pop(ref, None) if ends is not None and ends.monitors else None


def _forget_watcher(process: Tied, ref: bytes) -> bool:
    """Whether there was one."""
    ends = process.ties
    if ends is None or ends.watchers is None:
        return False
    return ends.watchers.pop(ref, None) is not None
