"""Memory that other processes map: made, written, opened, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snex_runtime import regions
from snex_runtime.regions import HEADER, ID_SIZE, Region, RegionError, open_region

pytestmark = pytest.mark.skipif(not regions.SUPPORTED, reason="only Linux has such memory")

NAME = b"0123456789abcdef"
OTHER = b"fedcba9876543210"


@pytest.fixture
def region() -> Iterator[Region]:
    made = Region(1000)
    yield made
    made.close()


def opened(region: Region, name: bytes, size: int) -> bytes:
    with open_region(os.getpid(), region.file, name, size) as mapped:
        return mapped[HEADER:]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestWriting:
    def test_what_is_written_is_what_others_read(self, region: Region) -> None:
        region.write(NAME, memoryview(b"x" * 1000))
        assert opened(region, NAME, 1000) == b"x" * 1000

    def test_again_and_again(self, region: Region) -> None:
        for size in (1000, 900, 100_000, 99_999, 3):  # new pages, and those that are there
            data = secrets.token_bytes(size)
            name = secrets.token_bytes(ID_SIZE)
            region.write(name, memoryview(data))
            assert opened(region, name, size) == data
        assert region.filled == HEADER + 100_000

    def test_by_a_function_that_writes_to_a_file(self, region: Region) -> None:
        parts: list[Any] = [b"abc", memoryview(b"defg").cast("I"), bytearray(b"h" * 100_000)]

        def write(file: io.RawIOBase) -> None:
            assert file.writable()
            assert [file.write(part) for part in parts] == [3, 4, 100_000]

        region.write_by(NAME, 100_007, write)
        assert opened(region, NAME, 100_007) == b"abcdefg" + b"h" * 100_000
        region.write(OTHER, memoryview(b"x" * 100_000))
        assert opened(region, OTHER, 100_000) == b"x" * 100_000
        with pytest.raises(OSError, match="100007 bytes were written in place of 5"):
            region.write_by(NAME, 5, write)
        for _ in range(2):  # it has no room
            with pytest.raises(OSError, match="not permitted"):
                region.write_by(NAME, 2**20, lambda file: file.write(b"y" * 2**20))

    def test_what_is_mapped_stays_when_it_is_closed(self) -> None:
        region = Region(1000)
        region.write(NAME, memoryview(b"kept"))
        with open_region(os.getpid(), region.file, NAME, 4) as mapped:
            region.close()
            assert mapped[HEADER:] == b"kept"

    def test_its_size_never_changes(self, region: Region) -> None:
        for size in (0, region.capacity + 1):
            with pytest.raises(OSError, match="not permitted"):
                os.ftruncate(region.file, size)

    def test_how_large_it_is(self) -> None:
        for size, capacity in ((0, 2**19), (2**19, 2**20), (2**20 - HEADER, 2**20)):
            region = Region(size)
            assert region.capacity == capacity
            assert region.has_room(size)
            assert region.has_room(capacity - HEADER)
            assert not region.has_room(capacity - HEADER + 1)
            region.close()
        large = Region(2**24)
        assert not large.has_room(1)
        large.close()

    def test_nothing_is_left_of_one_that_cannot_be_made(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOMEM, "no memory")

        before = descriptors()
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError, match="no memory"):
            Region(1000)
        assert descriptors() == before

    def test_what_others_write_to_their_view_is_theirs(self, region: Region) -> None:
        region.write(NAME, memoryview(b"mine"))
        with open_region(os.getpid(), region.file, NAME, 4) as mapped:
            mapped[HEADER:] = b"your"
        assert opened(region, NAME, 4) == b"mine"


class TestRefused:
    """Handles come from others: nothing is read that was not lent, and nothing stays open."""

    @pytest.fixture(autouse=True)
    def _nothing_stays_open(self) -> Iterator[None]:
        before = descriptors()
        yield
        assert descriptors() == before

    def refused(self, process: int, file: int, name: bytes = NAME, size: int = 4) -> str:
        with pytest.raises(RegionError) as refused:
            open_region(process, file, name, size)
        return str(refused.value)

    def refused_file(self, file: int, size: int = 4) -> str:
        return self.refused(os.getpid(), file, NAME, size)

    def test_another_lending(self) -> None:
        region = Region(1000)
        region.write(NAME, memoryview(b"first"))
        assert "something else" in self.refused_file(region.file, 4)
        assert "something else" in self.refused(os.getpid(), region.file, OTHER, 5)
        region.write(OTHER, memoryview(b"second"))
        assert "something else" in self.refused_file(region.file, 5)
        region.close()

    def test_a_size_that_it_has_not(self) -> None:
        region = Region(1000)
        region.write(NAME, memoryview(b"data"))
        for size in (region.capacity - HEADER + 1, 2**40):
            assert "has not the" in self.refused_file(region.file, size)
        for size in (-1, 2**62):
            assert "can be mapped" in self.refused_file(region.file, size)
        assert "can be mapped" in self.refused(os.getpid(), region.file, b"short")
        region.close()

    @pytest.mark.parametrize(
        ("process", "file"), [(0, 1), (-1, 1), (2**31, 1), (1, -1), (1, 2**31), (10**30, 1)]
    )
    def test_numbers_that_are_none(self, process: int, file: int) -> None:
        assert "there is no descriptor" in self.refused(process, file)

    def test_what_is_not_there(self) -> None:
        assert "cannot be opened: No such file" in self.refused(os.getpid(), 1_000_000)
        assert "cannot be opened: No such file" in self.refused(2**22 + 1, 1)

    def test_other_files(self, tmp_path: Path) -> None:
        content = b"snexshm1" + NAME + (4).to_bytes(8, "little")
        path = tmp_path / "file"
        path.write_bytes(content.ljust(2 * HEADER, b"\0"))
        with path.open("rb") as file:
            assert self.refused_file(file.fileno()) == "it is no shared memory"
        with tempfile.TemporaryFile(dir="/dev/shm") as file:  # it has seals, and others
            file.write(content.ljust(2 * HEADER, b"\0"))
            file.flush()
            assert self.refused_file(file.fileno()) == "it is no shared memory"

    def test_a_memfd_that_may_shrink(self) -> None:
        file = os.memfd_create("snex", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, 2 * HEADER)
        assert self.refused_file(file) == "it is no shared memory"
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        assert self.refused_file(file) == "it is no shared memory"
        os.close(file)

    def test_what_is_no_file(self) -> None:
        # Who opened the pipe for reading would wait.
        reads, writes = os.pipe()
        device = os.open("/dev/zero", os.O_RDONLY)
        folder = os.open("/", os.O_RDONLY)
        for file in (reads, writes, device, folder):
            assert self.refused_file(file) == "it is no shared memory"
            os.close(file) if file != reads else None
        os.close(reads)

    def test_where_there_is_no_such_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(regions, "SUPPORTED", False)
        assert "can be mapped here" in self.refused_file(1)


def test_no_file_is_left_open_for_what_is_mapped(region: Region) -> None:
    region.write(NAME, memoryview(b"data"))
    before = descriptors()
    mapped = open_region(os.getpid(), region.file, NAME, 4)
    assert isinstance(mapped, mmap.mmap)
    assert descriptors() - before <= 1  # that of Pythons before 3.13
    mapped.close()
    assert descriptors() == before
