"""The functions that reach the BEAM; all of it is in `snex` too.

>>> from snex.interface import send
>>> async def report(pid: object) -> None:
...     await send(pid, {"progress": 0.5})
"""

from snex_runtime.batches import batched
from snex_runtime.interface import (
    BeamModuleProxy,
    Elixir,
    ElixirError,
    call,
    cast,
    send,
    traceparent,
)
from snex_runtime.mailboxes import Mailbox, mailbox
from snex_runtime.progress import progress
from snex_runtime.registered import decoder, encoder
from snex_runtime.serde import set_custom_encoder
from snex_runtime.serve import io_loop_for_connection, serve, serve_forever
from snex_runtime.subscriptions import ProducerError, Subscription, subscribe

__all__ = [
    "BeamModuleProxy",
    "Elixir",
    "ElixirError",
    "Mailbox",
    "ProducerError",
    "Subscription",
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
