"""A real browser without a window: what a page is after its scripts ran, and how it looks."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
)
WAIT_MS = 4000  # of the page's own clock, which runs as fast as the machine can
LIMIT_S = 120  # for a machine with much else to do


def find_browser() -> str | None:
    """Return the program of Chromium or a relative of it."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def take_picture(browser: str, page: Path, picture: Path, width: int, height: int, *options: str) -> None:
    """Save what a window of that size shows."""
    _run(browser, page, f"--window-size={width},{height}", f"--screenshot={picture}", *options)


def probe(browser: str, page: str, script: str, widths: dict[str, int], folder: Path) -> dict[str, Any]:
    """Load a page into frames of given widths and run a script in each.

    Args:
        browser: the program.
        page: the HTML.
        script: the body of a function that is called in the page after its own scripts and returns plain values;
            it finds ``problems``, a list of errors and of loads that the page's policy refused.
        widths: CSS pixels by name; windows narrower than 500 exist only as frames.
        folder: where to write the pages.

    Returns:
        What the script returned, by the names of the widths.
    """
    watch = """<script>
      const problems = [];
      addEventListener("error", (event) => problems.push(event.message));
      addEventListener("securitypolicyviolation", (event) => problems.push(`refused: ${event.blockedURI}`));
      const tell = console.error;
      console.error = (...words) => { problems.push(words.join(" ")); tell(...words); };
    </script>"""
    answer = f"""<script>
      addEventListener("load", () => setTimeout(() => {{
        const answer = (() => {{ {script} }})();
        parent.postMessage({{ name: location.hash.slice(1), answer }}, "*");
      }}, 300));
    </script>"""
    (folder / "probed.html").write_text(
        page.replace("<head>", f"<head>{watch}", 1).replace("</body>", f"{answer}</body>")
    )
    frames = "".join(
        f'<iframe src="probed.html#{name}" style="border:0;width:{width}px;height:3000px"></iframe>'
        for name, width in widths.items()
    )
    listen = "addEventListener('message', (e) => { answers[e.data.name] = e.data.answer; write(); })"
    write = "document.getElementById('answers').textContent = JSON.stringify(answers)"
    (folder / "frames.html").write_text(
        f"<meta charset=utf-8><pre id=answers></pre>"
        f"<script>const answers = {{}}; const write = () => {{ {write} }}; {listen}</script>{frames}"
    )
    printed = _run(browser, folder / "frames.html", "--window-size=1600,3200", "--dump-dom")
    found = re.search('<pre id="answers">(.*?)</pre>', printed, re.DOTALL)
    assert found, f"the browser printed no answers: {printed[:500]}"
    return json.loads(html.unescape(found[1]))


def _run(browser: str, page: Path, *options: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *QUIET, f"--user-data-dir={profile}", f"--virtual-time-budget={WAIT_MS}", *options]
        done = subprocess.run(
            [*command, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
            env={**os.environ, "HOME": profile, "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
        )
    return done.stdout
