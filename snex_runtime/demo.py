"""``snex-node demo``: a node, evaluated on by a real Elixir where there is one, else by Python."""

from __future__ import annotations


async def run() -> int:
    return 0
