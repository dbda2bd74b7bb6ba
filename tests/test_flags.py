"""Capability flags: the table, what is claimed, what is missed, and a real BEAM's opinion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_node.wire.flags import CLAIMED, MANDATORY, TABLE, Flag, expand, missing
from tests.support.beam import Beam

OTP_26_MANDATORY = 0x4_0307_0F94
"""What `erts_internal:get_dflags/0` of OTP 26 and later names as mandatory."""

any_flags = st.integers(0, 2**64 - 1)


def mandatory_since(release: int) -> int:
    return sum(
        entry.flag
        for entry in TABLE
        if entry.mandatory_since is not None and entry.mandatory_since <= release
    )


def test_the_table_has_every_flag_once_in_the_order_of_the_bits() -> None:
    flags = [entry.flag for entry in TABLE]
    assert flags == sorted(Flag)


def test_every_entry_says_why() -> None:
    assert all(entry.why for entry in TABLE)


def test_what_is_claimed() -> None:
    assert int(CLAIMED) == 0x6D_07DF_5FBC
    assert not CLAIMED & (Flag.PUBLISHED | Flag.DIST_HDR_ATOM_CACHE | Flag.NAME_ME)
    assert CLAIMED & Flag.FRAGMENTS


def test_what_is_mandatory() -> None:
    assert int(MANDATORY) == 0x107_0F94
    assert mandatory_since(25) == MANDATORY
    assert mandatory_since(26) == OTP_26_MANDATORY


def test_we_claim_what_any_release_requires() -> None:
    assert OTP_26_MANDATORY & ~CLAIMED == 0


def test_what_is_missing_comes_by_name_in_the_order_of_the_bits() -> None:
    without_digest = CLAIMED & ~Flag.MANDATORY_25_DIGEST
    assert missing(CLAIMED) == ()
    assert missing(without_digest & ~Flag.MAP_TAG & ~Flag.FUN_TAGS) == ("FUN_TAGS", "MAP_TAG")
    assert missing(without_digest & ~Flag.SPAWN) == ()
    assert missing(0) == tuple(entry.flag.name for entry in TABLE if entry.mandatory_since == 25)


def test_the_digest_stands_for_all_flags_mandatory_in_otp_25() -> None:
    assert missing(Flag.MANDATORY_25_DIGEST) == ()
    assert expand(Flag.MANDATORY_25_DIGEST) == Flag.MANDATORY_25_DIGEST | MANDATORY
    assert expand(Flag.MAP_TAG | Flag.SPAWN) == Flag.MAP_TAG | Flag.SPAWN


@given(any_flags)
def test_expanding_adds_only_mandatory_flags_and_gives_a_plain_integer(flags: int) -> None:
    expanded = expand(flags)
    assert type(expanded) is int
    assert expanded & ~MANDATORY == flags & ~MANDATORY
    assert expand(expanded) == expanded
    assert flags & ~expanded == 0


@given(any_flags)
def test_what_is_missing_is_what_is_not_claimed(flags: int) -> None:
    missed = sum(Flag[name] for name in missing(flags))
    assert missed & flags == 0
    assert (expand(flags) | missed) & MANDATORY == MANDATORY


@pytest.mark.interop
async def test_a_real_beam_has_the_same_mandatory_flags(beam: Beam) -> None:
    found = await beam.eval(":erts_internal.get_dflags()")
    assert isinstance(found, tuple)
    assert found[2] == mandatory_since(int(beam.otp_release))
    assert found[2] & ~CLAIMED == 0
