"""Records what a real Erlang sends for each operation, into control.txt beside this file:

    python -m tests.golden.control

A peer that does nothing by itself connects to a BEAM of its own, has it do one operation after the
other, and writes down the frames that come. `read_records` reads the file back.

A record is a title in brackets and lines of `key value`. `knows`: a name and a term in external
form, what the BEAM itself says of its processes and references. `is`: what the operation should
send, control message and payload, written by hand below in Python and these names; any other name
is an atom. `frame`: what it did send, control message and payload in external form (`-`: none).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

from snex_node.wire import etf
from snex_node.wire.control import (
    Link,
    MonitorP,
    SendSender,
    SpawnReply,
    SpawnRequest,
    UnlinkId,
)
from snex_node.wire.flags import CLAIMED, Flag
from snex_node.wire.handshake import Identity
from snex_node.wire.terms import Atom, Pid
from tests.support.beam import Beam
from tests.support.epmd import RealEpmd
from tests.support.peer import ScriptedPeer

FILE = Path(__file__).with_suffix(".txt")
NEW = Identity("new@127.0.0.1", 4711)
OLD = Identity(
    "old@127.0.0.1",
    4711,
    int(CLAIMED) & ~int(Flag.EXIT_PAYLOAD | Flag.SEND_SENDER | Flag.UNLINK_ID),
)
"""A peer as they were before OTP 22, as far as OTP 25 still lets it in."""

TRACED = ":seq_trace.set_token(:label, 17); :seq_trace.set_token(:send, true)"
TOKEN = "(1, 17, 1, me, 0)"
UNTIL_TOLD = "spawn(fn -> receive do reason -> exit(reason) end end)"

_encode = etf.Encoder().encode


class Record(NamedTuple):
    """One operation: what the BEAM knows of it, what it should send, and what it did send."""

    title: str
    knows: dict[str, object]
    expected: list[str]
    frames: list[tuple[bytes, bytes]]


class Recorder:
    """One connection to the BEAM, and what was recorded on it."""

    def __init__(self, beam: Beam, peer: ScriptedPeer) -> None:
        self.beam = beam
        self.peer = peer
        self.us = peer.pid()
        self.records: list[Record] = []

    async def elixir(self, source: str, *expected: str) -> None:
        """Let a process of its own run `source`, whose value is a keyword list of what it knows.

        `peer` is a pid of ours, `alias` a reference of ours, `node` our name; and `me` the process.
        """
        wrapped = f"""
            caller = self()
            {{pid, monitor}} = spawn_monitor(fn -> send(caller, {{:knows, ({source})}}) end)
            receive do {{:DOWN, ^monitor, _, _, _}} -> :ok end
            receive do {{:knows, knows}} -> [{{:me, pid}} | knows] after 0 -> [me: pid] end
        """
        alias = self.peer.make_ref()
        node = Atom(self.peer.name)
        found = await self.beam.eval(wrapped, peer=self.us, alias=alias, node=node)
        assert isinstance(found, list)
        knows = {"alias": alias} if "alias" in source else {}
        await self.collect(source, *expected, **knows, **dict(found))

    async def collect(self, title: str, *expected: str, **knows: object) -> None:
        """Take the next frames for what `title` says."""
        found = []
        for _ in expected:
            message = await self.peer.read()
            start = 7 if message.data[4:7] == b"\x83D\x00" else 0  # the header of the frame
            found.append((message.data[start : message.offset], message.data[message.offset :]))
            if isinstance(message.control, SpawnRequest):
                # Refused, or the BEAM would wait.
                no = SpawnReply(message.control.id, message.control.from_, 0, Atom("notsup"))
                await self.peer.send(no)
        knows = {"peer": self.us, **knows}
        self.records.append(Record(f"{self.peer.name}: {title}", knows, [*expected], found))

    async def pid(self, source: str) -> Pid:
        """The pid that some Elixir gives."""
        pid = await self.beam.eval(source)
        assert isinstance(pid, Pid)
        return pid

    async def tell(self, pid: Pid, message: object) -> None:
        """Send a message to a process."""
        await self.peer.send(SendSender(self.us, pid), _encode(message))


async def record_both(recorder: Recorder) -> None:
    """What every peer is sent in the same form."""
    elixir = recorder.elixir
    await elixir("send({:name, node}, :hello); []", "RegSend(me, name) | hello")
    await elixir(f"{TRACED}; send({{:name, node}}, 1); []", f"RegSend(me, name, {TOKEN}) | 1")
    await elixir(
        "ref = Process.monitor(peer); [ref: ref]",
        "MonitorP(me, peer, ref)",
        "DemonitorP(me, peer, ref)",
    )
    await elixir(
        "ref = Process.monitor({:name, node}); Process.demonitor(ref); [ref: ref]",
        "MonitorP(me, name, ref)",
        "DemonitorP(me, name, ref)",
    )
    await elixir("Process.group_leader(peer, self()); []", "GroupLeader(me, peer)")


async def record_new(recorder: Recorder) -> None:
    """What the flags of a new peer ask for."""
    elixir = recorder.elixir
    await elixir("send(peer, :hello); []", "SendSender(me, peer) | hello")
    await elixir(f"{TRACED}; send(peer, 1); []", f"SendSender(me, peer, {TOKEN}) | 1")
    await elixir("Process.exit(peer, {:because, 1}); []", "PayloadExit2(me, peer) | (because, 1)")
    await elixir(
        "Process.link(peer); exit(:boom)", "Link(me, peer)", "PayloadExit(me, peer) | boom"
    )
    await elixir(
        f"{TRACED}; Process.link(peer); exit(:boom)",
        "Link(me, peer)",
        f"PayloadExit(me, peer, {TOKEN}) | boom",
    )
    await elixir(
        "Process.link(peer); Process.unlink(peer); []", "Link(me, peer)", "UnlinkId(1, me, peer)"
    )
    await elixir(
        "GenServer.cast({:name, node}, 1); []", 'RegSend(me, name) | (Atom("$gen_cast"), 1)'
    )
    await elixir(
        "ref = :gen_server.send_request({:name, node}, 1); [ref: ref]",
        "MonitorP(me, name, ref)",
        'RegSend(me, name) | (Atom("$gen_call"), (me, ImproperList([Atom("alias")], ref)), 1)',
        "DemonitorP(me, name, ref)",
    )
    await elixir("send(alias, :hello); []", "AliasSend(me, alias) | hello")
    await elixir(f"{TRACED}; send(alias, 1); []", f"AliasSend(me, alias, {TOKEN}) | 1")
    await record_ends(
        recorder,
        "PayloadMonitorPExit(nobody, peer, ref) | noproc",
        "PayloadMonitorPExit(pid, peer, ref) | boom",
        "PayloadMonitorPExit(watched, peer, ref) | boom",
        "PayloadExit(pid, peer) | noproc",
    )
    pid = await recorder.pid(UNTIL_TOLD)
    await recorder.peer.send(UnlinkId(77, recorder.us, pid))
    await recorder.collect("an unlink is acknowledged", "UnlinkIdAck(77, pid, peer)", pid=pid)
    await recorder.tell(pid, Atom("normal"))


async def record_old(recorder: Recorder) -> None:
    """What a peer gets that lacks the flags EXIT_PAYLOAD, SEND_SENDER and UNLINK_ID."""
    elixir = recorder.elixir
    await elixir("send(peer, :hello); []", "Send(peer) | hello")
    await elixir(f"{TRACED}; send(peer, 1); []", f"Send(peer, {TOKEN}) | 1")
    await elixir("Process.exit(peer, {:because, 1}); []", "Exit2(me, peer, (because, 1))")
    await elixir("Process.link(peer); exit(:boom)", "Link(me, peer)", "Exit(me, peer, boom)")
    await elixir(
        f"{TRACED}; Process.link(peer); exit(:boom)",
        "Link(me, peer)",
        f"Exit(me, peer, boom, {TOKEN})",
    )
    await elixir(
        "Process.link(peer); Process.unlink(peer); []", "Link(me, peer)", "Unlink(me, peer)"
    )
    await record_ends(
        recorder,
        "MonitorPExit(nobody, peer, ref, noproc)",
        "MonitorPExit(pid, peer, ref, boom)",
        "MonitorPExit(watched, peer, ref, boom)",
        "Exit(pid, peer, noproc)",
    )


async def record_ends(
    recorder: Recorder, nobody: str, by_pid: str, by_name: str, dead_link: str
) -> None:
    """The end of processes that the peer watches or links to."""
    peer, us, ref = recorder.peer, recorder.us, recorder.peer.make_ref()
    await peer.send(MonitorP(us, Atom("nobody"), ref))
    await recorder.collect("a name that nobody has is monitored", nobody, ref=ref)

    pid = await recorder.pid(UNTIL_TOLD)
    await peer.send(MonitorP(us, pid, ref))
    await recorder.tell(pid, Atom("boom"))
    await recorder.collect("a process ends that is monitored by its pid", by_pid, pid=pid, ref=ref)

    named = await recorder.pid(f"pid = {UNTIL_TOLD}; Process.register(pid, :watched); pid")
    await peer.send(MonitorP(us, Atom("watched"), ref))
    await recorder.tell(named, Atom("boom"))
    await recorder.collect("a process ends that is monitored by its name", by_name, ref=ref)

    await peer.send(Link(us, pid))
    await recorder.collect("a process is linked to that has ended", dead_link, pid=pid)


async def record_spawn_requests(recorder: Recorder) -> None:
    """What the peer is asked to spawn."""
    elixir = recorder.elixir
    options = "[:link, :monitor, {:priority, :high}, {:min_heap_size, 1000}]"
    asking = (
        "[ref: :erlang.spawn_request(node, :math, :sqrt, [16], %s), leader: Process.group_leader()]"
    )
    await elixir(asking % "[]", "SpawnRequest(ref, me, leader, (math, sqrt, 1), []) | [16]")
    await elixir(
        asking % options,
        "SpawnRequest(ref, me, leader, (math, sqrt, 1), "
        "[link, monitor, (priority, high), (min_heap_size, 1000)]) | [16]",
    )
    await elixir(
        f"{TRACED}; {asking % '[]'}",
        "SpawnRequest(ref, me, leader, (math, sqrt, 1), [], (1, 17, 2, me, 0)) | [16]",
    )
    await elixir(
        "[res | ref] = :erpc.send_request(node, :math, :sqrt, [16]); "
        "[res: res, ref: ref, leader: Process.group_leader()]",
        "SpawnRequest(ref, me, leader, (erpc, execute_call, 4), [monitor]) "
        "| [res, math, sqrt, [16]]",
    )


async def record_spawn_replies(recorder: Recorder) -> None:
    """What is answered when the peer has something spawned."""
    await record_spawned(recorder, [], None, "SpawnReply(ref, peer, 0, pid)")
    await record_spawned(
        recorder,
        [Atom("link"), Atom("monitor")],
        None,
        "SpawnReply(ref, peer, 3, pid)",
        "PayloadExit(pid, peer) | normal",
        "PayloadMonitorPExit(pid, peer, ref) | normal",
    )
    await record_spawned(
        recorder,
        [],
        (1, 17, 3, recorder.us, 0),
        "SpawnReply(ref, peer, 0, pid, (1, 17, 3, pid, 2))",
    )
    ref, us = recorder.peer.make_ref(), recorder.us
    mfa = (Atom("math"), Atom("sqrt"), 1)
    await recorder.peer.send(SpawnRequest(ref, us, us, mfa, [Atom("bogus")]), _encode([16]))
    await recorder.collect("spawning is refused", "SpawnReply(ref, peer, 0, badopt)", ref=ref)


async def record_spawned(
    recorder: Recorder, options: list[object], token: object, *expected: str
) -> None:
    """Spawn a process that tells its pid to one of the BEAM's."""
    beam, us, ref = recorder.beam, recorder.us, recorder.peer.make_ref()
    told = beam.submit("Process.register(self(), :told); receive do pid -> pid end")
    while await beam.eval("Process.whereis(:told)") is None:
        pass
    mfa = (Atom("Elixir.Code"), Atom("eval_string"), 1)
    request = SpawnRequest(ref, us, us, mfa, options, token)
    await recorder.peer.send(request, _encode([b"send(:told, self())"]))
    pid = await asyncio.wrap_future(told)
    title = f"spawned with options {options}{', traced' if token else ''}"
    await recorder.collect(title, *expected, ref=ref, pid=pid)


def write_records(otp_release: str, records: list[Record]) -> None:
    """Write the file."""
    lines = ["# What a real Erlang sends. Written by control.py.", f"# OTP {otp_release}"]
    for record in records:
        lines += ["", f"[{record.title}]"]
        lines += [f"knows {name} {_encode(term).hex()}" for name, term in record.knows.items()]
        for expected, (head, payload) in zip(record.expected, record.frames):
            lines += [f"is {expected}", f"frame {head.hex()} {payload.hex() or '-'}"]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_records() -> list[Record]:
    """The records of the file."""
    records: list[Record] = []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        key, _, rest = line.partition(" ")
        if line.startswith("["):
            records.append(Record(line[1:-1], {}, [], []))
        elif key == "knows":
            name, _, term = rest.partition(" ")
            records[-1].knows[name] = etf.decode(b"\x83" + bytes.fromhex(term))
        elif key == "is":
            records[-1].expected.append(rest)
        elif key == "frame":
            head, _, payload = rest.partition(" ")
            found = bytes.fromhex(head), bytes.fromhex(payload.replace("-", ""))
            records[-1].frames.append(found)
    return records


async def main() -> None:
    """Record everything from a BEAM of its own."""
    records: list[Record] = []
    with RealEpmd() as epmd:
        async with Beam.start(epmd_port=epmd.port, name="golden") as beam:
            for identity, record in ((NEW, record_new), (OLD, record_old)):
                async with await ScriptedPeer.connect_to(beam, epmd.port, identity) as peer:
                    recorder = Recorder(beam, peer)
                    await record_both(recorder)
                    await record(recorder)
                    if identity is NEW:
                        await record_spawn_requests(recorder)
                        await record_spawn_replies(recorder)
                    records += recorder.records
            write_records(beam.otp_release, records)


if __name__ == "__main__":
    asyncio.run(main())
