"""Draws the result files of `benchmarks.bench_quality` as small SVG files under docs/.

    python -m benchmarks.plots            writes docs/*.svg
    python -m benchmarks.plots --check    fails if a file is not what the results say

- nyc_published.svg: accuracy of the model, the best counting model and published models;
- nyc_history.svg, nyc_hours.svg: accuracy of the model by length of the history and by hour of day;
- nyc_time_curve.svg, nyc_distance_curve.svg: what the pointer learned of gaps and distances.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

_OURS, _COUNTED, _CITED = "#0b6e4f", "#7a7a7a", "#b8b8b8"
# Buckets of `stt_kernels.time_bucket` and `space_bucket` (up to 64 buckets).
_TIME_TICKS = {0: "0", 11: "1 min", 23: "1 h", 32: "1 day", 38: "1 week", 49: "1 year"}
_SPACE_TICKS = {0: "0", 8: "16 m", 16: "256 m", 20: "1 km", 24: "4 km", 28: "16 km", 32: "66 km"}

_BAR_PX, _LABEL_PX, _SCALE_PX = 18, 210, 420


def bars(title: str, rows: list[tuple[str, float, str]]) -> str:
    """An SVG of horizontal bars.

    Args:
      title: its heading.
      rows: (label, value in 0..1, colour), from top to bottom.
    """
    height = 34 + (_BAR_PX + 4) * len(rows)
    longest = max(value for _, value, _ in rows) or 1.0
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="720" height="{height}" fill="white"/>',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, (label, value, colour) in enumerate(rows):
        top = 32 + number * (_BAR_PX + 4)
        length = _SCALE_PX * value / longest
        lines += [
            f'<text x="{_LABEL_PX - 6}" y="{top + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{_LABEL_PX}" y="{top}" width="{length:.1f}" height="{_BAR_PX}" '
            f'fill="{colour}"/>',
            f'<text x="{_LABEL_PX + length + 5:.1f}" y="{top + 13}">{value:.3f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def against_published(results: dict[str, Any], published: dict[str, Any]) -> str:
    """Accuracy of the model, the best counting one and published models, in both request modes."""
    rows = []
    for mode in ("unknown", "known"):
        key = f"strict/{mode}"
        ours = results["rows"][0]["metrics"][key]["accuracy@1"]["mean"]
        rows.append((f"this model, time {mode}", ours, _OURS))
        counted = {name: row["accuracy@1"] for name, row in results["baselines"][key].items()}
        best = max(counted, key=lambda name: counted[name])
        rows.append((f"{best} (counting), time {mode}", counted[best], _COUNTED))
        rows += [
            (f"{row['name']} (cited)", row["accuracy@1"], _CITED)
            for row in published["rows"]
            if row["mode"] == mode
        ]
    return bars("New York, accuracy of the next check-in (strict context)", rows)


def by_group(results: dict[str, Any], kind: str, title: str) -> str:
    """Accuracy by group of targets, request time known, one seed."""
    groups = results["groups"]["strict/known"][kind]
    rows = [
        (f"{label} ({values['num_targets']})", values["accuracy@1"], _OURS)
        for label, values in groups.items()
    ]
    return bars(title, rows)


def curve(title: str, values: list[float], ticks: dict[int, str]) -> str:
    """An SVG of one line over buckets.

    Args:
      title: its heading.
      values: one a bucket.
      ticks: bucket -> label below it.
    """
    low, high = min(values), max(values)
    unit = 160 / max(high - low, 1e-9)

    def point(bucket: int) -> tuple[float, float]:
        return 60 + 620 * bucket / max(len(values) - 1, 1), 200 - unit * (values[bucket] - low)

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(point, range(len(values))))
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="720" height="240" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="720" height="240" fill="white"/>',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="54" y="44" text-anchor="end">{high:.1f}</text>',
        f'<text x="54" y="204" text-anchor="end">{low:.1f}</text>',
        f'<polyline points="{path}" fill="none" stroke="{_OURS}" stroke-width="2"/>',
    ]
    for bucket, label in ticks.items():
        x, _ = point(bucket)
        lines.append(f'<line x1="{x:.1f}" y1="205" x2="{x:.1f}" y2="211" stroke="black"/>')
        lines.append(f'<text x="{x:.1f}" y="226" text-anchor="middle">{escape(label)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def draw() -> dict[str, str]:
    """File name -> SVG."""
    results = json.loads((RESULTS / "quality" / "nyc.json").read_text(encoding="utf-8"))
    published = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))["nyc"]
    drawn = {"nyc_published.svg": against_published(results, published)}
    if "groups" in results:
        drawn["nyc_history.svg"] = by_group(
            results, "history_length", "New York, accuracy by events in the history (targets)"
        )
        drawn["nyc_hours.svg"] = by_group(
            results, "hour_of_day", "New York, accuracy by local hour of the target (targets)"
        )
    for name, title, ticks in (
        ("time", "New York, pointer: learned offset by time since the event", _TIME_TICKS),
        ("space", "New York, pointer: learned offset by distance to the event", _SPACE_TICKS),
    ):
        if name in results.get("curves", {}):
            file = {"time": "nyc_time_curve.svg", "space": "nyc_distance_curve.svg"}[name]
            last = max(ticks) + 3  # later buckets are hardly ever met
            drawn[file] = curve(title, results["curves"][name][:last], ticks)
    return drawn


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    check = "--check" in (sys.argv if argv is None else argv)
    DOCS.mkdir(exist_ok=True)
    wrong = []
    for name, text in draw().items():
        path = DOCS / name
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            wrong.append(name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if wrong:
        print(f"{', '.join(wrong)}: not what the results say; run python -m benchmarks.plots")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
