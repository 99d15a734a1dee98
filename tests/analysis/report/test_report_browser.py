"""The report in headless Chromium: it renders, says nothing on the console, and asks for nothing.

Where no browser is installed these tests say so; what is in the file is checked without one in the other tests.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import found
import numpy as np
import pages
import pytest
from PIL import Image

from vega3d_plugin.analysis.report.analysis_report import write_report

BROWSER = pages.browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")

#: What the browser itself asks for, page or no page; all of it fails, since its proxy is nobody.
_OWN = re.compile(r"https?://([\w-]+\.)*(google|gstatic|googleapis|chromium)\.(com|org)[:/]")
_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--proxy-server=127.0.0.1:9",
    "--enable-logging=stderr",
)


@dataclass(frozen=True)
class Visit:
    """What a page did. Attributes: ``dom`` after loading; ``console``; ``requests`` for anything but the file."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(path: Path, work: Path, *options: str) -> Visit:
    assert BROWSER is not None
    log = work / "net.json"
    command = [BROWSER, *_QUIET, f"--user-data-dir={work / 'profile'}", f"--log-net-log={log}", *options]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    text = log.read_text(encoding="utf-8", errors="replace")
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    urls = {
        str(event["params"]["url"])
        for event in events
        if isinstance(event.get("params"), dict) and "url" in event["params"]
    }
    asked = sorted(url for url in urls if url.startswith(("http", "ws", "ftp")) and not _OWN.match(url))
    return Visit(done.stdout, re.findall(r"CONSOLE.*", done.stderr), asked)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(found.write_all(tmp_path_factory.mktemp("browser") / "out"))


def test_it_renders_without_an_error_or_a_request(report: Path, tmp_path: Path) -> None:
    seen = visit(report, tmp_path, "--dump-dom")
    assert "<h1>Which of 1 priors" not in seen.dom
    assert "</footer>" in seen.dom
    assert seen.console == []
    assert seen.requests == []


def test_the_check_sees_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://203.0.113.1/x.png"><script>console.error("boom"); missing()</script>')
    seen = visit(page, tmp_path, "--dump-dom")
    assert any("boom" in line for line in seen.console)
    assert any("missing is not defined" in line for line in seen.console)
    assert seen.requests == ["http://203.0.113.1/x.png"]


def test_its_policy_would_stop_both(report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page = tmp_path / "injected.html"
    page.write_text(
        text.replace("<body>", '<body><img src="http://203.0.113.1/x.png"><script>document.title="run"</script>')
    )
    seen = visit(page, tmp_path, "--dump-dom")
    assert seen.requests == []
    assert "<title>run</title>" not in seen.dom
    assert any("Content Security Policy" in line for line in seen.console)


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_sticks_out_sideways(report: Path, tmp_path: Path, width: int) -> None:
    """On a phone as on a desk, only tables scroll sideways, and they do so in their own frames."""
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", report.read_text(encoding="utf-8"))
    measure = """<script>addEventListener("load", () => {
      document.querySelectorAll("details").forEach((each) => { each.open = true });
      parent.postMessage(document.documentElement.scrollWidth + " of " + innerWidth, "*") })</script>"""
    (tmp_path / "inner.html").write_text(text.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    outer = tmp_path / "outer.html"
    # A window is never narrower than 500 pixels, a frame is.
    outer.write_text(
        '<title></title><script>addEventListener("message", (it) => { document.title = it.data })</script>'
        f'<iframe src="inner.html" style="width:{width}px;height:800px;border:0"></iframe>'
    )
    seen = visit(outer, tmp_path, "--dump-dom", "--window-size=1400,900", "--virtual-time-budget=3000")
    measured = re.search(r"<title>(\d+) of (\d+)</title>", seen.dom)
    assert measured is not None
    assert int(measured[2]) == width
    assert int(measured[1]) <= width


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(report: Path, tmp_path: Path, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    visit(report, tmp_path, f"--screenshot={shot}", scheme, "--window-size=800,900")
    pixels = np.asarray(Image.open(shot).convert("L"), dtype=np.float64)
    assert pixels.shape == (900, 800)
    paper = np.median(pixels)
    assert paper < 60 if dark else paper > 200
    # Something is written on it, and it can be read.
    ink = np.percentile(pixels, 99.5 if dark else 0.5)
    assert abs(ink - paper) > 100
