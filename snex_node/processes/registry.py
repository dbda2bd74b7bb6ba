"""The processes of a node by pid and by name, and the numbers of new pids and references."""

from __future__ import annotations

import itertools
import struct

from snex_node.processes.mailbox import Mailbox
from snex_node.wire.etf import Encoder
from snex_node.wire.terms import Atom, Pid, Reference

_encode = Encoder().encode


class Registry:
    """The processes of the node ``name``.

    ``by_pid`` has them by the external form of their pids, ``by_name`` those with names; they are
    to be looked at only.
    """

    def __init__(self, name: str) -> None:
        self._name = _encode(Atom(name))
        self._creation = 0
        self.by_pid: dict[bytes, Mailbox] = {}
        self.by_name: dict[str, Mailbox] = {}
        self._names: dict[bytes, list[str]] = {}
        self._pid_numbers = itertools.count(1)
        self._ref_numbers = itertools.count(1)
        self._ref_head = b""

    def begin(self, creation: int) -> None:
        """From now on pids and references are of this incarnation of the node."""
        self._creation = creation
        self._ref_head = b"Z\x00\x03" + self._name + creation.to_bytes(4, "big")

    # --- processes ------------------------------------------------------------------------------

    def add(self, process: Mailbox) -> Pid:
        """Give ``process`` a pid."""
        number = next(self._pid_numbers)
        # 28 bits of id, then 13 of serial, as nodes before OTP 24 print them; then wider.
        numbers = struct.pack(">III", number & 0xFFFFFFF, number >> 28, self._creation)
        pid = Pid.from_external(b"X" + self._name + numbers)
        self.by_pid[pid.external] = process
        return pid

    def remove(self, process: Mailbox) -> None:
        """``process`` has ended: its names are free."""
        external = process.pid.external
        del self.by_pid[external]
        for name in self._names.pop(external, ()):
            del self.by_name[name]

    def end(self, reason: object) -> None:
        """End all of them."""
        for process in list(self.by_pid.values()):
            process.exit(reason)

    def find(self, target: Pid | str) -> Mailbox | None:
        """The process with this pid or name, if there is one."""
        if isinstance(target, Pid):
            return self.by_pid.get(target.external)
        return self.by_name.get(target)

    # --- names ----------------------------------------------------------------------------------

    def register(self, name: str, process: Mailbox) -> None:
        """Give ``process`` a name; ``ValueError`` when it is taken, or no atom."""
        if not process.alive:
            raise ValueError(f"{process!r} has ended and cannot be registered")
        if name in self.by_name:
            raise ValueError(f"the name {name} is taken by {self.by_name[name]!r}")
        self.by_name[Atom(name)] = process
        self._names.setdefault(process.pid.external, []).append(name)

    def unregister(self, name: str) -> None:
        """Free a name; ``ValueError`` when nothing has it."""
        process = self.by_name.pop(name, None)
        if process is None:
            raise ValueError(f"no process is registered as {name}")
        names = self._names[process.pid.external]
        names.remove(name)
        if not names:
            del self._names[process.pid.external]

    # --- references -----------------------------------------------------------------------------

    def make_ref(self) -> Reference:
        """A new reference, unique in the cluster."""
        number = next(self._ref_numbers)
        # 18, 32 and 32 bits: the first word changes fastest and stays below 2^18, which is what
        # tools that know only the old references read.
        words = (number & 0x3FFFF, (number >> 18) & 0xFFFFFFFF, (number >> 50) & 0xFFFFFFFF)
        return Reference.from_external(self._ref_head + struct.pack(">III", *words))
