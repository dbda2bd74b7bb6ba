"""A process, as those know it who bring messages and signals to it."""

from __future__ import annotations

from abc import abstractmethod

from snex_node.cluster.remote import RemoteNode
from snex_node.ties import Tied
from snex_node.wire.etf import Decoder
from snex_node.wire.terms import Reference


class Mailbox(Tied):
    """What messages and signals go to; see `snex_node.BaseProcess` for what each method means."""

    __slots__ = ()

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether the process exists."""

    @property
    @abstractmethod
    def exit_reason(self) -> object:
        """Why it has ended; None while it lives."""

    @abstractmethod
    def exit(self, reason: object) -> None:
        """End it."""

    @abstractmethod
    def message_received(self, message: object) -> None:
        """Take a message."""

    @abstractmethod
    def external_received(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take a message of another node in external form, a bare term at ``data[offset]``."""

    @abstractmethod
    def reason_decoder(self, ref: Reference) -> Decoder:
        """What decodes the reason when the monitor ``ref`` fires."""
