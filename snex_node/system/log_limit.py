"""Log lines that strangers cause: a few of them, and then how many more there were."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LINES = 10
SECONDS = 10.0
"""A stranger who connects and is refused as fast as both can go causes 3,000 lines a second, 1 GB
of log in an hour. Ten lines in ten seconds tell as much; what is beyond is counted."""


class LogLimit:
    """Logs at most ``lines`` in ``seconds`` to ``logger``, and counts what it leaves out.

    The count is told with the next line that may be logged, or by `flush`. One object is one
    budget: what must not be drowned by other lines has one of its own. Not for several threads at
    once.

    >>> limit = LogLimit(logging.getLogger("example"), lines=1)
    >>> for number in range(3):
    ...     limit.warning("refused connection %d", number)
    >>> limit.left_out
    2
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        lines: int = LINES,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._began = -seconds  # of the time in which lines are counted
        self._logged = 0
        self.left_out = 0
        """How many lines were left out since that was told last."""

    def warning(self, message: str, *args: object) -> None:
        """Log a warning, or count it."""
        self.log(logging.WARNING, message, *args)

    def log(self, level: int, message: str, *args: object) -> None:
        """Log a line of this level, or count it."""
        if not self._logger.isEnabledFor(level):
            return
        now = self._clock()
        if now - self._began >= self._seconds:
            self.flush()
            self._began = now
            self._logged = 0
        if self._logged < self._lines:
            self._logged += 1
            self._logger.log(level, message, *args)
        else:
            self.left_out += 1

    def flush(self) -> None:
        """Tell how many lines were left out, if there were any."""
        if self.left_out:
            left_out, self.left_out = self.left_out, 0
            self._logger.warning("... and %s more lines like these", f"{left_out:,}")
