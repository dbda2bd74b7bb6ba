#!/bin/sh
# The author of a Python library: from an empty directory to a typed package that talks to a BEAM's
# processes, with its tests. Page: "A node in your own Python program".
#
# SNEX_NODE is what pip installs; MYPY and PYTEST are where these are not installed by the walk.
set -eu

python3 -m venv venv
venv/bin/pip install --quiet "${SNEX_NODE:-snex-node}"
venv/bin/snex-node --version

mkdir -p weather
cat > weather/__init__.py <<'PYTHON'
"""Readings of a station, for any process of the cluster."""

from weather.station import Station, mean_of

__all__ = ["Station", "mean_of"]
PYTHON
touch weather/py.typed
cat > weather/station.py <<'PYTHON'
from __future__ import annotations

from snex_node import Atom, From, GenServer, Node


class Station(GenServer):
    """Takes ``{:reading, degrees}`` as casts, and answers ``:mean``."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, name="station")
        self.readings: list[float] = []

    def handle_cast(self, request: object) -> None:
        match request:
            case ("reading", (int() | float()) as degrees):
                self.readings.append(float(degrees))

    def handle_call(self, request: object, caller: From) -> object:
        match request:
            case "mean" if self.readings:
                return Atom("ok"), sum(self.readings) / len(self.readings)
            case "mean":
                return Atom("error"), Atom("no_readings")
            case _:
                return Atom("error"), Atom("unknown_request")


async def mean_of(node: Node, station: str) -> float | None:
    """The mean of a station on the node of that name; None where it has no readings."""
    match await node.call(("station", station), Atom("mean")):
        case ("ok", float() as mean):
            return mean
        case _:
            return None
PYTHON
cat > test_weather.py <<'PYTHON'
import asyncio

from snex_node import Atom, Node

from weather import Station, mean_of


async def both() -> None:
    async with (
        Node("station@127.0.0.1", cookie="secret", epmd="none") as there,
        Node("reader@127.0.0.1", cookie="secret", epmd="none", listen=None) as here,
    ):
        station = Station(there)
        assert there.port is not None
        await here.connect(there.name, address=("127.0.0.1", there.port))
        assert await mean_of(here, there.name) is None
        for degrees in (18, 21.5):
            here.cast(("station", there.name), (Atom("reading"), degrees))
        assert await mean_of(here, there.name) == 19.75
        assert await here.call(station.pid, Atom("other")) == ("error", "unknown_request")


def test_both() -> None:
    asyncio.run(both())
PYTHON

"${MYPY:-mypy}" --strict --python-executable venv/bin/python weather test_weather.py
venv/bin/python -c "import test_weather; test_weather.test_both()"
echo "the library works"
