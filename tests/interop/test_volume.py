"""Much at once: large binaries, a thousand callers, order, and senders in threads."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import pytest

from snex_node import Atom, From, GenServer, Node, Pid, Process
from tests.support.beam import Beam
from tests.support.tied import watchers_of
from tests.support.waiting import until

MIB = 1024 * 1024


class Echo(GenServer):
    def __init__(self, node: Node) -> None:
        super().__init__(node, name="echo")
        self.calls = 0

    def handle_call(self, request: object, caller: From) -> object:
        self.calls += 1
        return request


class Slow(GenServer):
    """Holds all calls until there are as many as it was told, then answers them all."""

    def __init__(self, node: Node, hold: int) -> None:
        super().__init__(node, name="slow")
        self.hold = hold
        self.held: list[tuple[From, object]] = []

    def call_received(self, caller: From, request: object) -> None:
        self.held.append((caller, request))
        if len(self.held) == self.hold:
            for each, value in self.held:
                self.reply(each, (Atom("ok"), value))


@pytest.fixture
async def echo(node: Node) -> Echo:
    return Echo(node)


class TestLargeBinaries:
    async def test_64_mib_to_us_and_back(self, beam: Beam, node: Node, echo: Echo) -> None:
        source = """
        size = 64 * 1024 * 1024
        block = :crypto.strong_rand_bytes(1024 * 1024)
        binary = :binary.copy(block, 63) <> :crypto.strong_rand_bytes(1024 * 1024)
        ^size = byte_size(binary)
        ^binary = GenServer.call({:echo, py}, binary, 60_000)
        :crypto.hash(:sha256, binary)
        """
        digest = await beam.eval(source, py=node.name, timeout=60)
        assert isinstance(digest, bytes)
        assert len(digest) == 32
        assert echo.calls == 1

    async def test_64_mib_to_the_beam(self, beam: Beam, node: Node) -> None:
        binary = b"".join(hashlib.sha256(bytes([n])).digest() * 32 * 1024 for n in range(64))
        assert len(binary) == 64 * MIB
        args = [Atom("sha256"), binary]
        digest = await node.rpc(beam.name, "crypto", "hash", args, timeout=60)
        assert digest == hashlib.sha256(binary).digest()


class TestManyCallers:
    async def test_1000_at_once_on_the_beam(self, beam: Beam, node: Node) -> None:
        server = Slow(node, 1000)
        source = """
        1..1000
        |> Enum.map(&Task.async(fn -> {:ok, &1} = GenServer.call({:slow, py}, &1, 30_000) end))
        |> Task.await_many(30_000)
        |> Enum.map(&elem(&1, 1))
        """
        assert await beam.eval(source, py=node.name, timeout=40) == list(range(1, 1001))
        assert len(server.held) == 1000
        await until(lambda: not watchers_of(server))

    async def test_1000_callers_that_call_again_and_again(
        self, beam: Beam, node: Node, echo: Echo
    ) -> None:
        source = """
        1..1000
        |> Enum.map(fn n ->
          Task.async(fn ->
            for m <- 1..5, do: {^n, ^m} = GenServer.call({:echo, py}, {n, m}, 30_000)
            n
          end)
        end)
        |> Task.await_many(30_000)
        """
        assert await beam.eval(source, py=node.name, timeout=40) == list(range(1, 1001))
        assert echo.calls == 5000
        await until(lambda: not watchers_of(echo))

    async def test_1000_at_once_here(self, beam: Beam, node: Node) -> None:
        source = """
        defmodule Snex.Test.Collect do
          use GenServer
          def init(hold), do: {:ok, {hold, []}}
          def handle_call(request, from, {hold, held}) do
            held = [{from, request} | held]
            if length(held) == hold do
              for {from, request} <- held, do: GenServer.reply(from, {:ok, request})
            end
            {:noreply, {hold, held}}
          end
        end
        {:ok, pid} = GenServer.start(Snex.Test.Collect, 1000)
        pid
        """
        pid = await beam.eval(source)
        assert isinstance(pid, Pid)
        answers = await asyncio.gather(*(node.call(pid, n, timeout=30) for n in range(1000)))
        assert answers == [("ok", n) for n in range(1000)]
        rpcs = (node.rpc(beam.name, "erlang", "abs", [-n], timeout=30) for n in range(1000))
        assert await asyncio.gather(*rpcs) == list(range(1000))
        assert node.router.expected == 0
        assert node.signals.ties.count(beam.name) == 0


# Notes the numbers it is sent, the first element of what is not a number itself.
COLLECTOR = """
spawn(fn ->
  numbers = for _ <- 1..count do
    receive do
      {n, _ballast} -> n
      n -> n
    end
  end
  send(to, numbers)
end)
"""


class TestOrder:
    async def test_from_one_task_of_ours(self, beam: Beam, node: Node) -> None:
        """10,000 messages; those with ballast go in fragments, and none passes another."""
        inbox = Process(node)
        pid = await beam.eval(COLLECTOR, count=10_000, to=inbox.pid)
        assert isinstance(pid, Pid)
        for n in range(10_000):
            inbox.send(pid, (n, bytes(300_000)) if n % 500 == 7 else n)
        assert await inbox.receive(timeout=30) == list(range(10_000))

    async def test_before_there_is_a_connection(self, beam: Beam, node: Node) -> None:
        inbox = Process(node)
        pid = await beam.eval(COLLECTOR, count=1000, to=inbox.pid)
        assert isinstance(pid, Pid)
        node.disconnect(beam.name)
        for n in range(1000):
            inbox.send(pid, (n, bytes(100_000)) if n % 100 == 7 else n)
            if n % 100 == 0:
                await asyncio.sleep(0)  # the connection comes up in between
        assert await inbox.receive(timeout=30) == list(range(1000))

    async def test_from_one_process_of_theirs(self, beam: Beam, node: Node) -> None:
        inbox = Process(node, name="inbox")
        source = """
        for n <- 0..9_999 do
          send({:inbox, py}, if(rem(n, 500) == 7, do: {n, :binary.copy(<<0>>, 300_000)}, else: n))
        end
        :sent
        """
        assert await beam.eval(source, py=node.name) == "sent"
        numbers = []
        for _ in range(10_000):
            message = await inbox.receive(timeout=5)
            numbers.append(message[0] if isinstance(message, tuple) else message)
        assert numbers == list(range(10_000))

    async def test_in_threads(self, beam: Beam, node: Node) -> None:
        """`Node.send` from four threads while the loop sends too: in order for each sender."""
        inbox = Process(node)
        pid = await beam.eval(
            """
            spawn(fn ->
              seen = for _ <- 1..5000, do: (receive do {who, n, _} -> {who, n} end)
              send(to, Enum.group_by(seen, &elem(&1, 0), &elem(&1, 1)))
            end)
            """,
            to=inbox.pid,
        )
        assert isinstance(pid, Pid)
        target = pid
        senders = [Process(node) for _ in range(5)]

        def work(who: int) -> None:
            for n in range(1000):
                ballast = bytes(100_000 if n % 100 == who else 10)
                node.send(target, (who, n, ballast), sender=senders[who].pid)

        threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for n in range(1000):
            senders[4].send(target, (4, n, b""))
            if n % 10 == 0:
                await asyncio.sleep(0)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert await inbox.receive(timeout=30) == {who: list(range(1000)) for who in range(5)}

    async def test_a_thread_connects(self, beam: Beam, node: Node) -> None:
        inbox = Process(node, name="inbox")
        await beam.eval(
            """
            pid = spawn(fn -> receive do {from, :hello} -> send(from, :seen) end end)
            Process.register(pid, :waiting_for_hello)
            """
        )
        message = (inbox.pid, Atom("hello"))
        await asyncio.to_thread(node.send, ("waiting_for_hello", beam.name), message)
        assert await inbox.receive(timeout=5) == "seen"

    async def test_a_thread_sends_to_processes_here(self, node: Node) -> None:
        inbox = Process(node, name="inbox")
        await asyncio.to_thread(node.send, "inbox", 1)
        await asyncio.to_thread(node.send, inbox.pid, 2)
        assert [await inbox.receive(timeout=5) for _ in range(2)] == [1, 2]
