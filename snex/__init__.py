"""What Python code evaluated for the BEAM imports.

Every environment starts with this module as ``snex``, and with `Elixir`.

>>> import snex
>>> async def report(pid: object) -> None:
...     await snex.send(pid, {"progress": 0.5})
...     total = await snex.call("Elixir.Enum", "sum", [[1, 2, 3]])
...     counts = await snex.Elixir.Enum.frequencies(["a", "b", "a"])
"""

from snex import interface, models  # noqa: F401 - `snex.models` is there without an import of its own
from snex_runtime.batches import Batched, batched
from snex_runtime.interface import (
    BeamModuleProxy,
    Elixir,
    ElixirError,
    call,
    cast,
    send,
    traceparent,
)
from snex_runtime.logging import LoggingHandler
from snex_runtime.mailboxes import Mailbox, mailbox
from snex_runtime.progress import progress
from snex_runtime.registered import decoder, encoder
from snex_runtime.serde import (
    Atom,
    DistinctAtom,
    EncodingOpt,
    EncodingOpts,
    Term,
    set_custom_encoder,
)
from snex_runtime.serve import io_loop_for_connection, serve, serve_forever
from snex_runtime.subscriptions import ProducerError, Subscription, subscribe

__all__ = [
    "Atom",
    "Batched",
    "BeamModuleProxy",
    "DistinctAtom",
    "Elixir",
    "ElixirError",
    "EncodingOpt",
    "EncodingOpts",
    "LoggingHandler",
    "Mailbox",
    "ProducerError",
    "Subscription",
    "Term",
    "batched",
    "call",
    "cast",
    "decoder",
    "encoder",
    "io_loop_for_connection",
    "mailbox",
    "progress",
    "send",
    "serve",
    "serve_forever",
    "set_custom_encoder",
    "subscribe",
    "traceparent",
]
