"""Arrays of numbers and tables, through a real Elixir and back, in all types and shapes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snex_node.wire.terms import Atom
from snex_runtime import tables, tensors
from tests.support.beam import Beam
from tests.support.examples import examples
from tests.support.runtime import Runtime

np: Any = pytest.importorskip("numpy", reason="there is no NumPy for this Python")
ml_dtypes: Any = pytest.importorskip("ml_dtypes", reason="there is no ml_dtypes for this Python")
pa: Any = pytest.importorskip("pyarrow", reason="there is no pyarrow for this Python")

TYPES = [
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16", "float8_e5m2"),
]
SHAPES = [(), (0,), (5,), (2, 3), (3, 0, 2), (2, 3, 2), (2, 1, 3, 2), (2, 2, 1, 3, 2)]

ASK = """
{:ok, answer} = GenServer.call({:snex, py}, {:eval, code, %{"x" => x}})
answer
"""


def dtype_of(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, name))


def fields_of(value: object) -> dict[str, Any]:
    """The fields of the struct for an array, its data as the BEAM gives it."""
    term: Any = tensors.substitute(value)
    return {str(name): field for name, field in term.items()}


def as_term(value: object) -> dict[Atom, object]:
    fields = {**fields_of(value), "data": bytes(fields_of(value)["data"])}
    return {Atom(name): field for name, field in fields.items()}


@pytest.mark.interop
class TestTensors:
    @pytest.mark.parametrize("name", TYPES)
    async def test_every_shape_to_python_and_back(
        self, beam: Beam, runtime: Runtime, name: str
    ) -> None:
        values = [
            (np.arange(np.prod(shape, dtype=int)) % 50).reshape(shape).astype(dtype_of(name))
            for shape in SHAPES
        ]
        terms = [as_term(value) for value in values]
        shown = "return [(str(y.dtype), y.shape, y.tobytes(), y.flags.writeable) for y in x]"
        found = await beam.eval(ASK, py=runtime.name, code=shown.encode(), x=terms)
        assert found == [
            (str(value.dtype).encode(), value.shape, value.tobytes(), False) for value in values
        ]
        assert await beam.eval(ASK, py=runtime.name, code=b"return x", x=terms) == terms

    @pytest.mark.parametrize(
        "code",
        [
            "y = numpy.arange(24, dtype='i4').reshape(2, 3, 4)",
            "y = numpy.arange(24, dtype='i4').reshape(4, 3, 2).T",
            "y = numpy.arange(24, dtype='>i4').reshape(2, 3, 4)",
            "y = numpy.asfortranarray(numpy.arange(24, dtype='i4').reshape(2, 3, 4))",
            "y = numpy.arange(48, dtype='i4').reshape(2, 3, 8)[:, ::-1, ::2]",
            "y = memoryview(numpy.arange(24, dtype='i4').reshape(2, 3, 4))",
        ],
        ids=["plain", "T", "big", "fortran", "strided", "memoryview"],
    )
    async def test_however_they_lie_in_memory(
        self, beam: Beam, runtime: Runtime, code: str
    ) -> None:
        whole = f"import numpy\n{code}\nreturn y, numpy.asarray(y).tolist()"
        found: Any = await beam.eval(ASK, py=runtime.name, code=whole.encode(), x=None)
        term, numbers = found
        assert term == as_term(np.array(numbers, "i4"))

    async def test_elixir_sees_the_struct(self, beam: Beam, runtime: Runtime) -> None:
        code = b"import numpy; return numpy.array([[1.5], [2.5]], 'f4')"
        source = f"""
        answer = ({ASK})
        %{{__struct__: Snex.Tensor, type: {{:f, 32}}, shape: {{2, 1}}, names: nil}} = answer
        for <<number::float-little-32 <- answer.data>>, do: number
        """
        assert await beam.eval(source, py=runtime.name, code=code, x=None) == [1.5, 2.5]

    @settings(
        max_examples=examples(0.4),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.data())
    async def test_any(self, beam: Beam, runtime: Runtime, data: st.DataObject) -> None:
        values = []
        for _ in range(10):
            dtype = dtype_of(data.draw(st.sampled_from(TYPES)))
            shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=5)))
            size = int(np.prod(shape, dtype=int)) * dtype.itemsize
            raw = data.draw(st.binary(min_size=size, max_size=size))
            values.append(np.ndarray(shape, dtype, raw))
        terms = [as_term(value) for value in values]
        assert await beam.eval(ASK, py=runtime.name, code=b"return x", x=terms) == terms

    async def test_megabytes_begin_where_memory_is_aligned(
        self, beam: Beam, runtime: Runtime
    ) -> None:
        source = """
        data = :binary.copy(<<1.5::float-little-64>>, 500_000)
        x = %{__struct__: Snex.Tensor, type: {:f, 64}, shape: {500, 1000}, names: nil, data: data}
        vars = %{"x" => x, "long name" <> String.duplicate("e", pad) => 1}
        code = "return x, x.flags.aligned, x.base is not None, float(x.sum())"
        {:ok, {back, aligned, view, sum}} = GenServer.call({:snex, py}, {:eval, code, vars}, 30_000)
        {back == x, aligned, view, sum}
        """
        for pad in range(0, 9, 4):
            found = await beam.eval(source, py=runtime.name, pad=pad)
            assert found == (True, True, True, 750_000.0)

    async def test_errors_name_the_remedy(self, beam: Beam, runtime: Runtime) -> None:
        source = """
        code = "import numpy; return {'a': numpy.array([None])}"
        {:error, error} = GenServer.call({:snex, py}, {:eval, code, %{}})
        {error.code, error.reason, error.type}
        """
        found: Any = await beam.eval(source, py=runtime.name)
        code, reason, kind = found
        assert code == "python_runtime_error"
        assert reason == (
            b"Cannot serialize object of <class 'numpy.ndarray'>: dtype object is no type that a "
            b'Snex.Tensor has; send its .tolist() (at ["a"])'
        )
        assert kind == b"TypeError"


@pytest.mark.interop
class TestTables:
    async def test_they_come_and_go(self, beam: Beam, runtime: Runtime) -> None:
        code = (
            b"import pyarrow, datetime\n"
            b"return pyarrow.table({'a': [1, None], 'b': ['x', '\\u00e9'],"
            b" 'c': [datetime.date(2026, 2, 28), None], 'd': [[1, 2], []]})"
        )
        table: Any = await beam.eval(ASK, py=runtime.name, code=code, x=None)
        assert table[Atom("__struct__")] == tables.NAME
        assert pa.ipc.open_stream(table[Atom("data")]).read_all().column_names == list("abcd")
        back = b"return [[str(v) for v in row.values()] for row in x.to_pylist()]"
        assert await beam.eval(ASK, py=runtime.name, code=back, x=table) == [
            [b"1", b"x", b"2026-02-28", b"[1, 2]"],
            [b"None", "é".encode(), b"None", b"[]"],
        ]
        assert await beam.eval(ASK, py=runtime.name, code=b"return x", x=table) == table
