"""Capability flags of the distribution handshake.

Source: "Distribution Flags" in the distribution protocol chapter of the ERTS user's guide,
checked against what OTP 25, 27 and 29 send. Both sides work by the intersection of what the two
claimed.

Where a flag is looked at for each message, keep a plain integer or a bool: ``&`` with a `Flag`
takes 1 to 2 us, as long as decoding a message.
"""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple


class Flag(IntFlag):
    """One capability per bit, under the name OTP gives it (without ``DFLAG_``)."""

    PUBLISHED = 1 << 0
    EXTENDED_REFERENCES = 1 << 2
    DIST_MONITOR = 1 << 3
    FUN_TAGS = 1 << 4
    DIST_MONITOR_NAME = 1 << 5
    NEW_FUN_TAGS = 1 << 7
    EXTENDED_PIDS_PORTS = 1 << 8
    EXPORT_PTR_TAG = 1 << 9
    BIT_BINARIES = 1 << 10
    NEW_FLOATS = 1 << 11
    UNICODE_IO = 1 << 12
    DIST_HDR_ATOM_CACHE = 1 << 13
    SMALL_ATOM_TAGS = 1 << 14
    UTF8_ATOMS = 1 << 16
    MAP_TAG = 1 << 17
    BIG_CREATION = 1 << 18
    SEND_SENDER = 1 << 19
    BIG_SEQTRACE_LABELS = 1 << 20
    EXIT_PAYLOAD = 1 << 22
    FRAGMENTS = 1 << 23
    HANDSHAKE_23 = 1 << 24
    UNLINK_ID = 1 << 25
    MANDATORY_25_DIGEST = 1 << 26
    SPAWN = 1 << 32
    NAME_ME = 1 << 33
    V4_NC = 1 << 34
    ALIAS = 1 << 35
    ALTACT_SIG = 1 << 37
    NATIVE_RECORDS = 1 << 38


class FlagEntry(NamedTuple):
    """What there is to know about one flag.

    ``mandatory_since`` is the OTP release that began to refuse peers without it (None: never);
    ``claimed`` says whether our nodes claim it, ``why`` the reason either way.
    """

    flag: Flag
    mandatory_since: int | None
    claimed: bool
    why: str


TABLE: tuple[FlagEntry, ...] = (
    FlagEntry(
        Flag.PUBLISHED,
        None,
        False,
        "we are a hidden node: visible ones must take part in global and answer its processes",
    ),
    FlagEntry(Flag.EXTENDED_REFERENCES, 25, True, "references of several words"),
    FlagEntry(
        Flag.DIST_MONITOR, None, True, "without it and DIST_MONITOR_NAME monitors of us never fire"
    ),
    FlagEntry(Flag.FUN_TAGS, 25, True, "funs arrive as funs"),
    FlagEntry(Flag.DIST_MONITOR_NAME, None, True, "GenServer.call monitors the name it calls"),
    FlagEntry(Flag.NEW_FUN_TAGS, 25, True, "NEW_FUN_EXT"),
    FlagEntry(Flag.EXTENDED_PIDS_PORTS, 25, True, "pids and ports of more than 18 bits"),
    FlagEntry(Flag.EXPORT_PTR_TAG, 25, True, "EXPORT_EXT"),
    FlagEntry(Flag.BIT_BINARIES, 25, True, "BIT_BINARY_EXT"),
    FlagEntry(Flag.NEW_FLOATS, 25, True, "NEW_FLOAT_EXT"),
    FlagEntry(Flag.UNICODE_IO, None, True, "text between I/O devices is Unicode"),
    FlagEntry(
        Flag.DIST_HDR_ATOM_CACHE,
        None,
        False,
        "an atom spelled out costs a Python node less than a cache slot, and the bytes of a call "
        "stay the same from one to the next, which the hot path recognises",
    ),
    FlagEntry(Flag.SMALL_ATOM_TAGS, None, True, "SMALL_ATOM_UTF8_EXT"),
    FlagEntry(Flag.UTF8_ATOMS, 25, True, "atoms are UTF-8"),
    FlagEntry(Flag.MAP_TAG, 25, True, "maps"),
    FlagEntry(Flag.BIG_CREATION, 25, True, "creations of 32 bits"),
    FlagEntry(Flag.SEND_SENDER, None, True, "a send names its sender"),
    FlagEntry(Flag.BIG_SEQTRACE_LABELS, None, True, "traced messages come with their token"),
    FlagEntry(Flag.EXIT_PAYLOAD, None, True, "exit reasons travel outside the control tuple"),
    FlagEntry(
        Flag.FRAGMENTS,
        None,
        True,
        "other messages and ticks pass between the parts of a large one; it also makes every "
        "frame carry a distribution header",
    ),
    FlagEntry(Flag.HANDSHAKE_23, 25, True, "the handshake of version 6"),
    FlagEntry(Flag.UNLINK_ID, 26, True, "unlinking with an acknowledgement"),
    FlagEntry(Flag.MANDATORY_25_DIGEST, None, True, "stands for all flags mandatory in OTP 25"),
    FlagEntry(Flag.SPAWN, None, True, "erpc, rpc and Node.spawn"),
    FlagEntry(Flag.NAME_ME, None, False, "a request for a name, made only by a node that has none"),
    FlagEntry(Flag.V4_NC, 26, True, "64-bit pids and ports, references of five words"),
    FlagEntry(Flag.ALIAS, None, True, "replies go to aliases, so late ones leave no stray message"),
    FlagEntry(Flag.ALTACT_SIG, None, True, "takes the place of ALIAS_SEND from OTP 28 on"),
    FlagEntry(
        Flag.NATIVE_RECORDS, None, True, "the records of OTP 29, sent whether claimed or not"
    ),
)
"""Every flag we know, in the order of its bits."""

CLAIMED: Flag = Flag(sum(entry.flag for entry in TABLE if entry.claimed))
"""What our nodes claim."""

MANDATORY: Flag = Flag(sum(entry.flag for entry in TABLE if entry.mandatory_since == 25))
"""What we ask of a peer: the flags that OTP 25, the oldest release served, already requires."""


def expand(flags: int) -> int:
    """What a peer claims by ``flags``: MANDATORY_25_DIGEST stands for all of `MANDATORY`.

    >>> expand(Flag.MANDATORY_25_DIGEST) == Flag.MANDATORY_25_DIGEST | MANDATORY
    True
    """
    flags = int(flags)
    return flags | int(MANDATORY) if flags & int(Flag.MANDATORY_25_DIGEST) else flags


def missing(flags: int) -> tuple[str, ...]:
    """Names of the mandatory flags that ``flags`` do not claim, in the order of their bits.

    >>> missing(CLAIMED & ~Flag.MANDATORY_25_DIGEST & ~Flag.MAP_TAG)
    ('MAP_TAG',)
    """
    lacking = int(MANDATORY) & ~expand(flags)
    if not lacking:  # nearly always; a flood of names is not to cost 100 us each for this
        return ()
    return tuple(str(entry.flag.name) for entry in TABLE if entry.flag & lacking)
