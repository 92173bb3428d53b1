"""The report's error, a ``SengError``: the program shows it without a traceback."""

from __future__ import annotations

from ...errors import SengError


class ReportError(SengError):
    """A folder holds no run that can be shown, or the report cannot be made."""
