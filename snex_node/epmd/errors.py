"""What can go wrong with epmd. The texts say what to do next."""

from __future__ import annotations


class EpmdError(Exception):
    """Base of all errors of this package, other than `ValueError` for names that cannot be."""


class EpmdUnreachableError(EpmdError):
    """No epmd answers at the address."""


class EpmdTimeoutError(EpmdUnreachableError):
    """Something listens at the address, but did not answer in time; or packets to it are lost."""


class HostNotFoundError(EpmdError):
    """The name of the host does not resolve to an address."""


class NameTakenError(EpmdError):
    """Another node is registered under this name on this host."""


class BadAnswerError(EpmdError):
    """What answered does not speak epmd's protocol."""


class NoAnswerError(BadAnswerError):
    """It closed the connection instead of answering: it is ending, or no epmd."""


class PortInUseError(EpmdError):
    """The embedded server cannot listen: its port is taken, or its address is none of ours."""


class EpmdStartError(EpmdError):
    """An epmd could not be started as a process."""


class NotFoundThereError(EpmdError):
    """The epmd that runs does not listen where other nodes look for this one."""
