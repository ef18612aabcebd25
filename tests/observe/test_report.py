"""The page: self-contained, small, escaped, readable without scripts; made from the run folder alone."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from argosy.job.load import load
from argosy.observe import charts, curves, report, summary, words
from argosy.observe.summary import Summary
from argosy.run.archive import Archive
from argosy.run.folder import Run
from argosy.run.recorder import Recorder

S = 1_000_000_000
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&\x1b[2J\u202e\x00" + "x" * 3000


def made(path: Path, steps: int = 40, hostile: str = "", fault: bool = True) -> Run:
    """A run folder as `argosy train` leaves it: two incarnations, evaluations, samples, saves."""
    info: dict[str, Any] = {
        "version": 1, "id": "x", "name": "laptop" + hostile, "state": "finished", "created": "2026-11-21T10:00:00+00:00",
        "argosy": "0.1.0", "torch": "2.13.0+cpu", "threads": 3,
        "steps": steps, "commit": "abc" + hostile,
        "command": "argosy train " + hostile,
        "workers": 2, "layout": "replicate2", "versions": {"numpy" + hostile: "2"}, "environment": {"OMP_X": hostile},
        "machine": {"cores": 2, "memory_bytes": 1 << 30, "processor": "CPU" + hostile, "devices": []},
        "probed": {"gemm": {"float32": 140.0}},
        "predicted": {"step_seconds": 0.5, "memory_bytes": 400 << 20, "parameters": 2_164_416, "flops_per_token": 1.5e7},
        "data": {"source": "python" + hostile, "license": hostile or "PSF-2.0", "tokens": 2_690_000, "notes": [hostile]},
    }  # fmt: skip
    path.mkdir()
    (path / "run.json").write_text(json.dumps(info))
    settings = [
        {"key": "train.precision", "asked": "auto", "used": "float32", "origin": "measured", "why": "4.4x" + hostile},
        {"key": "train.compile", "asked": "auto", "used": False, "origin": "this machine", "why": "no compiler"},
        {"key": "batch.micro", "asked": "auto", "used": 8, "origin": "measured", "why": "what fits"},
        {"key": "layout.shape", "asked": "auto", "used": "replicate2 dp1", "origin": "this machine", "why": ""},
        {"key": "observe.prompts", "asked": None, "used": [hostile or "def "], "origin": "default", "why": ""},
    ]
    (path / "settings.json").write_text(json.dumps({"version": 1, "asked": {}, "written": {}, "settings": settings}))
    entry = {"from_step": 0, "key": "batch.tokens", "old": None, "new": 4096, "reason": "start" + hostile, "version": 1}
    (path / "ledger.jsonl").write_text(json.dumps(entry) + "\n")
    run = Run(path)
    archive = Archive(run)
    middle = steps * 3 // 5 if fault else steps
    trained(run, archive, 1, 1, middle, steps, hostile)
    if fault:
        run.journal({"what": "decided", "because": "worker 1 was killed" + hostile, "step": middle, "incarnation": 2})
        trained(run, archive, 2, middle - 1, steps, steps, hostile)
    archive.close()
    archive.rotate()
    return run


def trained(run: Run, archive: Archive, incarnation: int, first: int, last: int, steps: int, hostile: str) -> None:
    archive.begin(incarnation)
    recorder = Recorder(run, 0, incarnation)
    recorder.mark("loaded", first - 1)
    for step in range(first, last + 1):
        at = step * S
        for name, value in {"loss": 8 - 4 * step / steps, "counted": 10, "bytes": 32, "tokens": 4096 * step}.items():
            recorder.scalar(name, step, value)
        recorder.step(step, at, at + S // 2)
        if step % max(1, steps // 4) == 0:
            recorder.scalar("held_out_loss", step, 8 - 4 * step / steps)
            recorder.scalar("held_out_bits_per_byte", step, 3 - step / steps)
            recorder.mark("evaluated", step)
            with (run.path / "samples.jsonl").open("a") as file:
                file.write(
                    json.dumps({"step": step, "prompt": "def ", "text": f"f{step}(): <b>pass</b>" + hostile}) + "\n"
                )
            run.journal(
                {"what": "saved", "step": step, "bytes": 26_000_000, "seconds": 0.4, "waited": 0.01, "ok": True}
            )
    recorder.finish()
    archive.poll()


class Page(HTMLParser):
    """What a browser would find: tags, their attributes, headings, text outside of the style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes what was not open"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = made(tmp_path_factory.mktemp("runs") / "laptop")
    path = report.write(run)
    assert path == run.path / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_answers_the_questions_in_order(page: Page) -> None:
    assert not page.open
    text = page.text
    told = [
        "laptop", "A 2.16M-parameter model read 164K tokens of python and now predicts text it was never trained on at 2.00",
        "Learning", "What it writes", "Predicted and measured", "Where the time went", "Step by step", "Data", "Ledger",
        "Settings", "Checkpoints", "Faults and decisions", "worker 1 was killed", "Environment", "How to repeat this run",
    ]  # fmt: skip
    places = [text.find(word) for word in told]
    assert -1 not in places and places == sorted(places), dict(zip(told, places, strict=True))


def test_the_command_that_repeats_it_says_all_that_was_found_here(page: Page) -> None:
    said = re.search(r"OMP_NUM_THREADS=3 argosy train (.*) --run again", page.text)
    assert said, "what is measured anew may come out otherwise"
    job, workers, two, *overrides = shlex.split(said[1])
    assert (job, workers, two) == ("laptop/job.toml", "--workers", "2")
    chosen = load("laptop", overrides).job
    assert (chosen.train.precision, chosen.train.compile, chosen.batch.micro) == ("float32", False, 8)
    assert chosen.layout.shape == "replicate2 dp1"
    assert "torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu &&" in page.text


def test_the_command_also_says_what_could_not_be_measured_this_time(tmp_path: Path) -> None:
    run = made(tmp_path / "r", fault=False)
    table = json.loads((run.path / "settings.json").read_text())
    for row in table["settings"]:
        row["origin"] = "default"  # the machine was too busy; the next start may find it quiet, and decide otherwise
    (run.path / "settings.json").write_text(json.dumps(table))
    said = re.search(r"argosy train r/job.toml --workers 2 (.*) --run again", report.page(run))
    assert said and said[1] == "--train.precision float32 --train.compile false --batch.micro 8"


def test_the_page_needs_nothing_else(page: Page) -> None:
    """No script, picture, style, font or frame from elsewhere; links are downloads within the page."""
    assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "action", "data"):
            value = attributes.get(name)
            assert value is None or (tag == "a" and value.startswith("data:") and attributes.get("download"))
    policy = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy and str(policy[0]).startswith("default-src 'none'")
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]  # nothing but our own, by its hash
    own = (Path(report.__file__).parent / "report.js").read_bytes()
    digest = base64.b64encode(hashlib.sha256(own).digest()).decode()
    assert re.search(r"script-src ([^;]*)", str(policy[0]))[1] == f"'sha256-{digest}'"


def test_headings_labels_and_tables(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tags = [tag for tag, _ in page.tags]
    inputs = {attributes["id"] for tag, attributes in page.tags if tag == "input"}
    assert inputs == {attributes["for"] for tag, attributes in page.tags if tag == "label"} and len(inputs) == 3 + 4
    assert tags.count("table") == tags.count("caption")
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(attributes.get("role") == "img" for attributes in pictures) and tags.count("title") == len(pictures) + 1
    assert tags.count("html") == 1 and next(a for t, a in page.tags if t == "html")["lang"] == "en"


def test_each_curve_has_a_table_and_downloads(page: Page) -> None:
    figures = sum(tag == "figure" for tag, _ in page.tags)
    links = [(str(a["download"]), str(a["href"])) for tag, a in page.tags if tag == "a"]
    assert len([name for name, _ in links if name.endswith(".svg")]) == figures - 1  # the bar has its table below
    for name, address in links:
        if name.endswith(".svg"):
            picture = base64.b64decode(address.partition("base64,")[2]).decode()
            assert picture.startswith("<svg") and "<style>" in picture
    table = next(address for name, address in links if name == "learning-0.csv")
    assert "held out" in table and table.startswith("data:text/csv")


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_and_dark() -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what is drawn."""
    style = (Path(report.__file__).parent / "report.html").read_text()
    schemes = re.findall(
        r"--ground: (#\w{6}); --panel: (#\w{6}); --text: (#\w{6}); --quiet: (#\w{6}).*?--link: (#\w{6})", style, re.S
    )
    assert len(schemes) == 2
    for (ground, panel, text, quiet, link), drawn in zip(schemes, (charts.LIGHT, charts.DARK), strict=True):
        for colour in (text, quiet, link):
            assert min(contrast(colour, ground), contrast(colour, panel)) >= 4.5
        assert min(contrast(colour, ground) for colour in drawn) >= 3


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = report.page(made(tmp_path / "r", hostile=HOSTILE))
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    page = Page(text)
    assert not page.open and "img" not in {tag for tag, _ in page.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert len(text.encode()) < 1_000_000


def test_rows_of_a_stranger_do_no_harm(tmp_path: Path) -> None:
    """A run folder from somebody else is data: what makes no sense in it is left out."""
    run = made(tmp_path / "r")
    for name in ("metrics", "evaluations", "samples", "journal"):
        with (run.path / f"{name}.jsonl").open("a") as file:
            file.write(
                '{"step": "x", "loss": "<b>", "text": 3}\n[1]\n{"step": 3, "loss": [1]}\n{"what": "saved", "step": []}\n{'
            )
    assert not Page(report.page(run)).open


def test_facts_of_a_stranger_do_no_harm(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    info = json.loads((run.path / "run.json").read_text())
    for wrong in ([1], "x", 3, {"notes": 3, "gemm": {"float32": []}, "memory_bytes": {}, "step_seconds": "fast"}):
        for key in ("data", "machine", "probed", "versions", "environment", "predicted", "steps", "created", "torch"):
            (run.path / "run.json").write_text(json.dumps({**info, key: wrong}))
            assert not Page(report.page(run)).open
            words.end(run)


def test_files_that_go_while_they_are_counted_count_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-1").mkdir()
    for name in ("kept", "step-1/weights", "step-1/more"):
        (tmp_path / name).write_bytes(b"1234")
    walk = os.walk

    def pruned(path: Path) -> Iterator[Any]:
        for found in walk(path):
            if Path(found[0]).name == "step-1":
                shutil.rmtree(found[0])  # between its listing and a look at its files, as a new save may
            yield found

    monkeypatch.setattr(os, "walk", pruned)
    assert summary.disk(tmp_path) == 4


def test_a_new_run_has_a_page_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, "id": "x", "name": "new", "state": "new"}))
    page = Page(report.page(run))
    assert "has not begun to learn" in page.text and not page.open


def test_the_end_block_says_what_came_out(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    report.write(run)
    facts = words.end(run)
    assert facts.sentence.startswith("Done: 40 steps, 164K tokens in ")
    lines = dict(facts.lines)
    assert "2.000 bits/byte" in lines["Held out"] and "from 2.750 at step 10" in lines["Held out"]
    assert "step 0.5 s → 0.5 s (+0%)" in lines["Predicted"]
    assert lines["Faults"].startswith("1, ")
    assert facts.sample.startswith("def f40()")
    assert [name for name, _ in facts.commands] == ["Page", "Try", "Longer", "Your text"]
    assert dict(facts.commands)["Longer"] == "argosy train laptop --train.time '30 min'"
    run.update_info(command="argosy train my.toml --run r", data={"source": "~/notes"}, state="stopped", step=30)
    assert words.end(run).sentence.endswith(". Nothing is saved since step 30.")
    run.update_info(state="finished")
    own = dict(words.end(run).commands)
    assert own["Longer"] == f"argosy train {run.path}/job.toml --run {run.path}-longer --train.time '30 min'"
    assert "Your text" not in own


def test_a_run_of_a_module_of_ones_own_speaks_of_no_tokens(tmp_path: Path) -> None:
    run = made(tmp_path / "net", fault=False)
    (run.path / "evaluations.jsonl").unlink()
    metrics = [{"step": step, "loss": 0.04, "lr": 0.01, "tokens": 9} for step in range(1, 41)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    run.update_info(fit="a1")
    page = Page(report.page(run))
    assert "net: A module of your own took 40 steps; its last loss is 0.04." in page.text
    assert "nats" not in page.text and "tokens/s" not in page.text
    assert [name for name, _ in words.end(run).commands] == []


def test_a_curve_is_smoothed_and_one_point_flattens_no_other() -> None:
    raw = [(float(x), 2.0 + (x == 500) * 100) for x in range(1000)]
    mean, window = curves.smooth(raw)
    assert (len(mean), window, mean[0], mean[-1]) == (1000, 21, raw[0], raw[-1])
    assert max(y for _, y in mean) == pytest.approx(2 + 100 / 21)
    assert curves.smooth(raw[:50]) == (raw[:50], 1)
    chart = charts.Chart("t", "x", "y", (charts.Series("a", tuple(raw)),), str, str, charts.SMALL, True)
    assert charts._ranges(chart)[3] < 3
    assert charts.told(charts.ticks(0.0095, 0.0105), lambda value: f"{value:.2g}") == [
        "0.0096", "0.0098", "0.01", "0.0102", "0.0104",
    ]  # fmt: skip
    assert all(len(charts.ticks(1, last, charts.SMALL[0] // 92)) >= 2 for last in range(3, 5000))


def test_a_hundred_thousand_steps_stay_under_a_megabyte(tmp_path: Path) -> None:
    run = made(tmp_path / "r", steps=20)
    rows = []
    for step in range(1, 100_001):
        loss = f'"loss": {8 - step / 5e4:.17g}, "bits_per_byte": {3 - step / 1e5:.17g}'
        figures = f'{loss}, "lr": 0.01, "gradient_norm": {step % 7}.5'
        speed = f'"seconds": 0.5, "tokens_per_second": {8000 + step % 900}.1, "incarnation": 1, "time": {1.7e9 + step}'
        rows.append(f'{{"step": {step}, "tokens": {step * 4096}, {figures}, {speed}}}\n')
    (run.path / "metrics.jsonl").write_text("".join(rows))
    text = report.page(run)
    assert len(text.encode()) < 1_000_000
    assert Summary(run).step == 100_000 and "100,000" in text


def test_thinning_keeps_ends_and_spikes() -> None:
    points = [(float(x), 1.0) for x in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    thinned = charts.thin(points)
    assert len(thinned) <= charts.POINTS
    assert thinned[0] == points[0] and thinned[-1] == points[-1] and points[54_321] in thinned
    assert list(thinned) == sorted(thinned)
    assert charts.thin([(1.0, float("nan")), (2.0, 1.0)]) == ((2.0, 1.0),)


def test_reading_a_run_needs_no_torch(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    code = (
        "import sys; from argosy.commands.report import report; report(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, timeout=120)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
def test_a_browser_shows_it_in_light_and_dark(tmp_path: Path) -> None:
    """Headless Chromium draws the page without an error, dark on light and light on dark, and lays it out at phone width."""
    path = report.write(made(tmp_path / "r", hostile="<script>document.title='owned'</script>"))
    corners = {}
    for name, options in {
        "light": ["--window-size=1100,1600"],
        "dark": ["--window-size=1100,1600", "--blink-settings=preferredColorScheme=0"],
        "phone": ["--window-size=390,1600"],
    }.items():
        picture = tmp_path / f"{name}.png"
        browse(path, [*options, f"--screenshot={picture}"], tmp_path / name)
        corners[name] = pixel(picture)
    assert min(corners["light"]) > 240 and max(corners["dark"]) < 60
    shown = browse(path, ["--dump-dom"], tmp_path / "dom")
    assert "<title>owned" not in shown and "Learning" in shown
    assert shown.count(">PNG</button>") == shown.count(">SVG</a>") > 0  # our own script was let in
    assert browse(path, [f"--print-to-pdf={tmp_path / 'page.pdf'}"], tmp_path / "pdf") == ""
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def browse(page: Path, options: list[str], profile: Path) -> str:
    """Run Chromium on `page` and give what it prints."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}-profile", *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=180).stdout


def pixel(picture: Path) -> tuple[int, ...]:
    """The colour of the first pixel of a PNG of 8 bits a channel: its first row has no row above, so all filters are easy."""
    import struct
    import zlib

    data = picture.read_bytes()
    at, packed, channels = 8, b"", 3
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IHDR":
            channels = 4 if data[at + 17] == 6 else 3
        elif kind == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += size + 12
    first = zlib.decompressobj().decompress(packed, 1 + channels)
    return tuple(first[1:4])
