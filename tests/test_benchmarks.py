"""The machinery of `make bench`: what it makes of figures, and that both sides are alike."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from benchmarks import __main__ as command
from benchmarks import charts, client, compare, meters, nodes, report, results, runner, stage
from benchmarks.client import Client
from benchmarks.figures import Ratio, Round, Summary, Unit, quantile, ratio, summarize
from benchmarks.machine import CALLED, CALLER, core
from benchmarks.results import Measured, Results
from benchmarks.rows import CALLERS, KINDS, Row, Scale, all_rows
from tests.support.beam import Beam

pytestmark = pytest.mark.beside

TINY = Scale("tiny", rounds=2, least=2, seconds=0.0, calls=0.002, data=0.001, settle=0)
MADE = {
    "at": "2026-01-02T03:04:05+00:00",
    "scale": "tiny",
    "trees": {"node": "abc"},
    "otp": "27",
    "python": "3.13.1",
    "loop": "uvloop",
    "processor": "a processor",
    "cores": 2,
    "pinned": True,
}


def named(*names: str) -> list[Row]:
    rows = {row.name: row for row in all_rows()}
    return [rows[name] for name in names]


def measured(
    name: str = "eval",
    node: float = 300.0,
    beam: float = 200.0,
    unit: Unit = Unit.TIME,
    rounds: int = 5,
) -> Measured:
    """A row whose rounds differ a little, but not its ratio."""
    row = dataclasses.replace(named("eval")[0], name=name, unit=unit)
    sides = {
        side: summarize(
            unit, [Round(value * factor) for factor in (1.0, 1.1, 0.9, 1.05, 0.95)[:rounds]]
        )
        for side, value in (("node", node), ("beam", beam))
    }
    return Measured.of(row, "node", sides)


# Figures


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([5], 0.99, 5), ([3, 1, 2], 0.5, 2), ([1, 2], 0.5, 1.5), ([0, 10, 20, 30], 0.25, 7.5)],
)
def test_quantile(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def test_a_round_of_times_is_their_median_and_one_of_rates_is_done_per_second() -> None:
    assert Round.of(Unit.TIME, 90, 3, [10, 70, 20]) == Round(20, [10, 70, 20])
    assert Round.of(Unit.RATE, 2_000_000_000, 3, [10, 70, 20]) == Round(1.5, [10, 70, 20])


def test_times_keep_their_minimum_and_rates_their_maximum() -> None:
    rounds = [Round(20, [10, 20, 30]), Round(40, [35, 40, 45])]
    assert summarize(Unit.TIME, rounds) == Summary(30, 10, 32.5, None, [20, 40])
    assert summarize(Unit.RATE, rounds) == Summary(30, 40, 32.5, None, [20, 40])
    assert summarize(Unit.MEMORY, [Round(7), Round(5)]) == Summary(6, 5, None, None, [7, 5])


def test_there_is_a_p99_of_many_times_only() -> None:
    assert summarize(Unit.TIME, [Round(1, range(99))]).p99 is None
    assert summarize(Unit.TIME, [Round(1, range(101))]).p99 == 99


def test_a_ratio_is_that_of_the_rounds_and_not_of_the_medians() -> None:
    # The machine was twice as slow in the second round, for both.
    ours = Summary(300, 90, None, 50, [100, 300, 500])
    theirs = Summary(100, 45, None, 100, [50, 150, 100])
    assert ratio(ours, theirs) == Ratio(median=2, low=2, high=3.5, best=2, p99=0.5)


# Rounds


def test_sides_take_turns_and_the_order_changes() -> None:
    done: list[str] = []
    sides: dict[str, meters.Meter] = {name: meter(done, name) for name in "ab"}
    scale = Scale("", rounds=3, least=1, seconds=60, calls=1)
    found = runner.rounds_of(sides, scale)
    assert "".join(done) == "ab" + "ab" + "ba" + "ab"  # the first ones warm up
    assert found == {"a": [Round(3), Round(6), Round(7)], "b": [Round(4), Round(5), Round(8)]}
    done.clear()
    runner.rounds_of(sides, scale, warm_up=False)
    assert "".join(done) == "ab" + "ba" + "ab"


def meter(done: list[str], name: str) -> meters.Meter:
    """One that notes its name; a round's figure is its number among all rounds."""

    def measure() -> Round:
        done.append(name)
        return Round(len(done))

    return measure


@pytest.mark.parametrize(("least", "expected"), [(1, 2), (3, 3), (9, 5)])
def test_no_round_begins_when_the_time_is_over_but_for_the_least(least: int, expected: int) -> None:
    now = 0.0

    def measure() -> Round:
        nonlocal now
        now += 5.0
        return Round(now)

    scale = Scale("", rounds=5, least=least, seconds=10, calls=1)
    found = runner.rounds_of({"a": measure}, scale, warm_up=False, clock=lambda: now)
    assert len(found["a"]) == expected


# Rows


def test_every_row_has_its_name_an_instrument_and_a_paragraph() -> None:
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows)
    assert {row.instrument for row in rows} == meters.INSTRUMENTS.keys()
    document = (command.DOCUMENTS / "README.md").read_text(encoding="utf-8")
    paragraphs = re.findall(r"^\*\*(.+?)\*\*: \S", document, re.M)
    assert len(set(paragraphs)) == len(paragraphs)
    assert set(paragraphs) == {row.topic for row in rows}


def test_each_kind_of_data_goes_both_ways_plainly_and_by_the_client_and_through_the_codec() -> None:
    names = {row.name for row in all_rows()}
    for kind in KINDS:
        for way in ("there", "back"):
            assert {f"{kind.name} {way}", f"{kind.name} {way}, pyeval"} <= names
        assert {f"decode {kind.name}", f"encode {kind.name}"} <= names


def test_all_callers_call_however_few_calls_there_are() -> None:
    [row] = named(f"call, {CALLERS[-1]} callers")
    assert TINY.calls_of(row) == CALLERS[-1]
    [row] = named("memory per environment")
    assert TINY.calls_of(row) == row.calls  # few would not show


def test_rows_are_chosen_by_words_of_their_names_and_groups() -> None:
    assert [row.name for row in command.chosen(["one CALLER /", "idle", "1 call / one"])] == [
        "idle memory"
    ]
    assert {row.group for row in command.chosen(["the codec"])} == {"The codec alone"}
    assert command.chosen([]) == all_rows()


# Results


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = Results(MADE, [measured(), measured("rate", unit=Unit.RATE)])
    results.save(found, tmp_path / "new" / "results.json")
    assert results.load(tmp_path / "new" / "results.json") == found


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"format": 0}'])
def test_what_are_no_results_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(results.FormatError, match=re.escape(str(file))):
        results.load(file)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (999, Unit.TIME, "999 ns"),
        (1_234, Unit.TIME, "1.23 µs"),
        (12_345_678, Unit.TIME, "12.3 ms"),
        (2.5e9, Unit.TIME, "2.50 s"),
        (41_234.5, Unit.RATE, "41,234 /s"),
        (614, Unit.MEMORY, "614 B"),
        (-2048, Unit.MEMORY, "-2.00 KiB"),
        (30.25 * 2**20, Unit.MEMORY, "30.2 MiB"),
        (0, Unit.TIME, "0.00 ns"),
        (None, Unit.TIME, "-"),
    ],
)
def test_amounts(value: float | None, unit: Unit, expected: str) -> None:
    assert report.amount(value, unit) == expected


def test_the_table_has_a_line_for_each_yardstick_and_a_heading_for_each_group() -> None:
    out = io.StringIO()
    table = report.Table(out)
    row = measured()
    beside = {**row.ratios, "pickle": Ratio(0.5, 0.4, 0.6, 0.45, 1.25)}
    pickle = summarize(Unit.TIME, [Round(600)])
    table.add(dataclasses.replace(row, ratios=beside, sides={**row.sides, "pickle": pickle}))
    table.add(measured("other"))
    table.add(dataclasses.replace(measured("alone"), group="another group", ratios={}))
    lines = [line.split() for line in out.getvalue().splitlines() if line]
    assert [line[0] for line in lines] == ["One", "eval", "0.50", "other", "another", "alone"]
    assert lines[1] == "eval 300 ns - 270 ns 1.50 1.50 to 1.50 - 1.50 beam's 200 ns".split()
    assert lines[2] == "0.50 0.40 to 0.60 1.25 0.45 pickle's 600 ns".split()
    assert lines[5] == "alone 300 ns - 270 ns".split()


def test_figures_get_between_the_marks_of_a_document(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    text = report.markdown(Results(MADE, [measured()]), ["callers.svg"])
    assert not report.fill(document, text)
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.fill(document, text)
    assert report.fill(document, text)
    filled = document.read_text()
    assert filled == f"before\n{report.BEGIN}\n\n{text}\n{report.END}\nafter\n"
    assert "![callers](callers.svg)" in filled
    assert "| eval | 300 ns | - | - | beam: 200 ns | 1.50 (1.50 to 1.50) | - |" in filled
    document.write_text("no marks")
    assert not report.fill(document, text)
    assert document.read_text() == "no marks"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_to_who_watches() -> None:
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        progress = report.Progress(out, 2)
        for number, row in enumerate(named("call", "eval")):
            progress.show(number, row)
        progress.clear()
    assert file.getvalue() == ""
    written = terminal.getvalue()
    assert re.fullmatch(
        r"\r\x1b\[K\[1/2\] call\r\x1b\[K\[2/2, 0:00 left\] eval\r\x1b\[K", written
    ), written


def test_notes_are_told_once() -> None:
    out = io.StringIO()
    notes = report.Notes(out)
    for text in ("a", "b", "a"):
        notes(text)
    assert out.getvalue() == "note: a\nnote: b\n"


@pytest.mark.skipif(not charts.available(), reason="matplotlib is not installed")
def test_charts_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pyeval = [measured(f"Snex.pyeval, {n} caller{'s' * (n > 1)}", unit=Unit.RATE) for n in CALLERS]
    found = Results(MADE, [*pyeval, measured("floats there"), measured("floats back")])
    assert charts.draw(found, tmp_path) == ["callers.svg", "data.svg"]
    texts = [(tmp_path / name).read_text() for name in ("callers.svg", "data.svg")]
    assert all("<svg" in text for text in texts)
    charts.draw(found, tmp_path)
    assert [(tmp_path / name).read_text() for name in ("callers.svg", "data.svg")] == texts


# Two files


def compared(before: list[Measured], after: list[Measured]) -> list[list[str]]:
    lines = compare.lines(Results(MADE, before), Results({**MADE, "otp": "28"}, after))
    return [line.split() for line in "\n".join(lines).splitlines()]


def test_two_runs_are_compared_row_by_row() -> None:
    before = [measured("a"), measured("b", unit=Unit.RATE), measured("gone")]
    # Twice as fast a machine; "b" has become worse beside its yardstick, "a" is as it was.
    after = [
        measured("a", 150, 100),
        measured("b", 300, 400, Unit.RATE),
        measured("came"),
    ]
    lines = compared(before, after)
    assert "a 300 ns 150 ns 0.50 1.50 1.50 1.00 of beam".split() in lines
    assert "b 300 /s 300 /s 1.00 1.50 0.75 0.50 of beam, worse".split() in lines
    assert lines[-4:] == [[], "only in A: gone".split(), [], "only in B: came".split()]


def test_less_time_is_better() -> None:
    assert compared([measured(node=400)], [measured(node=300)])[-1][-2:] == ["beam,", "better"]


def test_of_few_rounds_nothing_is_said() -> None:
    assert compared([measured(node=400)], [measured(node=300, rounds=3)])[-1][-1] == "beam"


def test_the_command_compares_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    results.save(Results(MADE, [measured(node=300)]), a)
    results.save(Results(MADE, [measured(node=600)]), b)
    assert command.main(["compare", str(a), str(b)]) == 0
    assert "2.00 of beam, worse" in " ".join(capsys.readouterr().out.split())
    b.write_text("{}")
    assert command.main(["compare", str(a), str(b)]) == 1
    assert str(b) in capsys.readouterr().err


# The command line


def test_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["rows"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(all_rows())


def test_what_is_no_tree_of_ours_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["against", str(tmp_path)]) == 1
    assert f"{tmp_path} has no snex, snex_node" in capsys.readouterr().err
    with pytest.raises(nodes.TreeError, match="is what runs"):
        nodes.check_runs(tmp_path, [nodes.__file__])


def test_without_elixir_nothing_begins(no_otp: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "--quick"]) == 1
    assert "elixir and epmd must be installed" in capsys.readouterr().err


def test_a_row_that_does_not_exist_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("elixir") is None:
        pytest.skip("elixir is not installed")
    assert command.main(["run", "--only", "no such row"]) == 1
    assert "there is no such row" in capsys.readouterr().err


# Against real BEAMs


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkout, without a client."""
    folder = tmp_path_factory.mktemp("tree")
    for name in nodes.PACKAGES:
        shutil.copytree(nodes.ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def on(no_process_left: None) -> Iterator[stage.Stage]:
    """What takes part in a run. The client is not compiled: that takes longer than all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "compiled", no_client)
        with stage.opened(stage.whole_tree(), TINY) as opened:
            yield opened


def no_client(_tree: Path, _scratch: Path) -> Client:
    raise client.NoClientError("no time")


def run(on: stage.Stage, rows: list[Row], note: Callable[[str], None]) -> list[Measured]:
    return list(runner.measured(on, rows, note, lambda _number, _row: None))


@pytest.mark.interop
class TestStage:
    def test_both_sides_are_started_alike(self, on: stage.Stage) -> None:
        assert on.yardstick is not None
        node, beam, caller = on.sides[0].node.pid, on.yardstick.os_pid, on.caller.os_pid
        if (of_called := core(CALLED)) is not None:
            assert os.sched_getaffinity(node) == os.sched_getaffinity(beam) == {of_called}
            assert os.sched_getaffinity(caller) == {core(CALLER)}
        flags = [arguments(one) for one in (on.yardstick, on.caller)]
        assert flags[0] == flags[1]
        assert flags[0].count("-sbwt") == 2  # the later one, ours, is the one that counts
        assert flags[0][flags[0].index("-sbwt", flags[0].index("-sbwt") + 1) + 1] == "medium"

    def test_what_is_sent_to_both_has_the_same_size(self, on: stage.Stage) -> None:
        assert on.yardstick is not None
        written = []
        for kind, node in (("python", on.sides[0].node.name), ("beam", on.yardstick.name)):
            options = {b"kind": b"large integers", b"count": 20_000, b"client": False, b"settle": 0}
            meter = stage.ask(
                on.caller,
                'Benchmark.Meter.open("there", kind, node, options)',
                kind=kind.encode(),
                node=node.encode(),
                options=options,
            )
            before = sent_to(on, node)
            stage.ask(on.caller, "Benchmark.Meter.round(meter)", meter=meter)
            written.append(sent_to(on, node) - before)
            stage.ask(on.caller, "Benchmark.Meter.close(meter)", meter=meter)
        assert written[0] > 5 * 20_000
        assert abs(written[0] - written[1]) < 1_000

    def test_rows_over_the_wire_and_of_the_codec(self, on: stage.Stage) -> None:
        rows = named("call", "eval", "async eval", "call, 10 callers", "snex.call, 1 at a time")
        rows += named("snex.call, 100 at a time", "snex.send", "make_env, 1 caller")
        rows += named("decode a request", "encode maps of 5", "decode 10 MB")
        rows += [row for row in all_rows() if row.group == "Data" and row.instrument == "there"]
        rows += named("maps of 5 back", "10 MB back")
        found = {row.name: row for row in run(on, rows, pytest.fail)}
        assert list(found) == [row.name for row in rows]
        for row in found.values():
            codec = row.name.startswith(("decode", "encode"))
            assert list(row.ratios) == (["erlang-py", "pickle"] if codec else ["beam"])
            for side in row.sides.values():
                assert len(side.rounds) == TINY.rounds
                assert min(side.rounds) > 0
        # A call takes microseconds; thousands a second are not the time of one.
        assert 1e4 < found["call"].figures.median < 1e9
        assert found["call, 10 callers"].figures.median > 10

    def test_starts_and_memory(self, on: stage.Stage) -> None:
        [hold, idle, start] = named("memory per environment", "idle memory", "start to ready")
        on = dataclasses.replace(on, scale=dataclasses.replace(TINY, rounds=1, least=1))
        [found] = run(on, [start], pytest.fail)
        assert found.ratios["import asyncio"].median > 1
        [found] = run(on, [dataclasses.replace(hold, calls=1_000)], pytest.fail)
        assert found.sides.keys() == {"node", "beam"}
        assert 100 < found.figures.median < 100_000
        on = dataclasses.replace(on, yardstick=None)  # a BEAM takes long to start
        [found] = run(on, [idle], pytest.fail)
        assert 2**20 < found.figures.median < 2**28

    def test_what_has_no_client_is_left_out(self, on: stage.Stage) -> None:
        notes: list[str] = []
        assert run(on, named("Snex.pyeval", "Snex.Interpreter"), notes.append) == []
        assert set(notes) == {"no rows of the client: no time"}

    def test_without_erlang_py_there_is_no_ratio_to_it(
        self, on: stage.Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        notes: list[str] = []
        [row] = run(on, named("decode floats"), notes.append)
        assert list(row.ratios) == ["pickle"]
        assert notes == ["no ratio to erlang-py: erlang-py is not installed"]

    def test_a_run_writes_what_it_found(
        self,
        on: stage.Stage,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(stage, "opened", lambda _trees, _scale: contextlib.nullcontext(on))
        monkeypatch.setattr(charts, "available", lambda: False)
        (tmp_path / "README.md").write_text(report.BEGIN + report.END)
        words = ["--only", "floats there", "--only", "decode floats"]
        assert command.main(["run", "--quick", *words, "--to", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert err == f"note: no rows of the client: no time\nnote: {charts.HINT}\n"
        found = results.load(tmp_path / "results.json")
        assert [row.name for row in found.rows] == ["floats there", "decode floats"]
        assert found.made["otp"] == on.caller.otp_release
        assert found.made["trees"].keys() == {"node"}
        for text in (out, (tmp_path / "README.md").read_text()):
            assert report.heading(found.made) in text
            assert "\nfloats there " in text or "\n| floats there |" in text

    def test_a_failure_is_not_measured(self, on: stage.Stage) -> None:
        options = MappingProxyType({"request": "no such request", "callers": 1})
        row = dataclasses.replace(named("call")[0], options=options)
        with pytest.raises(Exception, match="no such request"):
            run(on, [row], pytest.fail)


@pytest.mark.interop
def test_two_trees_beside_each_other(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(client, "compiled", no_client)
    monkeypatch.setattr(command, "QUICK", TINY)
    file = tmp_path / "against.json"
    words = ["--only", "async eval", "--only", "encode floats"]
    assert command.main(["against", str(tree), "--quick", *words, "--to", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["made"]["trees"].keys() == {"this", "other"}
    assert [row["name"] for row in found["rows"]] == ["async eval", "encode floats"]
    assert all(row["sides"].keys() == {"this", "other"} for row in found["rows"])
    # What runs beside this may hold up one of the two, but not every time.
    assert all(0.2 < row["ratios"]["other"]["best"] < 5 for row in found["rows"])
    assert "encode floats" in capsys.readouterr().out


def arguments(beam: Beam) -> list[str]:
    """Those that a BEAM was started with, but for its name and its home."""
    words = Path(f"/proc/{beam.os_pid}/cmdline").read_bytes().decode().split("\0")
    home = words[words.index("-home") + 1]
    return [word for word in words if word not in (beam.name, home)]


def sent_to(on: stage.Stage, node: str) -> int:
    """Bytes that the caller has written to a node."""
    source = """
    {_, port} = List.keyfind(:erlang.system_info(:dist_ctrl), String.to_atom(node), 0)
    {:ok, [send_oct: bytes]} = :inet.getstat(port, [:send_oct])
    bytes
    """
    return int(stage.ask(on.caller, source, node=node.encode()))
