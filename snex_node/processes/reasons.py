"""Exit reasons, both ways: a signal counts, whatever its reason is made of."""

from __future__ import annotations

import logging

from snex_node.wire.describe import short
from snex_node.wire.etf import DecodeError, Decoder, EncodeError, Encoder

MAX_REASON = 1000
"""Characters of the text that takes the place of an exit reason without an external form."""

_encode = Encoder().encode
_log = logging.getLogger(__name__)


class Undecodable:
    """The reason of an exit signal whose own reason cannot be decoded; ``error`` says why."""

    __slots__ = ("error",)

    def __init__(self, error: DecodeError) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"<Undecodable: {self.error}>"


def decode_reason(decoder: Decoder, data: bytes, offset: int, node: str) -> object:
    """The exit reason that came from ``node`` in external form."""
    try:
        return decoder.decode(data, offset)[0]
    except DecodeError as error:
        _log.warning("%s: an exit reason cannot be decoded: %s", node, error)
        return Undecodable(error)


def encode_reason(encoder: Encoder, reason: object) -> bytes:
    """An exit reason in external form; one that has none goes as its description."""
    try:
        return encoder.encode(reason)
    except EncodeError:
        return _encode(short(reason, MAX_REASON).encode())
