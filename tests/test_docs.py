"""What docs/architecture.md says about the code is what the code says."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from snex_node.wire import flags

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "docs" / "elixir" / "reference"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "s": 1}


def documented_bounds() -> dict[str, int]:
    """The table of bounds: full name of the constant, and its value."""
    rows = re.findall(r"^\| `(snex_[\w.]+)` \| ([\d,]+)(?: (\w+))? \|", ARCHITECTURE, re.M)
    return {name: int(value.replace(",", "")) * UNITS[unit] for name, value, unit in rows}


def bounds_in_code() -> set[str]:
    """Every constant `MAX_...` of the packages."""
    found = set()
    for package in ("snex_node", "snex_runtime", "snex"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                if isinstance(statement, ast.AnnAssign):
                    targets = [statement.target]
                found |= {
                    f"{module}.{target.id}"
                    for target in targets
                    if isinstance(target, ast.Name) and target.id.startswith("MAX_")
                }
    return found


@pytest.mark.parametrize(("name", "value"), documented_bounds().items())
def test_a_bound_has_the_value_that_is_written(name: str, value: int) -> None:
    module, _, constant = name.rpartition(".")
    assert getattr(importlib.import_module(module), constant) == value


def test_every_bound_is_in_the_table() -> None:
    missing = bounds_in_code() - documented_bounds().keys()
    assert not missing, "give each a row in docs/architecture.md, and say what happens beyond it"


def test_the_table_of_flags_is_that_of_the_code() -> None:
    for entry in flags.TABLE:
        bit = entry.flag.bit_length() - 1
        since = entry.mandatory_since or ""
        claimed = "yes" if entry.claimed else "no"
        row = f"| `{entry.flag.name}` | {bit} | {since} | {claimed} | {entry.why} |"
        assert row in ARCHITECTURE.splitlines()


def test_every_module_has_its_room() -> None:
    for package in ("snex_node", "snex_runtime"):
        for path in (ROOT / package).rglob("[a-z]*.py"):
            if path.parent.name == "epmd":  # one room, with a page of its own in front
                continue
            assert f"`{path.stem}`" in ARCHITECTURE, f"{package}.{path.stem} is in no room"


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_every_request_is_in_the_contract(document: str) -> None:
    server = (ROOT / "snex_runtime" / "server.py").read_text(encoding="utf-8")
    tuples, _, atoms = server[server.index("tuples={") :].partition("atoms={")
    names = re.findall(r'^ +b"(\w+)": ', tuples, re.M)
    words = re.findall(r'^ +b"(\w+)": ', atoms, re.M)
    assert {"eval", "make_env"} <= set(names)
    assert {"ping"} <= set(words)
    text = (ROOT / document).read_text(encoding="utf-8")
    assert [name for name in names if f"| `{{:{name}," not in text] == []
    assert [word for word in words if f"| `:{word}` |" not in text] == []


def help_of(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "snex_runtime", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_commands_and_options_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    part = readme[readme.index("## Command line") : readme.index("## The contract")]
    commands = set(re.findall(r"`snex-node ([a-z]+)", part))
    assert commands <= set(re.findall(r"^    ([a-z]+) ", help_of(), re.M))
    helps = "".join(help_of(command) for command in commands)
    options = set(re.findall(r"`(--[a-z-]+)", part))
    assert len(options) > 10
    assert {option for option in options if option not in helps} == set()


QUICK_STARTS = ["README.md", "elixir/README.md", "elixir/lib/snex/interpreter.ex"]


@pytest.mark.parametrize("document", QUICK_STARTS)
def test_examples_bound_the_python_that_they_require(document: str) -> None:
    """Without a bound uv takes the newest Python, which packages may not be built for yet."""
    text = (ROOT / document).read_text(encoding="utf-8")
    required = re.findall(r'requires-python = "(.+)"', text)
    assert required
    assert [one for one in required if "==" not in one and "<" not in one] == []


@pytest.mark.parametrize("document", QUICK_STARTS[:2])
def test_installing_from_git_is_shown(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert re.search(r'\{:snex, git: "\S+", subdir: "elixir"\}', text)


@pytest.mark.parametrize("document", QUICK_STARTS[:2])
def test_the_names_of_variables_are_told_of(document: str) -> None:
    """The contract takes atoms too, the client does not: both say so."""
    text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    assert re.search(r"client takes binary ones alone|Names of variables are strings", text)


def test_sections_of_the_readme_that_the_code_names_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ (.+)$", readme, re.M))
    code = [*ROOT.glob("elixir/lib/**/*.ex"), *ROOT.glob("snex*/**/*.py")]
    named = {
        name
        for path in code
        # "in the README of Snex" is the original's.
        for name in re.findall(
            r'"([\w ]+)" in the\s+README(?! of Snex)', path.read_text(encoding="utf-8")
        )
    }
    assert named
    assert named <= headings


def test_every_python_of_the_classifiers_is_promised() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    minors = [int(minor) for minor in re.findall(r'"Programming .* :: 3\.(\d+)"', pyproject)]
    assert minors == list(range(10, 16))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"CPython 3.{minors[0]} to 3.{minors[-1]}," in readme


def _elixir_modules() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in ROOT.glob("elixir/lib/**/*.ex"))
    return set(re.findall(r"^defmodule ([\w.]+) do$", "\n".join(sources), re.M))


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "RELEASING.md",
        ".github/ISSUE_TEMPLATE/bug.md",
        ".github/ISSUE_TEMPLATE/feature.md",
        "elixir/README.md",
        *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("elixir/guides/*md")),
        *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
        *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*/*.md")),
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\((?!https:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        if target.parent == GENERATED:  # by `make docs`, which checks what is in it
            assert target.stem in _elixir_modules(), link
            continue
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
