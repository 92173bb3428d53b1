"""Methods that problems can be solved by. One file a method or a family; adding one is a line in the table."""

from __future__ import annotations

from .base import Method, Step, Taken
from .first_order import Adam, Soap
from .lbfgs import LBFGS
from .natural import Natural
from .soap import SOAP

__all__ = ["LBFGS", "METHODS", "SOAP", "Adam", "Method", "Natural", "Soap", "Step", "Taken"]

METHODS: dict[str, type[Method]] = {"natural": Natural, "adam": Adam, "soap": Soap, "lbfgs": LBFGS}
