"""Starting an epmd as a process: OTP's or ours, and what is told where neither can be."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from snex_node.epmd import EpmdStartError, PortInUseError, names, starter
from tests.support.epmd import command_of, executable, kill_epmd, process_at
from tests.support.ports import free_port

LOOPBACK = ["127.0.0.1"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the programs that are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(directory: Path, text: str) -> Path:
    """Make a program called epmd."""
    path = directory / "epmd"
    path.write_text(text)
    path.chmod(0o755)
    return path


def answers(port: int) -> bool:
    return asyncio.run(names(port=port)) == []


class TestWhich:
    @pytest.mark.interop
    def test_otps_where_there_is_one(self, epmd_port: int) -> None:
        executable("epmd")
        starter.start(LOOPBACK, epmd_port)
        assert answers(epmd_port)
        process = process_at(epmd_port)
        assert process is not None
        assert "epmd -port" in command_of(process)

    @pytest.mark.interop
    def test_ours_if_told_so(self, epmd_port: int) -> None:
        starter.start(LOOPBACK, epmd_port, ours=True)
        assert answers(epmd_port)
        process = process_at(epmd_port)
        assert process is not None
        assert "snex_node.epmd.daemon" in command_of(process)

    def test_ours_where_there_is_none_of_otp(self, epmd_port: int, no_otp: None) -> None:
        assert not starter.start_otp(LOOPBACK, epmd_port)
        starter.start(LOOPBACK, epmd_port)
        assert answers(epmd_port)

    def test_two_at_once_are_one(self, epmd_port: int, no_otp: None) -> None:
        starter.start(LOOPBACK, epmd_port)
        with pytest.raises(PortInUseError):
            starter.start(LOOPBACK, epmd_port)


class TestOtps:
    """What stands for it here are scripts."""

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("#!/bin/sh\nexit 1\n", "does not answer after its start"),
            ("#!/bin/sh\nexec /bin/sleep 60\n", "does not answer after its start"),
            ("#!/no/such/shell\n", "cannot be started"),
        ],
        ids=["fails", "hangs", "is none"],
    )
    def test_one_that_does_not_work_is_left(
        self,
        programs: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        text: str,
        told: str,
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(starter, "OTP_SECONDS", 0.2)
        path = program(programs, text)
        assert not starter.start_otp(LOOPBACK, free_port())
        assert caplog.messages[0].startswith(f"{path} {told}")

    def test_one_that_is_no_daemon_is_ended(
        self, programs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(starter, "OTP_SECONDS", 1.0)
        port = free_port()
        script = programs / "listen.py"
        script.write_text(
            "import socket, time\n"
            f"listener = socket.create_server(('127.0.0.1', {port}))\n"
            "time.sleep(60)\n"
        )
        program(programs, f"#!/bin/sh\nexec {sys.executable} -S {script}\n")
        assert starter.start_otp(LOOPBACK, port)
        assert process_at(port) is None

    def test_it_is_not_tried_at_a_port_that_is_taken(
        self, programs: Path, embedded: object
    ) -> None:
        port = embedded.address[1]  # type: ignore[attr-defined]
        program(programs, "#!/bin/sh\nkill $PPID\n")
        with pytest.raises(PortInUseError):
            starter.start_otp(LOOPBACK, port)

    @pytest.mark.parametrize(
        ("hosts", "expected"),
        [
            (["127.0.0.1"], ["-address", "127.0.0.1"]),
            (["127.0.0.1", "192.0.2.1"], ["-address", "127.0.0.1,192.0.2.1"]),
            (["0.0.0.0"], []),
            (["127.0.0.1", "::"], []),
        ],
    )
    def test_where_it_listens(self, hosts: Sequence[str], expected: list[str]) -> None:
        assert starter._where(hosts) == expected


class TestOurs:
    def test_it_is_nobodys(
        self, epmd_port: int, no_otp: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SNEX_COOKIE", "secret")
        monkeypatch.setenv("ERL_EPMD_RELAXED_COMMAND_CHECK", "1")
        monkeypatch.setenv("PYTHONPATH", "/no/such/folder")
        with open(os.devnull) as file:
            os.set_inheritable(file.fileno(), True)
            started = starter.start_ours(["127.0.0.1"], epmd_port)
        assert process_at(epmd_port) == started
        assert os.getsid(started) != os.getsid(0)
        assert os.getpgid(started) != os.getpgid(0)
        about = Path(f"/proc/{started}")
        assert os.readlink(about / "cwd") == "/"
        environment = (about / "environ").read_bytes()
        assert b"secret" not in environment
        assert b"ERL_" not in environment
        files = {int(fd.name): os.readlink(fd) for fd in (about / "fd").iterdir()}
        assert [files.pop(number) for number in range(3)] == ["/dev/null"] * 3
        assert {file.partition(":")[0] for file in files.values()} == {"socket", "anon_inode"}
        status = dict(line.split(":", 1) for line in (about / "status").read_text().splitlines())
        if sys.implementation.name == "cpython":
            assert int(status["VmRSS"].split()[0]) < 20 * 1024
        assert int(status["PPid"]) != os.getpid()
        with pytest.raises(ChildProcessError):  # it is no child of this process
            os.waitpid(started, os.WNOHANG)

    def test_it_imports_little(self) -> None:
        program = starter._PROGRAM.replace("; main()", "; print(*sys.modules)")
        package = str(Path(starter.__file__).parent.parent)
        output = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, package], stdout=subprocess.PIPE, check=True
        ).stdout
        imported = set(output.decode().split())
        assert "snex_node.epmd.server" in imported
        assert not imported & {"asyncio", "subprocess", "ssl", "secrets", "snex_node.node"}

    async def test_the_error_of_one_that_cannot_start(
        self, no_otp: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(starter, "_PROGRAM", "import snex_node_is_not_here")
        with pytest.raises(EpmdStartError, match="No module named 'snex_node_is_not_here'"):
            starter.start(["127.0.0.1"], free_port())

    def test_a_python_that_does_not_start_in_time(
        self, programs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(starter, "START_SECONDS", 0.1)
        path = program(programs, "#!/bin/sh\nexec /bin/sleep 60\n")
        monkeypatch.setattr(sys, "executable", str(path))
        with pytest.raises(EpmdStartError, match=f"{path} is still starting"):
            starter.start_ours(LOOPBACK, free_port())

    def test_a_python_that_cannot_be_started(
        self, programs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", str(programs / "gone"))
        port = free_port()
        with pytest.raises(EpmdStartError, match=r"No such file.*snex-node epmd"):
            starter.start_ours(LOOPBACK, port)
        assert process_at(port) is None

    def test_a_program_that_is_no_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        with pytest.raises(EpmdStartError, match="this program is no Python"):
            starter.start_ours(LOOPBACK, free_port())

    def test_it_ends_by_its_number(self, epmd_port: int, no_otp: None) -> None:
        started = starter.start_ours(LOOPBACK, epmd_port)
        os.kill(started, signal.SIGKILL)
        kill_epmd(epmd_port)


def test_the_environment_has_no_cookies_and_no_settings_of_otp() -> None:
    environ = {
        "PATH": "/bin",
        "SNEX_COOKIE": "a",
        "my_cookie_jar": "b",
        "ERL_FLAGS": "c",
        "HERL": "d",
    }
    assert starter.environment(environ) == {"PATH": "/bin", "HERL": "d"}
