"""Clones of this repository, and Mix projects of users who install the client from them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.beam import QUIET_SCHEDULERS
from tests.support.epmd import executable

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 150.0
"""What one run of Mix may take: some five on an idle machine, more where all cores are taken."""

# The Python below the virtual environment of the tests: there our packages are not installed, so
# that only those which the client brings can be found.
PYTHON: str = getattr(sys, "_base_executable", sys.executable)

CHECK = """\
defmodule Demo do
  # Tells where Python found our packages, and whether environments are freed by the garbage
  # collector.
  def check do
    {:ok, _} = Application.ensure_all_started(:snex)
    {:ok, python} = Snex.Interpreter.start_link(python: System.fetch_env!("DEMO_PYTHON"))
    {:ok, file} = Snex.pyeval(python, "import snex_runtime; return snex_runtime.__file__")
    IO.puts("found #{file}")
    IO.puts("nif #{Snex.Nif.loaded?()}")
    Snex.Interpreter.stop(python)
  end
end
"""


def git(*arguments: str | Path) -> None:
    """Run git, which must succeed; it needs no configuration and reads none of the user's."""
    settings = ("user.name=test", "user.email=test@example.org", "commit.gpgsign=false")
    command = [executable("git")]
    for setting in (*settings, "init.defaultBranch=main", "safe.directory=*"):
        command += ["-c", setting]
    subprocess.run([*command, *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def make_repository(directory: Path) -> None:
    """Make a bare repository of the work tree: its files as they are, but none that git ignores."""
    git("init", "--quiet", "--bare", directory)
    tree = (f"--git-dir={directory}", f"--work-tree={ROOT}")
    git(*tree, "add", "--all", ROOT)
    git(*tree, "commit", "--quiet", "--message", "The work tree")


def clone(repository: Path, directory: Path) -> Path:
    """Clone a repository, as a stranger would; returns the directory."""
    git("clone", "--quiet", repository, directory)
    return directory


def mix_exs(module: str, app: str, dependencies: str) -> str:
    """The mix.exs of a project with these dependencies, and nothing else of note."""
    return f"""\
defmodule {module}.MixProject do
  use Mix.Project

  def project, do: [app: :{app}, version: "0.1.0", deps: {dependencies}]
  def application, do: [extra_applications: [:logger]]
end
"""


def write(directory: Path, files: Mapping[str, str]) -> None:
    """Write texts to files below a directory."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def run(
    directory: Path, *command: str, env: Mapping[str, str] | None = None, status: int = 0
) -> str:
    """Run a program of Elixir as users do, and return what it says.

    Nothing of the tests' own environment decides what is built, or which Python code is found. Of
    Erlang's variables the port of an epmd stays: without one the client starts OTP's, which stays.
    """
    ours = re.compile(r"ERL_(?!EPMD_PORT$)|ELIXIR_|MIX_|PYTHON")
    inherited = {name: value for name, value in os.environ.items() if not ours.match(name)}
    done = subprocess.run(
        [executable(command[0]), *command[1:]],
        check=False,
        cwd=directory,
        env={
            **inherited,
            "DEMO_PYTHON": PYTHON,
            "ERL_AFLAGS": QUIET_SCHEDULERS,
            "MIX_HOME": os.environ.get("MIX_HOME", str(Path.home() / ".mix")),
            **(env or {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == status, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
    return done.stdout


def answer(output: str, name: str) -> str:
    """What `Demo.check` told under a name."""
    start = f"{name} "
    lines = [line for line in output.splitlines() if line.startswith(start)]
    assert len(lines) == 1, output
    return lines[0].removeprefix(start)
