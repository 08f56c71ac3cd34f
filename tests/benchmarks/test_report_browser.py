"""The report in a real browser: it fits a phone, nothing sticks out, and dark is dark. Skips without Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import report
from benchmarks.schema import Results

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"), pytest.mark.slow]

PROBE = """<!doctype html><iframe id="f" src="{page}" style="width:{width}px;height:4000px;border:0"></iframe>
<pre id="out"></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const out = [...page.querySelectorAll("main *")].filter((one) => {{
    const box = one.getBoundingClientRect();
    return box.width && box.right > root.clientWidth + 1 && !one.closest(".scroll");
  }});
  const squares = [...page.querySelectorAll("img, main > * svg")].filter((one) => one.getBoundingClientRect().width);
  const flat = squares.filter((one) => one.getBoundingClientRect().height < 20);
  document.getElementById("out").textContent =
    `width=${{root.scrollWidth}} out=${{out.length}} drawn=${{squares.length}} flat=${{flat.length}}`;
}};
</script>"""


def chromium(tmp_path: Path, *arguments: str) -> str:
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=180, check=True)
    return run.stdout


@pytest.fixture
def page(run_dir: Path, results: Results) -> Path:
    counts = (18,) * 60 + (5,) * 4
    layers = tuple(
        layer.model_copy(update={"shape": (64, 8, 8), "kept_map": counts})
        if (layer.subject, layer.layer) == ("linearized", "relu")
        else layer
        for layer in results.relu_layers
    )
    results.model_copy(update={"relu_layers": layers}).save(run_dir / "results.json")
    return report.write_report(run_dir, gallery=False)


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_sticks_out_of_the_page(page: Path, tmp_path: Path, width: int) -> None:
    probe = page.with_name("probe.html")
    probe.write_text(PROBE.format(page=page.name, width=width), encoding="utf-8")
    files = "--allow-file-access-from-files"
    dom = chromium(tmp_path, files, "--virtual-time-budget=5000", "--dump-dom", f"file://{probe}")
    found = re.search(r"width=(\d+) out=(\d+) drawn=(\d+) flat=(\d+)", dom)
    assert found is not None, "the page did not load in its frame"
    across, out, drawn, flat = map(int, found.groups())
    assert (across, out, flat) == (width, 0, 0)
    assert drawn > 3


@pytest.mark.parametrize(("scheme", "low", "high"), [("1", 230, 256), ("0", 0, 40)])
def test_the_page_follows_the_scheme_of_its_reader(
    page: Path, tmp_path: Path, scheme: str, low: int, high: int
) -> None:
    picture = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={scheme}"
    chromium(tmp_path, setting, "--window-size=800,600", f"--screenshot={picture}", f"file://{page}")
    with Image.open(picture) as image:
        corner = np.asarray(image.convert("L"))[:8, :8]
    assert low <= corner.mean() < high
