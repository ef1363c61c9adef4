"""A real browser without a window, where the machine has one."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def _browser() -> str | None:
    """The first that starts: some systems have a stub by that name which only names a shop."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and "Chrom" in done.stdout:
                return path
    return None


BROWSER = _browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")

SCHEMES = {"dark": 0, "light": 1}  # as the browser numbers them

# What is measured of a page: its figures, its text and the ground below it.
_PROBE = """<pre id="probe"></pre><script>
const box = e => { const b = e.getBoundingClientRect(); return [b.width, b.height]; };
const style = e => getComputedStyle(e);
document.getElementById('probe').textContent = JSON.stringify({
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  ground: style(document.body).backgroundColor,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  figures: [...document.querySelectorAll('figure')].map(f => ({
    label: f.querySelector('svg').getAttribute('aria-label'),
    role: f.querySelector('svg').getAttribute('role'),
    caption: f.querySelector('figcaption').textContent,
    size: box(f.querySelector('svg')),
    texts: [...f.querySelectorAll('svg text')].map(t => t.textContent),
    images: [...f.querySelectorAll('image')].map(box)})),
  colours: [
    ...[...document.querySelectorAll('svg text')].map(e => style(e).fill),
    ...[...document.querySelectorAll('h1, h2, p, th, td, dt, dd, li, li *, caption, figcaption')]
      .map(e => style(e).color)],
  lines: [...document.querySelectorAll('svg path')].map(e => style(e).stroke),
  headless: [...document.querySelectorAll('table')].filter(t => !t.querySelector('thead th')
    || [...t.querySelectorAll('tbody tr')].some(r => !r.querySelector('th[scope=row]'))).length,
});
</script>"""


def open_page(path: Path, scheme: str, *flags: str) -> tuple[str, list[str]]:
    """What the browser prints of a page, and the lines on its console."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr",
            f"--user-data-dir={path.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            *flags, path.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def photograph(path: Path, scheme: str, picture: Path) -> list[str]:
    """Write a picture of the page as it is; the lines on the browser's console."""
    _, console = open_page(path, scheme, "--window-size=1200,2600", f"--screenshot={picture}")
    return console


def probe(path: Path, scheme: str, width: int = 1200) -> dict[str, Any]:
    """What the browser makes of the page, measured by a script that the page would not let in."""
    page = path.read_text()
    page = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy = path.parent / "probed.html"
    copy.write_text(page.replace("</body>", f"{_PROBE}</body>"))
    text, console = open_page(copy, scheme, f"--window-size={width},1000", "--dump-dom")
    assert not console, console
    found = re.search(r'<pre id="probe">(.*?)</pre>', text, flags=re.DOTALL)
    assert found is not None, text[-2000:]
    content: dict[str, Any] = json.loads(
        found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    return content
