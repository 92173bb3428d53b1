"""``python -m seng.cli`` is the program ``seng`` under its former name."""

from __future__ import annotations

from .apps.cli import main

if __name__ == "__main__":
    main()
