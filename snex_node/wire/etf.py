"""The external term format: Python objects to the bytes that BEAM nodes speak, and back.

``Decoder`` and ``Encoder`` work on one *bare* term, as it stands inside a message, without the
version byte 131; ``decode`` and ``encode`` are for a term that stands alone, with it.

Source: External Term Format, https://www.erlang.org/doc/apps/erts/erl_ext_dist.html
"""

from __future__ import annotations

import zlib
from typing import Final

from snex_node.wire.etf_decode import MAX_DEPTH, DecodeError, Decoder
from snex_node.wire.etf_encode import EncodeError, Encoder, EncodeTypeError, EncodeValueError

__all__ = [
    "MAX_DEPTH",
    "MAX_INFLATED",
    "DecodeError",
    "Decoder",
    "EncodeError",
    "EncodeTypeError",
    "EncodeValueError",
    "Encoder",
    "decode",
    "encode",
]

MAX_INFLATED: Final = 128 * 1024 * 1024
"""The largest compressed term that ``decode`` inflates, in bytes.

A few kilobytes of zlib data can claim gigabytes; 128 MiB is also the default limit of a frame.
"""

_VERSION: Final = 131
_DECODER: Final = Decoder()
_ENCODER: Final = Encoder()


def decode(
    data: bytes | bytearray | memoryview,
    *,
    decoder: Decoder = _DECODER,
    max_inflated: int = MAX_INFLATED,
) -> object:
    """The term that ``data`` holds: 131 and one term, compressed or not, and nothing after it.

    Raises ``DecodeError`` for anything else, and for a compressed term (131, 80) that claims more
    than ``max_inflated`` bytes; no more than that is ever inflated.

    >>> decode(bytes([131, 97, 7]))
    7
    """
    data = bytes(data)
    if data[:1] != b"\x83":
        found = f"{data[0]}" if data else "nothing"
        raise DecodeError(f"a term starts with its version, {_VERSION}, but here is {found}", 0)
    if data[1:2] == b"P":
        data, start = _inflate(data, max_inflated), 0
    else:
        start = 1
    term, end = decoder.decode(data, start)
    if end != len(data):
        raise DecodeError(f"the term is followed by {len(data) - end} more bytes", end)
    return term


def encode(term: object, *, encoder: Encoder = _ENCODER) -> bytes:
    """The bytes of ``term``, version byte 131 included. Raises as ``Encoder.encode`` does.

    >>> encode(7)
    b'\\x83a\\x07'
    """
    return b"".join([b"\x83", *encoder.encode_parts(term)])


def _inflate(data: bytes, max_inflated: int) -> bytes:
    size = int.from_bytes(data[2:6], "big")
    if len(data) < 6:
        raise DecodeError("the size of the compressed term is truncated", len(data))
    if size > max_inflated:
        raise DecodeError(
            f"the compressed term inflates to {size} bytes, more than the {max_inflated} allowed; "
            f"raise max_inflated to take it",
            2,
        )
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data[6:], size + 1)
    except zlib.error as error:
        raise DecodeError(f"the compressed term cannot be inflated: {error}", 6) from None
    if len(inflated) != size or not inflater.eof or inflater.unused_data:
        raise DecodeError(f"the compressed term is not the {size} bytes that it claims", 6)
    return inflated
