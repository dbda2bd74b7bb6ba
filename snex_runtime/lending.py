"""Large data of answers, lent to the BEAM of this machine that asked for that.

A region that has been lent is used for other data only when it has been told that nobody sees it
any more; else it is closed, and its memory lives as long as somebody has it mapped.

Source: "Shared memory" in docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from snex_node.wire.describe import inspect
from snex_node.wire.etf import Decoder
from snex_node.wire.etf_place import KNOWN
from snex_node.wire.pieces import Payload
from snex_node.wire.terms import Atom, Pid
from snex_runtime import regions, serde, shared, tables
from snex_runtime.answers import OK, OK_
from snex_runtime.errors import BadRequest
from snex_runtime.regions import Region
from snex_runtime.requests import Asker, AskerWith, Request

__all__ = ["Arena", "Lending"]

THRESHOLD: Final = 256 * 1024
"""Bytes from which a binary is lent."""

MAX_REGIONS: Final = 128
"""Regions of a process; beyond them data travels as it does otherwise."""

MAX_BYTES: Final = 2 * 1024 * 1024 * 1024
"""Bytes in all of them; the same."""

MAX_FREE_BYTES: Final = 256 * 1024 * 1024
"""Bytes in those that are free: the oldest are closed."""

IDLE: Final = 30.0
"""Seconds after which a free region is closed."""

LENT: Final = 60.0
"""Seconds after which one that was lent is closed here, and not used again. By then it is mapped,
or nobody will map it."""

Handle = dict[Atom, object]


class _Loan(NamedTuple):
    region: Region
    node: str
    until: float


class Arena:
    """The regions of this process. ``owner`` is to be told that they are dropped. Any thread."""

    def __init__(self, owner: Pid, clock: Callable[[], float] = time.monotonic) -> None:
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._lent: dict[bytes, _Loan] = {}
        self._free: list[tuple[float, Region]] = []  # the oldest first
        self._bytes = 0
        self._closed = False

    @property
    def counts(self) -> tuple[int, int]:
        """Regions that are lent, and that are free."""
        with self._lock:
            return len(self._lent), len(self._free)

    def lend(self, data: memoryview, node: str) -> Handle | None:
        """Lend ``data``, bytes, to the node: a handle, or None where that cannot be."""
        return self._lend(len(data), node, lambda region, name: region.write(name, data))

    def lend_written(
        self, size: int, write: Callable[[io.RawIOBase], object], node: str
    ) -> Handle | None:
        """The same for ``size`` bytes that ``write`` puts into a file; what it raises goes on."""
        return self._lend(size, node, lambda region, name: region.write_by(name, size, write))

    def _lend(self, size: int, node: str, write: Callable[[Region, bytes], None]) -> Handle | None:
        name = secrets.token_bytes(regions.ID_SIZE)
        region = self._take(size)
        if region is None:
            return None
        before = region.filled
        try:
            write(region, name)
        except BaseException as error:
            with self._lock:
                self._bytes -= max(before, regions.HEADER + size)
            region.close()
            if isinstance(error, OSError):  # there is no memory
                return None
            raise
        with self._lock:
            self._lent[name] = _Loan(region, node, self._clock() + LENT)
            if self._closed:
                self._close(self._lent.pop(name).region)
        return {
            Atom("__struct__"): Atom(shared.NAME),
            Atom("fd"): region.file,
            Atom("id"): name,
            Atom("os_pid"): os.getpid(),
            Atom("owner"): self._owner,
            Atom("size"): size,
        }

    def _take(self, size: int) -> Region | None:
        """A region for so many bytes, which are counted then."""
        with self._lock:
            # Of equal ones the newest, so that what is not needed gets old.
            fitting = [each for each in reversed(self._free) if each[1].has_room(size)]
            found = min(fitting, key=lambda each: each[1].capacity, default=None)
            more = 0 if found is None else max(0, regions.HEADER + size - found[1].filled)
            if found is not None and self._bytes + more <= MAX_BYTES:
                self._free.remove(found)
                self._bytes += more
                return found[1]
            if self._closed or not self._make_room(regions.HEADER + size):
                return None
            try:
                region = Region(size)
            except OSError:
                return None
            self._bytes += regions.HEADER + size
            return region

    def _make_room(self, size: int) -> bool:
        """Whether there may be one more region; free ones make place for it."""
        if not regions.SUPPORTED:
            return False
        while self._free and not self._has_room(size):
            self._close_oldest()
        return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        few = len(self._lent) + len(self._free) < MAX_REGIONS
        return few and self._bytes + size <= MAX_BYTES

    def _close_oldest(self) -> None:
        self._close(self._free.pop(0)[1])

    def _close(self, region: Region) -> None:
        self._bytes -= region.filled
        region.close()

    def dropped(self, name: bytes, node: str) -> None:
        """``node`` does not see any more what was lent to it as ``name``."""
        with self._lock:
            loan = self._lent.get(name)
            if loan is None or loan.node != node:
                return
            del self._lent[name]
            self._free.append((self._clock(), loan.region))
            while sum(region.filled for _, region in self._free) > MAX_FREE_BYTES:
                self._close_oldest()

    def take_back(self, names: list[bytes], node: str) -> None:
        """Nobody has been told of what was lent so."""
        for name in names:
            self.dropped(name, node)

    def node_down(self, node: str) -> None:
        """The node is gone, or cannot be heard; what it has mapped it may see for long."""
        with self._lock:
            gone = [name for name, loan in self._lent.items() if loan.node == node]
            for name in gone:
                self._close(self._lent.pop(name).region)

    def check(self) -> float | None:
        """Close what has been free, or lent, for too long: for the guardian."""
        now = self._clock()
        with self._lock:
            for name in [name for name, loan in self._lent.items() if loan.until <= now]:
                self._close(self._lent.pop(name).region)
            while self._free and self._free[0][0] + IDLE <= now:
                self._close_oldest()
        return None

    def close_free(self) -> None:
        """Close what is free."""
        with self._lock:
            while self._free:
                self._close_oldest()

    def close(self) -> None:
        """Close all of them, and lend nothing more."""
        with self._lock:
            self._closed = True
            for loan in self._lent.values():
                self._close(loan.region)
            self._lent.clear()
        self.close_free()


class Lending:
    """Who is lent what from ``arena``: the requests about it, and what encodes for those who asked.

    ``drops`` tells lenders what is dropped here. ``opens`` says whether what others lend is taken.
    """

    def __init__(
        self, arena: Arena, drops: shared.Drops | None = None, *, opens: bool = True
    ) -> None:
        self._arena = arena
        self._drops = drops
        self._opens = opens
        self._peers: set[str] = set()
        self.check: Final = arena.check
        """For the guardian."""

    def requested(self, request: Request) -> bytes:
        """``{:shared, handle}`` or ``{:shared, nil}``: see `_probed`.

        And ``{:shared, {:dropped, id}}``: what was lent so is not seen any more; nobody waits for
        an answer. Raises `BadRequest`.
        """
        term = request.read(_bytes) if request.arity == 2 else ()
        if isinstance(term, tuple) and len(term) == 2 and term[0] == "dropped":
            if isinstance(term[1], bytes):
                self._arena.dropped(term[1], request.remote.name)
            return OK
        if term is None or isinstance(term, dict):
            return self._probed(request.remote.name, term)
        raise BadRequest(
            f"a shared request has a handle, nil or {{:dropped, id}}, not {inspect(term)}"
        )

    def _probed(self, node: str, probe: dict[Any, object] | None) -> bytes:
        """``{:ok, {read, probe}}``: whether what the node has lent can be read here, and something
        to read there, or nil.
        """
        answer = self._arena.lend(memoryview(b""), node)
        if answer is not None:
            self._peers.add(node)
        return serde.encoder.encode((self._opens and _can_read(probe), answer), OK_)

    def node_down(self, node: str) -> None:
        """The node is gone."""
        self._peers.discard(node)
        self._arena.node_down(node)
        if not self._peers:
            self._arena.close_free()

    def close(self) -> None:
        """Lend nothing more, and tell nobody any more."""
        if self._drops is not None:
            self._drops.close()
        self._arena.close()

    def to(self, remote: Asker) -> Asker:
        """The node that asked, with large data in what is encoded for it lent, if it can be."""
        if remote.name not in self._peers:
            return remote
        return AskerWith(remote, _Encoder(self._arena, remote))


_bytes: Final = Decoder()


def _can_read(probe: dict[Any, object] | None) -> bool:
    if probe is None:
        return False
    with contextlib.suppress(regions.RegionError):
        shared.load(probe)
        return True
    return False


class _Encoder:
    """Encodes values for ``remote``, and lends it what is large in them."""

    def __init__(self, arena: Arena, remote: Asker) -> None:
        self._arena = arena
        self._node = remote.name
        self._encoder = remote.encoder

    def encode(self, term: object, before: bytes = b"") -> bytes:
        """The external form of ``term``, behind ``before``. Raises what `etf.Encoder` does."""
        return bytes(self.encode_payload(term, before))

    def encode_payload(self, term: object, before: bytes = b"") -> Payload:
        """The same for a message: in pieces where much is in it."""
        names: list[bytes] = []
        try:
            return self._encoder.encode_payload(self._lent(term, names), before)
        except BaseException:
            self._arena.take_back(names, self._node)
            raise

    def _lent(self, term: object, names: list[bytes]) -> object:
        try:
            return _walk(term, _Lend(self._arena, self._node, names))
        except RecursionError:  # it is very deep, or contains itself
            self._arena.take_back(names, self._node)
            names.clear()
            return term


class _Lend:
    """Lends parts of one answer; ``names`` tells what was."""

    def __init__(self, arena: Arena, node: str, names: list[bytes]) -> None:
        self._arena = arena
        self._node = node
        self._names = names

    def data(self, data: memoryview) -> Handle | None:
        """A handle for bytes, or None."""
        return self._named(self._arena.lend(data, self._node))

    def written(self, size: int, write: Callable[[io.RawIOBase], object]) -> Handle | None:
        """The same for bytes that ``write`` writes."""
        return self._named(self._arena.lend_written(size, write, self._node))

    def _named(self, handle: Handle | None) -> Handle | None:
        if handle is not None:
            self._names.append(handle[_ID])  # type: ignore[arg-type]
        return handle


_ID: Final = Atom("id")

_LEAVES: Final[frozenset[type]] = frozenset(
    (int, float, bool, type(None), Atom, serde.Atom, serde.Term, Pid)
)
_KNOWN: Final[tuple[Any, ...]] = (*_LEAVES, *(KNOWN - {memoryview}), BaseException)


def _walk(value: Any, lend: _Lend) -> Any:
    """``value`` with handles in place of what is large in it; the same where that is nothing."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is bytes or kind is bytearray:
        return _large(value, value, lend) if len(value) >= THRESHOLD else value
    if kind is str:
        return _text(value, lend) if len(value) >= THRESHOLD else value
    if isinstance(value, dict):
        return _pairs(value, lend)
    if isinstance(value, list | tuple):
        return _elements(value, list if isinstance(value, list) else tuple, lend)
    if kind is memoryview and value.ndim == 1:
        return _large(value, value, lend) if value.nbytes >= THRESHOLD else value
    return value if isinstance(value, _KNOWN) else _stand_in(value, lend)


def _elements(value: Any, kind: type, lend: _Lend) -> Any:
    if _LEAVES.issuperset(map(type, value)):
        return value
    made = [_walk(each, lend) for each in value]
    same = all(new is old for new, old in zip(made, value, strict=False))
    return value if same else kind(made)


def _pairs(value: dict[Any, Any], lend: _Lend) -> dict[Any, Any]:
    changed = {}
    for key, each in value.items():
        new = _walk(each, lend)
        if new is not each:
            changed[key] = new
    return {**value, **changed} if changed else value


def _large(value: object, data: Any, lend: _Lend) -> object:
    view = memoryview(data)
    if view.format != "B" or not view.c_contiguous:
        view = memoryview(view.tobytes())
    handle = lend.data(view)
    return value if handle is None else handle


def _text(value: str, lend: _Lend) -> object:
    if _CPYTHON and value.isascii():  # it is UTF-8 as it lies there
        memory = (ctypes.c_char * len(value)).from_address(_utf8_of(value, None))
        return _large(value, memoryview(memory).cast("B"), lend)
    try:
        return _large(value, value.encode(), lend)
    except UnicodeEncodeError:  # which the encoder tells
        return value


_CPYTHON: Final = sys.implementation.name == "cpython"

if _CPYTHON:
    _utf8_of = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
    _utf8_of.argtypes = [ctypes.py_object, ctypes.c_void_p]
    _utf8_of.restype = ctypes.c_void_p


def _stand_in(value: object, lend: _Lend) -> object:
    """What stands for a value of another type: a tensor, a table, what a custom encoder gives."""
    try:
        stream = tables.stream_of(value) if serde.custom_encoder() is None else None
        if stream is not None and stream[0] >= THRESHOLD:
            handle = lend.written(*stream)
            if handle is not None:
                return tables.struct(handle)
        found = serde.stand_in(value)
    except Exception:  # which the encoder meets again, and tells where it was
        return value
    return value if found is value else _walk(found, lend)
