"""Exit signals to what a node lives by: they do nothing, or the node ends and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.support.beam import Beam
from tests.support.runtime import Runtime

PID_OF = ":erpc.call(py, :kept, :pid_of, [name]) |> :erlang.binary_to_term()"
MODULE = """
import snex_node
from snex_runtime import interface

def pid_of(name):
    return b"\\x83" + interface.current_backend()._node.whereis(name.decode()).external
"""


@pytest.fixture
def kept(beam: Beam, start_runtime: Callable[..., Runtime]) -> Runtime:
    flags = ["--encoding", "binary_as=bytes"]
    return start_runtime(cookie=beam.cookie, modules={"kept": MODULE}, flags=flags)


@pytest.mark.parametrize("name", ["snex", "rex", "net_kernel"])
@pytest.mark.parametrize("reason", [":boom", ":normal", ":shutdown", "{:shutdown, 1}"])
async def test_they_do_nothing(beam: Beam, kept: Runtime, name: str, reason: str) -> None:
    source = f"Process.exit({PID_OF}, {reason}); :sent"
    assert await beam.eval(source, py=kept.name, name=name.encode()) == "sent"
    assert await kept.run(beam, "return 1") == 1
    assert await beam.eval(":rpc.block_call(py, :math, :sqrt, [16])", py=kept.name) == 4.0
    assert await beam.eval("Node.ping(py)", py=kept.name) == "pong"
    assert ("does not end the runtime" in kept.log) is (name == "snex")


@pytest.mark.parametrize("name", ["snex", "rex", "net_kernel"])
async def test_a_link_breaks_and_that_is_all(beam: Beam, kept: Runtime, name: str) -> None:
    source = f"""
    pid = {PID_OF}
    linked = spawn(fn -> Process.link(pid); exit(:boom) end)
    ref = Process.monitor(linked)
    receive do {{:DOWN, ^ref, _, _, _}} -> :down end
    """
    assert await beam.eval(source, py=kept.name, name=name.encode()) == "down"
    assert await kept.run(beam, "return 1") == 1
    assert await beam.eval(":rpc.block_call(py, :math, :sqrt, [16])", py=kept.name) == 4.0


@pytest.mark.parametrize("name", ["rex", "net_kernel"])
async def test_the_node_s_own_cannot_be_killed(beam: Beam, kept: Runtime, name: str) -> None:
    source = f"""
    pid = {PID_OF}
    Process.exit(pid, :kill)
    try do
      GenServer.stop(pid)
    rescue
      _ -> :refused
    end
    """
    assert await beam.eval(source, py=kept.name, name=name.encode()) == "refused"
    assert await beam.eval(":rpc.block_call(py, :math, :sqrt, [16])", py=kept.name) == 4.0
    assert await beam.eval("Node.ping(py)", py=kept.name) == "pong"


async def test_killing_the_runtime_ends_the_node(beam: Beam, kept: Runtime) -> None:
    source = f"Process.exit({PID_OF}, :kill); :sent"
    assert await beam.eval(source, py=kept.name, name=b"snex") == "sent"
    assert await asyncio.to_thread(kept.process.wait, 10) == 1
    assert "an exit signal ended its runtime (killed)" in kept.log
