"""What a process is told that a BEAM or a front has started: a map on its standard input."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, Final

from snex_node.system import forks
from snex_node.wire.describe import short
from snex_node.wire.etf import Decoder, Encoder
from snex_node.wire.terms import Pid
from snex_runtime import serde
from snex_runtime.forwarding import Ledger

__all__ = ["Configuration", "ForWorker"]

_MAX_CONFIGURATION: Final = 16 * 1024 * 1024
"""Bytes; the init script of a worker is in it."""


class Configuration:
    """What the BEAM wants: a map, as a 32-bit length and a term, on standard input.

    ``name`` and ``cookie`` of the node to be, ``epmd`` as `Node` has it, ``encoding_opts``, and
    ``structs``, those of the BEAM that `serde.encoder_for` asks for, as far as it has them. With
    ``beam``, the BEAM's name, standard input and output are the connection to it, and the process
    ``interpreter`` is told there how the start went.

    Where requests run and for how long, as `Server` has it but in milliseconds: ``executor``,
    ``threads``, ``max_queue``, ``queue_timeout``, ``max_time``, ``kill_after``, ``slow``. What else
    bounds it: ``max_memory`` (bytes), and what `limits.apply` takes.
    With ``line`` this process is a worker: `ForWorker` has the rest of that.
    """

    def __init__(self, term: dict[str, Any]) -> None:
        self.name = str(term["name"])
        self.cookie = str(term["cookie"])
        self.epmd = term.get("epmd", "auto")
        self.beam: str | None = term.get("beam")
        self.interpreter: Pid | None = term.get("interpreter")
        self.encoding = serde.merge_options(term.get("encoding_opts"))
        self.encoder = _encoder(term.get("structs"))
        """For the BEAM: also what it gets before it could be asked is as it should be."""
        self.limits: dict[str, Any] = term
        self.max_memory = _number(term, "max_memory", bits=62) or 0
        self.execution: dict[str, Any] = _execution(term)
        """Arguments for `Server`."""
        self.worker = ForWorker(term) if "line" in term else None

    @classmethod
    def read(cls, file: int) -> Configuration:
        """Read it from the descriptor ``file``. Raises ``EOFError``, ``ValueError``."""
        (length,) = struct.unpack(">I", _read_exactly(file, 4))
        if length > _MAX_CONFIGURATION:
            raise ValueError(
                f"the configuration has {length} bytes: `snex_runtime child` is started by the "
                "Elixir client; by hand use `snex-node start`"
            )
        version = _read_exactly(file, 1)
        term = Decoder(binary_as="str").decode(_read_exactly(file, length - 1))[0]
        if version != b"\x83" or not isinstance(term, dict):
            raise ValueError(f"the configuration is a map, not {type(term).__name__}")
        return cls(term)


class ForWorker:
    """What a worker is told besides: the name that its runtime is to ``register_as``, the
    descriptors of its ``line`` to the front, of the ``ledger`` and of what is ``report``ed, the
    ``script`` to begin with (source and file) and its ``script_timeout`` in milliseconds, and as
    the front has them ``listen`` (a host), ``net_ticktime``, ``max_frame``, ``log_level`` and
    ``log_format``.
    """

    def __init__(self, term: dict[str, Any]) -> None:
        self.line = socket.socket(fileno=term["line"])
        self.register_as = str(term["register_as"])
        self.ledger = Ledger(term["ledger"])
        self.ledger_file: int = term["ledger"]
        self._report = forks.OwnedDescriptor(term["report"])
        for file in (self.line.fileno(), self.ledger_file, self._report.fileno()):
            os.set_inheritable(file, False)  # what is run by `os.system` is not to have them
        self.script: tuple[str, str] | None = term.get("script")
        self.script_timeout: float = term["script_timeout"] / 1000
        self.listen: str | None = term.get("listen")
        self.net_ticktime: float = term["net_ticktime"]
        self.max_frame: int = term["max_frame"]
        self.log_level = str(term["log_level"])
        self.log_format = str(term.get("log_format", "text"))

    def fail(self, term: object) -> None:
        """Tell the front why this process ends."""
        self.tell(term)
        self.line.close()

    def tell(self, term: object) -> None:
        """Tell the front how the start went: a 32-bit length, and the term."""
        data = Encoder().encode(term)
        os.write(self._report.fileno(), struct.pack(">I", len(data)) + data)


def _encoder(structs: list[dict[str, Any]] | None) -> Encoder:
    if structs is None:  # that is told by a front: its nodes are asked
        return serde.encoder
    by_name = {str(struct["__struct__"]): struct for struct in structs}
    return serde.encoder_for(by_name.get("Elixir.MapSet"), by_name.get("Elixir.Duration"))


def _execution(term: dict[str, Any]) -> dict[str, Any]:
    """Where requests run and for how long. Raises ``ValueError``."""
    executor = str(term.get("executor") or "loop")
    if executor not in ("loop", "thread"):
        raise ValueError(f"executor is loop or thread, not {short(executor)}")
    execution: dict[str, Any] = {"executor": executor}
    for name in ("threads", "max_queue"):
        execution[name] = _number(term, name, least=name == "threads")
    for name in ("queue_timeout", "max_time", "kill_after", "slow"):
        value = _number(term, name, least=name == "slow")
        execution[name] = None if value is None else value / 1000
    return execution


def _number(term: dict[str, Any], name: str, *, least: int = 0, bits: int = 32) -> int | None:
    value = term.get(name)
    if value is not None and (type(value) is not int or not least <= value < 2**bits):
        raise ValueError(
            f"{name} is a whole number of {bits} bits from {int(least)}, not {short(value)}"
        )
    return value


def _read_exactly(file: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(file, length - len(data))
        if not part:
            raise EOFError("standard input ended before the configuration was complete")
        data += part
    return data
