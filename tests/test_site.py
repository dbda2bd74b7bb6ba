"""The documentation site: it builds without a warning, and the code on its pages runs."""

from __future__ import annotations

import argparse
import ast
import asyncio
import configparser
import contextlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from snex_node.wire import etf
from snex_runtime import cli
from tests.support import mix
from tests.support.beam import QUIET_SCHEDULERS
from tests.support.epmd import RealEpmd, executable
from tests.support.pages import ROOT, Block, blocks

pytestmark = [pytest.mark.beside, pytest.mark.timeout(300)]

NOTEBOOK = ROOT / "elixir" / "guides" / "snex.livemd"
GUIDES = sorted((ROOT / "elixir" / "guides").glob("*.*md"))
PAGES = [
    *(
        path
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if "reference" not in path.parts or path.parent.parent.name == "docs"
    ),
    *GUIDES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "RELEASING.md", "elixir/README.md")),
]
BUILD = ROOT / "build" / "elixir"
"""Where `make docs` builds the client, too."""
LANGUAGES = {
    "elixir",
    "python",
    "sh",
    "console",
    "yaml",
    "ini",
    "toml",
    "dockerfile",
    "text",
    "diff",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_mix(arguments: list[str], env: dict[str, str] | None = None) -> str:
    return mix.run(
        ROOT / "elixir",
        "mix",
        *arguments,
        env={
            "MIX_ENV": "dev",
            "MIX_BUILD_PATH": str(BUILD),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            **(env or {}),
        },
    )


# --- Elixir ---------------------------------------------------------------------------------------


def elixir_of(page: Path) -> Iterator[tuple[str, int, str]]:
    """The Elixir of a page as pages.exs takes it: kind, line and code."""
    for block in blocks(page):
        if block.language not in ("elixir", "hidden"):
            continue
        if block.not_run or (block.needs and not importlib.util.find_spec(block.needs)):
            yield "parse", block.line, block.text
        else:
            yield ("iex" if block.text.startswith("iex> ") else "run"), block.line, block.text


@contextlib.contextmanager
def node_of_the_pages(home: Path, epmd_port: int) -> Iterator[str]:
    """``snex-node start``, as a page says it; gives the cookie."""
    cookie = "cookie-of-the-pages"
    (home / ".erlang.cookie").write_text(cookie)
    (home / ".erlang.cookie").chmod(0o400)
    process = subprocess.Popen(
        [sys.executable, "-m", "snex_runtime", "start"],
        env={**os.environ, "HOME": str(home), "ERL_EPMD_PORT": str(epmd_port)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready py@127.0.0.1 ")
        yield cookie
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.interop
def test_the_elixir_of_the_pages_runs(
    epmd: RealEpmd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERL_EPMD_PORT", str(epmd.port))
    pages = [(name_of(page), list(elixir_of(page))) for page in PAGES if page != NOTEBOOK]
    file = tmp_path / "pages.etf"
    file.write_bytes(etf.encode([(name, code) for name, code in pages if code]))
    with node_of_the_pages(tmp_path, epmd.port) as cookie:
        run_mix(
            ["run", str(ROOT / "tests/support/pages.exs"), str(file)],
            {
                "PAGES_COOKIE": cookie,
                "PAGES_PYTHON": sys.executable,
                "ERL_AFLAGS": f"{QUIET_SCHEDULERS} -start_epmd false",
            },
        )


@pytest.mark.interop
def test_the_notebook_runs_from_top_to_bottom(
    epmd: RealEpmd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells as one script, with the client of this tree in the place of the released one."""
    monkeypatch.setenv("ERL_EPMD_PORT", str(epmd.port))
    cells = [block.text for block in blocks(NOTEBOOK) if block.language == "elixir"]
    install, count = re.subn(r"{:snex, .+}", f'{{:snex, path: "{ROOT}/elixir"}}', cells[0])
    assert count == 1
    assert install.startswith("Mix.install(")
    (tmp_path / "notebook.exs").write_text("\n".join([install, *cells[1:]]))
    env = {
        # Compiled once, and again when the client has changed.
        "MIX_INSTALL_DIR": str(ROOT / "build" / "notebook"),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "ERL_AFLAGS": f"{QUIET_SCHEDULERS} -start_epmd false",
    }
    printed = mix.run(tmp_path, "elixir", "notebook.exs", env=env)
    assert "mean requires at least one data point" in printed


# --- Python ---------------------------------------------------------------------------------------


@pytest.mark.interop
async def test_the_python_of_the_pages_runs(
    epmd: RealEpmd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As typed into ``python -m asyncio``."""
    monkeypatch.setenv("ERL_EPMD_PORT", str(epmd.port))
    for page in PAGES:
        names: dict[str, object] = {"__name__": "page"}
        for block in blocks(page):
            if block.language != "python":
                continue
            # The lines of the page, for tracebacks.
            source = "\n" * (block.line - 1) + block.text
            code = compile(source, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if block.not_run:
                continue
            result = eval(code, names)
            if asyncio.iscoroutine(result):
                await result


# --- commands -------------------------------------------------------------------------------------

PROGRAMS = {
    *("snex-node", "make", "mix", "iex", "elixir", "pip", "python", "git", "docker", "kubectl"),
    *(
        "systemctl",
        "journalctl",
        "useradd",
        "install",
        "cp",
        "chmod",
        "ssh",
        "epmd",
        "cd",
        "export",
    ),
    *("tests/compat/run", ".venv/bin/python", "openssl", "uv", "nc", "echo"),
}


def commands_of(block: Block) -> Iterator[list[str]]:
    """The commands of a block for a shell: all lines, or in ``console`` those behind a prompt."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith(("$ ", "# ")):
                continue
            line = line[2:]
        for part in re.split(r" && | \|\| | \| ", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
                words = words[1:]
            if words:
                yield words


@pytest.mark.interop
def test_commands_print_what_the_pages_say(epmd: RealEpmd, tmp_path: Path) -> None:
    """Those that ask a node, asked of one that was started as the pages say."""
    asked = 0
    with node_of_the_pages(tmp_path, epmd.port):
        for page in PAGES:
            for block in blocks(page):
                if block.language != "console" or block.not_run:
                    continue
                for line, expected in sessions(block):
                    words = shlex.split(line)
                    setting = dict([words.pop(0).split("=", 1)]) if "=" in words[0] else {}
                    if words[1] not in ("ping", "eval", "names"):
                        continue
                    printed = ask(words, tmp_path, epmd.port, setting)
                    pattern = ".*".join(map(re.escape, expected.split("...")))
                    assert re.fullmatch(pattern, printed), f"{name_of(page)}: {line}\n{printed}"
                    asked += 1
    assert asked > 5


def sessions(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with what stands below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        line, _, printed = part.partition("\n")
        if "snex-node " in line:
            yield line, printed.strip()


def ask(words: list[str], home: Path, epmd_port: int, setting: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snex_runtime", *words[1:]],
        env={**os.environ, "HOME": str(home), "ERL_EPMD_PORT": str(epmd_port), **setting},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip()


def check_snex_node(arguments: list[str]) -> None:
    """Fail unless the command would take the arguments."""
    if arguments[-1:] == ["--help"] or arguments == ["--version"]:
        return
    args, rest = cli._parser().parse_known_args(arguments)
    assert args.run is not None, f"no command: {arguments}"
    if args.run is cli._eval:
        cli._find_code(args, rest)
    assert not rest, f"unknown: {rest}"


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.M))


@each_page
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language not in ("sh", "console"):
            continue
        for program, *arguments in commands_of(block):
            program = Path(program).name if program.startswith("/opt/") else program
            assert program in PROGRAMS, f"{name_of(page)}:{block.line}: {program}"
            if program == "snex-node":
                check_snex_node(arguments)
            elif program == "make":
                wanted = {argument for argument in arguments if "=" not in argument}
                assert wanted <= make_targets(), f"{name_of(page)}:{block.line}: {arguments}"


def inline_commands(page: Path) -> Iterator[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    yield from re.findall(r"`(snex-node [a-z][^`]*)`", text)


@each_page
def test_commands_in_sentences_have_options_that_exist(page: Path) -> None:
    helps = {name: parser.format_help() for name, parser in parsers().items()}
    for command in inline_commands(page):
        name, *arguments = command.split()[1:]
        assert name in helps, f"{name_of(page)}: {command}"
        for option in re.findall(r"(--[a-z-]+)", " ".join(arguments)):
            assert option in helps[name], f"{name_of(page)}: {command}"


def parsers() -> dict[str, argparse.ArgumentParser]:
    actions = cli._parser()._actions
    (group,) = (a for a in actions if isinstance(a, argparse._SubParsersAction))
    return dict(group.choices)


@each_page
def test_a_block_says_what_language_it_is(page: Path) -> None:
    """And so it is checked; ``text`` and ``diff`` are for what cannot be."""
    for block in blocks(page):
        if block.hidden:
            continue
        assert block.language in LANGUAGES, f"{name_of(page)}:{block.line}: {block.language!r}"
        if block.language == "yaml":
            list(pytest.importorskip("yaml").safe_load_all(block.text))
        if block.language == "dockerfile":
            words = {line.split()[0] for line in block.text.splitlines() if line.strip()}
            assert words <= {"FROM", "USER", "RUN", "COPY", "ENV", "CMD"}, words
        if block.language == "ini":
            configparser.ConfigParser(strict=False).read_string(block.text)


def test_every_guide_is_one_of_the_documentation_of_the_client() -> None:
    mixfile = (ROOT / "elixir" / "mix.exs").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"guides/(\S+)"', mixfile)) == [guide.name for guide in GUIDES]
    assert '"SNEX_DOCS"' in mixfile  # what only documentation needs is named for that alone


# --- the site -------------------------------------------------------------------------------------


@pytest.mark.interop
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """By what `make docs` runs; only where its tools are installed, which in CI they are."""
    if not os.environ.get("CI"):
        pytest.importorskip("sphinx")
    executable("mix")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    links_lead_to_anchors(tmp_path / "site")


def links_lead_to_anchors(site: Path) -> None:
    """Sphinx looks at links to pages; those that our extension makes are looked at here."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r' id="([^"]+)"', text)) for path, text in pages.items()}
    assert len(pages) > 30
    broken = []
    for path, text in pages.items():
        for link in re.findall(r' href="([^":]+)"', text):
            name, _, anchor = link.partition("#")
            target = (path.parent / urllib.parse.unquote(name)).resolve() if name else path
            if target.suffix != ".html":
                continue
            if target not in pages or (anchor and anchor not in anchors[target]):
                broken.append(f"{path.name}: {link}")
    assert broken == []
    # Nothing is fetched when somebody reads it.
    assert not [
        path.name
        for path, text in pages.items()
        if re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', text)
    ]
