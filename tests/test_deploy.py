"""The files in deploy/: each is what its kind has to be, and each command in them does its work.

Nothing of Docker, systemd or Kubernetes is needed: the commands run here, below a folder that
stands for the root directory.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.epmd import RealEpmd
from tests.support.ports import free_port

pytestmark = [pytest.mark.beside]

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
SECONDS = 60.0


class Machine:
    """A root directory of a machine that is to run a node: what the files name is below it."""

    def __init__(self, root: Path, epmd_port: int) -> None:
        self.root = root
        bin_ = root / "opt/snex-node/bin"
        bin_.mkdir(parents=True)
        for name in ("snex-node", "python"):
            (bin_ / name).symlink_to(Path(sys.executable).parent / name)
        self.home = root / "var/lib/snex-node"
        self.home.mkdir(parents=True)
        self.environment = {
            "PATH": f"{bin_}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "ERL_EPMD_PORT": str(epmd_port),
        }

    def put(self, path: str, text: str, mode: int) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def here(self, word: str) -> str:
        """A word of a command with absolute paths of the machine below the root."""
        return re.sub(r"(?<![\w.])/(opt|etc|run|secret|var)/", rf"{self.root}/\1/", word)

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.here(word) for word in command],
            env={**self.environment, **environment},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        """Start what runs until it is told to stop; returns when it says that it is ready."""
        process = subprocess.Popen(
            [self.here(word) for word in command],
            env={**self.environment, **environment},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            stop(process)
        assert line.startswith("ready "), command
        return process


def stop(process: subprocess.Popen[str]) -> int:
    process.terminate()
    process.communicate(timeout=SECONDS)
    return process.returncode


@pytest.fixture
def machine(tmp_path: Path, epmd: RealEpmd) -> Machine:
    return Machine(tmp_path, epmd.port)


# --- Docker ---------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with continued lines joined and comments left out."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in lines]


def dockerfile(name: str) -> list[str]:
    return [value for found, value in instructions() if found == name]


def uid() -> str:
    """The number of the user that the image makes."""
    (number,) = re.findall(r"--uid (\d+)", " ".join(dockerfile("RUN")))
    return str(number)


def test_the_image_is_built_in_two_stages_and_runs_as_nobody_special() -> None:
    known = "FROM WORKDIR COPY RUN ENV USER EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT".split()
    assert {name for name, _ in instructions()} <= set(known)
    first, last = dockerfile("FROM")
    assert (first, last) == (f"{last} AS build", last)
    assert ":latest" not in last
    assert dockerfile("USER") == [uid()]


def test_what_the_image_copies_is_there_and_is_sent() -> None:
    sent = {
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for line in dockerfile("COPY"):
        if not line.startswith("--from"):
            *sources, _target = line.split()
            assert [s for s in sources if not (ROOT / s).exists()] == []
            assert {source.removeprefix("./") for source in sources} <= sent


@pytest.mark.interop
def test_the_image_runs_a_node_that_its_health_check_finds(machine: Machine) -> None:
    (variables,) = dockerfile("ENV")
    name = dict(word.split("=", 1) for word in shlex.split(variables))["SNEX_NODE_NAME"]
    (entrypoint,), (health,) = dockerfile("ENTRYPOINT"), dockerfile("HEALTHCHECK")
    check = json.loads(health.partition("CMD ")[2])
    assert machine.run(check, SNEX_NODE_NAME=name).returncode == 1
    # An argument of `docker run` comes behind.
    command = [*json.loads(entrypoint), "--log-level", "info"]
    process = machine.start(command, SNEX_NODE_NAME=name)
    try:
        done = machine.run(check, SNEX_NODE_NAME=name)
        assert (done.returncode, done.stdout) == (0, "pong\n")
    finally:
        assert stop(process) == 0  # the node itself got the signal, not a shell


def linter(name: str) -> str:
    """The path of a program, also of one beside this Python; skips the test where there is none."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return path or pytest.skip(f"{name} is not installed")


def test_hadolint_has_no_complaint() -> None:
    subprocess.run([linter("hadolint"), str(DEPLOY / "Dockerfile")], check=True)


# --- systemd --------------------------------------------------------------------------------------


def settings(unit: Path, section: str) -> dict[str, list[str]]:
    """The settings of a section, each with its values in order: they may be repeated."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif line and not line.startswith("#") and current == section:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def command(text: str, environment: dict[str, str]) -> list[str]:
    """A command as systemd splits and fills it in."""
    words: list[str] = []
    for word in shlex.split(text):
        if re.fullmatch(r"\$\w+", word):
            words += environment.get(word[1:], "").split()
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda m: environment[m[1]], word))
    return words


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_can_be_read(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))
    assert set(parser.sections()) == {"Unit", "Service", "Install"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_knows_every_setting(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    # It looks for the program, which is not installed there.
    (tmp_path / unit.name).write_text(re.sub(r"/opt/\S+/snex-node", "/bin/true", text))
    done = subprocess.run(
        [linter("systemd-analyze"), "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert unit.name not in done.stderr, done.stderr


@pytest.mark.interop
def test_the_service_starts_is_ready_and_stops(machine: Machine, tmp_path: Path) -> None:
    service = settings(DEPLOY / "systemd/snex-node.service", "Service")
    machine.put("/etc/snex-node/cookie", "cookie-of-the-service", 0o400)
    environment = dict(pair.split("=", 1) for pair in service["Environment"])
    environment["SNEX_NODE_OPTIONS"] = "--max-time 30000 --register-as snex"
    assert service["Type"] == ["notify"]
    (start,) = service["ExecStart"]
    del environment["HOME"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(SECONDS)
        environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        process = machine.start(command(start, environment), **environment)
        try:
            ready, status = manager.recv(4096).decode().split("\n")
            assert ready == "READY=1"
            assert re.fullmatch(r"STATUS=py@127\.0\.0\.1 at port \d+", status)
        finally:
            assert stop(process) == 0
        assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.interop
def test_the_service_of_epmd_can_be_asked(machine: Machine) -> None:
    service = settings(DEPLOY / "systemd/snex-epmd.service", "Service")
    port = str(free_port())
    process = subprocess.Popen(
        [machine.here(word) for word in command(service["ExecStart"][0], {})],
        env={**machine.environment, "ERL_EPMD_PORT": port},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert machine.run(["snex-node", "names"], ERL_EPMD_PORT=port).returncode == 0
    finally:
        stop(process)


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """The objects of the manifest by their kind."""
    yaml = pytest.importorskip("yaml")
    text = (DEPLOY / "kubernetes/snex-node.yaml").read_text(encoding="utf-8")
    return {entry["kind"]: entry for entry in yaml.safe_load_all(text)}


def test_the_parts_of_the_manifest_fit_together(manifest: dict[str, Any]) -> None:
    service, pods = manifest["Service"], manifest["StatefulSet"]["spec"]
    pod = pods["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["clusterIP"] == "None"
    assert pods["serviceName"] == service["metadata"]["name"]
    labels = pods["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == pods["selector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {port["name"]: port["port"] for port in service["spec"]["ports"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for each in (*pod["initContainers"], container):
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes.keys()
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(uid())
    secret = volumes["secret"]["secret"]["secretName"]
    assert secret == manifest["Secret"]["metadata"]["name"]


@pytest.mark.interop
def test_a_pod_starts_is_ready_and_stops(machine: Machine, manifest: dict[str, Any]) -> None:
    pod = manifest["StatefulSet"]["spec"]["template"]["spec"]
    (container,), (first,) = pod["containers"], pod["initContainers"]
    machine.put("/secret/cookie", manifest["Secret"]["stringData"]["cookie"], 0o440)
    (machine.root / "run/snex-node").mkdir(parents=True)
    assert machine.run(first["command"]).returncode == 0

    # There is no name server of a cluster here, and the port may be taken.
    environment = {"SNEX_NODE_NAME": "py@127.0.0.1"}
    arguments = [word.replace("0.0.0.0:15001", "127.0.0.1:0") for word in container["args"]]
    assert arguments != container["args"]
    (entrypoint,) = dockerfile("ENTRYPOINT")
    process = machine.start([*json.loads(entrypoint), *arguments], **environment)
    try:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            done = machine.run(container[probe]["exec"]["command"], **environment)
            assert (done.returncode, done.stdout) == (0, "pong\n"), probe
    finally:
        assert stop(process) == 0


def test_kubeconform_has_no_complaint() -> None:
    file = DEPLOY / "kubernetes/snex-node.yaml"
    subprocess.run([linter("kubeconform"), "-strict", str(file)], check=True)
