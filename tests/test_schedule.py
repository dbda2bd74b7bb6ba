"""Files whose tests wait have a process of their own, as long as there are any."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.schedule import WAITING, Scheduling

ROOT = Path(__file__).parent
WAITS = [f"tests/{name}" for name in WAITING[:3]]
OTHERS = [f"tests/test_{name}.py" for name in ("one", "two", "three", "four")]


class Worker:
    """What a process of pytest-xdist is to who schedules."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.sent: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


class Run:
    """Some processes that run five tests of each of these files, one test of each in turn."""

    def __init__(self, files: list[str], processes: int) -> None:
        config: Any = SimpleNamespace(
            getvalue=lambda _: [f"{processes}*popen"],
            option=SimpleNamespace(loadscopereorder=False),
        )
        self.tests = [f"{file}::test_{number}" for file in files for number in range(5)]
        self.workers = [Worker(f"gw{number}") for number in range(processes)]
        scheduling: Any = Scheduling(config, None)
        for worker in self.workers:
            scheduling.add_node(worker)
            scheduling.add_node_collection(worker, self.tests)
        scheduling.schedule()
        done = dict.fromkeys(self.workers, 0)
        while any(done[worker] < len(worker.sent) for worker in self.workers):
            for worker in self.workers:
                if done[worker] < len(worker.sent):
                    scheduling.mark_test_complete(worker, worker.sent[done[worker]])
                    done[worker] += 1
        assert scheduling.tests_finished

    def files(self, number: int) -> list[str]:
        """The files of which a process ran tests, in their order."""
        sent = self.workers[number].sent
        return list(dict.fromkeys(self.tests[index].partition("::")[0] for index in sent))


def test_the_last_process_runs_what_waits_and_the_others_the_rest() -> None:
    run = Run([OTHERS[0], WAITS[0], *OTHERS[1:], WAITS[1]], 3)
    assert run.files(2) == [WAITS[0], WAITS[1]]
    assert run.files(0) == [OTHERS[0], OTHERS[2]]
    assert run.files(1) == [OTHERS[1], OTHERS[3]]


def test_the_others_help_when_they_have_nothing_else() -> None:
    run = Run([OTHERS[0], *WAITS], 2)
    assert run.files(1) == [WAITS[0], WAITS[2]]
    assert run.files(0) == [OTHERS[0], WAITS[1]]


def test_it_ends_where_nothing_waits() -> None:
    run = Run(OTHERS, 3)
    assert run.workers[2].shutting_down
    assert run.files(2) == []
    assert sorted(run.files(0) + run.files(1)) == sorted(OTHERS)


def test_one_process_runs_everything() -> None:
    assert Run([OTHERS[0], WAITS[0]], 1).files(0) == [OTHERS[0], WAITS[0]]


def test_every_test_runs_once() -> None:
    run = Run([*WAITS, *OTHERS], 3)
    ran = [index for worker in run.workers for index in worker.sent]
    assert sorted(ran) == list(range(len(run.tests)))


def test_the_files_are_there() -> None:
    assert [name for name in WAITING if not (ROOT / name).is_file()] == []
