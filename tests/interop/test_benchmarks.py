"""The rows of `make bench` that need the Elixir client, which is compiled for them."""

from __future__ import annotations

import pytest

from benchmarks import runner, stage
from benchmarks.rows import Scale, all_rows
from tests.support.mix import SECONDS

pytestmark = pytest.mark.beside

TINY = Scale("tiny", rounds=1, least=1, seconds=0.0, calls=0.002, data=0.001, settle=0)


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_rows_of_the_client(no_process_left: None) -> None:
    rows = [row for row in all_rows() if row.client]
    with stage.opened(stage.whole_tree(), TINY) as on:
        found = list(runner.measured(on, rows, pytest.fail, lambda _number, _row: None))
    assert [row.name for row in found] == [row.name for row in rows]
    assert {"Snex.pyeval", "structs back, pyeval", "Snex.Interpreter"} <= {r.name for r in found}
    alone = {"stream", "pipeline"}  # a BEAM has nothing to compare with
    assert {row.name for row in found if row.sides.keys() != {"node", "beam"}} == alone
    # A struct is not looked for among files, as it is where protocols are not consolidated.
    structs = next(row for row in found if row.name == "structs there, pyeval")
    assert structs.figures.median < 1e9
