"""In a real browser nothing of the page is cut, and its console stays empty."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from conftest import make_folder
from report_runs import keep, make_run, score

from kdcache.progress import silent_bar
from kdcache.report import HeldOut, make_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (390, 1280)

# Each width is a frame, whose width is what the page's media queries see.
MEASURE = """
function look(frame) {
  const page = frame.contentDocument, width = page.documentElement.clientWidth, found = [];
  for (const one of page.querySelectorAll("details")) one.open = true;
  const name = (e) => e.tagName + " " + e.className + " " + e.textContent.trim().slice(0, 40);
  for (const e of page.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (e.closest(".scroll, .skip") || !box.width) continue;
    if (box.right > width + 1 || box.left < -1) found.push("beyond the page: " + name(e));
  }
  for (const e of page.querySelectorAll("figure > svg")) {
    const frame = e.closest("figure").getBoundingClientRect();
    for (const text of e.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        found.push("cut in a picture: " + text.textContent);
    }
  }
  for (const e of page.querySelectorAll(".scroll"))
    if (width < 700 && e.scrollWidth > e.clientWidth + 1) found.push("scrolls: " + e.ariaLabel);
  return { width, wide: page.documentElement.scrollWidth, found,
           letters: getComputedStyle(page.body).fontSize,
           figures: page.querySelectorAll("figure > svg").length };
}
window.onload = () => {
  const seen = [...document.querySelectorAll("iframe")].map(look);
  document.getElementById("out").textContent = JSON.stringify(seen);
};
"""


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    return found


@pytest.mark.slow
def test_nothing_is_cut_at_390_and_1280_pixels_and_the_console_is_empty(browser, tmp_path):
    runs = [
        make_run(
            tmp_path / "seed-resnet18-a_rather_long_name_of_a_run", "seed", student="resnet18"
        ),
        make_run(tmp_path / "simreg-1"),
        make_run(tmp_path / "underway", "moco", taught=False, finished=False),
    ]
    for place, run in enumerate(runs[:2]):
        keep(run, *(score(20.0 + place + k, k) for k in (1, 10, 20)), score(50.0, None))
    data = make_folder(tmp_path / "val", per_class=5)
    held_out = HeldOut(data, None, None, None, torch.device("cpu"), 0)
    text = make_report(runs, "html", held_out=held_out, bar=silent_bar)
    frames = "".join(
        f'<iframe style="width:{w}px;height:900px;border:0" srcdoc="{html.escape(text)}"></iframe>'
        for w in WIDTHS
    )
    outer = f'<!doctype html><body>{frames}<pre id="out"></pre><script>{MEASURE}</script>'
    (tmp_path / "outer.html").write_text(outer)
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--window-size=1800,1000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
            f"file://{tmp_path / 'outer.html'}",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="out">(.+?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert [one["width"] for one in seen] == [pytest.approx(w, abs=20) for w in WIDTHS]
    for one in seen:
        assert one["found"] == []
        assert one["wide"] <= one["width"]
        assert one["letters"] == "16px"
        assert one["figures"] == text.count("<figure>")
