"""Walks of new users, each from an empty directory, along the pages of the site."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import mix
from tests.support.beam import QUIET_SCHEDULERS
from tests.support.epmd import RealEpmd

pytestmark = [pytest.mark.beside, pytest.mark.interop, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
WALKS = ROOT / "tests" / "walks"
HIDDEN = ("ERL_", "ELIXIR_", "MIX_", "PYTHON", "VIRTUAL_ENV", "PIP_", "SNEX_", "CI")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of this tree, in place of the released one."""
    directory = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", directory)
    done = subprocess.run((*command, ROOT), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


def walk(name: str, directory: Path, epmd: RealEpmd, **settings: object) -> list[str]:
    """The lines that it prints; it must succeed."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(HIDDEN)}
    done = subprocess.run(
        ["sh", str(WALKS / name)],
        cwd=directory,
        env={
            **inherited,
            "ERL_EPMD_PORT": str(epmd.port),
            "ERL_AFLAGS": QUIET_SCHEDULERS,
            "MIX_HOME": os.environ.get("MIX_HOME", str(Path.home() / ".mix")),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **{key: str(value) for key, value in settings.items()},
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=mix.SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def test_the_author_of_a_library(wheel: Path, tmp_path: Path, epmd: RealEpmd) -> None:
    mypy = Path(sys.executable).with_name("mypy")
    printed = walk("author.sh", tmp_path, epmd, SNEX_NODE=wheel, MYPY=mypy)
    assert printed[-1] == "the library works"


def test_an_operator(wheel: Path, tmp_path: Path, epmd: RealEpmd) -> None:
    names = {name: name.lower() + secrets.token_hex(4) for name in ("SMALL", "LARGE", "USER_NAME")}
    printed = walk("operator.sh", tmp_path, epmd, SNEX_NODE=wheel, **names)
    assert printed[-1] == "both have served and stopped"
    cookie = (tmp_path / "cookie").read_text()
    files = [path for path in tmp_path.iterdir() if path.is_file() and "cookie" not in path.name]
    shown = "\n".join([*printed, *(path.read_text(errors="replace") for path in files)])
    assert cookie not in shown


def test_the_developer_of_an_application(tmp_path: Path, epmd: RealEpmd) -> None:
    repository = tmp_path / "repository"
    mix.make_repository(repository)
    mix.clone(repository, tmp_path / "snex-node")
    walked = tmp_path / "walk"
    walked.mkdir()
    dependency = '{:snex, path: "../../snex-node/elixir"}'
    printed = walk("application.sh", walked, epmd, SNEX=dependency)
    assert printed[-1] == "the release scores"
    shutil.rmtree(walked)
