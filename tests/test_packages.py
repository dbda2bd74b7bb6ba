"""The package for Python: what is in it, and that it runs where nothing else is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import snex_node
from tests.support import mix
from tests.support.ports import free_port

pytestmark = [pytest.mark.beside, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
PACKAGES = ("snex", "snex_node", "snex_runtime")


def pythons() -> list[str]:
    """One Python of each release that we support and this machine has."""
    found = {sys.version_info[:2]: sys.executable}
    for path in Path.home().glob(".pyenv/versions/3.*/bin/python"):
        number = re.match(r"3\.(\d+)\.\d+$", path.parents[1].name)
        if number is not None and int(number[1]) >= 10:
            found.setdefault((3, int(number[1])), str(path))
    return [found[version] for version in sorted(found)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with both files, made of a clone, as a release is."""
    directory = tmp_path_factory.mktemp("packages")
    mix.make_repository(directory / "repository")
    clone = mix.clone(directory / "repository", directory / "clone")
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, clone)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def test_what_is_in_the_wheel(wheel: Path) -> None:
    assert wheel.name == f"snex_node-{snex_node.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    typed = {f"{package}/py.typed" for package in PACKAGES}
    about = f"snex_node-{snex_node.__version__}.dist-info"
    files = {f"{about}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    assert names == sources | typed | files | {f"{about}/licenses/LICENSE"}


def test_what_it_says_of_itself(wheel: Path) -> None:
    about = f"snex_node-{snex_node.__version__}.dist-info/METADATA"
    told = message_from_string(zipfile.ZipFile(wheel).read(about).decode())
    assert told["Name"] == "snex-node"
    assert told["Version"] == snex_node.__version__
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.10"
    needed = [line for line in told.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert needed == [], "at run time the standard library is enough"
    assert told.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_in_the_source_distribution(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml", "PKG-INFO")
    assert names.issuperset(needed)
    assert {"tests/conftest.py", "elixir/mix.exs", "examples/call_elixir.py"} <= names
    assert not [name for name in names if "__pycache__" in name or "/_build/" in name]


@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).resolve().name)
def test_it_runs_where_nothing_else_is(python: str, wheel: Path, tmp_path: Path) -> None:
    """Installed into an empty environment, from the wheel alone; a node starts and answers."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PIP_"))
    }
    place = tmp_path / "venv"

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(python, "-m", "venv", "--without-pip", place)
    pip = (sys.executable, "-m", "pip", "--python", place / "bin/python")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel)
    assert run(place / "bin/snex-node", "--version") == f"snex-node {snex_node.__version__}\n"
    where = "import snex_node; print(snex_node.__file__)"
    assert Path(run(place / "bin/python", "-c", where)).is_relative_to(place)
    # Two nodes, and an epmd of their own: there is no Erlang.
    environment |= {"PATH": str(tmp_path), "ERL_EPMD_PORT": str(free_port())}
    assert "All of it worked" in run(place / "bin/snex-node", "demo").splitlines()[-1]
