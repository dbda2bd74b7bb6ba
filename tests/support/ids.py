"""Names for the cases of a parametrized test."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def stable(value: object) -> str:
    """The `repr` of a value without addresses: the same in every process that collects the test."""
    return _ADDRESS.sub("", repr(value))
