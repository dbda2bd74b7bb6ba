"""What is in a request: read, checked, and refused with a reason that helps."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from snex_node.wire.terms import ImproperList, Term
from tests.support.calling import (
    OK,
    STRUCT,
    A,
    Caller,
    binary,
    calling,
    evaluate,
    nested,
    snex_code,
)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as made:
        yield made


class TestBadInput:
    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (A("nope"), "unknown request: :nope"),
            (b"text", 'unknown request: "text"'),
            (7, "unknown request: 7"),
            ((), "unknown request: {}"),
            ((A("nope"), 1), "unknown request: {:nope, 1}"),
            ((A("nope"), 10**5000), "unknown request: {:nope, <an integer of 16610 bits>}"),
            ((A("nope"), nested(30_000)), "unknown request: {:nope, [[[[[["),
            ({A("nope"): [None, b"\xff", {b"k": True}]}, '%{nope: [nil, <<255>>, %{"k" => true}]}'),
            ((b"eval", b"return 1", {}), "unknown request"),
            ([A("eval"), b"return 1"], "unknown request"),
            (["x" * 10_000], "unknown request"),
            (ImproperList([1], 2), "unknown request: [1 | 2]"),
            ((A("eval"),), "an eval request has 3 or 4 elements, not 1"),
            ((A("eval"), b"return 1"), "an eval request has 3 or 4 elements, not 2"),
            ((A("eval"), b"1", {}, [], 5), "an eval request has 3 or 4 elements, not 5"),
            (evaluate(b"return 1", [1]), "variables are a map, not [1]"),
            (evaluate(b"return 1", None), "variables are a map, not nil"),
            (evaluate(b"return 1", {1: 2}), "a variable's name is a binary or an atom, not 1"),
            (evaluate(b"return 1", {(): 2}), "a variable's name is a binary or an atom, not {}"),
            (evaluate(7, {}), "code is a binary, nil or a %Snex.Code{}, not 7"),
            (evaluate(A("x"), {}), "code is a binary, nil or a %Snex.Code{}, not :x"),
            (evaluate([b"x"], {}), 'code is a binary, nil or a %Snex.Code{}, not ["x"]'),
            (evaluate([], {}), "code is a binary, nil or a %Snex.Code{}, not []"),
            (evaluate([10**5000], {}), "not the charlist"),
            (evaluate(list(b"return 1"), {}), 'not the charlist ~c"return 1": give it in double'),
            (evaluate([0x20AC] * 100_000, {}), 'not the charlist ~c"€€€€'),
            (evaluate(10**5000, {}), "%Snex.Code{}, not <an integer of 16610 bits>"),
            (
                evaluate(snex_code(5), {}),
                "nil or a %Snex.Code{}, not %Snex.Code{",
            ),
            (evaluate({A("src"): b""}, {}), "code is a binary, nil or a %Snex.Code{}"),
            (
                evaluate(b"x = '\xff'", {}),
                "code is not UTF-8: the byte 0xff at 5 belongs to no",
            ),
            (evaluate(snex_code([b"a", [0xE4]]), {}), "code is not UTF-8: the byte 0xe4 at 1"),
            (evaluate(b"1", {}, 5), "options are a keyword list or a map, not 5"),
            (evaluate(b"1", {}, [5]), "options are a keyword list or a map, not [5]"),
            (evaluate(b"1", {}, [(A("a"), 5)]), "unknown option a: there are encoding_opts, time"),
            (evaluate(b"1", {}, (A("timeout"), 5)), "keyword list or a map, not {:timeout, 5}"),
            (evaluate(b"1", {}, 0), "options are a keyword list or a map, not 0"),
            (evaluate(b"1", {}, b""), 'options are a keyword list or a map, not ""'),
            (
                evaluate(b"1", {}, [(10**5000, 1)]),
                "unknown option <an integer of 16610 bits>",
            ),
            (evaluate(b"1", {}, [(nested(30_000), 1)]), "unknown option [[[[["),
            *[
                (evaluate(b"1", {}, {A("timeout"): wrong}), f"or :infinity, not {told}")
                for wrong, told in [
                    (-1, "-1"),
                    (-5, "-5"),
                    (1.5, "1.5"),
                    (b"5", '"5"'),
                    (True, "true"),
                    (2**32, "4294967296"),
                    (10**400, "10000000000"),
                    (10**5000, "<an integer of 16610 bits>"),
                    ([5], "[5]"),
                ]
            ],
            (evaluate(b"1", {}, {A("on_timeout"): A("x")}), "on_timeout takes :cancel or :contin"),
            (
                evaluate(b"1", {}, {A("encoding_opts"): {A("x"): 1}}),
                "unknown encoding option :x: there are binary_as, set_as, atom_as",
            ),
        ],
    )
    async def test_it_is_answered_once(
        self, caller: Caller, request_: object, message: str
    ) -> None:
        code, reason = await caller.error(request_)
        assert code == "bad_request"
        assert message in reason
        assert len(reason) < 500
        assert await caller.call(A("ping")) == A("pong")

    @pytest.mark.parametrize(
        "code",
        [
            {"src": 5, "file": b"f", "line": 1},
            {"src": [b"a", 1.5], "file": b"f", "line": 1},
            {"src": b"a", "file": 5, "line": 1},
            {"src": b"a", "file": b"f", "line": -1},
            {"src": b"a", "file": b"f", "line": b"1"},
            {"src": b"a", "file": b"f"},
        ],
    )
    async def test_a_code_struct_of_another_shape(
        self, caller: Caller, code: dict[str, object]
    ) -> None:
        struct = {STRUCT: A("Elixir.Snex.Code"), **{A(k): v for k, v in code.items()}}
        error, reason = await caller.error(evaluate(struct, {}))
        assert error == "bad_request"
        assert "code is a binary, nil or a %Snex.Code{}" in reason

    @pytest.mark.parametrize("line", [2**40, 10**30])
    async def test_a_line_no_file_has(self, caller: Caller, line: int) -> None:
        struct = {STRUCT: A("Elixir.Snex.Code"), A("src"): b"1", A("file"): b"f", A("line"): line}
        code, reason = await caller.error(evaluate(struct, {}))
        assert code in ("bad_request", "python_runtime_error")
        assert str(line) in reason.replace(",", "")

    @pytest.mark.parametrize(
        "request_",
        [
            b"",
            b"h",
            b"h\x00",
            b"h\x03",
            b"h\x03w",
            b"h\x03w\x04eval",
            b"h\x03w\x04evalm\x00",
            b"h\x03w\x04eval" + b"m\x00\x00\x00\xffreturn 1",
            b"h\x03w\x04eval" + binary("return 1"),
            b"h\x03w\x04eval" + binary("return 1") + b"t\x00\x00\x00\x05",
            b"h\x03w\x04eval" + binary("return 1") + b"\xc8",
            b"h\x04w\x04eval" + binary("return 1") + b"t\x00\x00\x00\x00",
            b"h\x02w\x08make_env",
            b"h\x02w\x0bdestroy_env",
            b"h\x02w\x06handle",
            b"h\x04w\x04callw\x01a",
            b"\xc8",
        ],
    )
    async def test_what_cannot_be_decoded(self, caller: Caller, request_: bytes) -> None:
        code, reason = await caller.error(Term(request_))
        assert code == "bad_request"
        assert reason
        assert await caller.call(A("ping")) == A("pong")

    async def test_text_that_is_not_utf_8_names_variable_and_remedy(self, caller: Caller) -> None:
        variables = {b"fine": 1, b"photo": [b"\xff\xd8"], b"also": 2}
        code, reason = await caller.error(evaluate(b"return 1", variables))
        assert code == "python_runtime_error"
        assert '"photo"' in reason
        assert "encoding_opts: [binary_as: :bytes]" in reason
        code, reason = await caller.error((A("make_env"), variables))
        assert code == "python_runtime_error"
        assert '"photo"' in reason
        options = [(A("encoding_opts"), [(A("binary_as"), A("bytes"))])]
        assert await caller.eval("return photo", variables, options) == (OK, [b"\xff\xd8"])

    async def test_a_wrapper_that_is_none_names_its_variable(self, caller: Caller) -> None:
        wrong = {STRUCT: A("Elixir.Snex.Serde.Float"), A("value"): A("x")}
        code, reason = await caller.error(evaluate(b"return 1", {b"size": [wrong]}))
        assert code == "python_runtime_error"
        assert 'Snex.Serde.float takes a number, :inf, :"-inf" or :nan, not :x' in reason
