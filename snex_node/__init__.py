"""An Erlang node for asyncio: hidden, in pure Python, useful on its own.

It connects to BEAM nodes (OTP 25 and later) and accepts their connections, has processes with
links, monitors and mailboxes, generic servers, and calls functions on other nodes and for them.

>>> import asyncio
>>> from snex_node import Atom, GenServer, Node
>>> class Counter(GenServer):
...     count = 0
...
...     def handle_call(self, request, caller):
...         self.count += 1
...         return self.count
>>> async def main() -> None:
...     async with Node("py@127.0.0.1", cookie="secret") as node:
...         Counter(node, name="counter")  # GenServer.call({:counter, :"py@127.0.0.1"}, :next)
...         await asyncio.Event().wait()
"""

# This file and those of the other two packages hold nothing that an old Python cannot read.
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - pip is not the only way to get here
    raise ImportError(
        "snex-node needs Python 3.10 or later, and this is Python %d.%d (%s)"  # noqa: UP031
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

from snex_node.errors import (
    CallTimeoutError,
    ConnectError,
    NodeError,
    NodeStartError,
    ProcessExitError,
    RemoteError,
)
from snex_node.node import Node
from snex_node.processes.genserver import NO_REPLY, GenServer, Stop
from snex_node.processes.process import BaseProcess, Process
from snex_node.services import UndefinedFunctionError, import_function
from snex_node.wire.etf import DecodeError, Decoder, EncodeError, Encoder
from snex_node.wire.gen import From
from snex_node.wire.terms import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    Pid,
    Port,
    Record,
    Reference,
    Term,
)

__all__ = [
    "NO_REPLY",
    "Atom",
    "BaseProcess",
    "BitString",
    "CallTimeoutError",
    "ConnectError",
    "DecodeError",
    "Decoder",
    "EncodeError",
    "Encoder",
    "Export",
    "From",
    "Fun",
    "GenServer",
    "ImproperList",
    "Node",
    "NodeError",
    "NodeStartError",
    "Pid",
    "Port",
    "Process",
    "ProcessExitError",
    "Record",
    "Reference",
    "RemoteError",
    "Stop",
    "Term",
    "UndefinedFunctionError",
    "import_function",
]
