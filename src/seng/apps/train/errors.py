"""The training application's errors, each a ``SengError``: the program shows them without a traceback."""

from __future__ import annotations

from ...errors import SengError


class ConfigError(SengError):
    """A setting is unknown or out of range."""


class DataError(SengError):
    """A data set is absent, corrupt, or not what it should be."""


class CheckpointError(SengError):
    """A run's folder or checkpoint cannot be used as asked."""


class DamagedError(CheckpointError):
    """A checkpoint's file cannot be read, or not all of it is as it was written."""


class DivergedError(SengError):
    """The loss is no longer finite."""
