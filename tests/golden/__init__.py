"""What a real Erlang says about the external term format: recorded, and asked."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.epmd import executable

HERE = Path(__file__).parent
TERMS = HERE / "terms.txt"


class Golden(NamedTuple):
    """One line of terms.txt."""

    erlang: str
    python: str
    data: bytes


def golden_terms(path: Path = TERMS) -> list[Golden]:
    """The recorded terms."""
    lines = path.read_text(encoding="utf-8").splitlines()
    columns = (line.split(" -> ") for line in lines if line and not line.startswith("# "))
    return [Golden(erlang, python, bytes.fromhex(data)) for erlang, python, data in columns]


def recorded_release(path: Path = TERMS) -> str:
    """The OTP release that wrote terms.txt."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# OTP ") for line in lines if line.startswith("# OTP "))


def record(path: Path) -> None:
    """Have the Erlang of this machine write the last column of the file anew."""
    subprocess.run(
        [executable("escript"), str(HERE / "make.escript"), str(path)], check=True, timeout=60
    )


class OracleError(Exception):
    """Erlang cannot read the bytes, or it is another term; the text is what it says."""


class Oracle:
    """A real Erlang that reads and writes terms. Terms are bytes that begin with 131."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def rewrite(self, data: bytes, *, compressed: bool = False) -> bytes:
        """Return the term as Erlang writes it."""
        return self._ask((b"\1" if compressed else b"\0") + data)

    def check_is(self, data: bytes, source: str) -> None:
        """Raise `OracleError` unless the bytes are the term that the Erlang source denotes."""
        self._ask(b"\2" + struct.pack(">I", len(data)) + data + source.encode())

    def release(self) -> str:
        """Return the OTP release."""
        return self._ask(b"\3").decode()

    def _ask(self, request: bytes) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(struct.pack(">I", len(request)) + request)
        stdin.flush()
        (size,) = struct.unpack(">I", stdout.read(4))
        answer = stdout.read(size)
        if answer[:1] != b"\1":
            raise OracleError(answer[1:].decode(errors="replace"))
        return answer[1:]


@contextmanager
def oracle() -> Iterator[Oracle]:
    """Start an `Oracle`, and end it."""
    command = [executable("escript"), str(HERE / "oracle.escript")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Oracle(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
