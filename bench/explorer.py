"""How long the explorer takes with many points, in headless Chromium: to paint, to draw, and to draw again.

From the start of the navigation to the first paint, and to the frame in which every point is there; then from
a turn of the wheel, and from a click on an entry of the legend, to the frame that shows it.

    python -m bench.explorer [--points 50000] [--classes 20] [--rounds 3]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from playwright.sync_api import sync_playwright

from pixvec import explore
from pixvec.dataset import Dataset, Row

if TYPE_CHECKING:
    from pixvec._types import Array

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
NEIGHBOURS, ZOOMS = 10, 5
READY = "() => globalThis.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
DRAWN = f"async () => {{ await {FRAME}; return performance.now(); }}"
FIRST_PAINT = "() => performance.getEntriesByName('first-paint')[0].startTime"
ZOOMED = f"""async () => {{
  const view = Bokeh.index.get_one(chart.figure);
  const events = view.canvas_view.events_el;
  const box = events.getBoundingClientRect();
  const at = {{ clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 }};
  const began = performance.now();
  events.dispatchEvent(new WheelEvent("wheel", {{ ...at, deltaY: -120, bubbles: true, cancelable: true }}));
  await {FRAME};
  return performance.now() - began;
}}"""
HIDDEN = f"""async () => {{
  const began = performance.now();
  document.querySelector("#legend button").click();
  await {FRAME};
  return performance.now() - began;
}}"""


def made(points: int, classes: int) -> tuple[Dataset, dict[str, Array], dict[str, Array]]:
    """Return a dataset of rows that have no picture, its map and its neighbours."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, classes, points)
    xy = rng.normal(size=(classes, 2))[group] * 6 + rng.normal(size=(points, 2))
    rows = tuple(
        Row(f"{i:06}.jpg", f"/none/{i}.jpg", "", "", label=f"class {g}") for i, g in enumerate(group)
    )
    held = Dataset(Path("points"), rows, np.zeros((points, 2), np.float32), (), {})
    near = rng.integers(0, points, (points, NEIGHBOURS))
    return held, {"map": xy.astype(np.float32)}, {"neighbours": near}


def measured(page: Any, url: str) -> dict[str, float]:  # noqa: ANN401 - playwright's page
    """Return milliseconds by what they are of, for one visit."""
    page.goto(url)
    page.wait_for_function(READY, timeout=60_000)
    drawn = page.evaluate(DRAWN)
    zooms = [page.evaluate(ZOOMED) for _ in range(ZOOMS)]
    return {
        "first paint": page.evaluate(FIRST_PAINT),
        "all drawn": drawn,
        "zoomed": median(zooms),
        "a class hidden": page.evaluate(HIDDEN),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("chromium is not on the PATH")
    with sync_playwright() as playwright, explore.serve(*made(asked.points, asked.classes)) as site:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        visits = []
        for _ in range(asked.rounds):
            page = browser.new_page(viewport={"width": 1400, "height": 850})
            visits.append(measured(page, site.url))
            page.close()
        browser.close()
    for name in visits[0]:
        times = sorted(visit[name] for visit in visits)
        print(f"{name}: {median(times):.0f} ms ({times[0]:.0f} to {times[-1]:.0f})")


if __name__ == "__main__":
    main()
