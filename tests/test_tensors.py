"""Arrays of numbers, out and in, without a BEAM; with one in tests/interop/test_tensors.py."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snex_node.wire.etf import Decoder, EncodeError
from snex_node.wire.terms import Atom
from snex_runtime import serde, tensors
from tests.support.examples import examples

np = pytest.importorskip("numpy", reason="there is no NumPy for this Python")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="there is no ml_dtypes for this Python")

DTYPES = {
    "int8": ("s", 8),
    "int16": ("s", 16),
    "int32": ("s", 32),
    "int64": ("s", 64),
    "uint8": ("u", 8),
    "uint16": ("u", 16),
    "uint32": ("u", 32),
    "uint64": ("u", 64),
    "float16": ("f", 16),
    "float32": ("f", 32),
    "float64": ("f", 64),
    "complex64": ("c", 64),
    "complex128": ("c", 128),
    "bfloat16": ("bf", 16),
    "float8_e5m2": ("f", 8),
}
SHAPES = [(), (0,), (7,), (2, 3), (0, 3), (3, 0, 2), (2, 3, 4), (2, 1, 3, 2), (2, 2, 1, 3, 2)]


def dtype_of(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, name))


def numbers(shape: tuple[int, ...], dtype: Any) -> Any:
    """Different ones, so that a wrong order shows."""
    return (np.arange(np.prod(shape, dtype=int)) % 50).reshape(shape).astype(dtype)


def sent(value: object) -> dict[str, Any]:
    """The fields that Elixir gets."""
    term: Any = Decoder().decode(serde.encoder.encode(value))[0]
    assert term[Atom("__struct__")] == "Elixir.Snex.Tensor"
    return {str(name): field for name, field in term.items()}


def received(term: object, **options: str) -> Any:
    """What Python code gets for a value that was sent."""
    decoder = serde.decoder(serde.merge_options(options))
    return decoder.decode(serde.encoder.encode(term))[0]


def struct(of: object, shape: object, data: object, names: object = None) -> dict[Atom, object]:
    fields = {"__struct__": Atom(tensors.NAME), "type": of, "shape": shape, "data": data}
    return {Atom(name): value for name, value in {**fields, "names": names}.items()}


def same(one: Any, other: Any) -> bool:
    return bool(
        type(one) is np.ndarray
        and one.dtype == other.dtype
        and one.shape == other.shape
        and (one == other).all()
    )


class TestArraysOfNumPy:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("name", DTYPES)
    def test_every_type_and_shape(self, name: str, shape: tuple[int, ...]) -> None:
        value = numbers(shape, dtype_of(name))
        fields = sent(value)
        assert fields["type"] == DTYPES[name]
        assert fields["shape"] == shape
        assert fields["names"] is None
        assert fields["data"] == value.tobytes()
        found = received(value)
        assert same(found, value)
        assert found.flags.aligned
        assert not found.flags.writeable

    @pytest.mark.parametrize("name", [name for name in DTYPES if hasattr(np, name)])
    def test_big_end_first(self, name: str) -> None:
        value = numbers((2, 3), np.dtype(name).newbyteorder(">"))
        assert sent(value)["data"] == value.astype(np.dtype(name).newbyteorder("<")).tobytes()
        assert same(received(value), numbers((2, 3), np.dtype(name)))

    @pytest.mark.parametrize(
        "cut",
        [
            lambda it: it.T,
            lambda it: it[::2],
            lambda it: it[::-1, ::-1],
            lambda it: it[:, 1:2],
            np.asfortranarray,
            lambda it: np.broadcast_to(it[0], (5, *it.shape[1:])),
            lambda it: it.swapaxes(0, 2),
            lambda it: np.asfortranarray(it.astype(">f8")),
        ],
        ids=["T", "strided", "backwards", "columns", "fortran", "broadcast", "axes", "big-fortran"],
    )
    @pytest.mark.parametrize("name", ["float64", "uint8", "bfloat16"])
    def test_that_do_not_lie_in_order(self, name: str, cut: Any) -> None:
        value = cut(numbers((4, 3, 2), dtype_of(name)))
        assert np.array_equal(received(value).astype("f8"), value.astype("f8"))

    def test_booleans_are_bytes(self) -> None:
        assert sent(np.array([True, False]))["type"] == ("u", 8)
        assert received(np.array([True, False])).tolist() == [1, 0]

    def test_subclasses_count_as_what_they_are(self) -> None:
        with pytest.warns(PendingDeprecationWarning):
            matrix = np.matrix([[1, 2], [3, 4]])
        assert received(matrix).tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (
                np.array([None]),
                "dtype object is no type that a Snex.Tensor has; send its .tolist()",
            ),
            (np.array(["a"]), "send its .tolist()"),
            (np.array([b"a"]), "send its .tolist()"),
            (np.array(["2020"], "M8[D]"), "send its .tolist(), or .astype('int64')"),
            (np.array([1], "m8[s]"), "send its .tolist(), or .astype('int64')"),
            (np.zeros(1, [("a", "i4")]), "send its .tolist()"),
            (np.zeros(1, "V2"), "send its .tolist()"),
            (np.zeros(1, np.longdouble), "send its .astype('float64')"),
            (np.zeros(1, np.clongdouble), "send its .astype('complex128')"),
            (np.zeros(1, ml_dtypes.int4), "dtype int4 is no type that a Snex.Tensor has"),
            (
                np.ma.array([1, 2], mask=[0, 1]),
                "a tensor has no mask; send what its .filled() gives",
            ),
        ],
        ids=lambda it: it.split()[0] if isinstance(it, str) else "",
    )
    def test_of_other_things_are_an_error(self, value: object, told: str) -> None:
        with pytest.raises(EncodeError, match="Cannot serialize object of <class 'numpy") as caught:
            serde.encoder.encode([1, {"x": value}])
        assert told in str(caught.value)
        assert str(caught.value).endswith('(at [1]["x"])')

    def test_the_custom_encoder_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serde, "_custom", lambda value: value.tolist())
        assert serde.encoder.encode(np.array([1, 2])) == serde.encoder.encode([1, 2])

    def test_and_may_refuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(value: object) -> object:
            raise TypeError("not this")

        monkeypatch.setattr(serde, "_custom", refuse)
        assert sent(np.array([1, 2], "u1"))["data"] == b"\1\2"
        with pytest.raises(EncodeError, match="not this"):
            serde.encoder.encode(object())

    @settings(max_examples=examples(2))
    @given(st.data())
    def test_any(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(DTYPES)))
        shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=5)))
        size = int(np.prod(shape, dtype=int)) * dtype_of(name).itemsize
        raw = data.draw(st.binary(min_size=size, max_size=size))
        value = np.ndarray(shape, dtype_of(name), raw)
        axes = data.draw(st.permutations(range(len(shape))))
        steps = [slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in shape]
        places = (..., *steps)
        view = value.transpose(axes)[places]
        found = received([view])[0]
        assert found.dtype == view.dtype
        assert found.shape == view.shape
        assert found.tobytes() == view.tobytes()


class TestReceived:
    def test_large_ones_are_views(self) -> None:
        value = np.ones(tensors.SMALL // 4 + 1, "f4")
        data = serde.encoder.encode([value, b"x"])
        [found, _] = serde.decoder().decode(data)[0]
        memory = np.frombuffer(data, np.uint8)
        assert np.shares_memory(found, memory)
        assert not found.flags.writeable

    def test_small_ones_are_copies_where_they_would_not_be_aligned(self) -> None:
        value = np.arange(5.0)
        offsets = set()
        for text in ("", "a", "ab", "abc"):
            data = serde.encoder.encode([text, value])
            [_, found] = serde.decoder().decode(data)[0]
            assert found.flags.aligned
            assert same(found, value)
            offsets.add(np.shares_memory(found, np.frombuffer(data, np.uint8)))
        assert offsets <= {True, False}

    def test_as_memoryview(self) -> None:
        for name, (kind, bits) in DTYPES.items():
            for shape in SHAPES:
                value = numbers(shape, dtype_of(name))
                if name in ("float16", "bfloat16", "float8_e5m2") or kind == "c":
                    with pytest.raises(ValueError, match=rf"{{:{kind}, {bits}}}: that takes NumPy"):
                        received(value, tensor_as="memoryview")
                    continue
                found = received(value, tensor_as="memoryview")
                assert type(found) is memoryview
                assert found.readonly
                assert found.shape == shape
                assert found.itemsize == bits // 8
                assert np.array_equal(np.asarray(found), value)

    def test_as_term_it_is_not_looked_into(self) -> None:
        fields = struct((Atom("f"), 32), (2,), b"too short", [Atom("x")])
        found = received([fields], tensor_as="term")[0]
        assert type(found) is serde.Term
        assert Decoder().decode(serde.encoder.encode(found))[0] == fields

    def test_distinct_atoms_are_no_other_matter(self) -> None:
        found = received(np.array([1, 2]), atom_as="distinct_atom", binary_as="bytes")
        assert found.tolist() == [1, 2]

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            (struct((Atom("f"), 31), (1,), b""), "is one of {:s, 8}, "),
            (struct(Atom("f32"), (1,), b""), "not :f32"),
            (struct(([1], 32), (1,), b""), "is one of {:s, 8}, "),
            (struct((Atom("f"), 32), [1], b"1234"), "is a tuple of sizes, not [1]"),
            (struct((Atom("f"), 32), (-1,), b"1234"), "is a tuple of sizes, not {-1}"),
            (struct((Atom("f"), 32), (True,), b"1234"), "is a tuple of sizes, not {true}"),
            (struct((Atom("f"), 32), (2,), b"1234"), "has 8 bytes of data, and here are 4"),
            (struct((Atom("f"), 32), (2**40, 2**40), b""), "and here are 0"),
            (struct((Atom("u"), 8), (1,) * 65, b"1"), "65 dimensions, where 64 are the most"),
            (struct((Atom("f"), 32), (1,), 7), "the data of a Snex.Tensor is a binary, not 7"),
            (struct((Atom("f"), 32), (1,), None), "is a binary, not nil"),
        ],
        ids=range(11),
    )
    def test_that_contradict_themselves(self, fields: object, told: str) -> None:
        with pytest.raises(ValueError, match=r"Snex\.Tensor") as caught:
            received([fields])
        assert told in str(caught.value)

    def test_without_a_field(self) -> None:
        fields = struct((Atom("f"), 32), (1,), b"1234")
        for name in ("type", "shape", "data"):
            with pytest.raises(ValueError, match=f"the {name} of a Snex.Tensor"):
                received({key: value for key, value in fields.items() if key != name})

    def test_in_places_that_need_a_hash(self) -> None:
        found = received({(1, (2,)): np.array([1])})
        assert found[1, (2,)].tolist() == [1]
        assert type(next(iter(received(_Pairs({_Key(): 1})).keys()))) is serde.Term


class _Key:
    pass


class _Pairs(dict[Any, Any]):
    pass


@pytest.fixture(autouse=True)
def _key_is_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_Key` can be hashed, and is sent as what cannot."""
    substitute = tensors.substitute

    def known(value: object) -> object:
        return struct((Atom("u"), 8), (1,), b"1") if type(value) is _Key else substitute(value)

    others = (each for each in serde._SUBSTITUTES if each is not substitute)
    changed = serde._make_encoder("mapset", (known, *others), serde._converter)
    monkeypatch.setattr(serde, "encoder", changed)


@pytest.fixture
def without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "ml_dtypes"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(tensors, "_missing", set())


class _Interface:
    """An object with an array interface and nothing else."""

    def __init__(self, **interface: object) -> None:
        self.__array_interface__ = {"version": 3, **interface}

    __array_interface__: dict[str, object] = {}  # noqa: RUF012 - types have it, as NumPy asks


@pytest.mark.usefixtures("without_numpy")
class TestWithoutNumPy:
    def test_tensors_are_memoryviews(self) -> None:
        found = received(struct((Atom("s"), 16), (2, 1), b"\1\0\2\0"))
        assert type(found) is memoryview
        numbers: Any = found.tolist()
        assert numbers == [[1], [2]]
        with pytest.raises(ValueError, match="that takes NumPy, which is not installed"):
            received(struct((Atom("f"), 16), (1,), b"12"))
        with pytest.raises(ValueError, match="that takes NumPy and ml_dtypes, which is not"):
            received(struct((Atom("bf"), 16), (1,), b"12"))

    def test_by_address(self) -> None:
        memory = (ctypes.c_int16 * 6)(*range(6))
        it = _Interface(shape=(2, 3), typestr="<i2", data=(ctypes.addressof(memory), False))
        assert sent(it)["data"] == bytes(memory)
        assert sent(it)["shape"] == (2, 3)
        it = _Interface(shape=(0, 3), typestr="<i2", data=(0, False))
        assert sent(it)["data"] == b""

    def test_by_a_buffer(self) -> None:
        it = _Interface(shape=(2,), typestr="|u1", data=b"xyz", offset=1, strides=(1,))
        assert sent(it)["data"] == b"yz"

    def test_big_end_first(self) -> None:
        it = _Interface(shape=(2,), typestr=">i4", data=b"\0\0\0\1\0\0\0\2")
        assert sent(it)["data"] == b"\1\0\0\0\2\0\0\0"
        it = _Interface(shape=(1,), typestr=">c16", data=bytes(range(16)))
        assert sent(it)["data"] == bytes([*range(7, -1, -1), *range(15, 7, -1)])

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            ({"strides": (2,)}, "its memory does not lie in order; send a contiguous copy"),
            ({"mask": object()}, "a tensor has no mask"),
            ({"typestr": "|O8"}, 'typestr "|O8" is no type that a Snex.Tensor has'),
        ],
        ids=["strides", "mask", "objects"],
    )
    def test_errors(self, more: dict[str, object], told: str) -> None:
        it = _Interface(**{"shape": (2,), "typestr": "|u1", "data": b"xyz", **more})
        with pytest.raises(EncodeError) as caught:
            serde.encoder.encode(it)
        assert told in str(caught.value)


class TestOtherArrays:
    def test_those_with_an_interface(self) -> None:
        class Image:
            __array_interface__ = np.arange(6, dtype="u1").reshape(2, 3).__array_interface__

        it = Image()
        it.keep = np.arange(6, dtype="u1").reshape(2, 3)  # type: ignore[attr-defined]
        it.__array_interface__ = it.keep.__array_interface__  # type: ignore[attr-defined]
        assert sent(it)["data"] == bytes(range(6))

    def test_a_class_that_breaks_when_it_is_looked_at_has_none(self) -> None:
        class Meta(type):
            def __getattr__(cls, name: str) -> object:
                raise RuntimeError(name)

        class Odd(metaclass=Meta):
            pass

        with pytest.raises(EncodeError, match="Cannot serialize object"):
            serde.encoder.encode(Odd())

    def test_memoryviews_with_rows(self) -> None:
        flat = memoryview(bytes(range(12)))
        assert sent(flat.cast("H", (3, 2)))["shape"] == (3, 2)
        assert sent(flat.cast("H", (3, 2)))["data"] == bytes(range(12))
        assert sent(flat[:4].cast("f", ()))["shape"] == ()
        assert sent(memoryview(((ctypes.c_double * 0) * 3)()))["shape"] == (3, 0)
        assert sent(memoryview(np.arange(6.0).reshape(2, 3).T))["data"] == bytes(
            memoryview(np.arange(6.0).reshape(2, 3).T.copy())
        )
        big = memoryview(np.arange(6, dtype=">i4").reshape(2, 3))
        assert sent(big)["data"] == np.arange(6, dtype="<i4").tobytes()
        assert sent(memoryview(np.array([[True]])))["type"] == ("u", 8)

    def test_those_without_are_binaries(self) -> None:
        assert serde.encoder.encode(memoryview(b"abc")) == serde.encoder.encode(b"abc")
        doubles = array("d", [1.0])
        assert serde.encoder.encode(memoryview(doubles)) == serde.encoder.encode(bytes(doubles))

    def test_memoryviews_of_other_things_are_an_error(self) -> None:
        value = memoryview(np.zeros((2, 2), [("a", "i4")]))
        with pytest.raises(EncodeError, match=r"is no type that a Snex\.Tensor has"):
            serde.encoder.encode(value)


class _TorchTensor:
    """What is used of PyTorch's tensors, on an array of NumPy."""

    def __init__(self, held: Any, **more: object) -> None:
        self.held = held
        self.dtype = more.get("dtype", f"torch.{held.dtype}")
        self.layout = more.get("layout", "strided")
        self.device = SimpleNamespace(type=more.get("device", "cpu"))
        self.shape = held.shape

    def detach(self) -> _TorchTensor:
        return self

    resolve_conj = resolve_neg = detach

    def contiguous(self) -> _TorchTensor:
        return _TorchTensor(np.ascontiguousarray(self.held), dtype=self.dtype)

    def data_ptr(self) -> int:
        return int(self.held.ctypes.data)

    def numel(self) -> int:
        return int(self.held.size)


class TestPyTorch:
    @pytest.fixture(autouse=True)
    def _torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = SimpleNamespace(Tensor=_TorchTensor, strided="strided")
        monkeypatch.setitem(sys.modules, "torch", torch)

    def test_types(self) -> None:
        for name in ("bool", "uint8", "int64", "float16", "float32", "complex128"):
            value = numbers((2, 3), name)
            fields = sent(_TorchTensor(value))
            assert fields["type"] == DTYPES["uint8" if name == "bool" else name]
            assert fields["shape"] == (2, 3)
            assert fields["data"] == value.tobytes()
        half = _TorchTensor(numbers((2,), "u2"), dtype="torch.bfloat16")
        assert sent(half)["type"] == ("bf", 16)

    def test_empty_and_strided_ones(self) -> None:
        assert sent(_TorchTensor(np.zeros((0, 2))))["shape"] == (0, 2)
        value = numbers((2, 3), "float32").T
        assert sent(_TorchTensor(value))["data"] == value.tobytes()

    def test_memory_is_kept_as_long_as_it_is_needed(self) -> None:
        value = _TorchTensor(numbers((3,), "float32"))
        term: Any = tensors.substitute(value)
        seen = term[Atom("data")]
        owner = weakref.ref(seen.obj.owner)
        gc.collect()
        assert owner() is not None
        assert bytes(seen) == value.held.tobytes()
        del seen, term
        gc.collect()
        assert owner() is None

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            (
                {"dtype": "torch.qint8"},
                "qint8 is no type that a Snex.Tensor has; send its .float()",
            ),
            ({"layout": "sparse"}, "it is sparse; send what its .to_dense() gives"),
            ({"device": "cuda"}, "send what its .cpu() gives"),
        ],
        ids=["type", "sparse", "device"],
    )
    def test_errors(self, more: dict[str, object], told: str) -> None:
        with pytest.raises(EncodeError) as caught:
            serde.encoder.encode(_TorchTensor(np.zeros(1), **more))
        assert told in str(caught.value)


class TestJax:
    def test_arrays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Array:
            def __array__(self, dtype: object = None, copy: object = None) -> object:
                return np.array([1.5, 2.5], "f4")

        monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(Array=Array))
        assert sent(Array())["type"] == ("f", 32)


def test_numpy_is_imported_when_the_first_tensor_comes() -> None:
    program = """if True:
        import sys
        from snex_node.wire.terms import Atom
        from snex_runtime import serde
        serde.encoder.encode([1, "x", memoryview(bytes(4)).cast("H", (1, 2))])
        assert "numpy" not in sys.modules
        found = serde.decoder().decode(serde.encoder.encode(memoryview(b"1234").cast("H", (1, 2))))
        assert type(found[0]).__name__ == "ndarray", found
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_big_ended_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be told on a small-ended one: what is there is turned round."""
    monkeypatch.setattr("snex_runtime.tensors.sys.byteorder", "big")
    assert sent(memoryview(b"\0\1\0\2").cast("H", (2, 1)))["data"] == b"\1\0\2\0"
    fields = struct((Atom("u"), 16), (1,), b"\1\0")
    assert received(fields, tensor_as="memoryview").tobytes() == b"\0\1"
