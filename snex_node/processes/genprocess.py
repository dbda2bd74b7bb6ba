"""Processes that tell calls, casts and system messages apart, as OTP's behaviours do."""

from __future__ import annotations

import logging

from snex_node.cluster.remote import RemoteNode
from snex_node.errors import error_reason
from snex_node.processes.process import BaseProcess
from snex_node.wire.etf import DecodeError, Decoder
from snex_node.wire.gen import (
    GEN_CAST,
    SYSTEM_HEAD,
    From,
    parse_call,
    parse_cast,
    parse_system,
    parse_term,
)
from snex_node.wire.terms import Atom

_log = logging.getLogger(__name__)
_decode = Decoder().decode


class GenProcess(BaseProcess):
    """A process that tells calls, casts, system messages and other messages apart.

    It answers system messages itself: ``GenServer.stop/1`` ends it.
    """

    __slots__ = ()

    def call_received(self, caller: From, request: object) -> None:
        """A call; answer it with ``self.node.reply(caller, ...)``. The default lets it wait."""

    def cast_received(self, request: object) -> None:
        """A cast. The default ignores it."""

    def info_received(self, message: object) -> None:
        """Any other message. The default ignores it."""

    def stop_requested(self, reason: object) -> None:
        """``GenServer.stop`` asks the process to end. The default ends it."""
        self.exit(reason)

    def message_received(self, message: object) -> None:
        """Take a decoded message."""
        call = parse_term(message)
        if call is not None:
            self.call_received(*call)
        elif isinstance(message, tuple) and len(message) == 2 and message[0] == GEN_CAST:
            self.cast_received(message[1])
        else:
            system = parse_system(message)
            if system is None:
                self.info_received(message)
            else:
                self._system(*system)

    def external_received(self, data: bytes, offset: int, remote: RemoteNode) -> None:
        """Take a message in external form; what is the user's in it, the node's decoder decodes.

        A call whose request cannot be decoded is answered with ``{error, {python_error, ...}}``.
        """
        decode = self.node.decoder.decode
        call = parse_call(data, offset)
        if call is not None:
            caller, at = call
            try:
                request = decode(data, at)[0]
            except DecodeError as error:
                _log.warning("%s: refused a call to %s: %s", remote.name, self, error)
                self.node.reply(caller, (Atom("error"), error_reason(error)), sender=self.pid)
                return
            self.call_received(caller, request)
            return
        cast = parse_cast(data, offset)
        if cast is not None:
            self.cast_received(decode(data, cast)[0])
            return
        if data.startswith(SYSTEM_HEAD, offset):
            system = parse_system(_decode(data, offset)[0])
            if system is not None:
                self._system(*system)
                return
        self.info_received(decode(data, offset)[0])

    def _system(self, caller: From, request: object) -> None:
        if isinstance(request, tuple) and len(request) == 2 and request[0] == "terminate":
            self.node.reply(caller, Atom("ok"), sender=self.pid)
            self.stop_requested(request[1])
        else:
            answer = (Atom("error"), (Atom("unknown_system_msg"), request))
            self.node.reply(caller, answer, sender=self.pid)
