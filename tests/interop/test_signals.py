"""Monitors, links and exit signals between our processes and a BEAM's, in both directions."""

from __future__ import annotations

import pytest

from snex_node import Atom, Node, Pid, Process, ProcessExitError, Reference
from tests.support.beam import Beam
from tests.support.tied import links_of, watchers_of
from tests.support.waiting import until

NORMAL = Atom("normal")

# A process that ends with what it is sent, and tells of exit signals that it traps.
PUPPET = """
spawn(fn ->
  Process.flag(:trap_exit, trap)
  loop = fn loop ->
    receive do
      {:end, reason} -> exit(reason)
      {:link, pid} -> Process.link(pid)
      {:unlink, pid} -> Process.unlink(pid)
      {:monitor, what} -> send(to, {:monitoring, Process.monitor(what)})
      {:demonitor, ref} -> Process.demonitor(ref)
      {:exit, pid, reason} -> Process.exit(pid, reason)
      {:ask, ask} -> send(to, {:answer, ask})
      other -> send(to, {:got, other})
    end
    loop.(loop)
  end
  loop.(loop)
end)
"""


class Puppet:
    """A process on the BEAM that does what it is told, and reports to a process of ours."""

    def __init__(self, ours: Process, pid: Pid) -> None:
        self.ours = ours
        self.pid = pid

    @classmethod
    async def start(cls, beam: Beam, ours: Process, *, trap: bool = False) -> Puppet:
        pid = await beam.eval(PUPPET, to=ours.pid, trap=trap)
        assert isinstance(pid, Pid)
        return cls(ours, pid)

    def tell(self, *message: object) -> None:
        name, *rest = message
        self.ours.send(self.pid, (Atom(str(name)), *rest))

    async def settled(self) -> None:
        """Return when it has done what it was told before, and its signals to us have come."""
        self.tell("ask", 1)
        await self.ours.receive(lambda m: m == ("answer", 1), timeout=5)

    async def got(self) -> object:
        message = await self.ours.receive(timeout=5)
        assert isinstance(message, tuple)
        assert message[0] == "got"
        return message[1]

    async def monitor(self, what: object) -> Reference:
        self.tell("monitor", what)
        message = await self.ours.receive(timeout=5)
        assert isinstance(message, tuple)
        name, ref = message
        assert name == "monitoring"
        assert isinstance(ref, Reference)
        return ref


@pytest.fixture
async def ours(node: Node) -> Process:
    return Process(node, name="ours")


@pytest.fixture
async def target(node: Node) -> Process:
    return Process(node, name="target")


@pytest.fixture
async def puppet(beam: Beam, ours: Process) -> Puppet:
    return await Puppet.start(beam, ours)


@pytest.fixture
async def trapper(beam: Beam, ours: Process) -> Puppet:
    return await Puppet.start(beam, ours, trap=True)


class TestTheBeamMonitorsUs:
    async def test_by_pid(self, puppet: Puppet, target: Process) -> None:
        ref = await puppet.monitor(target.pid)
        target.exit((Atom("because"), [1, 2]))
        assert await puppet.got() == ("DOWN", ref, "process", target.pid, ("because", [1, 2]))

    async def test_by_name(self, puppet: Puppet, target: Process, node: Node) -> None:
        named = (Atom("target"), node.name)
        ref = await puppet.monitor(named)
        target.exit()
        assert await puppet.got() == ("DOWN", ref, "process", named, "normal")

    async def test_many_times(self, puppet: Puppet, target: Process, node: Node) -> None:
        refs = [await puppet.monitor(target.pid) for _ in range(3)]
        assert len(watchers_of(target)) == 3
        target.exit()
        downs = [await puppet.got() for _ in refs]
        assert sorted(downs, key=str) == sorted(
            [("DOWN", ref, "process", target.pid, "normal") for ref in refs], key=str
        )

    async def test_a_missing_name_is_down_at_once(self, puppet: Puppet, node: Node) -> None:
        named = (Atom("missing"), node.name)
        ref = await puppet.monitor(named)
        assert await puppet.got() == ("DOWN", ref, "process", named, "noproc")
        Process(node, name="missing").exit()  # a later process of that name changes nothing
        await puppet.settled()
        assert len(puppet.ours) == 0

    async def test_a_dead_pid_is_down_at_once(self, puppet: Puppet, target: Process) -> None:
        target.exit()
        ref = await puppet.monitor(target.pid)
        assert await puppet.got() == ("DOWN", ref, "process", target.pid, "noproc")

    async def test_demonitor(self, puppet: Puppet, target: Process) -> None:
        ref = await puppet.monitor(target.pid)
        assert watchers_of(target)
        puppet.tell("demonitor", ref)
        await puppet.settled()
        assert not watchers_of(target)
        target.exit()
        await puppet.settled()
        assert len(puppet.ours) == 0

    async def test_a_watcher_that_ends_is_forgotten(self, puppet: Puppet, target: Process) -> None:
        await puppet.monitor(target.pid)
        puppet.tell("end", NORMAL)
        await until(lambda: not watchers_of(target))

    async def test_a_reason_that_cannot_be_sent(self, puppet: Puppet, target: Process) -> None:
        ref = await puppet.monitor(target.pid)
        target.exit(object())
        down = await puppet.got()
        assert isinstance(down, tuple)
        assert down[:2] == ("DOWN", ref)
        assert down[4].startswith(b"<object object")


class TestWeMonitor:
    async def test_by_pid(self, puppet: Puppet, ours: Process) -> None:
        ref = ours.monitor(puppet.pid)
        puppet.tell("end", (Atom("because"), 1))
        down = await ours.receive(timeout=5)
        assert down == ("DOWN", ref, "process", puppet.pid, ("because", 1))

    async def test_by_name(self, beam: Beam, ours: Process, puppet: Puppet) -> None:
        await beam.eval("Process.register(pid, :puppet)", pid=puppet.pid)
        ref = ours.monitor(("puppet", beam.name))
        puppet.tell("end", NORMAL)
        down = await ours.receive(timeout=5)
        assert down == ("DOWN", ref, "process", ("puppet", beam.name), "normal")

    async def test_who_is_not_there(self, beam: Beam, ours: Process, puppet: Puppet) -> None:
        ref = ours.monitor(("missing", beam.name))
        down = await ours.receive(timeout=5)
        assert down == ("DOWN", ref, "process", ("missing", beam.name), "noproc")
        puppet.tell("end", NORMAL)
        await until_dead(beam, puppet.pid)
        ref = ours.monitor(puppet.pid)
        assert await ours.receive(timeout=5) == ("DOWN", ref, "process", puppet.pid, "noproc")

    async def test_a_node_that_is_not_there(self, ours: Process) -> None:
        ref = ours.monitor(("name", "nobody@127.0.0.1"))
        down = await ours.receive(timeout=5)
        assert down == ("DOWN", ref, "process", ("name", "nobody@127.0.0.1"), "noconnection")

    async def test_demonitor(self, beam: Beam, ours: Process, puppet: Puppet) -> None:
        ref = ours.monitor(puppet.pid)
        await puppet.settled()
        assert await beams_watchers_of(beam, puppet.pid) == [ours.pid]
        ours.demonitor(ref)
        ours.demonitor(ref)  # again: nothing
        await puppet.settled()
        assert await beams_watchers_of(beam, puppet.pid) == []
        puppet.tell("end", NORMAL)
        await until_dead(beam, puppet.pid)
        assert len(ours) == 0

    async def test_demonitor_before_there_is_a_connection(
        self, beam: Beam, node: Node, ours: Process, puppet: Puppet
    ) -> None:
        node.disconnect(beam.name)
        ref = ours.monitor(puppet.pid)
        ours.demonitor(ref)
        await puppet.settled()
        assert await beams_watchers_of(beam, puppet.pid) == []

    async def test_our_end_takes_monitors_back(
        self, beam: Beam, node: Node, puppet: Puppet
    ) -> None:
        watcher = Process(node)
        watcher.monitor(puppet.pid)
        await puppet.settled()
        watcher.exit()
        await puppet.settled()
        assert await beams_watchers_of(beam, puppet.pid) == []


async def beams_watchers_of(beam: Beam, pid: Pid) -> object:
    source = "Process.info(pid, :monitored_by) |> elem(1)"
    return await beam.eval(source, pid=pid)


async def beams_links_of(beam: Beam, pid: Pid) -> object:
    return await beam.eval("Process.info(pid, :links) |> elem(1)", pid=pid)


async def until_dead(beam: Beam, pid: Pid) -> None:
    source = "ref = Process.monitor(pid); receive do {:DOWN, ^ref, _, _, _} -> :ok end"
    await beam.eval(source, pid=pid)


class TestLinks:
    @pytest.mark.parametrize("theirs", [True, False])
    async def test_they_end(
        self, beam: Beam, puppet: Puppet, target: Process, theirs: bool
    ) -> None:
        await link(puppet, target, theirs)
        assert await beams_links_of(beam, puppet.pid) == [target.pid]
        puppet.tell("end", Atom("boom"))
        await until(lambda: not target.alive)
        assert target.exit_reason == "boom"

    @pytest.mark.parametrize("theirs", [True, False])
    async def test_we_end(
        self, puppet: Puppet, trapper: Puppet, target: Process, theirs: bool
    ) -> None:
        await link(trapper, target, theirs)
        target.exit(Atom("boom"))
        assert await trapper.got() == ("EXIT", target.pid, "boom")

    async def test_normal_ends_nobody(
        self, puppet: Puppet, trapper: Puppet, target: Process
    ) -> None:
        await link(puppet, target, True)
        puppet.tell("end", NORMAL)
        await until(lambda: not links_of(target))
        assert target.alive
        await link(trapper, target, True)
        target.exit()
        assert await trapper.got() == ("EXIT", target.pid, "normal")

    async def test_the_end_of_one_ends_the_other_there(
        self, beam: Beam, puppet: Puppet, target: Process
    ) -> None:
        await link(puppet, target, True)
        ref = puppet.ours.monitor(puppet.pid)
        target.exit(Atom("boom"))
        down = await puppet.ours.receive(timeout=5)
        assert down == ("DOWN", ref, "process", puppet.pid, "boom")

    async def test_we_trap(self, puppet: Puppet, target: Process) -> None:
        target.trap_exit = True
        await link(puppet, target, False)
        puppet.tell("end", Atom("kill"))  # as a reason it is one like others
        assert await target.receive(timeout=5) == ("EXIT", puppet.pid, "kill")
        assert target.alive

    async def test_linking_twice_is_once(self, beam: Beam, puppet: Puppet, target: Process) -> None:
        for theirs in (True, False, True, False):
            await link(puppet, target, theirs)
        assert await beams_links_of(beam, puppet.pid) == [target.pid]
        assert list(links_of(target)) == [puppet.pid]

    async def test_both_end_at_once(self, puppet: Puppet, target: Process, node: Node) -> None:
        await link(puppet, target, True)
        puppet.tell("end", Atom("one"))
        target.exit(Atom("two"))
        ref = puppet.ours.monitor(puppet.pid)
        down = await puppet.ours.receive(timeout=5)
        assert isinstance(down, tuple)
        assert down[1] == ref
        assert node.signals.ties.count(puppet.pid.node) == 0

    @pytest.mark.parametrize("trap", [True, False])
    async def test_they_link_to_who_is_dead(
        self, beam: Beam, ours: Process, target: Process, trap: bool
    ) -> None:
        target.exit()
        puppet = await Puppet.start(beam, ours, trap=trap)
        ref = ours.monitor(puppet.pid)
        puppet.tell("link", target.pid)
        if trap:
            assert await puppet.got() == ("EXIT", target.pid, "noproc")
        else:
            assert await ours.receive(timeout=5) == ("DOWN", ref, "process", puppet.pid, "noproc")

    @pytest.mark.parametrize("trap", [True, False])
    async def test_we_link_to_who_is_dead(
        self, beam: Beam, puppet: Puppet, target: Process, trap: bool
    ) -> None:
        puppet.tell("end", NORMAL)
        await until_dead(beam, puppet.pid)
        target.trap_exit = trap
        target.link(puppet.pid)
        if trap:
            assert await target.receive(timeout=5) == ("EXIT", puppet.pid, "noproc")
        else:
            await until(lambda: not target.alive)
            assert target.exit_reason == "noproc"

    async def test_we_link_where_there_is_no_node(self, target: Process) -> None:
        target.link(Pid("nobody@127.0.0.1", 1, 0, 77))
        await until(lambda: not target.alive)
        assert target.exit_reason == "noconnection"

    async def test_a_link_from_a_process_that_ends_before_the_connection_is_up(
        self, beam: Beam, node: Node, trapper: Puppet, target: Process
    ) -> None:
        node.disconnect(beam.name)
        target.link(trapper.pid)
        target.exit(Atom("early"))
        assert await trapper.got() == ("EXIT", target.pid, "early")


async def link(puppet: Puppet, target: Process, theirs: bool) -> None:
    if theirs:
        puppet.tell("link", target.pid)
    else:
        target.link(puppet.pid)
        puppet.ours.send(puppet.pid, 0)  # both senders have written when this comes back
        await puppet.got()
    await puppet.settled()
    assert puppet.pid in links_of(target)


class TestUnlinking:
    @pytest.mark.parametrize("theirs", [True, False])
    async def test_the_ends_are_apart(
        self, beam: Beam, node: Node, trapper: Puppet, target: Process, theirs: bool
    ) -> None:
        await link(trapper, target, True)
        if theirs:
            trapper.tell("unlink", target.pid)
        else:
            target.unlink(trapper.pid)
            target.unlink(trapper.pid)  # again: nothing
        await trapper.settled()
        assert await beams_links_of(beam, trapper.pid) == []
        # The acknowledgement has come: nothing is left of it.
        await until(lambda: not links_of(target))
        assert node.signals.ties.count(beam.name) == 0
        target.exit(Atom("boom"))
        await trapper.settled()
        assert len(trapper.ours) == 0

    async def test_no_exit_comes_after_an_unlink(
        self, beam: Beam, puppet: Puppet, target: Process
    ) -> None:
        target.trap_exit = True
        await link(puppet, target, True)
        puppet.tell("end", Atom("boom"))
        target.unlink(puppet.pid)  # the exit signal may be on its way
        await until_dead(beam, puppet.pid)
        assert await target.node.ping(beam.name)
        assert len(target) == 0

    async def test_link_again_before_the_acknowledgement(
        self, beam: Beam, puppet: Puppet, trapper: Puppet, target: Process
    ) -> None:
        await link(trapper, target, True)
        for _ in range(3):
            target.unlink(trapper.pid)
            target.link(trapper.pid)
        target.send(trapper.pid, 0)
        assert await trapper.got() == 0
        assert await beams_links_of(beam, trapper.pid) == [target.pid]
        assert links_of(target).get(trapper.pid, 0) is None
        target.exit(Atom("boom"))
        assert await trapper.got() == ("EXIT", target.pid, "boom")

    async def test_they_link_anew_once_they_have_seen_the_unlink(
        self, beam: Beam, trapper: Puppet, target: Process
    ) -> None:
        await link(trapper, target, True)
        target.unlink(trapper.pid)
        await link(trapper, target, True)
        assert await beams_links_of(beam, trapper.pid) == [target.pid]
        target.exit(Atom("boom"))
        assert await trapper.got() == ("EXIT", target.pid, "boom")

    async def test_who_is_not_linked(self, beam: Beam, puppet: Puppet, target: Process) -> None:
        target.unlink(puppet.pid)
        puppet.tell("unlink", target.pid)
        await puppet.settled()
        assert target.alive

    async def test_unlink_without_a_connection(
        self, beam: Beam, node: Node, trapper: Puppet, target: Process
    ) -> None:
        node.disconnect(beam.name)
        target.link(trapper.pid)
        target.unlink(trapper.pid)
        await trapper.settled()
        assert await beams_links_of(beam, trapper.pid) == []
        assert not links_of(target)


class TestExitSignals:
    @pytest.mark.parametrize("reason", [Atom("boom"), (1, [b"two", {}]), b"kill"])
    async def test_theirs_end_us(self, puppet: Puppet, target: Process, reason: object) -> None:
        puppet.tell("exit", target.pid, reason)
        await until(lambda: not target.alive)
        assert target.exit_reason == reason

    async def test_theirs_can_be_trapped(self, puppet: Puppet, target: Process) -> None:
        target.trap_exit = True
        for reason in (NORMAL, Atom("boom")):
            puppet.tell("exit", target.pid, reason)
            assert await target.receive(timeout=5) == ("EXIT", puppet.pid, reason)
        puppet.tell("exit", target.pid, Atom("kill"))
        with pytest.raises(ProcessExitError):
            await target.receive(timeout=5)
        assert target.exit_reason == "killed"

    async def test_normal_does_nothing(self, puppet: Puppet, target: Process) -> None:
        puppet.tell("exit", target.pid, NORMAL)
        await puppet.settled()
        assert target.alive

    async def test_to_the_dead(self, puppet: Puppet, target: Process) -> None:
        target.exit()
        puppet.tell("exit", target.pid, Atom("boom"))
        await puppet.settled()
        assert target.exit_reason == "normal"

    async def test_ours_can_be_trapped(self, trapper: Puppet, target: Process) -> None:
        for reason in (NORMAL, Atom("boom")):
            target.exit_signal(trapper.pid, reason)
            assert await trapper.got() == ("EXIT", target.pid, reason)

    async def test_ours_end_them(self, beam: Beam, puppet: Puppet, ours: Process) -> None:
        ref = ours.monitor(puppet.pid)
        ours.exit_signal(puppet.pid, (Atom("boom"), 1))
        assert await ours.receive(timeout=5) == ("DOWN", ref, "process", puppet.pid, ("boom", 1))

    async def test_ours_kill(self, trapper: Puppet, ours: Process) -> None:
        ref = ours.monitor(trapper.pid)
        ours.exit_signal(trapper.pid, Atom("kill"))
        assert await ours.receive(timeout=5) == ("DOWN", ref, "process", trapper.pid, "killed")

    async def test_the_node_sends_them_too(self, node: Node, trapper: Puppet) -> None:
        node.exit_signal(trapper.pid, Atom("boom"))
        message = await trapper.got()
        assert isinstance(message, tuple)
        assert (message[0], message[2]) == ("EXIT", "boom")

    async def test_the_node_itself_does_not_end(self, beam: Beam, node: Node) -> None:
        for reason in ("kill", "boom"):
            await beam.eval(
                "Process.exit(pid, reason)", pid=node.router.speaker.pid, reason=Atom(reason)
            )
        assert await node.ping(beam.name) is True
        assert await node.rpc(beam.name, "erlang", "node") == beam.name


class TestGroupLeaders:
    async def test_being_told_changes_nothing(
        self, beam: Beam, puppet: Puppet, target: Process
    ) -> None:
        source = "Process.group_leader(pid, Process.group_leader()); :ok"
        assert await beam.eval(source, pid=target.pid) == "ok"
        await puppet.settled()
        assert target.alive

    async def test_ours_for_a_process_of_theirs(self, beam: Beam, node: Node) -> None:
        """What prints to the node must not hang, nor what asks for input."""
        source = """
        Process.group_leader(self(), leader)
        {IO.puts("lost"), IO.gets("?")}
        """
        evaluated = await beam.eval(source, leader=node.router.speaker.pid)
        assert evaluated == ("ok", ("error", "enotsup"))


class TestTraceTokens:
    async def test_traced_signals_are_signals(
        self, beam: Beam, puppet: Puppet, target: Process, node: Node
    ) -> None:
        source = """
        :seq_trace.set_token(:label, 17)
        send({:target, py}, :one)
        send(pid, :two)
        Process.exit(pid, :three)
        :seq_trace.set_token([])
        """
        target.trap_exit = True
        await beam.eval(source, py=node.name, pid=target.pid)
        assert await target.receive(timeout=5) == "one"
        assert await target.receive(timeout=5) == "two"
        message = await target.receive(timeout=5)
        assert isinstance(message, tuple)
        assert (message[0], message[2]) == ("EXIT", "three")


async def test_messages_come_before_the_exit_signals_behind_them(
    beam: Beam, node: Node, trapper: Puppet
) -> None:
    """Signals of one process to another arrive in the order in which they were sent."""
    inbox = Process(node)
    inbox.trap_exit = True
    source = """
    spawn(fn ->
      Process.link(to)
      for n <- 1..100, do: send(to, n)
      exit(:done)
    end)
    """
    pid = await beam.eval(source, to=inbox.pid)
    messages = [await inbox.receive(timeout=5) for _ in range(101)]
    assert messages == [*range(1, 101), ("EXIT", pid, "done")]
    sender = Process(node)
    sender.link(trapper.pid)
    for n in range(100):
        sender.send(trapper.pid, n)
    sender.exit(Atom("done"))
    got = [await trapper.got() for _ in range(101)]
    assert got == [*range(100), ("EXIT", sender.pid, "done")]
