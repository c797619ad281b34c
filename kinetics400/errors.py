"""Failures a user can act on. Each carries the process's exit code (see README, "Exit codes")."""

import errno


class Failure(Exception):
    """Something went wrong that one sentence can explain. The command line prints it and exits."""

    exit_code = 1


class InputError(Failure, ValueError):
    """Wrong input or usage: the message names the input and the remedy. Nothing was written."""

    exit_code = 2


class MissingInput(InputError):
    """Data, weights or a device that this machine does not have; a dry run carries on without."""


class DataError(Failure):
    """More bad data than the threshold allows, or a truncated archive."""

    exit_code = 3


class StorageError(Failure):
    """The disk is full, read-only or failing."""

    exit_code = 74
    ERRNOS = frozenset(
        {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES}
    )


class Stopped(Failure):
    """The run stopped early and can be resumed by repeating the command."""

    exit_code = 75
