"""A real `epmd` that a test owns."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from types import TracebackType

import pytest

from tests.support.ports import free_port

START_SECONDS = 10.0
ATTEMPTS = 5


def executable(name: str) -> str:
    """Return the path of a program; skip the test where it is missing (in CI a failure)."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/bin")
    if path is None:
        pytest.skip(f"{name} is not installed; `make test` installs it where it can")
    return path


class RealEpmd:
    """The `epmd` of Erlang/OTP on a port of its own, on loopback; ended by its process number.

    Example::

        with RealEpmd() as epmd:
            subprocess.run(["epmd", "-port", str(epmd.port), "-names"])
    """

    def __init__(self, *, port: int = 0) -> None:
        """`port` 0 looks for a free one. The server is started by `start` or by `with`."""
        self._wanted = port
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def os_pid(self) -> int:
        assert self._process is not None, "epmd was not started"
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it answers. A port that another one took first is replaced."""
        for _ in range(ATTEMPTS):
            self.port = self._wanted or free_port()
            self._process = subprocess.Popen(
                [executable("epmd"), "-port", str(self.port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={k: v for k, v in os.environ.items() if not k.startswith("ERL_")},
            )
            if self._answers():
                return
            self.stop()
        raise RuntimeError(f"epmd did not start on port {self.port}")

    def _answers(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.005)  # it has not opened its port yet
            else:
                return self._process.poll() is None
        return False

    def stop(self) -> None:
        """Kill it, as a crash would; registrations are lost. Stopping twice is allowed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start a new one on the same port."""
        self._wanted = self.port
        self.stop()
        self.start()

    def __enter__(self) -> RealEpmd:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
