"""The table of the Snex README, row by row and in both directions, with a real Elixir."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snex_node.wire import terms
from snex_node.wire.terms import Atom
from tests.support.beam import Beam
from tests.support.examples import examples
from tests.support.runtime import Runtime

# `ask` evaluates on the runtime; the wrappers are what the functions of `Snex.Serde` return.
HELPERS = """
ask = fn code, x, opts ->
  {:ok, v} = GenServer.call({:snex, py}, {:eval, code, %{"x" => x}, [encoding_opts: opts]})
  v
end
s_binary = fn data, type -> %{__struct__: Snex.Serde.Binary, data: data, type: type} end
s_float = fn value -> %{__struct__: Snex.Serde.Float, value: value} end
s_object = fn m, n, a -> %{__struct__: Snex.Serde.Object, module: m, name: n, args: a} end
s_term = fn term -> %{__struct__: Snex.Serde.Term, term: term} end
_ = {ask, s_binary, s_float, s_object, s_term}
"""


async def elixir(beam: Beam, runtime: Runtime, source: str, **bindings: Any) -> Any:
    return await beam.eval(HELPERS + source, py=runtime.name, **bindings)


ROWS = [
    # Elixir, options, what Python shows of it, what comes back (None: the same).
    ("nil", "", "None", None),
    ("true", "", "True", None),
    ("false", "", "False", None),
    (":foo", "", "snex.Atom('foo')", None),
    ("Enum", "", "snex.Atom('Elixir.Enum')", None),
    (':"with space é"', "", "snex.Atom('with space é')", None),
    (":foo", "atom_as: :distinct_atom", "snex.DistinctAtom('foo')", None),
    ("7", "", "7", None),
    ("-1", "", "-1", None),
    ("Integer.pow(2, 4000)", "", str(2**4000), None),
    ("-Integer.pow(2, 64)", "", str(-(2**64)), None),
    ("0.1", "", "0.1", None),
    ("-0.0", "", "-0.0", None),
    ("1.0e308", "", "1e+308", None),
    ("5.0e-324", "", "5e-324", None),
    ("s_float.(:inf)", "", "inf", ":inf"),
    ('s_float.(:"-inf")', "", "-inf", ':"-inf"'),
    ("s_float.(:nan)", "", "nan", ":nan"),
    ("s_float.(1.5)", "", "1.5", "1.5"),
    ('"é"', "", "'é'", None),
    ('""', "", "''", None),
    ('"é"', "binary_as: :bytes", "b'\\xc3\\xa9'", None),
    ("<<255, 0>>", "binary_as: :bytes", "b'\\xff\\x00'", None),
    ("<<255>>", "binary_as: :bytearray", "bytearray(b'\\xff')", None),
    ("s_binary.(<<255>>, :bytes)", "", "b'\\xff'", "<<255>>"),
    ('s_binary.("a", :str)', "binary_as: :bytes", "'a'", '"a"'),
    ("s_binary.(<<255>>, :bytearray)", "", "bytearray(b'\\xff')", "<<255>>"),
    ('s_object.("datetime", "date", [2025, 12, 28])', "", "datetime.date(2025, 12, 28)", "error"),
    ("s_term.(self())", "", None, "self()"),
    ("s_term.(%{a: [1 | 2]})", "", "snex.Term(%{a: [1 | 2]})", "%{a: [1 | 2]}"),
    ("MapSet.new([1])", "", "{1}", None),
    ("MapSet.new([])", "", "set()", None),
    ('MapSet.new([1, "a", :b, {1.5}])', "", None, None),
    ("MapSet.new([[1], %{}, MapSet.new([2])])", "", None, None),
    ("MapSet.new([MapSet.new([2])])", "set_as: :frozenset", "frozenset({frozenset({2})})", None),
    ("MapSet.new([1])", "set_as: :frozenset", "frozenset({1})", None),
    ("~D[2025-12-28]", "", None, None),
    ("1..3", "", None, None),
    ('%URI{host: "a"}', "", None, None),
    ('%{"a" => 1}', "", "{'a': 1}", None),
    ("%{a: :b}", "", "{snex.Atom('a'): snex.Atom('b')}", None),
    ("%{1 => 2, 1.0 => 3}", "", None, None),
    ("%{true => 1, 1 => 2}", "", None, None),
    ("%{[1] => 2, %{} => 3}", "", None, None),
    ('%{"foo" => "baz", foo: "bar"}', "atom_as: :distinct_atom", None, None),
    ("%{}", "", "{}", None),
    ('[1, "a", [nil]]', "", "[1, 'a', [None]]", None),
    ("[]", "", "[]", None),
    ('~c"abc"', "", "[97, 98, 99]", None),
    ("Enum.to_list(0..1000)", "", None, None),
    ("{}", "", "()", None),
    ('{1, {"a"}}', "", "(1, ('a',))", None),
    ("[a: 1]", "", "[(snex.Atom('a'), 1)]", None),
    ("self()", "", None, None),
    ("make_ref()", "", None, None),
    ("hd(Port.list())", "", None, None),
    ("&String.length/1", "", "snex.Term(&String.length/1)", None),
    ("fn y -> y + 1 end", "", None, None),
    ("[1 | 2]", "", "snex.Term([1 | 2])", None),
    ("<<5::size(3)>>", "", "snex.Term(<<5::size(3)>>)", None),
    ("{self(), [make_ref()], %{k: &is_atom/1}}", "", None, None),
]


@pytest.mark.parametrize(("term", "options", "shown", "back"), ROWS, ids=lambda v: str(v)[:40])
async def test_row(
    beam: Beam, runtime: Runtime, term: str, options: str, shown: str | None, back: str | None
) -> None:
    source = f"""
    term = {term}
    {{ask.("return repr(x)", term, [{options}]),
      GenServer.call({{:snex, py}},
        {{:eval, "return x", %{{x: term}}, [encoding_opts: [{options}]]}}),
      {"term" if back in (None, "error") else back}}}
    """
    check = f"{{shown, answer, expected}} = ({source})\n{{shown, answer === {{:ok, expected}}}}"
    found, same = await elixir(beam, runtime, check)
    if shown is not None:
        assert found.decode() == shown
    # An object of Python goes back only with a custom encoder.
    assert same is (back != "error")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("None", "nil"),
        ("float('inf'), float('-inf'), float('nan'), -float('nan')", '{:inf, :"-inf", :nan, :nan}'),
        ("'é', b'\\xff', bytearray(b'a')", '{"é", <<255>>, "a"}'),
        ("memoryview(b'abcdefgh').cast('I'), memoryview(b'abcd')[::2]", '{"abcdefgh", "ac"}'),
        ("snex.Atom('foo'), snex.DistinctAtom('foo'), snex.Atom('nil')", "{:foo, :foo, nil}"),
        ("{1, 'a'}", 'MapSet.new([1, "a"])'),
        ("frozenset()", "MapSet.new()"),
        ("[{1}, {2}]", "[MapSet.new([1]), MapSet.new([2])]"),
        ("{'a': {snex.Atom('b'): [1.5]}}", '%{"a" => %{b: [1.5]}}'),
        ("__import__('collections').OrderedDict(a=True)", '%{"a" => true}'),
        ("__import__('enum').IntEnum('E', ['A']).A", "1"),
        (
            "{snex.Atom('__struct__'): snex.Atom('Elixir.Date'), snex.Atom('day'): 3, "
            "snex.Atom('month'): 2, snex.Atom('year'): 2025, "
            "snex.Atom('calendar'): snex.Atom('Elixir.Calendar.ISO')}",
            "~D[2025-02-03]",
        ),
        ("list(range(300)), [n / 2 for n in range(300)]", None),
    ],
)
async def test_values_of_python(
    beam: Beam, runtime: Runtime, value: str, expected: str | None
) -> None:
    expected = expected or "{Enum.to_list(0..299), Enum.map(0..299, &(&1 / 2))}"
    source = f"value = ask.(code, nil, [])\n{{value === {expected}, inspect(value)}}"
    same, shown = await elixir(beam, runtime, source, code=f"return {value}".encode())
    assert same is True, shown.decode()


async def test_functions_of_elixir_take_our_sets(beam: Beam, runtime: Runtime) -> None:
    source = """
    ours = ask.("return {1, 2, (3,)}", nil, [])
    theirs = MapSet.new([1, 2, {3}])
    {MapSet.equal?(ours, theirs), MapSet.union(ours, MapSet.new([9])) |> MapSet.size(),
     MapSet.member?(ours, {3}), inspect(ours) == inspect(theirs), ours == theirs}
    """
    assert await elixir(beam, runtime, source) == (True, 4, True, True, True)


async def test_the_first_set_on_a_connection(beam: Beam, runtime: Runtime) -> None:
    """What is known of a BEAM is known again when it has connected this very moment."""
    source = """
    set = fn -> ask.("return {1, 2}", nil, []) == MapSet.new([1, 2]) end
    until = fn until, condition -> condition.() || until.(until, condition) end
    until.(until, set)
    for _ <- 1..10 do
      Node.disconnect(py)
      # Both may begin at the same time, and then one of them fails.
      until.(until, fn -> Node.connect(py) end)
      set.()
    end
    """
    assert await elixir(beam, runtime, source) == [True] * 10


async def test_deep_and_wide_terms(beam: Beam, runtime: Runtime) -> None:
    source = """
    deep = Enum.reduce(1..50_000, :bottom, fn _, acc -> [acc] end)
    tuples = Enum.reduce(1..10_000, "bottom", fn n, acc -> {n, acc} end)
    wide = Map.new(1..20_000, fn n -> {"key#{n}", {n, n * 1.5, to_string(n)}} end)
    for t <- [deep, tuples, wide], do: ask.("return x", t, []) === t
    """
    assert await elixir(beam, runtime, source) == [True, True, True]


async def test_the_date_of_the_readme(beam: Beam, start_runtime: Callable[..., Runtime]) -> None:
    init = """
import datetime

def custom_encoder(obj):
  if isinstance(obj, datetime.date):
    return {
      snex.Atom("__struct__"): snex.Atom("Elixir.Date"),
      snex.Atom("day"): obj.day,
      snex.Atom("month"): obj.month,
      snex.Atom("year"): obj.year,
      snex.Atom("calendar"): snex.Atom("Elixir.Calendar.ISO"),
    }

  raise TypeError(f"Cannot serialize object of {type(obj)}")

snex.set_custom_encoder(custom_encoder)
"""
    code = b"""
typ = type(x)
next_date = x + datetime.timedelta(days=364)

return ((typ.__module__, typ.__name__), next_date)
"""
    # What a `defimpl Snex.Serde.Encoder, for: Date` makes of ~D[2025-12-28].
    source = """
    date = s_object.("datetime", "date", [2025, 12, 28])
    {:error, refused} = GenServer.call({:snex, py}, {:eval, "return [object()]", %{}})
    {ask.(code, date, []), refused.reason}
    """
    runtime = start_runtime(cookie=beam.cookie, init_script=init)
    value, refused = await elixir(beam, runtime, source, code=code)
    assert await beam.eval('value === {{"datetime", "date"}, ~D[2026-12-27]}', value=value)
    assert refused == b"Cannot serialize object of <class 'object'> (at [0])"


async def test_errors_name_the_place(beam: Beam, runtime: Runtime) -> None:
    source = """
    {:error, e} = GenServer.call({:snex, py}, {:eval, code, %{}})
    {e.__struct__ == Snex.Error, e.code, e.reason, e.traceback}
    """
    code = b'return {"users": [1, 2, 3, {"photo": object()}]}'
    reason = (
        b"Cannot serialize object of <class 'object'>: snex.set_custom_encoder takes a function"
    )
    reason += b' that knows what to send instead (at ["users"][3]["photo"])'
    assert await elixir(beam, runtime, source, code=code) == (
        True,
        "python_runtime_error",
        reason,
        [b"TypeError: " + reason + b"\n"],
    )


# --- any term comes back as it went --------------------------------------------------------------

_letters = st.characters(min_codepoint=33, max_codepoint=0x24F)
_atoms = st.text(_letters, max_size=5).map(Atom)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**300), 2**300)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_opaque = (
    st.builds(terms.Pid, st.just("a@b"), *[st.integers(0, 2**28 - 1)] * 2, st.integers(1, 9))
    | st.builds(
        lambda words: terms.Reference("a@b", 1, words),
        st.tuples(*[st.integers(0, 2**18 - 1)] * 3),
    )
    | st.builds(terms.Export, _atoms, _atoms, st.integers(0, 255))
    | st.builds(terms.BitString, st.binary(min_size=1, max_size=3), st.integers(1, 7))
)


class _MapSet:
    def __init__(self, members: list[object]) -> None:
        self.members = members


def _terms(binaries: st.SearchStrategy[bytes]) -> st.SearchStrategy[object]:
    # Texts and atoms begin differently, or `:a` and "a" would be one key of a dict.
    leaves = _scalars | _opaque | _atoms | binaries.map(lambda data: b" " + data)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.lists(st.tuples(inner, inner), max_size=4).map(_Pairs)
            | st.lists(inner, max_size=4).map(_MapSet)
            | st.builds(terms.ImproperList, st.lists(_atoms, min_size=1, max_size=2), leaves)
        ),
        max_leaves=12,
    )


class _Pairs:
    def __init__(self, pairs: list[tuple[object, object]]) -> None:
        self.pairs = pairs


def _marked(term: object) -> object:
    """Maps and sets as lists behind a mark, because Python's dict cannot hold their keys."""
    if isinstance(term, _Pairs):
        return (Atom("$map"), [(_marked(k), _marked(v)) for k, v in term.pairs])
    if isinstance(term, _MapSet):
        return (Atom("$set"), [_marked(member) for member in term.members])
    if isinstance(term, list):
        return [_marked(item) for item in term]
    if isinstance(term, tuple):
        return tuple(_marked(item) for item in term)
    return term


ROUND_TRIPS = """
build = fn build, term ->
  case term do
    {:"$map", pairs} -> Map.new(pairs, fn {k, v} -> {build.(build, k), build.(build, v)} end)
    {:"$set", items} -> MapSet.new(items, &build.(build, &1))
    t when is_tuple(t) -> t |> Tuple.to_list() |> Enum.map(&build.(build, &1)) |> List.to_tuple()
    [_ | t] when not is_list(t) -> term
    [_, _ | t] when not is_list(t) -> term
    t when is_list(t) -> Enum.map(t, &build.(build, &1))
    t -> t
  end
end
terms = build.(build, terms)
for opts <- all, term <- terms, back = {ask.("return x", term, opts)}, back !== {term} do
  {inspect(opts), inspect(term), inspect(elem(back, 0))}
end
"""

_settings = settings(
    max_examples=examples(0.4),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_settings
@given(st.lists(_terms(st.text(max_size=5).map(str.encode)), min_size=1, max_size=8))
def test_terms_come_back(beam: Beam, runtime: Runtime, several: list[object]) -> None:
    options = [
        [(Atom("set_as"), Atom(set_as)), (Atom("atom_as"), Atom(atom_as)), ("binary_as", "str")]
        for set_as in ("set", "frozenset")
        for atom_as in ("atom", "distinct_atom")
    ]
    _round_trip(beam, runtime, several, options)


@_settings
@given(st.lists(_terms(st.binary(max_size=5)), min_size=1, max_size=8))
def test_terms_with_any_bytes_come_back(
    beam: Beam, runtime: Runtime, several: list[object]
) -> None:
    options = [[(Atom("binary_as"), Atom(kind))] for kind in ("bytes", "bytearray")]
    _round_trip(beam, runtime, several, options)


def _round_trip(beam: Beam, runtime: Runtime, several: list[object], options: list[Any]) -> None:
    source = HELPERS + ROUND_TRIPS
    marked = [_marked(term) for term in several]
    wrong = beam.eval_sync(source, py=runtime.name, terms=marked, all=options)
    assert wrong == []
