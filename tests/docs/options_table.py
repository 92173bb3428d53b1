"""The table of options in docs/options.md, made from the docstring of ``seng.Options``.

``python tests/docs/options_table.py`` writes it into the page.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from seng import Options
from seng.config import PRESETS
from seng.distribution import Distributed
from seng.estimators import Estimator

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"


def described() -> dict[str, str]:
    """Description by name, from the Args section."""
    section = (inspect.getdoc(Options) or "").split("Args:\n")[1].split("\n\n")[0]
    entries = re.split(r"\n(?=    \w)", "\n" + section.rstrip())[1:]
    pairs = (entry.strip().split(":", 1) for entry in entries)
    return {name: re.sub(r"\s+", " ", text).strip() for name, text in pairs}


def table() -> str:
    """Options, defaults and meanings, then presets."""
    meaning = described()
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for field in fields(Options):
        text = meaning[field.name].replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{_shown(field.default)}` | {text} |")
    lines += ["", "| preset | what it sets |", "|---|---|"]
    for name, values in PRESETS.items():
        lines.append(f"| `{name}` | {', '.join(f'`{key}={_shown(value)}`' for key, value in values.items())} |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, Estimator | Distributed):
        own = [field for field in fields(value) if getattr(value, field.name) != field.default]  # type: ignore[arg-type]
        arguments = ", ".join(f"{field.name}={_shown(getattr(value, field.name))}" for field in own)
        return f"seng.{type(value).__name__}({arguments})" if own else _shown(value.name)
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else repr(value).replace("'", '"')


def main() -> None:
    """Write the table into the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
