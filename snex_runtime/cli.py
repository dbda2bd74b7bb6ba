"""The ``snex-node`` command."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import FrameType

from snex_node import epmd
from snex_node.cookie import CookieError, find_cookie
from snex_node.errors import (
    CallTimeoutError,
    ConnectError,
    NodeError,
    NodeStartError,
    ProcessExitError,
)
from snex_node.etf import EncodeError
from snex_node.node import Node
from snex_node.terms import Atom
from snex_runtime import child, demo, loops, search_path, serde
from snex_runtime.server import Server, version
from snex_runtime.stderr import StderrHandler

DEFAULT_NAME = "py@127.0.0.1"

GRACE = 5.0
"""Seconds that code which blocks the event loop has after SIGTERM or Ctrl-C to give it a turn."""

_log = logging.getLogger(__name__)


class CommandError(Exception):
    """The command failed; the message, for the terminal, says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a failure, 2 for wrong usage."""
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    if args.run is None:
        parser.print_help()
        return 2
    logging.basicConfig(
        level=args.log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[StderrHandler()],
    )
    command: Callable[[argparse.Namespace], Awaitable[int]] = args.run
    try:
        return loops.run(_run(command, args), args.loop)
    except KeyboardInterrupt:
        return 130
    except (CommandError, CookieError, NodeStartError, ConnectError, ValueError) as error:
        print(f"snex-node: {error}", file=sys.stderr)
        return 1


async def _run(
    command: Callable[[argparse.Namespace], Awaitable[int]], args: argparse.Namespace
) -> int:
    search_path.restore()
    return await command(args)


# --- what the commands do -----------------------------------------------------------------------


async def _start(args: argparse.Namespace) -> int:
    return await _until_signal(_serve(args))


async def _serve(args: argparse.Namespace) -> None:
    options = serde.merge_options(_pairs(args.encoding))
    name = full_name(args.name, args.sname)
    node = Node(
        name,
        cookie=find_cookie(args.cookie_file),
        listen=args.listen or default_listen(name),
        epmd=args.epmd,
        net_ticktime=args.net_ticktime,
        max_frame=args.max_frame,
        decoder=serde.decoder(options),
        encoder=serde.encoder,
    )
    async with node:
        server = Server(node, name=args.register_as, options=options)
        if args.init_script is not None:
            await _init(server, Path(args.init_script), args.init_script_timeout)
        for peer in args.connect:
            node.keep_connected(peer)
        print(f"ready {node.name} {node.port}", flush=True)
        try:
            await _forever()
        finally:
            _log.info("%s stops", node.name)


async def _init(server: Server, path: Path, timeout: float | None) -> None:
    failure = await server.init(_read_script(path), str(path), timeout=timeout)
    if failure is not None:
        raise CommandError(f"the init script {path} failed: {failure.describe()}")


def _read_script(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read the init script {path}: {error}") from error


async def _eval(args: argparse.Namespace) -> int:
    variables = dict(_variable(text) for text in args.var)
    async with _client(args) as node:
        request = (Atom("eval"), args.code, variables)
        answer = await _ask(node, (args.register_as, args.node), request, args.timeout)
    if isinstance(answer, tuple) and len(answer) == 2 and answer[0] == "ok":
        print(repr(answer[1]))
        return 0
    _print_failure(answer)
    return 1


async def _ask(node: Node, to: tuple[str, str], request: object, timeout: float | None) -> object:
    try:
        return await node.call(to, request, timeout=timeout)
    except CallTimeoutError:
        raise CommandError(f"{to[1]} did not answer within {timeout} s") from None
    except ProcessExitError as error:
        if error.reason == "noproc":
            raise CommandError(
                f"nothing is registered as {to[0]} on {to[1]}: is it a snex-node? "
                "(--register-as says under which name)"
            ) from None
        raise CommandError(str(error)) from None
    except (NodeError, EncodeError) as error:
        raise CommandError(str(error)) from None


def _print_failure(answer: object) -> None:
    error = answer[1] if isinstance(answer, tuple) and len(answer) == 2 else answer
    if not isinstance(error, dict):
        print(f"snex-node: unexpected answer: {answer!r}", file=sys.stderr)
        return
    traceback = error.get("traceback")
    if isinstance(traceback, list) and traceback:
        sys.stderr.write("".join(map(str, traceback)))
    else:
        print(f"snex-node: {error.get('code')}: {error.get('reason')}", file=sys.stderr)


async def _ping(args: argparse.Namespace) -> int:
    async with _client(args) as node:
        await node.connect(args.node)
        if await node.ping(args.node, timeout=args.timeout):
            print("pong")
            return 0
    print("pang")
    return 1


async def _names(args: argparse.Namespace) -> int:
    try:
        names = await epmd.names(args.host)
    except epmd.EpmdError as error:
        raise CommandError(str(error)) from None
    for name, port in names:
        print(f"{name} at port {port}")
    return 0


async def _epmd(args: argparse.Namespace) -> int:
    return await _until_signal(_serve_epmd(*(args.listen or (None, None))))


async def _serve_epmd(host: str | None, port: int | None) -> None:
    try:
        with epmd.EpmdServer(host, port) as server:
            print("epmd", *(f"{host}:{port}" for host, port in server.addresses), flush=True)
            await _forever()
    except epmd.EpmdError as error:
        raise CommandError(str(error)) from None


async def _demo(args: argparse.Namespace) -> int:
    return await demo.run()


def _client(args: argparse.Namespace) -> AbstractAsyncContextManager[Node]:
    """A node for one command: it connects and is not connected to, so it needs no epmd."""
    host = args.node.partition("@")[2]
    own_host = "127.0.0.1" if "." in host else _short_host()
    return Node(
        f"snex-cli-{secrets.token_hex(6)}@{own_host}",
        cookie=find_cookie(args.cookie_file),
        listen=None,
        epmd="none",
        decoder=serde.decoder(),
        encoder=serde.encoder,
    )


async def _until_signal(work: Coroutine[object, object, None]) -> int:
    """Run ``work``; SIGTERM and Ctrl-C cancel it, wherever it is, and that is no failure.

    The handlers are Python's own, not the loop's, because those run only when the loop has a
    turn: code that blocks it has `GRACE` seconds, or until the second signal.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    stopping = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        watchdog = threading.Timer(GRACE, os._exit, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        loop.call_soon_threadsafe(task.cancel)

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise
    finally:
        if not stopping:  # else what is left of the end is guarded too
            for number, handler in before.items():
                signal.signal(number, handler)
    return 0


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


# --- names and addresses ------------------------------------------------------------------------


def full_name(long: str | None, short: str | None) -> str:
    """The node's full name from ``--name`` or ``--sname``. Raises `CommandError`."""
    if short is not None:
        alive, at, host = short.partition("@")
        host = host if at else _short_host()
        if "." in host:
            raise CommandError(f"--sname takes a host without dots, not {host}: use --name")
        return f"{alive}@{host}"
    alive, at, host = (long or DEFAULT_NAME).partition("@")
    host = host if at else socket.getfqdn()
    if "." not in host:
        raise CommandError(
            f"--name takes a host with a dot, not {host or 'none'}: an address such as 127.0.0.1 "
            "will do; for hosts without a dot use --sname"
        )
    return f"{alive}@{host}"


def _short_host() -> str:
    return socket.gethostname().partition(".")[0]


def default_listen(name: str) -> tuple[str, int]:
    """Where to listen for a node that was not told: the loopback address its host stands for.

    Raises `CommandError` when the host stands for none, because nobody would find the node on
    loopback, and listening elsewhere is for the user to decide.
    """
    host = name.partition("@")[2]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CommandError(
            f"the host {host} of {name} does not resolve ({error.strerror or error}): other nodes "
            "could not find it. Use an address, as in py@127.0.0.1"
        ) from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return address, 0
    raise CommandError(
        f"other nodes look for {name} at {addresses[0]}, and without --listen the node is on "
        f"loopback only: add --listen {addresses[0]}:0, or take a name such as py@127.0.0.1"
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT (port 0 takes a free one)")
    return host.strip("[]"), int(port)


def _variable(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"--var takes name=JSON, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise CommandError(
            f"--var {name}: {value!r} is not JSON ({error}). Texts need their quotes: "
            f"""--var '{name}="text"'"""
        ) from None


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals:
            raise CommandError(f"--encoding takes option=value, such as binary_as=bytes: {name!r}")
    return [(name, value) for name, _, value in pairs]


# --- arguments ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="snex-node",
        description="A Python process as a hidden Erlang node: any Elixir or Erlang process of "
        "the cluster can evaluate Python on it.",
        epilog="The cookie comes from --cookie-file, the environment variable SNEX_COOKIE, or "
        "~/.erlang.cookie (made if missing), in this order; never from an argument, which other "
        "users of the machine could read.",
    )
    parser.add_argument("--version", action="version", version=f"snex-node {version()}")
    parser.set_defaults(run=None, loop="auto", log_level="warning")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_start(commands)
    _add_eval(commands)
    ping = _add(commands, "ping", _ping, "say whether a node answers: pong (0) or not (1)")
    ping.add_argument("node", metavar="NODE", help="full name of the node")
    _add_client(ping)
    names = _add(commands, "names", _names, "list the nodes that the epmd of a host knows")
    names.add_argument("host", metavar="HOST", nargs="?", default="127.0.0.1", help="%(default)s")
    server = _add(commands, "epmd", _epmd, "run epmd, for machines without Erlang, until stopped")
    server.add_argument(
        "--listen",
        type=_address,
        metavar="HOST:PORT",
        help="default: loopback (or ERL_EPMD_ADDRESS), port 4369 (or ERL_EPMD_PORT)",
    )
    _add(commands, "demo", _demo, "start a node, evaluate on it, say what happened, and end")
    under_beam = _add(
        commands,
        "child",
        child.run,
        "run a node for the BEAM that started this process (the Elixir client does)",
    )
    under_beam.add_argument("--loop", choices=loops.CHOICES, default="auto", help="%(default)s")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], Awaitable[int]],
    text: str,
) -> argparse.ArgumentParser:
    # Without abbreviations: `--cookie SECRET` must not be taken for --cookie-file, and shown.
    parser = commands.add_parser(
        name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="what is logged to standard error (default: %(default)s)",
    )
    return parser


def _add_start(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    start = _add(
        commands,
        "start",
        _start,
        "start a node; it prints 'ready NAME PORT' when it can be called, and runs until SIGTERM "
        "or Ctrl-C",
    )
    names = start.add_mutually_exclusive_group()
    names.add_argument("--name", metavar="NAME[@HOST]", help=f"long name (default: {DEFAULT_NAME})")
    names.add_argument("--sname", metavar="NAME[@HOST]", help="short name, a host without dots")
    _add_cookie(start)
    start.add_argument(
        "--listen",
        type=_address,
        metavar="HOST:PORT",
        help="where other nodes connect (default: the loopback address of the name's host, and a "
        "free port)",
    )
    start.add_argument(
        "--connect",
        metavar="NODE",
        action="append",
        default=[],
        help="connect to this node, again whenever the connection is lost (repeatable)",
    )
    start.add_argument(
        "--epmd",
        choices=("auto", "external", "embedded", "none"),
        default="auto",
        help="register with the epmd that runs or else start one (auto), only with one that runs, "
        "only with one of our own, or not at all (default: %(default)s)",
    )
    start.add_argument("--init-script", metavar="FILE", help="Python code to run before all else")
    start.add_argument(
        "--init-script-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time the init script may take (default: %(default)s)",
    )
    start.add_argument(
        "--register-as",
        default="snex",
        metavar="NAME",
        help="name of the process that takes requests (default: %(default)s)",
    )
    start.add_argument(
        "--encoding",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="how terms become objects: binary_as=str|bytes|bytearray, set_as=set|frozenset, "
        "atom_as=atom|distinct_atom (repeatable)",
    )
    start.add_argument(
        "--net-ticktime",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="silence after which a peer is lost, as in OTP (default: %(default)s)",
    )
    start.add_argument(
        "--max-frame",
        type=int,
        default=128 * 1024 * 1024,
        metavar="BYTES",
        help="longest frame accepted; a longer one closes its connection (default: %(default)s)",
    )
    start.add_argument(
        "--loop", choices=loops.CHOICES, default="auto", help="event loop (default: %(default)s)"
    )


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = _add(
        commands, "eval", _eval, "evaluate Python on a node, and print the value it returns"
    )
    evaluate.add_argument("node", metavar="NODE", help="full name of the node")
    evaluate.add_argument("code", metavar="CODE", help="such as 'return 6 * x'")
    evaluate.add_argument(
        "--var",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a variable for the code (repeatable)",
    )
    evaluate.add_argument("--register-as", default="snex", metavar="NAME", help="as given to start")
    _add_client(evaluate)


def _add_cookie(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cookie-file", metavar="FILE", help="file with the cookie (see snex-node --help)"
    )


def _add_client(parser: argparse.ArgumentParser) -> None:
    _add_cookie(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait for an answer (default: %(default)s)",
    )
