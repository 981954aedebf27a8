"""The HTML report in a real browser: what is drawn, what is asked of the network, what is escaped."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_examples import EXAMPLES, detector_record, explained, healthy, hostile

from whyspike.errors import OutputExists
from whyspike.reports import _pictures as pictures
from whyspike.reports import html
from whyspike.reports import json as document
from whyspike.types import Diagnosis, Event, Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to open the report with")


def open_in_browser(page: Path, folder: Path, *options: str) -> tuple[str, str, list[str]]:
    """The document after its scripts have run, what the console said, and the addresses that the page asked for."""
    log = folder / "net.json"
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
        *(f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr"),
        *("--window-size=1000,1400", "--virtual-time-budget=3000", *options, "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    # the browser also asks for things of its own; requests of the page carry its site
    asked = re.findall(r'\{site=file://;[^}]*\}","url":"([^"]+)"', log.read_text(encoding="utf-8"))
    return done.stdout, console, asked


def drawn(dom: str) -> set[str]:
    """The ids of the pictures that were drawn: marked, and holding a canvas of some size."""
    found = set()
    for name, inside in re.findall(r'<div id="(\w+)" class="chart[^>]*data-drawn="yes">(.*?)</canvas>', dom, re.DOTALL):
        width, height = re.search(r'<canvas width="(\d+)" height="(\d+)"', inside).groups()  # type: ignore[union-attr]
        if int(width) > 100 and int(height) > 100:
            found.add(name)
    return found


# ------------------------------------------------------------------------------- in the browser


@browser
@pytest.mark.browser
def test_a_page_draws_its_pictures_and_asks_for_nothing(tmp_path: Path):
    page = html.write(explained(), tmp_path / "report.html")
    dom, console, asked = open_in_browser(page, tmp_path)
    assert console == ""
    assert drawn(dom) == {"loss", "fold", "reported", "state"}
    assert asked == []
    assert 'data-theme="light"' in dom


@browser
@pytest.mark.browser
def test_a_page_that_did_ask_would_be_caught(tmp_path: Path):
    page = tmp_path / "loud.html"
    page.write_text('<!doctype html><img src="http://whyspike.invalid/x.png"><script>console.error("loud")</script>')
    _, console, asked = open_in_browser(page, tmp_path)
    assert "loud" in console
    assert asked == ["http://whyspike.invalid/x.png"]


@browser
@pytest.mark.browser
@pytest.mark.parametrize("name", ["healthy", "unexplained", "cannot-say"])
def test_a_page_without_some_of_its_pictures_has_no_error(name: str, tmp_path: Path):
    dom, console, _ = open_in_browser(html.write(EXAMPLES[name](), tmp_path / "report.html"), tmp_path)
    assert console == ""
    assert drawn(dom) == ({"loss", "fold"} if name == "healthy" else set())


@browser
@pytest.mark.browser
def test_a_hostile_name_stays_text(tmp_path: Path):
    dom, console, _ = open_in_browser(html.write(hostile(), tmp_path / "report.html"), tmp_path)
    assert console == ""
    assert "<b>bold</b>" not in dom
    assert "&lt;/script&gt;&lt;b&gt;bold&lt;/b&gt;&lt;!--" in dom
    assert "loss" in drawn(dom)


@browser
@pytest.mark.browser
def test_the_theme_is_set_before_the_first_paint(tmp_path: Path):
    page = html.write(explained(), tmp_path / "report.html")
    dark = "--blink-settings=preferredColorScheme=0"
    dom, console, _ = open_in_browser(page, tmp_path, dark)
    assert console == ""
    assert 'data-theme="dark"' in dom
    text = page.read_text(encoding="utf-8")
    assert text.index("dataset.theme") < text.index("<style>") < text.index("<body>")


CLICKS = """<script>
(async () => {
  const drawn = () => new Promise((done) => setTimeout(done, 50));
  for (const id of ["log", "next", "next", "previous"]) { document.getElementById(id).click(); await drawn(); }
  document.body.dataset.said = document.getElementById("loss-readout").textContent;
  document.getElementById("all").click();
  const list = document.getElementById("changed");
  list.value = "1";
  list.dispatchEvent(new Event("change"));
  document.getElementById("theme").click();
})();
</script>"""


@browser
@pytest.mark.browser
def test_its_buttons_do_what_they_say(tmp_path: Path):
    page = tmp_path / "report.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html.render(explained()))
    page.write_text(text.replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    dom, console, _ = open_in_browser(page, tmp_path)
    assert console == ""
    assert 'aria-pressed="false">log axis' in dom
    assert 'data-said="steps 65 to 81; spike e1: logged' in dom  # next, next, previous
    assert 'data-theme="dark"' in dom
    assert drawn(dom) == {"loss", "fold", "reported", "state"}
    assert dom.count("<canvas") == 4


@browser
@pytest.mark.browser
def test_a_page_can_be_printed_from_a_dark_screen(tmp_path: Path):
    page, sheet = html.write(explained(), tmp_path / "report.html"), tmp_path / "report.pdf"
    dark = "--blink-settings=preferredColorScheme=0"
    _, console, _ = open_in_browser(page, tmp_path, dark, f"--print-to-pdf={sheet}")
    assert console == ""
    assert sheet.read_bytes().startswith(b"%PDF")


@browser
@pytest.mark.browser
def test_a_million_steps_are_drawn(tmp_path: Path):
    made = long_run(1_000_000)
    page = html.write(made, tmp_path / "report.html")
    assert page.stat().st_size < 3_000_000
    dom, console, _ = open_in_browser(page, tmp_path)
    assert console == ""
    assert "loss" in drawn(dom)


# ------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_file_names_no_address_to_load(name: str):
    text = html.render(EXAMPLES[name]())
    assert re.findall(r"""\b(?:src|href|action|srcset)\s*=\s*(?!"data:)""", text) == []
    assert re.findall(r"url\(\s*['\"]?(?!data:)|@import", text) == []
    assert "default-src 'none'" in text


def test_the_policy_allows_exactly_the_scripts_of_the_page():
    text = html.render(hostile())
    allowed = re.findall(r"sha256-[\w+/=]+", text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert [html._hash(script) for script in scripts] == allowed
    assert "unsafe-inline" not in re.search(r"script-src ([^;]*);", text).group(1)  # type: ignore[union-attr]


def test_the_licence_of_the_drawing_code_is_in_the_page():
    text = html.render(healthy())
    assert "Copyright (c) 2022 Leon Sorokin" in text
    assert "THE SOFTWARE IS PROVIDED" in text


def test_embedded_data_cannot_leave_its_element():
    data = html._embedded({"a": "</script><!-- \u2028\u2029 ]]> &amp;"})
    assert not re.search("[<>&\u2028\u2029]", data)
    assert json.loads(data) == {"a": "</script><!-- \u2028\u2029 ]]> &amp;"}


def test_a_small_run_makes_a_small_file():
    assert len(html.render(explained()).encode()) < 200_000


def test_a_diagnosis_read_from_json_has_a_page():
    back = document.load(document.render(explained()))
    text = html.render(back)
    assert 'id="loss"' not in text
    assert "loss x b/B on the last batch" in text
    assert "Divide once" in text


def test_a_document_says_everything_that_the_terminal_says():
    text = html.render(explained())
    for part in (
        *("10 spikes in 396 steps", "the loss is divided by the batch size twice", "Exponent of the loss"),
        *("99\u00a0% (98 to 99\u00a0%)", "drop_last=True", "momentum-carry-over", "sum-reduction", "outlier-example"),
        *("events 31 \u2192 0", "truncated-tail", "The factors of event e4", "How to read this"),
    ):
        assert part in text, part


# ------------------------------------------------------------------------------- written


def test_an_existing_file_is_kept_without_force(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OutputExists, match=r"report\.html is there already"):
        html.write(healthy(), path)
    assert path.read_text() == "mine"
    assert html.write(healthy(), path, force=True) == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_folders_are_made_and_the_file_can_be_read_by_others(tmp_path: Path):
    path = healthy().to_html(tmp_path / "a" / "b.html")
    assert path.exists()
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failure_leaves_no_half_file(tmp_path: Path):
    broken = replace(healthy(), answer=replace(healthy().answer, sentence=3))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        html.write(broken, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- fragment


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_fragment_needs_no_script(name: str):
    text = EXAMPLES[name]()._repr_html_()
    assert "<script" not in text
    assert "<b>bold</b>" not in text
    assert text.count("<div") == text.count("</div>")


def test_a_fragment_shows_the_loss_and_the_answer():
    text = explained()._repr_html_()
    assert text.count("<circle") == 10
    assert "<polyline" in text
    assert "confirmed[double-averaged-loss]" in text


# ------------------------------------------------------------------------------- the numbers behind the pictures


def long_run(steps: int, spikes: int = 40) -> Diagnosis:
    """A run of that many steps with spikes and some values that are not finite."""
    rng = np.random.default_rng(0)
    loss = np.exp(0.1 * rng.standard_normal(steps))
    at = np.linspace(steps // 10, steps - 10, spikes).astype(int)
    loss[at] = 20 + np.arange(spikes)
    loss[steps // 2 : steps // 2 + 3] = np.nan
    run = Run(source="long", reader="csv", step=np.arange(steps), loss=loss)
    events = tuple(
        Event(id=f"e{k}", kind="spike", step=int(s), last_step=int(s) + 5, reported=20.0) for k, s in enumerate(at)
    )
    made = healthy()
    return replace(made, run=replace(made.run, steps=steps, steps_per_epoch=None), events=events, record=run)


def slow_thin(values: list[float], whole: list[tuple[int, int]], buckets: int) -> list[int]:
    """What `thin` means, row by row."""
    n = len(values)
    if n <= 2 * buckets:
        return list(range(n))
    size = -(-n // buckets)
    kept = {0, n - 1}
    for start in range(0, n, size):
        rows = [r for r in range(start, min(start + size, n)) if np.isfinite(values[r])]
        rows = rows or [start]
        kept |= {min(rows, key=lambda r: values[r]), max(rows, key=lambda r: values[r])}
    for first, last in whole:
        kept |= set(range(max(first - pictures.AROUND, 0), min(last + pictures.AROUND, n - 1) + 1))
    return sorted(kept)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(width=16), min_size=1, max_size=1500),
    event=st.integers(0, 1499),
    buckets=st.integers(1, 60),
)
def test_thinning_is_what_it_says(values: list[float], event: int, buckets: int):
    whole = [(event, min(event + 3, len(values) - 1))] if event < len(values) else []
    rows = pictures.thin(np.array(values), whole, buckets=buckets)
    assert rows.tolist() == slow_thin(values, whole, buckets)


def test_a_long_run_keeps_its_spikes_and_the_steps_around_them():
    made = long_run(300_000)
    data = pictures.loss(made)
    assert data is not None
    steps = (data["first"] + np.cumsum(data["gaps"])).tolist()
    assert steps[0] == 0
    assert steps[-1] == 299_999
    assert len(steps) < 2 * pictures.BUCKETS + pictures.WHOLE
    for event in made.events:
        around = set(range(event.step - 200, min(event.step + 200, 300_000)))
        assert around <= set(steps[max(np.searchsorted(steps, event.step) - 400, 0) :])
        assert data["value"][steps.index(event.step)] >= 20


def test_the_folded_epoch_is_the_median_over_epochs():
    made = explained()
    data = pictures.fold(made)
    assert data is not None
    loss = detector_record(sick=True).loss.reshape(12, 33)[1:]
    slow = np.median([row / np.median(row) for row in loss], axis=0)
    np.testing.assert_allclose(data["median"], slow, rtol=1e-4)
    assert data["position"] == list(range(1, 34))
    assert data["places"] == [[33, 10]]
    assert data["epochs"] == 11


def test_the_arms_are_aligned_on_their_event():
    data = pictures.arms(explained())
    assert data is not None
    assert [a["arm"] for a in data["arms"]] == ["baseline", "intervention", "intervention", "placebo"]
    assert (data["first"], data["last"]) == (-4, 20)
    baseline = data["arms"][0]
    assert int(np.argmax(baseline["reported"]["median"])) == 4  # the event itself
    assert baseline["state"]["median"][0] == pytest.approx(1, abs=0.2)
    assert len(baseline["state"]["pairs"]) == 9


def test_trials_of_different_lengths_are_placed_by_their_step():
    made = explained()
    late, other = made.trials[0], made.trials[4]
    late = replace(late, first_step=late.event_step, reported=(5.0,), state=(7.0,))
    late = replace(late, reported_reference=1.0, state_reference=1.0)
    data = pictures.arms(replace(made, trials=(late, other)))
    assert data is not None
    pairs = data["arms"][0]["reported"]["pairs"]
    assert pairs[0][-data["first"]] == 5.0
    assert [v for v in pairs[0] if v is not None] == [5.0]


def test_a_run_that_is_all_nan_has_a_page():
    made = explained()
    assert made.record is not None
    record = replace(made.record, loss=np.full(len(made.record), np.nan))
    event = Event(id="e1", kind="non-finite", step=0, last_step=395)
    text = html.render(replace(made, record=record, events=(event,)))
    assert "not finite" in text
