"""``python -m seng`` is the program ``seng``."""

from __future__ import annotations

from .apps.cli import main

if __name__ == "__main__":
    main()
