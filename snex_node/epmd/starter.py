"""Starts an epmd as a process that belongs to no node: OTP's where there is one, or ours.

What one node does, or how it ends, then holds up nobody who looks for another. Ours ends by itself
when its last node has gone; OTP's stays, as it does when a BEAM has started it.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from snex_node.epmd import server
from snex_node.epmd.errors import EpmdStartError
from snex_node.epmd.settings import EVERY_IPV4, EVERY_IPV6, LOOPBACK, shown

START_SECONDS = 10.0
"""Seconds that the start of ours may take. It takes 0.1 where nothing else runs."""

OTP_SECONDS = 3.0
"""Seconds after which ours is started where OTP's does not answer. It takes 0.01; but what is found
as `epmd` may be a script that chooses between versions, or chooses none."""

OTP_PAUSE = 0.02
"""Seconds between two looks whether OTP's answers: it does not tell when it does."""

# Ours must not depend on the environment of the node that happens to start it (-I), nor on what is
# installed there (-S). And without the `__init__` of the packages, which imports all of a node.
_PROGRAM = (
    "import sys, types; "
    "node, epmd = types.ModuleType('snex_node'), types.ModuleType('snex_node.epmd'); "
    "node.__path__, epmd.__path__ = [sys.argv[1]], [sys.argv[1] + '/epmd']; "
    "sys.modules.update(((node.__name__, node), (epmd.__name__, epmd))); "
    "from snex_node.epmd.daemon import main; main()"
)

_log = logging.getLogger(__name__)


def start(hosts: Sequence[str], port: int, *, ours: bool = False) -> None:
    """Start an epmd that listens at these addresses, only one of ours if told so; block meanwhile.

    Afterwards it can be asked. Of several who start one at once the first succeeds: the others get
    a `PortInUseError`, as they do if an address is not of this machine. Raises `EpmdStartError` if
    no process can be started.
    """
    if not ours and start_otp(hosts, port):
        return
    start_ours(hosts, port)


def start_otp(hosts: Sequence[str], port: int) -> bool:
    """Start the epmd of OTP as a daemon; False if there is none, or it does not answer.

    Raises `PortInUseError`.
    """
    program = _find("epmd")
    if program is None:
        return False
    server.check_free(hosts, port)  # it would say nothing, and end
    command = [program, "-port", str(port), *_where(hosts), "-daemon"]
    try:
        with _spawn(command, subprocess.DEVNULL) as process:
            answers = _answers(process, hosts, port)
            try:
                process.wait(OTP_SECONDS if answers else 0)
            except subprocess.TimeoutExpired:
                process.kill()  # it is no daemon
    except OSError as error:
        _log.info("%s cannot be started: %s", program, error)
        return False
    if answers:
        _log.info("started %s on %s", program, _text(hosts, port))
    else:
        _log.info("%s does not answer after its start", program)
    return answers


def _find(program: str) -> str | None:
    """Where a program is on ``PATH``. (`shutil` takes 4 ms of every start.)"""
    for directory in os.get_exec_path():
        path = os.path.join(directory, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _where(hosts: Sequence[str]) -> list[str]:
    """OTP's listens on every interface unless it is told where. Loopback it takes by itself."""
    if EVERY_IPV4 in hosts or EVERY_IPV6 in hosts:
        return []
    return ["-address", ",".join(hosts)]


def _answers(process: subprocess.Popen[bytes], hosts: Sequence[str], port: int) -> bool:
    asked = LOOPBACK if LOOPBACK in hosts or EVERY_IPV4 in hosts else hosts[0]
    deadline = time.monotonic() + OTP_SECONDS
    while time.monotonic() < deadline and not process.poll():
        try:
            socket.create_connection((asked, port), timeout=OTP_SECONDS).close()
        except OSError:
            time.sleep(OTP_PAUSE)
        else:
            return True
    return False


def start_ours(hosts: Sequence[str], port: int) -> int:
    """Start one of ours; return its process number.

    The sockets it listens on are opened here. So it can be asked from now on, though it may not
    have read the question yet, and who is not the first is told so.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise EpmdStartError(_cannot("this program is no Python that could run it"))
    package = os.path.dirname(os.path.dirname(__file__))
    sockets = server.listen(hosts, port)
    files = [sock.fileno() for sock in sockets]
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, package, *map(str, files)]
    try:
        process = _spawn(command, subprocess.PIPE, files)
    except OSError as error:
        raise EpmdStartError(_cannot(str(error))) from error
    finally:
        for sock in sockets:  # at once: what is forked meanwhile has them too
            sock.close()
    number = _process_number(process)
    _log.info("started an epmd (process %d) on %s", number, _text(hosts, port))
    return number


def _process_number(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process that was started, which says what process goes on."""
    with process:
        try:
            output, errors = process.communicate(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise EpmdStartError(_cannot(f"{sys.executable} is still starting")) from None
    if process.returncode != 0 or not output.isdigit():
        said = errors.decode("utf-8", "replace").strip()[-1000:]
        raise EpmdStartError(_cannot(f"{sys.executable}: status {process.returncode}: {said}"))
    return int(output)


def _spawn(command: list[str], output: int, files: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process that nothing ties to this one but `output`, and the files it is given."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=files,
        start_new_session=True,  # so that it does not end with the group of this one
        cwd="/",
        env=environment(),
    )


def _cannot(why: str) -> str:
    return (
        f"no epmd runs, and none can be started ({why}): start one by `epmd -daemon` or "
        "`snex-node epmd`, or the node without one (`--epmd none`)"
    )


def _text(hosts: Sequence[str], port: int) -> str:
    return ", ".join(shown(host, port) for host in hosts)


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for an epmd: no cookies, and no settings of OTP, which are arguments."""
    return {
        name: value
        for name, value in environ.items()
        if "COOKIE" not in name.upper() and not name.startswith("ERL_")
    }
