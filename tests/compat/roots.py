"""Run the tests against other versions of Erlang/OTP, Elixir and Python.

Each set of versions is a Debian release, installed with debootstrap into a directory ("root") that
is kept between runs. pytest and the client's `mix test` run inside it on a copy of the work tree,
cut off from the machine: own processes, own mounts, a network of loopback only, nothing written
outside the copy, uv's cache and /tmp.

Started by ``tests/compat/run``; ``README.md`` beside this file tells what it needs and keeps.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, NamedTuple

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent


class Versions(NamedTuple):
    """Where a root's versions come from: a Debian release, and the name of a Python in it."""

    suite: str
    python: str = "python3"


ROOTS = {
    "bookworm": Versions("bookworm"),
    "trixie": Versions("trixie"),
    "sid": Versions("sid"),
    "sid-3.15": Versions("sid", "python3.15"),
}

BEAM_PACKAGES = (
    "elixir",
    "erlang-base",
    "erlang-crypto",
    "erlang-dev",
    "erlang-eunit",
    "erlang-inets",
    "erlang-parsetools",
    "erlang-public-key",
    "erlang-runtime-tools",
    "erlang-ssl",
    "erlang-syntax-tools",
    "erlang-tools",
    "erlang-xmerl",
)
TOOL_PACKAGES = ("gcc", "git", "iproute2", "libc6-dev", "make", "procps")

# The tests of the client make environments with uv.
UV = "uv>=0.6.8"

# Paths inside a root.
COPY = "/srv/snex-node"
VENV = "/srv/venv"
LOGS = "/srv/logs"
UV_FILES = "/srv/uv"
PATH = f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

HOSTS = "127.0.0.1 localhost\n127.0.0.1 snex-compat\n::1 localhost ip6-localhost\n"

BUILD_LIMIT_S = 1800  # a root takes two to three minutes from a near mirror
SUITE_LIMIT_S = 3600  # the suite takes minutes; past an hour something hangs

APT_OPTION = re.compile(r"Acquire::(https?|ftp|Retries|Check-|ForceIPv|Allow)", re.IGNORECASE)
PASSED_ON = re.compile(
    r"PIP_\w+|UV_\w*(INDEX|LINKS|HOST|TIMEOUT|TLS|CERTS)\w*"
    r"|SSL_CERT_(FILE|DIR)|(REQUESTS_CA|CURL_CA)_BUNDLE|(https?|ftp|no|all)_proxy",
    re.IGNORECASE,
)
# A heredoc of an Elixir test that is a pyproject.toml; in a text within a text its quotes are
# escaped.
PYPROJECT = re.compile(r'((?:\\?"){3})\n( *\[project\]\n.*?)\n *\1', re.DOTALL)
# What ExUnit says at its end: "5 doctests, 12 tests, 1 failure, 2 excluded, 3 skipped", and from
# Elixir 1.20 on "Result: 11/12 passed (4 doctests, 7 tests), 3 skipped, 2 excluded", or without the
# 12 when all passed.
EXUNIT = re.compile(r"^((?:\d+ \w+, )+)(\d+) failures?(.*)$", re.MULTILINE)
EXUNIT_1_20 = re.compile(r"^Result: (\d+)(?:/(\d+))? passed(.*)$", re.MULTILINE)
# Prints the requirements of an installed distribution that apply here with its extra `dev`.
LIST_REQUIREMENTS = """
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for text in importlib.metadata.requires(sys.argv[1]) or []:
    requirement = Requirement(text)
    if requirement.marker is None or requirement.marker.evaluate({"extra": "dev"}):
        requirement.marker = None
        print(requirement)
"""


class StepError(Exception):
    """A step of the preparation failed; the text says which, why and where its log is."""


@dataclass(frozen=True)
class Root:
    """A Debian release installed below the cache directory, and where its files lie."""

    name: str
    cache: Path

    @property
    def suite(self) -> str:
        return ROOTS[self.name].suite

    @property
    def python(self) -> str:
        """The command that makes the virtual environment."""
        return ROOTS[self.name].python

    @property
    def packages(self) -> list[str]:
        python = (self.python, f"{self.python}-dev", f"{self.python}-venv")
        return [*BEAM_PACKAGES, *python, *TOOL_PACKAGES]

    @property
    def directory(self) -> Path:
        return self.cache / self.name

    @property
    def partial(self) -> Path:
        """Where the root is built; it gets its name when it is complete."""
        return self.cache / f"{self.name}.partial"

    @property
    def logs(self) -> Path:
        return self.cache / "logs" / self.name

    @property
    def recipe(self) -> Path:
        """The file that says what the root was built from."""
        return self.directory / "srv" / "recipe"

    def below(self, path: str) -> Path:
        """The path on the machine of *path* inside the root."""
        return self.directory / path.lstrip("/")


@dataclass
class Row:
    """One line of the closing table: the versions found in a root and what tests did there."""

    root: str
    built: str = "-"
    otp: str = "-"
    elixir: str = "-"
    python: str = "-"
    tests: str = "-"
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether tests ran and nothing went wrong."""
        return self.passed > 0 and self.failed == 0 and not self.problems


# --- running commands -------------------------------------------------------------------------


def stream(command: Sequence[str], log: IO[bytes], *, echo: bool, limit_s: float) -> int:
    """Run *command* with its output going to *log*, and to standard output too when *echo* is set.

    Returns its exit status. Past *limit_s* seconds, and when this process is interrupted, the
    command is killed; `isolated` makes that the end of everything it started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C comes to us, not to the half of the commands
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if echo:
                    sys.stdout.buffer.write(line)
                    sys.stdout.flush()
            return process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()


def step(what: str, command: Sequence[str], log: Path) -> None:
    """Run one *command* of the preparation, appending its output to *log*.

    Raises StepError, with the end of the output, when it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        status = stream(command, output, echo=False, limit_s=BUILD_LIMIT_S)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise StepError(f"{what} failed (status {status}); log: {log}\n{tail}")


def isolated(command: Sequence[str], *, network: bool) -> list[str]:
    """The command line that runs *command* in namespaces which end, processes included, with it.

    ``setpriv`` ends it when this process dies, however it dies; ``--kill-child`` does the same from
    ``unshare`` to the first process inside, and the kernel from that one to all the others.
    """
    own_network = [] if network else ["--net"]
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--uts", "--ipc", *own_network, "--fork", "--kill-child"),
        *command,
    ]


def inside(
    directory: Path,
    command: Sequence[str],
    *,
    sealed: bool,
    binds: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """The command line that runs *command* inside the root at *directory* (see ``enter``).

    *binds* maps paths on the machine to paths in the root. *env* is added to a small environment.
    """
    mounts = [word for pair in (binds or {}).items() for word in ("--bind", *pair)]
    variables = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "CI": "true", **(env or {})}
    return isolated(
        [
            *(str(HERE / "enter"), str(directory), "sealed" if sealed else "building"),
            *mounts,
            *("--", "env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *command,
        ],
        network=not sealed,
    )


# --- what the machine says --------------------------------------------------------------------


def machine_mirror() -> str:
    """The address from which this machine's apt gets Debian's main archive.

    Raises StepError when its apt has no such source.
    """
    fields = "$(CREATED_BY)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", fields],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return first_of_list(debian_mirror(targets, own_codename()))


def debian_mirror(targets: str, codename: str) -> str:
    """Pick the main archive from the lines of ``apt-get indextargets``.

    Those of the release itself: its updates share the archive, its security fixes have their own.
    """
    releases = {codename, "stable", "testing", "unstable", "sid"}
    for line in targets.splitlines():
        kind, release, component, address = line.split("|")
        if kind == "Packages" and component == "main" and release in releases:
            return address
    raise StepError(
        f"apt on this machine has no source for Debian {codename or '(unknown release)'} main; "
        "add one to /etc/apt/sources.list.d, the roots are installed from the same place"
    )


def first_of_list(address: str) -> str:
    """Resolve apt's ``mirror+file:`` addresses, which cloud images have, to their first mirror."""
    if not address.startswith("mirror+file:"):
        return address
    listing = Path(address.removeprefix("mirror+file:").rstrip("/"))
    return listing.read_text().split(maxsplit=1)[0]


def own_codename() -> str:
    """The code name of this machine's release, empty for one that has none."""
    found = re.search(r'^VERSION_CODENAME="?(\w+)', Path("/etc/os-release").read_text(), re.M)
    return found[1] if found else ""


def apt_options() -> str:
    """The machine's own settings for fetching packages (proxy, checks), as an apt.conf."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    wanted = [line for line in dump.splitlines() if APT_OPTION.match(line)]
    ours = ['APT::Install-Recommends "false";', 'Acquire::Languages "none";']
    return "\n".join([*wanted, *ours]) + "\n"


def pip_files(environ: Mapping[str, str], home: Path) -> list[Path]:
    """The configuration files that pip reads on this machine for every environment."""
    candidates = [
        Path(environ.get("PIP_CONFIG_FILE", "")),
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
    ]
    return [path for path in candidates if path.is_file()]


def local_paths(text: str) -> Iterator[Path]:
    """The files and directories of this machine that a configuration text names.

    For a ``file:`` address the directory that holds it counts: an index kept on disk links to its
    packages by relative addresses beside itself.
    """
    for word in re.split(r"[\s=;\"']+", text):
        if word.startswith("file:///"):
            path = Path(urllib.parse.unquote(word.removeprefix("file://"))).parent
        elif word.startswith("/"):
            path = Path(word)
        else:
            continue
        if path.exists() and path != Path("/"):
            yield path


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell pip and apt how this machine reaches its mirrors."""
    return {name: value for name, value in environ.items() if PASSED_ON.fullmatch(name)}


def network_binds(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """What a root needs of the machine to fetch packages as the machine does."""
    configuration = pip_files(environ, home)
    texts = [path.read_text() for path in configuration] + list(passed_on(environ).values())
    wanted = [Path("/etc/resolv.conf"), Path("/etc/hosts"), Path("/etc/ssl/certs")]
    wanted += [path for text in texts for path in local_paths(text)]
    binds = {str(path): str(path) for path in wanted if path.exists()}
    for path in configuration:  # in the root the home directory is /root
        inner = Path("/root") / path.relative_to(home) if path.is_relative_to(home) else path
        binds[str(path)] = str(inner)
    return binds


# --- building a root --------------------------------------------------------------------------


def recipe(root: Root) -> str:
    """What a root is built from; a root with another recipe is built anew."""
    return "\n".join(root.packages) + "\n"


def remove(directory: Path) -> None:
    """Delete a root, staying on its file system in case something was mounted there by hand."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(directory)], check=True)


def ensure_debootstrap(log: Path) -> None:
    if shutil.which("debootstrap") is None:
        step("installing debootstrap", ["apt-get", "update"], log)
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "debootstrap"]
        step("installing debootstrap", install, log)


def build(root: Root, mirror: str) -> None:
    """Install the release and its packages, in place of the root that is there."""
    log = root.logs / "build.log"
    log.unlink(missing_ok=True)
    remove(root.partial)
    root.partial.mkdir(parents=True)
    ensure_debootstrap(log)
    variant = ["--variant=minbase", "--include=ca-certificates"]
    debootstrap = ["debootstrap", *variant, root.suite, str(root.partial), mirror]
    step("debootstrap", isolated(["sh", "-c", with_proc(debootstrap)], network=True), log)
    configure(root.partial)
    binds = network_binds(os.environ, Path.home())
    environment = {**passed_on(os.environ), "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", *root.packages]):
        line = inside(root.partial, command, sealed=False, binds=binds, env=environment)
        step(" ".join(command[:2]), line, log)
    shutil.rmtree(root.partial / "var/cache/apt/archives", ignore_errors=True)
    (root.partial / "srv/recipe").write_text(recipe(root))
    remove(root.directory)
    root.partial.rename(root.directory)


def with_proc(command: Sequence[str]) -> str:
    """A shell line for a command in a process namespace of its own, which has to see its /proc."""
    return f"mount -t proc proc /proc && {shlex.join(command)}; exit $?"


def configure(directory: Path) -> None:
    """Write the few files in which a root differs from Debian's defaults."""
    options = directory / "etc/apt/apt.conf.d/00machine"
    options.touch(mode=0o600)  # a proxy address may hold a password
    options.write_text(apt_options())
    policy = directory / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # install services (epmd is one), never start them
    policy.chmod(0o755)
    (directory / "etc/hosts").write_text(HOSTS)
    for path in (COPY, VENV, LOGS):
        (directory / path.lstrip("/")).mkdir(parents=True, exist_ok=True)


def up_to_date(root: Root) -> bool:
    return root.recipe.is_file() and root.recipe.read_text() == recipe(root)


# --- the project in a root --------------------------------------------------------------------


def work_tree() -> list[str]:
    """The files of the work tree as it is now: committed, changed and new, but none ignored."""
    listing = subprocess.run(
        # The tree belongs to a user and we are root, which git would take for an attack.
        [
            *("git", "-c", f"safe.directory={PROJECT}", "-C", str(PROJECT)),
            *("ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        ],
        check=True,
        capture_output=True,
    ).stdout
    names = {os.fsdecode(name) for name in listing.split(b"\0") if name}
    return sorted(name for name in names if os.path.lexists(PROJECT / name))


def copy_project(root: Root) -> None:
    """Replace the copy of the project in the root by the work tree."""
    target = root.below(COPY)
    remove(target)
    target.mkdir()
    for name in work_tree():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, target / name, follow_symlinks=False)


def install_project(root: Root) -> list[str]:
    """Install the project, its `dev` extra and uv in the root's virtual environment.

    Nothing is done while these are the same. Returns the requirements that cannot be had for the
    root's Python; a new Python is ahead of the wheels for it.
    """
    wanted = hashlib.sha256((PROJECT / "pyproject.toml").read_bytes() + UV.encode()).hexdigest()
    stamp = root.below(VENV) / "installed.json"
    if stamp.is_file():
        done = json.loads(stamp.read_text())
        if done["pyproject"] == wanted:
            return [str(name) for name in done["missing"]]
    log = root.logs / "install.log"
    log.unlink(missing_ok=True)
    command = [root.python, "-m", "venv", "--clear", VENV]
    in_root(root, "making a virtual environment", command, log)
    try:
        pip(root, "-e", f"{COPY}[dev]", UV, log=log)
        missing = []
    except StepError:
        missing = install_one_by_one(root, log)
    stamp.write_text(json.dumps({"pyproject": wanted, "missing": missing}))
    return missing


def install_one_by_one(root: Root, log: Path) -> list[str]:
    """Install the project and what can be had of its requirements; return the others.

    Raises StepError when the project itself cannot be installed.
    """
    pip(root, "--no-deps", "-e", COPY, log=log)
    command = [f"{VENV}/bin/python", "-c", LIST_REQUIREMENTS, "snex-node"]
    listing = subprocess.run(
        inside(root.directory, command, sealed=False), check=True, capture_output=True, text=True
    ).stdout
    missing = []
    for requirement in [*listing.splitlines(), UV]:
        try:
            pip(root, requirement, log=log)
        except StepError:
            missing.append(requirement)
    return missing


def pip(root: Root, *arguments: str, log: Path) -> None:
    """``pip install`` in the root, with the machine's configuration."""
    # The cache directory is the machine's own, and often not ours to write.
    install = [f"{VENV}/bin/python", "-m", "pip", "install", "--no-cache-dir", *arguments]
    in_root(root, f"pip install {' '.join(arguments)}", install, log)


def in_root(
    root: Root,
    what: str,
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a step of the preparation in the root, with the machine's network."""
    binds = network_binds(os.environ, Path.home())
    environment = {**passed_on(os.environ), **(env or {})}
    line = inside(root.directory, command, sealed=False, binds=binds, env=environment)
    step(what, line, log)


def pyprojects(directory: Path) -> dict[str, bytes]:
    """The Python projects below a directory of Elixir tests: texts in them, and files.

    Each is a directory for uv; this maps the files to put there to their content. Texts that Elixir
    completes (``#{...}``) name packages which the test makes.
    """
    found = {}
    for path in sorted(directory.rglob("*.ex*")):
        texts = (match for match in PYPROJECT.finditer(path.read_text()) if "#{" not in match[2])
        for number, match in enumerate(texts):
            found[f"{path.stem}-{number}/pyproject.toml"] = textwrap.dedent(match[2]).encode()
    for path in sorted(directory.rglob("pyproject.toml")):
        for file in (path, path.with_name("uv.lock")):
            if file.is_file():
                found[f"{path.parent.name}/{file.name}"] = file.read_bytes()
    return found


def fill_uv_cache(root: Root) -> bool:
    """Have uv fetch what the client's tests install, as they run without a network.

    Nothing is done while these are the same. Returns whether all could be fetched.
    """
    files = pyprojects(PROJECT / "elixir/test")
    wanted = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    stamp = root.below(VENV) / "uv.stamp"
    if stamp.is_file() and stamp.read_text() == wanted:
        return True
    projects = root.below(UV_FILES) / "projects"
    shutil.rmtree(projects, ignore_errors=True)
    for name, content in files.items():
        (projects / name).parent.mkdir(parents=True, exist_ok=True)
        (projects / name).write_bytes(content)
    log = root.logs / "uv.log"
    log.unlink(missing_ok=True)
    try:
        for project in sorted(path.name for path in projects.iterdir()):
            sync = [f"{VENV}/bin/uv", "sync", "--no-install-project", "--no-managed-python"]
            command = [*sync, "--project", f"{UV_FILES}/projects/{project}"]
            in_root(root, f"uv sync of {project}", command, log, uv_variables(offline=False))
    except StepError as failure:
        say(f"{root.name}: {failure}")
        return False
    stamp.write_text(wanted)
    return True


def uv_variables(*, offline: bool) -> dict[str, str]:
    """Where uv keeps what it has fetched, and whether that has to be enough."""
    variables = {"UV_CACHE_DIR": f"{UV_FILES}/cache", "UV_LINK_MODE": "copy"}
    return {**variables, "UV_OFFLINE": "1"} if offline else variables


# --- the tests --------------------------------------------------------------------------------


def sealed(
    root: Root,
    command: Sequence[str],
    directory: str = COPY,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """The command line that runs *command* in the root as the tests run, in the copy."""
    writable = (COPY, UV_FILES)
    binds = {str(root.below(path)): path for path in writable} | {str(root.logs): LOGS}
    change = ["sh", "-c", f'cd {directory} && exec "$@"', "sh"]
    environment = {**uv_variables(offline=True), **(env or {})}
    return inside(root.directory, [*change, *command], sealed=True, binds=binds, env=environment)


def find_versions(root: Root, row: Row) -> None:
    """Ask the programs in the root who they are; names and dates of releases can be wrong."""
    elixir = ["elixir", "-e", 'IO.write("#{System.otp_release()} #{System.version()}")']
    python = [f"{VENV}/bin/python", "-c", "import platform; print(platform.python_version())"]
    row.otp, row.elixir = ask(root, elixir).split()
    row.python = ask(root, python)
    row.built = f"{datetime.date.fromtimestamp(root.recipe.stat().st_mtime):%Y-%m-%d}"


def ask(root: Root, command: Sequence[str]) -> str:
    done = subprocess.run(
        sealed(root, command),
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise StepError(f"{shlex.join(command)} in the root failed: {done.stderr.strip()}")
    return done.stdout.strip()


def run_pytest(root: Root, arguments: Sequence[str], row: Row) -> None:
    """Run pytest in the root, on the terminal and in its log, and count what it did."""
    report = root.logs / "junit.xml"
    report.unlink(missing_ok=True)
    pytest = [f"{VENV}/bin/python", "-m", "pytest", "-ra", f"--junitxml={LOGS}/{report.name}"]
    with (root.logs / "pytest.log").open("wb") as log:
        status = stream(sealed(root, [*pytest, *arguments]), log, echo=True, limit_s=SUITE_LIMIT_S)
    if report.is_file():
        count(report, row)
    if status < 0:
        row.problems.append(f"pytest was killed; its limit is {SUITE_LIMIT_S} s")
    elif status not in (0, 1):  # 1: tests failed, which the counts say
        row.problems.append(f"pytest ended with status {status}; log: {log.name}")


def count(report: Path, row: Row) -> None:
    """Add up the suites of a JUnit report."""
    for suite in xml.etree.ElementTree.parse(report).getroot().iter("testsuite"):
        failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
        skipped = int(suite.get("skipped", "0"))
        row.failed += failed
        row.skipped += skipped
        row.passed += int(suite.get("tests", "0")) - failed - skipped
        row.seconds += float(suite.get("time", "0"))


def run_mix_test(root: Root, arguments: Sequence[str], row: Row, *, uv: bool) -> None:
    """Run the tests of the Elixir client in the root, on the terminal and in its log."""
    directory = f"{COPY}/elixir"
    env = {"MIX_ENV": "test"} if uv else {"MIX_ENV": "test", "SNEX_TEST_WITHOUT_UV": "1"}
    log = root.logs / "mix-test.log"
    started = time.monotonic()
    with log.open("wb") as output:
        for command in (["mix", "compile", "--warnings-as-errors"], ["mix", "test", *arguments]):
            line = sealed(root, command, directory, env)
            status = stream(line, output, echo=True, limit_s=SUITE_LIMIT_S)
            if status != 0:
                break
    row.seconds = time.monotonic() - started
    count_exunit(log.read_text(errors="replace"), row)
    if status != 0 and row.failed == 0:
        row.problems.append(f"{' '.join(command[:2])} ended with status {status}; log: {log}")


def count_exunit(output: str, row: Row) -> None:
    """Take over what ExUnit counted; excluded tests count as skipped."""
    if found := EXUNIT.search(output):
        skipped = count_skipped(found[3])
        failed = int(found[2])
        passed = sum(map(int, re.findall(r"\d+", found[1]))) - failed - skipped
    elif found := EXUNIT_1_20.search(output):
        skipped = count_skipped(found[3])
        passed = int(found[1])
        failed = int(found[2] or passed) - passed
    else:
        return
    row.passed += passed
    row.failed += failed
    row.skipped += skipped


def count_skipped(text: str) -> int:
    return sum(int(number) for number in re.findall(r"(\d+) (?:excluded|skipped)", text))


def table(rows: Iterable[Row]) -> str:
    """The closing table, one line per root, problems and notes below it."""
    versions_head = ("root", "built", "OTP", "Elixir", "Python")
    lines: list[tuple[str, ...]] = [
        (*versions_head, "tests", "passed", "failed", "skipped", "time", "")
    ]
    remarks = []
    for row in rows:
        counts = (str(row.passed), str(row.failed), str(row.skipped), f"{row.seconds:.0f} s")
        versions = (row.root, row.built, row.otp, row.elixir, row.python)
        lines.append((*versions, row.tests, *counts, "ok" if row.good else "FAILED"))
        remarks += [f"{row.root}: {text}" for text in (*row.problems, *row.notes)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join([*padded, *remarks])


# --- the command ------------------------------------------------------------------------------


@contextmanager
def locked(root: Root) -> Iterator[None]:
    """Keep a second run out of the root, waiting for the first one if need be."""
    root.logs.mkdir(parents=True, exist_ok=True)
    with (root.cache / f"{root.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{root.name}: another run uses this root, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def prepare(root: Root, *, refresh: bool) -> list[str]:
    """Bring the root, the copy of the project and its environment up to date.

    Returns the requirements that are missing there. Raises StepError.
    """
    if refresh or not up_to_date(root):
        mirror = machine_mirror()
        say(f"{root.name}: installing it from {mirror}")
        build(root, mirror)
    copy_project(root)
    root.below(UV_FILES).mkdir(exist_ok=True)
    say(f"{root.name}: installing the project where it changed")
    return install_project(root)


def examine(
    root: Root, pytest: Sequence[str] | None, mix: Sequence[str] | None, *, refresh: bool
) -> list[Row]:
    """Prepare one root; run pytest and `mix test` in it, each with its arguments or not at all."""
    first = Row(root.name)
    rows = []
    try:
        first.notes += [f"without {name}" for name in prepare(root, refresh=refresh)]
        find_versions(root, first)
        versions = f"OTP {first.otp}, Elixir {first.elixir}, Python {first.python}"
        say(f"{root.name}: {versions}; logs in {root.logs}")
        if pytest is not None:
            rows.append(replace(first, tests="pytest"))
            run_pytest(root, pytest, rows[-1])
        if mix is not None:
            rows.append(replace(first, tests="mix test", problems=[], notes=[]))
            uv = fill_uv_cache(root)
            if not uv:
                rows[-1].notes.append("mix test without what needs uv")
            run_mix_test(root, mix, rows[-1], uv=uv)
    except StepError as failure:
        say(f"{root.name}: {failure}")
        rows = rows or [first]
        rows[-1].problems.append(str(failure).splitlines()[0])
    return rows


def shell(root: Root, *, refresh: bool) -> int:
    """Open a shell in the root, as the tests find it."""
    prepare(root, refresh=refresh)
    signal.signal(signal.SIGINT, lambda _number, _frame: None)  # Ctrl-C is for the shell
    return subprocess.run(sealed(root, ["bash"]), check=False).returncode


def cache_directory(environ: Mapping[str, str], home: Path) -> Path:
    """Where the roots are kept."""
    if chosen := environ.get("SNEX_COMPAT_CACHE"):
        return Path(chosen).absolute()
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "snex-node" / "compat"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our options and, behind ``--``, those of pytest."""
    ours, theirs = list(argv), []
    if "--" in ours:
        at = ours.index("--")
        ours, theirs = ours[:at], ours[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="tests/compat/run",
        description="Run the tests in Debian roots with other versions of OTP, Elixir and Python.",
        epilog="pytest and `mix test` run. With what follows -- one of them runs: pytest, or with "
        "--client `mix test`. For example: run trixie -- -k ping",
    )
    parser.add_argument("--refresh", action="store_true", help="install the roots anew first")
    parser.add_argument("--client", action="store_true", help="run `mix test` alone")
    parser.add_argument("--shell", action="store_true", help="open a shell in one root instead")
    parser.add_argument(
        "roots",
        nargs="*",
        metavar="ROOT",
        help=f"of {', '.join(ROOTS)} (default: all)",
    )
    options = parser.parse_args(ours)
    options.roots = options.roots or list(ROOTS)
    if unknown := set(options.roots) - set(ROOTS):
        parser.error(f"no such root: {', '.join(sorted(unknown))}; there are {', '.join(ROOTS)}")
    if options.shell and len(options.roots) != 1:
        parser.error("--shell needs the name of one root")
    return options, theirs


def what_runs(
    options: argparse.Namespace, arguments: list[str]
) -> tuple[list[str] | None, list[str] | None]:
    """The arguments of pytest and those of `mix test`; None for the one that does not run."""
    if options.client:
        return None, arguments
    return arguments, None if arguments else []


def end_by_signal(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 0 all passed, 1 something failed, 2 wrong usage."""
    options, arguments = parse(argv)
    if os.geteuid() != 0:
        print("run this as root: it installs Debian roots and mounts file systems", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_by_signal)
    cache = cache_directory(os.environ, Path.home())
    pytest, mix = what_runs(options, arguments)
    rows = []
    for name in options.roots:
        root = Root(name, cache)
        with locked(root):
            if options.shell:
                return shell(root, refresh=options.refresh)
            rows += examine(root, pytest, mix, refresh=options.refresh)
    print(f"\n{table(rows)}")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
