"""How many examples tests of properties try.

In CI they are the same each time, so that what is red there can be repeated, and few: they find
again what was found once. Elsewhere each run tries others, and more.
"""

from __future__ import annotations

import os
from typing import Final

IN_CI: Final = bool(os.environ.get("CI"))

USUAL: Final = 25 if IN_CI else 100
"""What a test tries that asks for no number."""


def examples(times: float) -> int:
    """So many times the usual number."""
    return max(1, round(USUAL * times))
