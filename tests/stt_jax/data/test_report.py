"""The report says what the log is, warns of what it should, and stands on its own in a browser."""

import dataclasses
import html.parser
import re
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest

from stt_jax.data import prepared_log
from stt_jax.data.charts import bar_chart, curve_chart, density_map
from stt_jax.data.findings import describe_log, find_warnings
from stt_jax.data.preparation import prepare_log
from stt_jax.data.report import render_report
from stt_jax.data.schema import StepCount
from tests.stt_jax.data.test_preparation import config_for, random_rows, write_csv
from tests.stt_jax.tiny_logs import random_log

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def described(log, **meta):
    meta = dataclasses.replace(log.meta, **meta)
    return dataclasses.replace(
        log, meta=dataclasses.replace(meta, statistics=describe_log(log) | meta.statistics)
    )


class Balance(html.parser.HTMLParser):
    """Fails on a tag that is closed out of turn; collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def text_of(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return " ".join(parser.words)


def test_it_shows_counts_missing_values_and_warnings():
    log = described(
        random_log(),
        steps=(StepCount("cut <b>", 12_345, 9, {"a & b": 12_336}, {"x": 3}),),
        warnings=("mind the gap",),
        statistics={"num_missing": {"price": [7, 2]}},
    )
    page = render_report(log)
    text = text_of(page)
    for words in ("cut <b>", "12,345", "dropped 12,336: a & b", "changed 3: x", "Mind the gap"):
        assert words in text
    assert f"7 ({7 / log.num_events:.1%})" in text
    assert "from training" in text
    assert page.count("<svg") == 7
    # Nothing is fetched: no address, no script, no import.
    assert not re.search(r"https?:|src=|<script|@import|url\(", page)


@pytest.mark.parametrize("has_times", [True, False])
@pytest.mark.parametrize("has_places", [True, False])
def test_a_log_may_lack_times_and_places(has_times, has_places):
    log = described(random_log(has_times=has_times, has_places=has_places))
    page = render_report(log)
    text_of(page)
    assert page.count("<svg") == 2 + 3 * has_times + 2 * has_places


def test_bars_and_maps_are_in_proportion():
    page = bar_chart("t", np.array([0, 5, 10]), ["a", "b", "c"], 1)
    heights = [float(text) for text in re.findall(r'<rect class="mark".*? height="([\d.]+)"', page)]
    assert heights[0] == 0
    assert heights[1] == pytest.approx(heights[2] / 2)
    places = np.array([[40.0, -74.0]] * 90 + [[40.1, -73.9]] * 10).T
    shades = re.findall(r'opacity="([\d.]+)"', density_map("t", *places))
    assert sorted(map(float, shades)) == [
        pytest.approx(0.12 + 0.88 * np.log(11) / np.log(91), abs=0.01),
        1.0,
    ]
    assert "no items" in curve_chart("t", np.zeros(3, np.int64))


def warnings_of(log, **changes):
    return " ".join(find_warnings(dataclasses.replace(log, **changes)))


def test_what_is_suspicious_is_said_in_words():
    log = random_log(num_users=30, max_events=60)
    assert "one user" not in warnings_of(log)
    offsets = log.user_offsets.copy()
    offsets[1:-1] = np.minimum(offsets[1:-1], 0) + np.arange(1, 30)
    assert re.search(
        r"one user \(u29\) has \d\d% of the events", warnings_of(log, user_offsets=offsets)
    )
    day = np.arange(log.num_events) // 40
    busy = 1_333_324_800 + 86_400 * (day + 9 * (day > 8)) + np.arange(log.num_events)
    text = warnings_of(log, times=busy)
    assert "the clock jumps: no event at all on 9 days" in text
    assert "2012-04-10T23:59:59Z" in text
    assert "time of their user's event before" not in text
    same = np.full(log.num_events, 1_333_324_800)
    assert "time of their user's event before" in warnings_of(log, times=same)
    assert "validation events has a user" not in warnings_of(log)
    unjudged = np.where(log.parts == 1, 0, log.items)
    assert "none of the" in warnings_of(log, items=unjudged)
    assert "nothing can be chosen by them" in warnings_of(log, items=unjudged)
    floats = [f"{row}.0" for row in range(log.num_users)]
    assert "every user id ends in .0, e.g. 0.0" in warnings_of(log, user_ids=floats)
    assert ".0" not in warnings_of(log, user_ids=[*floats[:-1], "x"])
    unseen = np.where(log.parts == 2, 0, log.items)
    assert "at items that training never saw" in warnings_of(log, items=unseen)
    late = log.times + np.where(log.parts == 0, 10**9, 0)
    assert "come after the first test event" in warnings_of(log, times=late)
    raw = np.where(log.items == 1, np.nan, log.items).astype(np.float32)
    assert "price" not in warnings_of(log, numbers={"price": raw / 2})
    assert re.search(
        r"\d+% of the training part's price is beyond 10 or -10, where the model cuts it: .*price:",
        warnings_of(log, numbers={"price": -9 * raw}),
    )


def test_a_log_of_many_stretches_is_described_as_one_of_a_single(monkeypatch):
    log = random_log(num_users=30, max_events=60)
    crowded = np.where(np.arange(log.num_events) % 3, log.times, 1_333_324_800)
    log = dataclasses.replace(log, times=crowded, items=log.items * (log.parts < 2))
    whole = describe_log(log), find_warnings(log)
    assert len(whole[1]) > 1
    monkeypatch.setattr(prepared_log, "_STRETCH_EVENTS", 7)
    assert (describe_log(log), find_warnings(log)) == whole


def read_png(path):
    """uint8 [height, width, channels] of an 8-bit PNG without interlacing."""
    data, at, pixels = path.read_bytes(), 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", chunk[:10])
        if kind == b"IDAT":
            pixels += chunk
        at += 12 + size
    return np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(
        height, 1 + width * {2: 3, 6: 4}[colour]
    )


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to look at the report with")
def test_a_real_browser_shows_it(tmp_path):
    write_csv(tmp_path / "log.csv", random_rows(400, 1))
    log = prepare_log(config_for(tmp_path / "log.csv", tmp_path / "out"))
    page = tmp_path / "out" / "report.html"
    picture = tmp_path / "report.png"
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--window-size=1100,1600",
            f"--screenshot={picture}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ":CONSOLE" not in done.stderr  # no error and no warning of the page
    assert f"{log.num_events:,}" in done.stdout
    assert done.stdout.count("<svg") == 7
    rows = read_png(picture)
    # The drawings are there: many rows of the picture differ from the one above.
    assert np.count_nonzero((rows[1:] != rows[:-1]).any(axis=1)) > 400
