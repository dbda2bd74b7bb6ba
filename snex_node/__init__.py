"""An Erlang node for asyncio: hidden, in pure Python, useful on its own.

It connects to BEAM nodes (OTP 25 and later) and accepts their connections, has processes with
links, monitors and mailboxes, generic servers, and calls functions on other nodes and for them.

>>> import asyncio
>>> from snex_node import GenServer, Node, find_cookie
>>> class Counter(GenServer):
...     count = 0
...
...     def handle_call(self, request, caller):
...         self.count += 1
...         return self.count
>>> async def main() -> None:
...     async with Node("py@127.0.0.1", cookie=find_cookie()) as node:
...         Counter(node, name="counter")  # GenServer.call({:counter, :"py@127.0.0.1"}, :next)
...         await asyncio.Event().wait()

What there is; ``help(snex_node.Node)``, or ``python -m pydoc snex_node.Node``, tells more:

* `Node`: names, messages, calls, other nodes. `find_cookie`: the cookie, where OTP keeps it.
* `Process`: a process with a mailbox. `BaseProcess`: one without, to derive others from.
* `GenServer`: a generic server, with `Stop`, `NO_REPLY`, `From` for its handlers.
* `Decoder`, `Encoder`: the external term format, with `DecodeError`, `EncodeError`.
* Terms: `Atom`, `Pid`, `Reference`, `Port`, `Fun`, `Export`, `BitString`, `ImproperList`, `Record`;
  `Term`, one that is not decoded. All others are Python's own: ``int``, ``float``, ``str``,
  ``bytes``, ``list``, ``tuple``, ``dict``, ``bool``, ``None``.
* Errors: `NodeError`, the base of `NodeStartError`, `ConnectError`, `CallTimeoutError`,
  `ProcessExitError`, `RemoteError` and `CookieError`.
* `import_function`: which functions other nodes may call, unless `Node` is told otherwise; with
  `UndefinedFunctionError`.
"""

# This file and those of the other two packages hold nothing that an old Python cannot read.
import sys as _sys

if _sys.version_info < (3, 10):  # noqa: UP036 - pip is not the only way to get here
    raise ImportError(
        "snex-node needs Python 3.10 or later, and this is Python %d.%d (%s)"  # noqa: UP031
        % (_sys.version_info[0], _sys.version_info[1], _sys.executable)
    )

__version__ = "0.1.0"

# Not in `__all__`: pydoc would print each of them, and all that they inherit, on 3,000 lines.
from snex_node.cookie import CookieError as CookieError
from snex_node.cookie import find_cookie as find_cookie
from snex_node.errors import CallTimeoutError as CallTimeoutError
from snex_node.errors import ConnectError as ConnectError
from snex_node.errors import NodeError as NodeError
from snex_node.errors import NodeStartError as NodeStartError
from snex_node.errors import ProcessExitError as ProcessExitError
from snex_node.errors import RemoteError as RemoteError
from snex_node.node import Node as Node
from snex_node.processes.genserver import NO_REPLY as NO_REPLY
from snex_node.processes.genserver import GenServer as GenServer
from snex_node.processes.genserver import Stop as Stop
from snex_node.processes.process import BaseProcess as BaseProcess
from snex_node.processes.process import Process as Process
from snex_node.services import UndefinedFunctionError as UndefinedFunctionError
from snex_node.services import import_function as import_function
from snex_node.wire.etf import DecodeError as DecodeError
from snex_node.wire.etf import Decoder as Decoder
from snex_node.wire.etf import EncodeError as EncodeError
from snex_node.wire.etf import Encoder as Encoder
from snex_node.wire.gen import From as From
from snex_node.wire.terms import Atom as Atom
from snex_node.wire.terms import BitString as BitString
from snex_node.wire.terms import Export as Export
from snex_node.wire.terms import Fun as Fun
from snex_node.wire.terms import ImproperList as ImproperList
from snex_node.wire.terms import Pid as Pid
from snex_node.wire.terms import Port as Port
from snex_node.wire.terms import Record as Record
from snex_node.wire.terms import Reference as Reference
from snex_node.wire.terms import Term as Term
