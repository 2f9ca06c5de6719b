"""The report of a preparation: one HTML file with its drawings inside, nothing from the network."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from stt_jax.data.charts import bar_chart, curve_chart, density_map
from stt_jax.data.columns import distance_km
from stt_jax.data.findings import iso_time
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import PART_NAMES, UNKNOWN_E7

_MOST_EVENTS = 2_000_000  # looked at for the drawings; in even blocks of a larger log
_GAP_TICKS: dict[float, str] = {
    1: "1 s", 60: "1 min", 3600: "1 h", 86_400: "1 d", 604_800: "1 w", 31_536_000: "1 y",
}  # fmt: skip
_DISTANCE_TICKS: dict[float, str] = {
    0.01: "10 m",
    0.1: "100 m",
    1: "1 km",
    10: "10 km",
    100: "100 km",
    1e4: "10⁴ km",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #667085; --line: #d8dee8; --paper: #fff;
  --mark: #2563a8; --warn: #b54708; --panel: #f6f8fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #344054;
  --paper: #14181f; --mark: #6ea8e5; --warn: #f79009; --panel: #1c222c; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 24px auto; padding: 0 20px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 15px; margin: 26px 0 8px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { font-weight: 600; color: var(--soft); } td.n, th.n
  { text-align: right; }
.warnings { border-left: 4px solid var(--warn); background: var(--panel); padding: 8px 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px;
  margin: 14px 0; } .tile { background: var(--panel); border-radius: 6px; padding: 8px 12px; }
.tile b { display: block; font-size: 19px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 18px; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 10px; }
svg .mark { fill: var(--mark); } svg .line { stroke: var(--mark); fill: none; stroke-width: 1.6; }
svg .axis { stroke: var(--line); }
"""


def render_report(log: PreparedLog) -> str:
    """The report of a log as HTML."""
    sections = [
        _head(log),
        _warnings(log.meta.warnings),
        "<h2>Steps</h2>" + _steps_table(log),
        "<h2>Parts</h2>" + _parts_table(log),
        "<h2>Missing values</h2>" + _missing_table(log),
        '<h2>What the log looks like</h2><div class="charts">' + "".join(_charts(log)) + "</div>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Prepared log</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _head(log: PreparedLog) -> str:
    span = "without times"
    if log.meta.has_times:
        span = f"{iso_time(log.times.min())} to {iso_time(log.times.max())}"
    words = f"{span} · times: {log.meta.time_format} · local time: {log.meta.local_time}"
    tiles = {
        "events": log.num_events,
        "users": log.num_users,
        "items in training": log.num_listed,
        "categories": log.num_categories,
        "sessions": log.meta.statistics["num_sessions"],
    }
    return (
        f'<h1>Prepared log</h1><p class="soft">{html.escape(words)}</p><div class="tiles">'
        + "".join(f'<div class="tile"><b>{n:,}</b>{name}</div>' for name, n in tiles.items())
        + "</div>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<p class="soft">Nothing to warn of.</p>'
    lines = "".join(f"<p>{html.escape(text[:1].upper() + text[1:])}</p>" for text in warnings)
    return f'<div class="warnings">{lines}</div>'


def _steps_table(log: PreparedLog) -> str:
    rows = []
    for step in log.meta.steps:
        reasons = [f"dropped {n:,}: {reason}" for reason, n in step.dropped.items()]
        reasons += [f"changed {n:,}: {reason}" for reason, n in step.changed.items()]
        words = "<br>".join(map(html.escape, reasons))
        rows.append([html.escape(step.name), f"{step.rows_in:,}", f"{step.rows_out:,}", words])
    return _table(["step", "rows in", "rows out", "what it did"], rows, numeric=(1, 2))


def _parts_table(log: PreparedLog) -> str:
    statistics, rows = log.meta.statistics, []
    for name in PART_NAMES:
        span = ""
        if f"{name}_first_s" in statistics:
            first, last = (iso_time(statistics[f"{name}_{end}_s"]) for end in ("first", "last"))
            span = f"{first} to {last}"
        counts = (statistics[f"{name}_{what}"] for what in ("events", "users", "known_events"))
        rows.append([name, *(f"{count:,}" for count in counts), span])
    names = ["part", "events", "users", "user and item known from training", "from, to"]
    return _table(names, rows, numeric=(1, 2, 3))


def _missing_table(log: PreparedLog) -> str:
    counts = dict(log.meta.statistics.get("num_missing", {}))
    absent = np.count_nonzero(log.latitudes_e7 == UNKNOWN_E7)
    if log.meta.has_places:
        counts.setdefault("place", [absent, absent])
    if log.num_categories:
        absent = np.count_nonzero(log.categories == 0)
        counts.setdefault("category (also by item)", [absent, absent])
    for name, values in log.contexts.items():
        if name not in counts:
            absent = np.count_nonzero(values == 0)
            counts[f"{name} (or unseen in training)"] = [absent, absent]
    rows = [
        [html.escape(name), *(f"{n:,} ({n / log.num_events:.1%})" for n in (before, after))]
        for name, (before, after) in counts.items()
    ]
    if not rows:
        return '<p class="soft">The log has no columns that may miss a value.</p>'
    return _table(["column", "missing before", "missing after"], rows, numeric=(1, 2))


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="n"' if i in numeric else "" for i in range(len(cells)))
        return "".join(f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{line(names, 'th')}</tr>{body}</table>"


def _charts(log: PreparedLog) -> list[str]:
    rows = _sample(log.num_events)
    users = np.searchsorted(log.user_offsets, rows, side="right")
    follows = rows[1:][(np.diff(rows) == 1) & (users[1:] == users[:-1])]
    charts = []
    if log.meta.has_times:
        gaps_s = log.times[follows] - log.times[follows - 1]
        charts.append(
            _log_histogram("Time since the user's last event", gaps_s, (1, 3.2e7), _GAP_TICKS)
        )
        hours = (log.times[rows] + log.utc_offsets_s[rows]) // 3600
        of_day = np.bincount((hours % 24).astype(np.int64), minlength=24)
        charts.append(bar_chart("Local hour of the day", of_day, [f"{h} h" for h in range(24)], 6))
        of_week = np.bincount(((hours // 24 + 3) % 7).astype(np.int64), minlength=7)
        days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
        charts.append(bar_chart("Local day of the week", of_week, days, 1))
    if log.meta.has_places:
        place = (log.latitudes_e7, log.longitudes_e7)
        km = distance_km(*(d[follows] for d in place), *(d[follows - 1] for d in place))
        title = "Distance from the user's last event"
        charts.append(_log_histogram(title, km[~np.isnan(km)], (0.01, 2e4), _DISTANCE_TICKS))
    ticks: dict[float, str] = {10**k: f"{10**k:,}" for k in range(9)}
    sizes = np.diff(log.user_offsets)
    charts.append(_log_histogram("Events of a user", sizes, (1, max(10, sizes.max())), ticks))
    title = "Popularity: training events of the items, most popular first"
    charts.append(curve_chart(title, log.item_train_counts[1:]))
    if log.meta.has_places:
        known = rows[log.latitudes_e7[rows] != UNKNOWN_E7]
        title = "Where: density of the events"
        charts.append(density_map(title, *(d[known] * 1e-7 for d in place)))
    return charts


def _sample(num_events: int) -> np.ndarray:
    """Rows for the drawings: all, or even blocks of neighbours."""
    if num_events <= _MOST_EVENTS:
        return np.arange(num_events)
    starts = np.linspace(0, num_events - 20_000, _MOST_EVENTS // 20_000).astype(np.int64)
    return (starts[:, None] + np.arange(20_000)).ravel()  # blocks are further apart than that


def _log_histogram(
    title: str, values: np.ndarray, span: tuple[float, float], ticks: dict[float, str]
) -> str:
    """Bars on a logarithmic axis of 40 steps; what is beyond an end counts to it."""
    low, high = np.log(span[0]), np.log(span[1])
    logs = np.log(np.maximum(values, span[0]))
    steps = np.clip((logs - low) / (high - low) * 40, 0, 39).astype(np.int64)
    counts = np.bincount(steps, minlength=40)
    edges = np.exp(low + (high - low) * np.arange(40) / 40)
    labels = [""] * 40
    for value, text in ticks.items():
        if span[0] <= value <= span[1]:
            labels[min(39, int((np.log(value) - low) / (high - low) * 40 + 1e-9))] = text
    hints = [f"from {edge:.3g}" for edge in edges]
    return bar_chart(title, counts, labels, 1, hints)
