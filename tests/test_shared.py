"""Handles of what others have lent: mapped where they are decoded, and told of when gone."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from snex_node.errors import NodeError
from snex_node.wire.terms import Atom, Pid
from snex_runtime import regions, serde, shared
from snex_runtime.regions import Region, RegionError
from snex_runtime.shared import Drops
from tests.support.waiting import until
from tests.test_serde import received

pytestmark = pytest.mark.skipif(not regions.SUPPORTED, reason="only Linux has such memory")

A = Atom
NAME = b"0123456789abcdef"
OWNER = Pid("app@host", 7, 0, 5)


class Lender:
    """Who lends one region."""

    def __init__(self) -> None:
        self.region = Region(1000)

    def lend(self, data: bytes, **others: object) -> dict[Any, object]:
        """A handle, with ``others`` in place of what it has."""
        self.region.write(NAME, memoryview(data))
        fields: dict[str, object] = {
            "__struct__": A("Elixir.Snex.Shared"),
            "os_pid": os.getpid(),
            "fd": self.region.file,
            "id": NAME,
            "size": len(data),
            "owner": OWNER,
            **others,
        }
        return {A(name): value for name, value in fields.items()}


@pytest.fixture
def lender() -> Iterator[Lender]:
    made = Lender()
    yield made
    made.region.close()


class Node:
    """A node that keeps what it is to send."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = list(nodes)
        self.sent: list[tuple[object, object]] = []
        self.full = False

    def send(self, to: object, message: object) -> None:
        if self.full:
            raise NodeError("too much waits")
        self.sent.append((to, message))


@pytest.fixture
async def drops() -> Any:
    node = Node("app@host")
    made = Drops(node)
    yield node
    made.close()


DROPPED = OWNER, (A("snex_shared_dropped"), NAME)


class TestDecoded:
    @pytest.mark.parametrize(
        ("binary_as", "expected"),
        [
            ("str", "text\u00e9"),
            ("bytes", b"text\xc3\xa9"),
            ("bytearray", bytearray(b"text\xc3\xa9")),
        ],
    )
    def test_a_binary(self, lender: Lender, binary_as: str, expected: object) -> None:
        handle = lender.lend("text\u00e9".encode())
        found = received({b"a": [1, (handle,)]}, binary_as=binary_as)
        (value,) = next(iter(found.values()))[1]
        assert value == expected
        assert type(value) is type(expected)

    def test_under_distinct_atoms(self, lender: Lender) -> None:
        assert received(lender.lend(b"text"), atom_as="distinct_atom") == "text"

    def test_a_tensor(self, lender: Lender) -> None:
        numpy = pytest.importorskip("numpy", reason="there is no NumPy for this Python")
        tensor = {
            A("__struct__"): A("Elixir.Snex.Tensor"),
            A("type"): (A("u"), 16),
            A("shape"): (2, 2),
            A("names"): None,
            A("data"): lender.lend(b"\1\0\2\0\3\0\0\1"),
        }
        array = received({b"x": [tensor]})["x"][0]
        assert array.dtype == numpy.uint16
        assert array.tolist() == [[1, 2], [3, 256]]
        assert not array.flags.writeable
        assert array.flags.aligned
        view = received(tensor, tensor_as="memoryview", atom_as="distinct_atom")
        assert view.tolist() == [[1, 2], [3, 256]]

    def test_a_table(self, lender: Lender) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="there is no pyarrow for this Python")
        sink = pyarrow.BufferOutputStream()
        table = pyarrow.table({"a": [1, 2, 3]})
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)
        data = lender.lend(sink.getvalue().to_pybytes())
        found = received({A("__struct__"): A("Elixir.Snex.Arrow"), A("data"): data})
        assert found.equals(table)

    def test_what_is_no_text_is_an_error(self, lender: Lender) -> None:
        with pytest.raises(ValueError, match="utf-8"):
            received(lender.lend(b"\xff"))


class TestRefused:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("os_pid", None),
            ("os_pid", 1.5),
            ("fd", "1"),
            ("fd", True),
            ("size", A("all")),
            ("owner", None),
            ("owner", b"pid"),
        ],
    )
    def test_what_is_no_handle(self, lender: Lender, field: str, value: object) -> None:
        with pytest.raises(RegionError, match="the handle is none"):
            received(lender.lend(b"data", **{field: value}))

    @pytest.mark.parametrize("value", [None, 5, A("id")])
    def test_one_without_an_id(self, lender: Lender, value: object) -> None:
        with pytest.raises(RegionError, match="has no id"):
            received(lender.lend(b"data", id=value))

    @pytest.mark.parametrize(
        ("field", "value", "why"),
        [
            ("id", b"0" * 16, "holds something else"),
            ("id", b"short", "can be mapped"),
            ("size", 3, "holds something else"),
            ("size", 2**40, "has not the 1099511627776 bytes"),
            ("fd", 0, "shared data of 4 bytes cannot be read"),
            ("fd", 2**20, "cannot be opened"),
            ("os_pid", 1, "shared data of 4 bytes cannot be read"),
        ],
    )
    def test_what_cannot_be_had(self, lender: Lender, field: str, value: object, why: str) -> None:
        with pytest.raises(RegionError, match=why):
            received([lender.lend(b"data", **{field: value})])

    def test_a_struct_of_that_name_without_fields(self) -> None:
        with pytest.raises(RegionError, match="the handle is none"):
            received({A("__struct__"): A("Elixir.Snex.Shared")})

    def test_other_data_of_a_tensor_stays_an_error(self) -> None:
        tensor = {
            A("__struct__"): A("Elixir.Snex.Tensor"),
            A("type"): (A("u"), 8),
            A("shape"): (1,),
            A("data"): {A("__struct__"): A("Elixir.Other")},
        }
        with pytest.raises(ValueError, match=r"the data of a Snex\.Tensor is a binary"):
            received(tensor)


class TestDropped:
    async def test_with_the_last_view(self, lender: Lender, drops: Node) -> None:
        view = shared.load(lender.lend(b"data"))
        assert bytes(view) == b"data"
        assert view.readonly
        part = view[1:3]
        del view
        gc.collect()
        await asyncio.sleep(0)
        assert drops.sent == []
        assert bytes(part) == b"at"
        del part
        await until(lambda: drops.sent)
        assert drops.sent == [DROPPED]

    async def test_at_once_where_it_was_copied(self, lender: Lender, drops: Node) -> None:
        assert shared.as_binary(lender.lend(b"data"), "bytes") == b"data"
        await until(lambda: drops.sent)
        assert drops.sent == [DROPPED]

    async def test_where_it_was_no_text(self, lender: Lender, drops: Node) -> None:
        with pytest.raises(ValueError, match="utf-8"):
            shared.as_binary(lender.lend(b"\xff"), "str")
        await until(lambda: drops.sent)

    async def test_in_another_thread(self, lender: Lender, drops: Node) -> None:
        views = [shared.load(lender.lend(b"data"))]
        thread = threading.Thread(target=views.clear)
        thread.start()
        thread.join()
        await until(lambda: drops.sent)

    async def test_in_a_circle_of_garbage(self, lender: Lender, drops: Node) -> None:
        circle: list[object] = [shared.load(lender.lend(b"data"))]
        circle.append(circle)
        del circle
        assert drops.sent == []
        gc.collect()
        await until(lambda: drops.sent)

    async def test_nodes_that_are_gone_are_not_told(self, lender: Lender, drops: Node) -> None:
        drops.nodes.clear()
        shared.as_binary(lender.lend(b"data"), "bytes")
        await asyncio.sleep(0)
        drops.nodes.append("app@host")
        await asyncio.sleep(0)
        assert drops.sent == []

    async def test_too_much_on_the_way_to_them(self, lender: Lender, drops: Node) -> None:
        drops.full = True
        shared.as_binary(lender.lend(b"data"), "bytes")
        await asyncio.sleep(0)
        assert drops.sent == []

    async def test_after_the_end_nobody_is_told(self, lender: Lender) -> None:
        node = Node("app@host")
        made = Drops(node)
        view = shared.load(lender.lend(b"data"))
        made.close()
        del view
        await asyncio.sleep(0)
        assert node.sent == []

    async def test_the_end_of_one_is_not_that_of_the_next(self, lender: Lender) -> None:
        former, node = Drops(Node("app@host")), Node("app@host")
        last = Drops(node)
        former.close()
        shared.as_binary(lender.lend(b"data"), "bytes")
        await until(lambda: node.sent)
        last.close()

    def test_after_the_loop_has_been_closed(self, lender: Lender) -> None:
        node = Node("app@host")

        async def make() -> Drops:
            return Drops(node)

        made = asyncio.run(make())
        shared.as_binary(lender.lend(b"data"), "bytes")
        assert node.sent == []
        made.close()


async def test_what_a_forked_child_sees_is_never_used_again(lender: Lender, drops: Node) -> None:
    view = shared.load(lender.lend(b"data"))
    child = os.fork()
    if child == 0:
        os._exit(0 if bytes(view) == b"data" else 1)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert status == 0
    del view
    await asyncio.sleep(0)
    assert drops.sent == []
    # What is mapped afterwards no child sees.
    shared.as_binary(lender.lend(b"data"), "bytes")
    await until(lambda: drops.sent)


def test_the_encoder_has_no_part_in_it(lender: Lender) -> None:
    handle = lender.lend(b"data")
    assert serde.decoder().decode(serde.encoder.encode(handle))[0] == "data"
