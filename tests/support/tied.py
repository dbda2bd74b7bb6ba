"""What ties a process, as its node keeps it."""

from __future__ import annotations

from snex_node.ties import Target, Tied
from snex_node.wire.terms import Atom, Pid


def links_of(process: Tied) -> dict[Pid, int | None]:
    """Linked pids, each with the id of an unlink that is not acknowledged, or None."""
    return {} if process.ties is None else process.ties.links or {}


def monitors_of(process: Tied) -> dict[bytes, Target]:
    """What it monitors, by the external form of the reference."""
    return {} if process.ties is None else process.ties.monitors or {}


def watchers_of(process: Tied) -> dict[bytes, tuple[Pid, Pid | Atom]]:
    """Who monitors it, by the external form of the reference, and by which name."""
    return {} if process.ties is None else process.ties.watchers or {}
