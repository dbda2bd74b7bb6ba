"""A node that is started by hand ends on SIGTERM, whatever runs in it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import endless
from tests.support.beam import Beam
from tests.support.runtime import Runtime
from tests.support.waiting import until

PROMISE = 5.5
"""Seconds within which SIGTERM ends a node: five, and what a busy machine needs to see it."""

ENDLESS = {
    "keeps the lock": endless.KEEPS_THE_LOCK,
    "releases the lock": endless.RELEASES_THE_LOCK,
}


def watchers_of(runtime: Runtime) -> list[int]:
    """Other processes that are copies of it: it has started no program."""
    own = (Path(f"/proc/{runtime.process.pid}") / "cmdline").read_bytes()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes() == own:
                found.append(int(entry.name))
        except OSError:
            pass
    return [pid for pid in found if pid != runtime.process.pid]


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS)
async def test_sigterm_ends_it(
    beam: Beam, start_runtime: Callable[..., Runtime], tmp_path: Path, code: str, loop: str
) -> None:
    runtime = start_runtime(cookie=beam.cookie, flags=["--loop", loop])
    (watcher,) = watchers_of(runtime)
    file = tmp_path / "runs"
    code = f"__import__('pathlib').Path({str(file)!r}).touch()\n{code}"
    await beam.eval(
        "send({:snex, py}, {:eval, code, %{}}); :ok", py=runtime.name, code=code.encode()
    )
    await until(file.exists)
    runtime.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(runtime.process.wait, PROMISE)
    await until(lambda: not Path(f"/proc/{watcher}").exists())


async def test_the_watcher_leaves_a_handler_of_user_code_alone(
    beam: Beam, start_runtime: Callable[..., Runtime]
) -> None:
    runtime = start_runtime(cookie=beam.cookie)
    code = "import signal; snex.n = []; signal.signal(15, lambda *_: snex.n.append(1)) and None"
    await runtime.run(beam, code)
    os.kill(runtime.process.pid, signal.SIGTERM)
    with pytest.raises(Exception, match="timed out"):
        await asyncio.to_thread(runtime.process.wait, PROMISE)
    assert await runtime.run(beam, "return snex.n") == [1]
    await runtime.run(beam, "import signal; signal.signal(15, signal.SIG_DFL) and None")


async def test_the_watcher_ends_with_the_node(
    beam: Beam, start_runtime: Callable[..., Runtime]
) -> None:
    runtime = start_runtime(cookie=beam.cookie)
    (watcher,) = watchers_of(runtime)
    runtime.process.terminate()
    assert await asyncio.to_thread(runtime.process.wait, PROMISE) == 0
    await until(lambda: not Path(f"/proc/{watcher}").exists())
