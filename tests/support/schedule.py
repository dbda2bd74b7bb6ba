"""Which process of pytest-xdist runs which file of tests, where one more runs than processors.

Files whose tests wait for time to pass leave the processors to others. With the option
``--one-for-waiting``, which `make test` gives, the last process runs such files and nothing else,
beside the others; when it has none left it ends. The others run them too when they have done all
the rest.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

WAITING = (
    *("interop/test_watcher.py", "test_watcher.py", "interop/test_losing.py"),
    *("interop/test_cancel.py", "test_child.py", "interop/test_shared_loop.py"),
    *("test_connection.py", "test_registrar.py"),
)
"""Files of which the tests wait for most of their time, below the directory of tests."""


def waits(scope: str) -> bool:
    """Whether it is one of these files."""
    return scope.removeprefix("tests/") in WAITING


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """A file is one process's, and files that wait have a process of their own."""

    _waiter: WorkerController | None = None

    def schedule(self) -> None:
        if self.collection is None and len(self.nodes) > 1:
            self._waiter = self.nodes[-1]
        super().schedule()

    def _assign_work_unit(self, node: WorkerController) -> None:
        wanted = node is self._waiter
        fitting = (scope for scope in self.workqueue if waits(scope) is wanted)
        scope = next(fitting, None)
        if scope is not None:
            self.workqueue.move_to_end(scope, last=False)
        elif wanted:
            node.shutdown()
            return
        super()._assign_work_unit(node)


def scheduling(config: Any, log: Any) -> Scheduling:
    """What pytest-xdist is to use."""
    return Scheduling(config, log)
