"""What is in a request: read, checked, and refused with a reason that helps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_node import Process
from snex_node.processes.process import BaseProcess
from snex_node.wire.etf import DecodeError
from snex_node.wire.gen import From
from snex_node.wire.terms import ImproperList, Term
from snex_runtime import serde
from snex_runtime.code import compile_code
from snex_runtime.errors import BadRequest, Failure
from snex_runtime.requests import (
    MAX_TIMEOUT,
    NO_OPTIONS,
    AskerWith,
    EvalOptions,
    Reader,
    code_parts,
    encoding_options,
    handle_in,
    options_in,
    read_keywords,
    read_variables,
    receive_from_here,
    stopped_or_refused,
    typed,
)
from snex_runtime.sources import VIRTUAL_FILE
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
from tests.support.pair import pair
from tests.support.requests import PID, Line, Peer, Taker, encode, request_of


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
            *[
                (
                    evaluate(b"1", {}, [(A("timeout"), 5), (A("kill_after"), wrong)]),
                    f"kill_after takes milliseconds, 0 to 4294967295, or :infinity, not {told}",
                )
                for wrong, told in [(-1, "-1"), (1.5, "1.5"), (2**32, "4294967296"), ([], "[]")]
            ],
            (evaluate(b"1", {}, [(A("kill_after"), 5)]), "the time beyond timeout:, which is miss"),
            (
                evaluate(b"1", {}, [(A("timeout"), 5), (A("kill_after"), 5)]),
                "kill_after: would end this whole node",
            ),
            (evaluate(b"1", {}, {A("on_timeout"): A("x")}), "on_timeout takes :cancel or :contin"),
            (
                evaluate(b"1", {}, {A("encoding_opts"): {A("x"): 1}}),
                "unknown encoding option :x: there are binary_as, set_as, atom_as, tensor_as, "
                "structs_as",
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


DEFAULT = serde.decoder()


class TestRequest:
    def test_it_is_read_part_by_part(self) -> None:
        request = request_of((A("kind"), b"one", 2))
        assert (request.arity, request.process.variables) == (3, None)
        assert [request.read(typed), request.read(typed)] == ["one", 2]
        request.let_go()
        assert request.data == b""

    def test_it_has_the_variables_of_its_process(self) -> None:
        variables: dict[str, object] = {}
        assert request_of((A("kind"),), Taker(variables)).variables is variables


class TestWhatIsTold:
    """Of a request, in logs and the like."""

    def test_of_one_of_which_nothing_has_been_read(self) -> None:
        request = request_of((A("eval"), b"return 1", {}))
        assert (request.called, request.place) == ("unknown", None)
        assert request.asked == (request.remote, None)

    def test_its_place(self) -> None:
        request = request_of((A("eval"), b"return 1", {}))
        request.kind = "eval"
        for runs, place in (
            (compile_code("return 1", "f.py", 7), "f.py:7"),
            (("math", "sqrt"), "math.sqrt"),
            (object(), None),
        ):
            request.runs = runs
            assert (request.called, request.place) == ("eval", place)

    @pytest.mark.parametrize("name", ["a\nb", "x" * 1000])
    def test_its_place_is_on_one_line_and_bounded(self, name: str) -> None:
        request = request_of((A("call"), b"m", b"f", []))
        request.runs = name, "f"
        assert request.place is not None
        assert len(request.place) < 1000
        assert "\n" not in request.place

    def test_where_it_stands_in_a_trace(self) -> None:
        request = request_of((A("eval"), b"return 1", {}))
        request.traceparent = TRACE
        assert request.asked == (request.remote, None, TRACE)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class TestReader:
    def test_options_that_come_once_are_not_remembered(self) -> None:
        reader = Reader(serde.DEFAULTS)
        for number in range(3):
            trace = f"{TRACE[:-1]}{number}"
            options = {A("traceparent"): trace.encode()}
            _, read = reader.variables_and_eval_options(request_of((A("kind"), {}, options)))
            assert read.traceparent == trace
        assert reader._eval_options == {}

    def test_options_behind_variables_say_how_to_decode_them(self) -> None:
        reader = Reader(serde.DEFAULTS)
        for options in (
            [(A("timeout"), 1)],
            [(A("encoding_opts"), [(A("binary_as"), A("bytes"))])],
        ):
            variables, raw = reader.variables_and_options(
                request_of((A("kind"), {b"x": b"text", b"encoding_opts": 1}, options))
            )
            as_bytes = "timeout" not in dict(options)
            assert variables == {"x": b"text" if as_bytes else "text", "encoding_opts": 1}
            assert options_in(raw, ("timeout", "encoding_opts")).keys() == dict(options).keys()

    def test_the_options_of_the_runtime(self) -> None:
        reader = Reader(serde.Options("bytes", "frozenset"))
        variables, _ = reader.variables_and_options(request_of((A("kind"), {b"x": b"\xff"}, None)))
        assert variables == {"x": b"\xff"}

    @pytest.mark.parametrize("options", [[], [(A("timeout"), 1)]])
    @pytest.mark.parametrize("as_bytes", [True, False])
    def test_options_before_variables(
        self, options: list[tuple[A, object]], as_bytes: bool
    ) -> None:
        if as_bytes:
            options = [*options, (A("encoding_opts"), [(A("binary_as"), A("bytes"))])]
        reader = Reader(serde.DEFAULTS)
        request = request_of((A("kind"), options, {b"x": b"text"}))
        variables, raw = reader.variables_and_options(request)
        assert variables == {"x": b"text" if as_bytes else "text"}
        assert options_in(raw, ("timeout", "encoding_opts")).keys() == dict(options).keys()
        variables, read = reader.variables_and_eval_options(request)
        assert variables == {"x": b"text" if as_bytes else "text"}
        assert read.timeout == (0.001 if dict(options).get(A("timeout")) else None)

    def test_no_variables_behind_options(self) -> None:
        with pytest.raises(BadRequest, match="variables are a map"):
            Reader(serde.DEFAULTS).variables_and_eval_options(request_of((A("kind"), [], [])))


class TestOptions:
    def test_the_first_of_a_name_counts(self) -> None:
        raw = [(A("a"), 1), (A("b"), 2), (A("a"), 3)]
        assert options_in(raw, ("a", "b")) == {"a": 1, "b": 2}
        assert options_in({"b": 1}, ("a", "b")) == {"b": 1}
        assert options_in(None, ()) == {}

    def test_of_an_eval(self) -> None:
        assert (NO_OPTIONS.timeout, NO_OPTIONS.continues) == (None, False)
        options = EvalOptions([(A("timeout"), 1500), (A("on_timeout"), A("continue"))])
        assert (options.timeout, options.continues) == (1.5, True)
        assert EvalOptions({A("timeout"): A("infinity")}).timeout is None
        assert EvalOptions().kill_after is None
        assert EvalOptions([(A("kill_after"), 250)]).kill_after == 0.25
        assert EvalOptions({A("kill_after"): 0}).kill_after == 0.0
        assert EvalOptions({A("kill_after"): A("infinity")}).kill_after is None
        assert EvalOptions({A("kill_after"): MAX_TIMEOUT}).kill_after == MAX_TIMEOUT / 1000
        assert EvalOptions({A("timeout"): MAX_TIMEOUT}).timeout == MAX_TIMEOUT / 1000

    def test_sharing(self) -> None:
        assert EvalOptions().shared is False
        assert EvalOptions([(A("shared"), True)]).shared is True
        with pytest.raises(BadRequest, match="shared takes true or false, not nil"):
            EvalOptions({A("shared"): None})

    @pytest.mark.parametrize("value", [7, "no", TRACE.upper(), "x" * 300])
    def test_a_trace_that_is_none(self, value: object) -> None:
        with pytest.raises(BadRequest, match="traceparent takes a binary as W3C"):
            EvalOptions({A("traceparent"): value})
        assert EvalOptions().traceparent is None

    @pytest.mark.parametrize("value", [b"pid", 7, A("nil"), [PID]])
    def test_a_handle_that_is_none(self, value: object) -> None:
        with pytest.raises(BadRequest, match="handle takes a pid or :none"):
            handle_in(value)

    def test_handles(self) -> None:
        assert [handle_in(value) for value in (PID, A("none"), None)] == [PID, None, None]

    def test_encoding_options(self) -> None:
        base = serde.DEFAULTS
        assert encoding_options([(A("timeout"), 1)], base) == base
        given = {A("encoding_opts"): [(A("set_as"), A("frozenset"))]}
        assert encoding_options(given, base) == serde.Options("str", "frozenset")
        with pytest.raises(BadRequest, match="set_as is one of"):
            encoding_options({A("encoding_opts"): {A("set_as"): 1}}, base)


class TestCode:
    @pytest.mark.parametrize(
        ("src", "source"),
        [
            (b"return 1", "return 1"),
            ([b"ret", [b"urn"], [32, [49]]], "return 1"),
            (ImproperList([b"return", 32], b"1"), "return 1"),
            ([], ""),
        ],
    )
    def test_iodata(self, src: object, source: str) -> None:
        struct = snex_code(src, b"/f.ex", 3)
        assert code_parts(struct) == (source, "/f.ex", 3)

    def test_a_binary_has_no_place(self) -> None:
        assert code_parts(b"x") == ("x", VIRTUAL_FILE, 0)


class TestVariables:
    @pytest.mark.parametrize("name", [A("x"), b"x"])
    @pytest.mark.parametrize("binary_as", ["str", "bytes", "bytearray"])
    def test_names_are_strings(self, name: object, binary_as: Any) -> None:
        decoder = serde.decoder(serde.Options(binary_as, atom_as="distinct_atom"))
        data = encode({name: 1})
        variables, end = read_variables(decoder, data + b"rest", 0)
        assert variables == {"x": 1}
        assert [type(each) for each in variables] == [str]
        assert end == len(data)

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (Term(b"m\0\0\0\1\xff"), "binary_as: :bytes"),
            (Term(b"\xc8"), "unknown tag"),
        ],
    )
    def test_which_one_cannot_be_decoded(self, value: Term, reason: str) -> None:
        data = encode({b"a": 1, b"b": value})
        with pytest.raises(Failure) as raised:
            read_variables(DEFAULT, data, 0)
        text = str(raised.value.reason)
        assert 'variable "b" cannot be converted' in text
        assert reason in text
        assert ("encoding_opts" in text) is (value[0] == 109)

    @pytest.mark.parametrize(
        "data", [b"", b"\xc8", b"t\0\0\0\1", b"t\0\0\0\1\xc8a\1", b"t\0\0\0\1m\0\0\0\1xa"]
    )
    def test_no_term_at_all(self, data: bytes) -> None:
        with pytest.raises((DecodeError, Failure)):
            read_variables(DEFAULT, data, 0)

    def test_keywords(self) -> None:
        for given in ({b"x": 1}, [(A("x"), 1), (A("x"), 2)], [(b"x", 1)]):
            assert read_keywords(DEFAULT, encode(given), 0) == {"x": 1}
        assert read_keywords(DEFAULT, encode([]), 0) == {}
        assert read_keywords(DEFAULT, encode(None), 0) == {}
        with pytest.raises(BadRequest, match="argument's name is an atom, not 1"):
            read_keywords(DEFAULT, encode([(1, 2)]), 0)
        with pytest.raises(BadRequest, match="keyword arguments are a keyword list or a map"):
            read_keywords(DEFAULT, encode(7), 0)


class _Receiver(BaseProcess):
    """Takes what comes from its own node."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.received: list[Any] = []

    def message_received(self, message: object) -> None:
        receive_from_here(self, message)

    def external_received(self, data: bytes, offset: int, remote: Any) -> None:
        self.received.append(typed.decode(data, offset)[0])

    def system_received(self, caller: From, request: object) -> None:
        stopped_or_refused(self, caller, request)


class TestFromTheSameNode:
    async def test_calls_casts_and_system_messages(self) -> None:
        async with pair() as both:
            process, asker = _Receiver(both.node), Process(both.node)
            asker.send(process.pid, (A("$gen_cast"), 5))
            asker.send(process.pid, (A("anything"), 6))
            asker.send(process.pid, (A("system"), (asker.pid, A("tag")), A("get_state")))
            refused = (A("error"), A("unknown_system_msg"))
            assert await asker.receive(timeout=5) == (A("tag"), refused)
            assert process.received == [(A("$gen_cast"), 5)]
            stop = A("terminate"), A("enough")
            asker.send(process.pid, (A("system"), (asker.pid, A("tag")), stop))
            assert await asker.receive(timeout=5) == (A("tag"), A("ok"))
            assert process.exit_reason == "enough"


def test_who_asked_with_another_encoder() -> None:
    line = Line()
    remote: Any = Peer(line)
    found = AskerWith(remote, serde.encoder_v2)
    assert (found.name, found.connection) == (remote.name, line)
    assert found.encoder is serde.encoder_v2
    assert found.alias_send == remote.alias_send
