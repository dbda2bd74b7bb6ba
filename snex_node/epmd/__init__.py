"""epmd, the Erlang port mapper daemon: tells at which port the nodes of a host listen.

`register`, `lookup` and `names` ask one, `EpmdServer` is one in a thread, and a `Registrar` keeps a
node registered, on the epmd that runs or on one that it starts as a process of its own.
"""

from __future__ import annotations

from snex_node.epmd.client import TIMEOUT, Registration, lookup, names, register
from snex_node.epmd.errors import (
    BadAnswerError,
    EpmdError,
    EpmdStartError,
    EpmdTimeoutError,
    EpmdUnreachableError,
    HostNotFoundError,
    NameTakenError,
    NoAnswerError,
    NotFoundThereError,
    PortInUseError,
)
from snex_node.epmd.messages import NodeInfo, NodeType, check_name
from snex_node.epmd.registrar import Registrar
from snex_node.epmd.server import EpmdServer, EpmdStatistics
from snex_node.epmd.settings import epmd_port, listen_addresses

__all__ = [
    "TIMEOUT",
    "BadAnswerError",
    "EpmdError",
    "EpmdServer",
    "EpmdStartError",
    "EpmdStatistics",
    "EpmdTimeoutError",
    "EpmdUnreachableError",
    "HostNotFoundError",
    "NameTakenError",
    "NoAnswerError",
    "NodeInfo",
    "NodeType",
    "NotFoundThereError",
    "PortInUseError",
    "Registrar",
    "Registration",
    "check_name",
    "epmd_port",
    "listen_addresses",
    "lookup",
    "names",
    "register",
]
