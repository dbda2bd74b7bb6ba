"""Regions of memory that another process of this machine can map: memfds, which have no name.

One is made by `Region`, and opened by others as ``/proc/PROCESS/fd/FILE``. Its size is sealed, so
that what is mapped can never be cut off. It begins with a page that says which lending it is: who
opens one that has been lent anew since, or a file that is none, notices and reads nothing.

Source: "Shared memory" in docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, Final

with contextlib.suppress(ImportError):  # Windows has none, and no such memory
    import fcntl

__all__ = ["HEADER", "ID_SIZE", "SUPPORTED", "Region", "RegionError", "open_region"]

HEADER: Final = 4096
"""Bytes before the data: a page, so that the data begin with one."""

ID_SIZE: Final = 16
"""Bytes of the random name of one lending."""

_MAGIC: Final = b"snexshm1"
_SMALLEST: Final = 512 * 1024
_LARGEST_FILE: Final = 2**62
_LARGEST_NUMBER: Final = 2**31

SUPPORTED: Final = hasattr(os, "memfd_create") and sys.platform == "linux"
"""Whether this system has such memory: Linux does."""

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if SUPPORTED else 0
# Without it the file is kept open as long as the memory is mapped.
_UNTRACKED: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class RegionError(ValueError):
    """What a handle names cannot be opened, or is not what was lent."""


class Region:
    """A region with room for ``size`` bytes at least. Raises ``OSError``.

    Pages come when they are written, and take three times as long then as afterwards: so regions
    are kept for other data. 64 MiB take 37 ms the first time, and 12 ms later on.
    """

    def __init__(self, size: int) -> None:
        self.capacity: Final = max(_SMALLEST, 1 << (HEADER + size - 1).bit_length())
        """Bytes of the file."""
        self.filled = 0
        """Bytes that have their memory."""
        self._mapped: mmap.mmap | None = None
        self.file: Final = os.memfd_create("snex", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        """Its descriptor."""
        try:
            os.ftruncate(self.file, self.capacity)
            fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(self.file)
            raise

    def has_room(self, size: int) -> bool:
        """Whether ``size`` bytes fit, and do not waste it."""
        return HEADER + size <= self.capacity <= max(_SMALLEST, 8 * (HEADER + size))

    def write_by(self, name: bytes, size: int, write: Callable[[io.RawIOBase], object]) -> None:
        """The same, for ``size`` bytes that ``write`` puts into a file."""
        _write(self.file, _head(name, size), 0)
        sink = _Sink(self.file)
        write(sink)
        if sink.at != HEADER + size:
            raise OSError(f"{sink.at - HEADER} bytes were written in place of {size}")
        self.filled = max(self.filled, sink.at)

    def write(self, name: bytes, data: memoryview) -> None:
        """Put ``data``, bytes, into it, as the lending ``name``. Raises ``OSError``."""
        end = HEADER + len(data)
        head = _head(name, len(data))
        if self.filled >= end:
            if self._mapped is None or len(self._mapped) < end:
                self._mapped = _map(self.file, self.filled)
            self._mapped[: len(head)] = head
            self._mapped[HEADER:end] = data
            return
        _write(self.file, head, 0)
        _write(self.file, data, HEADER)
        self.filled = end

    def close(self) -> None:
        """Give it up. Its memory lives as long as somebody has it mapped."""
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None
        os.close(self.file)


class _Sink(io.RawIOBase):
    """A file to write the data of a region to."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.at = HEADER

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        _write(self._file, data, self.at)
        self.at += size
        return size


def _head(name: bytes, size: int) -> bytes:
    return _MAGIC + name + size.to_bytes(8, "little")


def _map(file: int, size: int) -> mmap.mmap:
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # to meet each page takes as long
    return mmap.mmap(file, size, flags, mmap.PROT_READ | mmap.PROT_WRITE, **_UNTRACKED)


def _write(file: int, data: bytes | memoryview, at: int) -> None:
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def open_region(process: int, file: int, name: bytes, size: int) -> mmap.mmap:
    """What ``process`` has lent as its descriptor ``file``: mapped, with the page in front.

    It is a copy to those who write to it. Raises `RegionError` where that is none of ours, or has
    not this name and size. Nothing else is ever opened for reading: what is found is looked at
    first, and other files than memfds have not the seals.
    """
    if not 0 < process < _LARGEST_NUMBER or not 0 <= file < _LARGEST_NUMBER:
        raise RegionError(f"there is no descriptor {file} of a process {process}")
    if not SUPPORTED or len(name) != ID_SIZE or not 0 <= size < _LARGEST_FILE:
        raise RegionError(f"no region of {size} bytes can be mapped here")
    try:
        return _opened(f"/proc/{process}/fd/{file}", lambda each: _checked(each, name, size))
    except OSError as error:
        raise RegionError(f"it cannot be opened: {error.strerror}") from None


def _opened(path: str, then: Callable[[int], mmap.mmap]) -> mmap.mmap:
    # To open a file for its place alone does nothing to it, whatever it is: a device, a pipe.
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise RegionError("it is no shared memory")
        file = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(place)
    try:
        return then(file)
    finally:
        os.close(file)


def _checked(file: int, name: bytes, size: int) -> mmap.mmap:
    try:
        sealed = fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # a file of a kind that has none
        sealed = False
    if not sealed:
        raise RegionError("it is no shared memory")
    if os.fstat(file).st_size < HEADER + size:
        raise RegionError(f"it has not the {size} bytes that were told")
    mapped = mmap.mmap(file, HEADER + size, access=mmap.ACCESS_COPY, **_UNTRACKED)
    head = _head(name, size)
    if mapped[: len(head)] != head:
        mapped.close()
        raise RegionError("it holds something else by now")
    return mapped
