"""What nodes need to find each other and to work, looked at one by one, with what to do next.

Nothing is made or changed, and the cookie itself is told to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, NamedTuple, TypeVar

from snex_node import __version__, epmd
from snex_node.cookie import VARIABLE, CookieError, default_path, read_cookie, take_variable
from snex_node.errors import ConnectError, NodeError
from snex_node.node import Node
from snex_node.system.addresses import resolve
from snex_node.wire.terms import Atom

__all__ = ["FIELDS", "SKEW", "Check", "Patient", "examine"]

SKEW: Final = 2.0
"""Seconds by which two clocks may differ before that is told of."""

State = Literal["ok", "warning", "failed"]
T = TypeVar("T")


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: State
    text: str
    """What was found."""

    remedy: str | None = None
    """What to do next."""


FIELDS: Final = ("name", "state", "text", "remedy")
"""Those of a `Check`."""


class Patient(NamedTuple):
    """What is to be looked at: this machine, and the way to ``node`` if there is one.

    ``client`` makes a node to connect from, with the cookie that was found; each step may take
    ``timeout`` seconds.
    """

    node: str | None
    client: Callable[[], AbstractAsyncContextManager[Node]]
    cookie_file: str | None = None
    register_as: str = "snex"
    timeout: float = 5.0


async def examine(patient: Patient) -> AsyncIterator[Check]:
    """Look at everything; each result comes as soon as it is there."""
    yield _versions()
    yield _uvloop()
    yield _program("uv", "it makes the Python environments of Elixir modules", "pip install uv")
    yield _compiler()
    yield await _erlang(patient)
    async for check in _names_of_this_machine(patient):
        yield check
    cookie = _cookie(patient)
    yield cookie
    if patient.node is None:
        yield await _epmd("127.0.0.1", patient, here=True)
        return
    async for check in _way(patient, patient.node, has_cookie=cookie.state != "failed"):
        yield check


# --- this machine ---------------------------------------------------------------------------------


def _versions() -> Check:
    kind = platform.python_implementation()
    return Check("versions", "ok", f"snex-node {__version__} on {kind} {platform.python_version()}")


def _uvloop() -> Check:
    if importlib.util.find_spec("uvloop") is None:
        return Check("uvloop", "ok", "not installed: nodes run on asyncio's own loop")
    return Check("uvloop", "ok", "installed: `--loop uvloop` uses it")


def _program(name: str, why: str, how: str) -> Check:
    found = shutil.which(name)
    if found is None:
        return Check(name, "warning", f"not on PATH; {why}", f"if you need that: {how}")
    return Check(name, "ok", found)


def _compiler() -> Check:
    found = next(
        filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None
    )
    if found is None:
        return Check(
            "compiler",
            "warning",
            "no C compiler on PATH; the Elixir client uses one where it is there",
            "if you use that: install gcc or clang, and the headers of Erlang (erlang-dev)",
        )
    return Check("compiler", "ok", found)


async def _erlang(patient: Patient) -> Check:
    elixir, erl = shutil.which("elixir"), shutil.which("erl")
    if elixir is None and erl is None:
        return Check("erlang", "ok", "neither erl nor elixir on PATH; Python nodes need neither")
    expression = 'io:format("Erlang/OTP ~s~n", [erlang:system_info(otp_release)]), halt().'
    command = [elixir, "--version"] if elixir else [str(erl), "-noshell", "-eval", expression]
    try:
        told = await _in_time(patient, lambda: _output_of(command, 2 * patient.timeout), factor=3)
    except (OSError, subprocess.SubprocessError, asyncio.TimeoutError):
        return Check(
            "erlang",
            "warning",
            f"{command[0]} does not say its version",
            f"run it yourself to see why: {command[0]}",
        )
    told = re.sub(r"\(.*?\)", "", told)  # what Elixir was compiled with
    found = re.findall(r"(?:Erlang/OTP|Elixir) [\w.-]+", told)
    return Check("erlang", "ok", ", ".join(dict.fromkeys(found)) or str(command[0]))


def _output_of(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=True, errors="replace"
    )
    return done.stdout


async def _names_of_this_machine(patient: Patient) -> AsyncIterator[Check]:
    """Whether short and long names of nodes here would be found."""
    name = socket.gethostname()
    short = name.partition(".")[0]
    try:
        addresses = ", ".join(await _addresses(patient, short))
        yield Check("short names", "ok", f"{short} is {addresses}: --sname py")
    except (OSError, asyncio.TimeoutError) as error:
        yield Check(
            "short names",
            "warning",
            f"this machine's name {short} does not resolve ({_why(error)}): no node finds one of "
            "a short name here",
            f"add a line with its address and {short} to /etc/hosts, or use long names",
        )
    try:
        full = await _in_time(patient, socket.getfqdn)
    except asyncio.TimeoutError:
        full = name
    if "." in full:
        yield Check("long names", "ok", f"{full}: --name py@{full}, or an address")
    else:
        yield Check(
            "long names",
            "warning",
            f"{full} has no dot, as hosts of long names must",
            "use an address as the host, as in --name py@127.0.0.1, or short names on all nodes",
        )


def _cookie(patient: Patient) -> Check:
    """Where the cookie comes from, and whether it can be used: not what it is."""
    variable = take_variable()
    path = patient.cookie_file
    try:
        if path is None and variable:
            return Check("cookie", "ok", f"from the environment variable {VARIABLE}")
        if path is None:
            path = default_path()
            if not os.path.lexists(path):
                return Check(
                    "cookie",
                    "warning" if patient.node is None else "failed",
                    f"{path} is missing: the first node makes one that no other machine has",
                    "copy that of your BEAM nodes to it, and run chmod 400 on it",
                )
        read_cookie(path)
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except CookieError as error:
        return Check("cookie", "failed", str(error), f"see to {path or 'HOME'}")
    return Check("cookie", "ok", f"from {path}, readable, mode {mode:03o}")


async def _epmd(host: str, patient: Patient, *, here: bool = False) -> Check:
    try:
        known = await asyncio.wait_for(epmd.names(host), patient.timeout)
    except (epmd.EpmdError, asyncio.TimeoutError) as error:
        return Check(
            "epmd",
            "warning" if here else "failed",
            str(error) or f"the epmd on {host} does not answer within {patient.timeout:g} s",
            "`snex-node start` starts one"
            if here
            else f"see whether epmd runs on {host}, and whether a firewall keeps port "
            f"{epmd.epmd_port()} from you",
        )
    told = ", ".join(f"{name} at port {port}" for name, port in sorted(known)[:_SHOWN]) or "no node"
    more = "" if len(known) <= _SHOWN else f" and {len(known) - _SHOWN} more"
    return Check("epmd", "ok", f"on {host}, port {epmd.epmd_port()}, knows {told}{more}")


_SHOWN: Final = 20


# --- the way to a node ----------------------------------------------------------------------------


async def _way(patient: Patient, name: str, *, has_cookie: bool) -> AsyncIterator[Check]:
    """Step by step, as a connection is made; nothing comes behind what failed."""
    alive, _, host = name.partition("@")
    check = await _host(patient, name, alive, host)
    yield check
    if check.state == "failed":
        return
    check = await _epmd(host, patient)
    yield check
    if check.state == "failed":
        return
    check, port = await _registered(patient, alive, host)
    yield check
    if port is None:
        return
    check = await _port(patient, host, port)
    yield check
    if check.state == "ok" and has_cookie:
        async for check in _talk(patient, name):
            yield check


async def _host(patient: Patient, name: str, alive: str, host: str) -> Check:
    if not alive or not host:
        return Check("host", "failed", f"{name!r} is no name of a node", "give NAME@HOST")
    kind = "long" if "." in host or ":" in host else "short"
    try:
        addresses = ", ".join(await _addresses(patient, host))
    except (OSError, asyncio.TimeoutError) as error:
        return Check(
            "host",
            "failed",
            f"{host} does not resolve ({_why(error)})",
            "add it to DNS or /etc/hosts, or name the node by an address, as in py@127.0.0.1",
        )
    return Check("host", "ok", f"{host} is {addresses}; a {kind} name, as its peers need too")


async def _registered(patient: Patient, alive: str, host: str) -> tuple[Check, int | None]:
    try:
        found = await asyncio.wait_for(epmd.lookup(alive, host), patient.timeout)
    except (epmd.EpmdError, ValueError, asyncio.TimeoutError) as error:
        return Check("registered", "failed", _why(error), "see above what epmd knows"), None
    if found is None:
        text = f"the epmd on {host} knows no {alive}"
        remedy = "start the node; compare its name, its host and ERL_EPMD_PORT with these here"
        return Check("registered", "failed", text, remedy), None
    return Check("registered", "ok", f"{alive} is at port {found.port}"), found.port


async def _port(patient: Patient, host: str, port: int) -> Check:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), patient.timeout)
    except (OSError, asyncio.TimeoutError) as error:
        return Check(
            "port",
            "failed",
            f"cannot connect to {host}, port {port} ({_why(error)})",
            f"the node may listen on loopback only (--listen), or a firewall closes port {port}",
        )
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Check("port", "ok", f"{host}, port {port}, takes connections")


async def _talk(patient: Patient, name: str) -> AsyncIterator[Check]:
    async with patient.client() as node:
        try:
            await asyncio.wait_for(node.connect(name), patient.timeout)
        except (ConnectError, asyncio.TimeoutError) as error:
            reason = error.reason if isinstance(error, ConnectError) else "timeout"
            yield Check("handshake", "failed", f"{reason}: {_why(error)}", _AFTER.get(reason))
            return
        yield Check("handshake", "ok", "done: the cookie is that of the node")
        info: Any = None
        to = patient.register_as, name
        try:
            answer = await node.call(to, Atom("ping"), timeout=patient.timeout)
            _, info = await _pair(node.call(to, Atom("info"), timeout=patient.timeout))
        except NodeError as error:
            yield Check(
                "answers",
                "failed",
                f"{patient.register_as} on {name}: {error}",
                "is it a snex-node? --register-as says under which name; a loop that is blocked "
                "answers when it goes on",
            )
            return
        yield Check("answers", "ok", f"{patient.register_as} says {answer}")
        yield _same_versions(info)
        yield await _clock(patient, node, name)


_AFTER: Final = {
    "cookie": "give both the same cookie: see above where this one comes from",
    "names": "use long names on both sides, or short ones on both",
    "not_allowed": "the node allows only certain others",
    "nok": "another connection of that name is being made: try again",
    "alive": "the node is connected to another of this name already: try again",
}


async def _pair(call: Awaitable[object]) -> tuple[object, object]:
    answer = await call
    return answer if isinstance(answer, tuple) and len(answer) == 2 else (None, None)


def _same_versions(info: Any) -> Check:
    told = info if isinstance(info, dict) else {}
    theirs, python = told.get("version"), told.get("python_version")
    text = f"snex-node {theirs} on Python {python} there"
    if theirs == __version__:
        return Check("versions there", "ok", text)
    return Check(
        "versions there",
        "warning",
        f"{text}, {__version__} here",
        "nodes of other versions work together; update the older one if something is missing",
    )


async def _clock(patient: Patient, node: Node, name: str) -> Check:
    began = time.time()
    try:
        theirs = await node.rpc(name, "time", "time", timeout=patient.timeout)
    except NodeError as error:
        return Check("clock", "warning", f"not told: {error}", "try again")
    skew = theirs - (began + time.time()) / 2 if isinstance(theirs, float) else 0.0
    if abs(skew) > SKEW:
        way = "ahead of" if skew > 0 else "behind"
        return Check(
            "clock",
            "warning",
            f"the clock there is {abs(skew):.0f} s {way} this one",
            "times in logs of both do not fit together: set up NTP",
        )
    return Check("clock", "ok", f"differs by {abs(skew) * 1000:.0f} ms")


# --- what blocks ----------------------------------------------------------------------------------


async def _in_time(patient: Patient, function: Callable[[], T], factor: float = 1) -> T:
    """Call what may block for long in a thread; raises `asyncio.TimeoutError`."""
    return await asyncio.wait_for(asyncio.to_thread(function), factor * patient.timeout)


async def _addresses(patient: Patient, host: str) -> list[str]:
    found = await _in_time(patient, lambda: resolve(host))
    return list(dict.fromkeys(each.host for each in found))


def _why(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
