"""What `import snex_node` offers, and what its help tells."""

from __future__ import annotations

import re
import subprocess
import sys
import types

import snex_node

SCREENS = 3
LINES = 40


def public_names() -> set[str]:
    return {
        name
        for name, value in vars(snex_node).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def test_the_overview_names_all_of_it() -> None:
    assert snex_node.__doc__ is not None
    told = set(re.findall(r"(?<!`)`(\w+)`(?!`)", snex_node.__doc__.partition("What there is")[2]))
    assert told == public_names()


def test_each_name_has_help() -> None:
    for name in public_names():
        value = getattr(snex_node, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name


def test_help_fits_on_a_few_screens() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pydoc", "snex_node"], capture_output=True, text=True, check=True
    )
    assert "GenServer" in done.stdout
    assert len(done.stdout.splitlines()) <= SCREENS * LINES


def test_help_of_a_class_says_what_it_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pydoc", "snex_node.Node"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "A hidden Erlang node on the running event loop." in done.stdout
