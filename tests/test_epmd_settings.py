"""Where an epmd is, and at which addresses one listens, as the environment says."""

from __future__ import annotations

import pytest

from snex_node.epmd import (
    EpmdError,
    epmd_port,
    listen_addresses,
)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, 4369), ({"ERL_EPMD_PORT": ""}, 4369), ({"ERL_EPMD_PORT": "5000"}, 5000)],
)
def test_port_from_the_environment(environ: dict[str, str], expected: int) -> None:
    assert epmd_port(environ) == expected


@pytest.mark.parametrize("text", ["abc", "0", "65536", "-1", "1e3", "²"])
def test_bad_port_in_the_environment(text: str) -> None:
    with pytest.raises(EpmdError, match="ERL_EPMD_PORT is not a port number"):
        epmd_port({"ERL_EPMD_PORT": text})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("127.0.0.1",)),
        ({"ERL_EPMD_ADDRESS": ""}, ("127.0.0.1",)),
        ({"ERL_EPMD_ADDRESS": "192.0.2.1, ::1"}, ("127.0.0.1", "192.0.2.1", "::1")),
        ({"ERL_EPMD_ADDRESS": "192.0.2.1,127.0.0.1"}, ("127.0.0.1", "192.0.2.1")),
        ({"ERL_EPMD_ADDRESS": "0.0.0.0"}, ("0.0.0.0",)),
        ({"ERL_EPMD_ADDRESS": "::1,192.0.2.1,::"}, ("127.0.0.1", "192.0.2.1", "::")),
    ],
)
def test_addresses_from_the_environment(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    assert listen_addresses(environ) == expected


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        (None, ("127.0.0.1", "192.0.2.1")),
        ("192.0.2.1", ("127.0.0.1", "192.0.2.1")),
        ("192.0.2.2", ("127.0.0.1", "192.0.2.1", "192.0.2.2")),
        ("0.0.0.0", ("0.0.0.0",)),
    ],
)
def test_addresses_with_that_of_a_node(also: str | None, expected: tuple[str, ...]) -> None:
    assert listen_addresses({"ERL_EPMD_ADDRESS": "192.0.2.1"}, also=also) == expected
