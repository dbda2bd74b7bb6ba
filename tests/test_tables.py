"""Tables, out and in, without a BEAM; with one in tests/interop/test_tensors.py."""

from __future__ import annotations

import datetime
import io
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snex_node.wire.etf import Decoder, EncodeError
from snex_node.wire.terms import Atom
from snex_runtime import serde, tables
from tests.support.examples import examples

pa: Any = pytest.importorskip("pyarrow", reason="there is no pyarrow for this Python")
pd: Any = pytest.importorskip("pandas", reason="there is no pandas for this Python")
pl: Any = pytest.importorskip("polars", reason="there is no Polars for this Python")

DAY = datetime.date(2026, 2, 28)
COLUMNS = {
    "integers": [1, None, -(2**63)],
    "floats": [1.5, None, float("inf")],
    "texts": ["é", None, ""],
    "bytes": [b"\xff", None, b""],
    "booleans": [True, None, False],
    "dates": [DAY, None, datetime.date(1, 1, 1)],
    "times": [datetime.datetime(2026, 2, 28, 1, 2, 3, 4), None, datetime.datetime(1900, 1, 1)],
    "decimals": [Decimal("1.50"), None, Decimal("-0.01")],
    "lists": [[1, None], None, []],
    "structs": [{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}],
}


def received(value: object, **options: str) -> Any:
    decoder = serde.decoder(serde.merge_options(options))
    return decoder.decode(serde.encoder.encode(value))[0]


def bytes_of(value: object) -> bytes:
    term: Any = Decoder().decode(serde.encoder.encode(value))[0]
    assert term.keys() == {Atom("__struct__"), Atom("data")}
    assert term[Atom("__struct__")] == "Elixir.Snex.Arrow"
    return bytes(term[Atom("data")])


def struct(data: object) -> dict[Atom, object]:
    return {Atom("__struct__"): Atom(tables.NAME), Atom("data"): data}


class TestTablesOfPyarrow:
    @pytest.mark.parametrize("name", COLUMNS)
    def test_every_kind_of_column(self, name: str) -> None:
        table = pa.table({name: COLUMNS[name]})
        assert received(table).equals(table)
        assert received([{"t": table}])[0]["t"].schema == table.schema

    def test_record_batches(self) -> None:
        batch = pa.RecordBatch.from_pydict({"a": [1, 2]})
        found = received(batch)
        assert found.to_pydict() == {"a": [1, 2]}

    def test_any_reader_understands_them(self) -> None:
        data = bytes_of(pa.table(COLUMNS))
        assert pa.ipc.open_stream(data).read_all().to_pydict() == COLUMNS
        assert pl.read_ipc_stream(data).columns == list(COLUMNS)

    def test_empty_ones(self) -> None:
        for table in (pa.table({}), pa.table({"a": pa.array([], pa.int64())})):
            assert received(table).equals(table)

    def test_chunks_and_slices(self) -> None:
        table = pa.concat_tables([pa.table({"a": [1, 2]}), pa.table({"a": [3]})]).slice(1)
        assert received(table).to_pydict() == {"a": [2, 3]}

    def test_categories(self) -> None:
        table = pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()})
        assert received(table).equals(table)

    @settings(max_examples=examples(1))
    @given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1) | st.none(), st.text())))
    def test_any(self, rows: list[tuple[int | None, str]]) -> None:
        columns = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
        schema = pa.schema({"a": pa.int64(), "b": pa.string()})
        assert received(pa.table(columns, schema)).to_pydict() == columns


class TestFrames:
    def test_of_polars(self) -> None:
        frame = pl.DataFrame({name: COLUMNS[name] for name in ("integers", "texts", "lists")})
        assert pl.from_arrow(received(frame)).equals(frame)

    def test_of_polars_are_as_old_readers_know_them(self) -> None:
        found = received(pl.DataFrame({"a": ["x"]}))
        assert str(found.schema.field("a").type) in ("large_string", "string")

    def test_of_pandas(self) -> None:
        frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[5, 7])
        found = received(frame).to_pandas()
        assert found.index.tolist() == [5, 7]
        assert found["a"].tolist() == [1, 2]
        assert found["b"].isna().tolist() == [False, True]
        plain = received(pd.DataFrame({"a": [1]}))
        assert plain.column_names == ["a"]

    def test_of_whatever_gives_a_stream(self) -> None:
        class Frame:
            def __arrow_c_stream__(self, requested_schema: object = None) -> object:
                return pa.table({"a": [1]}).__arrow_c_stream__(requested_schema)

        assert received(Frame()).to_pydict() == {"a": [1]}

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (pa.array([1]), "send its .to_pylist()"),
            (pa.chunked_array([[1]]), "send its .to_pylist()"),
            (pl.Series([1]), "send its .to_list(), or its .to_frame()"),
            (pl.LazyFrame({"a": [1]}), "send what its .collect() gives"),
            (pd.Series([1]), "send its .tolist(), or its .to_frame()"),
            (pd.Index([1]), "send its .tolist(), or its .to_frame()"),
        ],
        ids=lambda it: "" if isinstance(it, str) else f"{type(it).__module__}-{type(it).__name__}",
    )
    def test_columns_are_none(self, value: object, told: str) -> None:
        with pytest.raises(EncodeError, match="Cannot serialize object of") as caught:
            serde.encoder.encode({"x": value})
        assert told in str(caught.value)
        assert str(caught.value).endswith('(at ["x"])')

    def test_a_class_that_breaks_when_it_is_looked_at_has_no_stream(self) -> None:
        class Meta(type):
            def __getattr__(cls, name: str) -> object:
                raise RuntimeError(name)

        class Odd(metaclass=Meta):
            pass

        with pytest.raises(EncodeError, match="Cannot serialize object"):
            serde.encoder.encode(Odd())


class TestReceived:
    def test_large_ones_are_views(self) -> None:
        table = pa.table({"a": pa.array(range(tables.SMALL // 8 + 1), pa.int64())})
        data = serde.encoder.encode([table])
        [found] = serde.decoder().decode(data)[0]
        values = found.column("a").chunk(0).buffers()[1].address
        begin = pa.py_buffer(data).address
        assert begin < values < begin + len(data)

    def test_small_ones_begin_where_they_should(self) -> None:
        for text in ("", "a", "ab", "abc", "abcd"):
            _, found = received([text, pa.table({"a": [1, 2]})])
            assert found.column("a").chunk(0).buffers()[1].address % tables.ALIGNMENT == 0

    def test_distinct_atoms_and_other_options_are_no_other_matter(self) -> None:
        for options in ({"atom_as": "distinct_atom"}, {"tensor_as": "term"}):
            assert received(pa.table({"a": [1]}), **options).to_pydict() == {"a": [1]}

    @pytest.mark.parametrize("data", [b"", b"nothing", b"\xff\xff\xff\xff\0\0\1\0" + bytes(64)])
    def test_that_are_none(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"the data of a Snex\.Arrow is no Arrow IPC stream: "):
            received([struct(data)])

    def test_that_are_cut_off(self) -> None:
        data = bytes_of(pa.table({"a": list(range(1000))}))
        with pytest.raises(ValueError, match="is no Arrow IPC stream"):
            received(struct(data[: len(data) // 2]))

    @pytest.mark.parametrize("data", [7, None, "text"], ids=str)
    def test_whose_data_is_something_else(self, data: object) -> None:
        term = struct(data if not isinstance(data, str) else Atom(data))
        with pytest.raises(ValueError, match=r"the data of a Snex\.Arrow is a binary, not"):
            received(term)


class TestWithoutPyarrow:
    @pytest.fixture(autouse=True)
    def _without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("pyarrow", "pyarrow.ipc"):
            monkeypatch.setitem(sys.modules, name, None)

    def test_polars_does_it(self) -> None:
        frame = pl.DataFrame({"a": [1, None], "b": ["x", "y"]})
        found = received(frame)
        assert type(found) is pl.DataFrame
        assert found.equals(frame)
        with pytest.raises(ValueError, match="is no Arrow IPC stream"):
            received(struct(b"nothing"))

    def test_pandas_cannot(self) -> None:
        with pytest.raises(EncodeError, match="that takes the package pyarrow; install it"):
            serde.encoder.encode(pd.DataFrame({"a": [1]}))

    def test_nor_polars_where_it_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "polars", None)
        with pytest.raises(ValueError, match="takes the package pyarrow, or polars: install one"):
            received(struct(b""))


class TestStreams:
    """What is written to a file elsewhere: see `lending`."""

    @pytest.mark.parametrize(
        "table",
        [
            pa.table({"a": [1, None]}),
            pa.RecordBatch.from_pydict({"a": [1]}),
            pd.DataFrame({"a": [1, 2]}),
        ],
        ids=["table", "batch", "frame"],
    )
    def test_are_as_long_as_is_told(self, table: Any) -> None:
        told = tables.stream_of(table)
        assert told is not None
        size, write = told
        file: Any = io.BytesIO()
        file.close = lambda: None  # what is in it is looked at
        write(file)
        assert len(file.getvalue()) == size
        assert file.getvalue() == bytes_of(table)

    @pytest.mark.parametrize("value", [pl.DataFrame({"a": [1]}), 5, [1]], ids=["polars", "5", "[]"])
    def test_of_others_there_are_none(self, value: object) -> None:
        assert tables.stream_of(value) is None
