"""The tables of `benchmarks.bench_privacy`: in full, and in short for the README."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from benchmarks.privacy_suites import OVERFITTED

_SHORT = ("accuracy@1", "hr@10")
_COLUMNS = {"accuracy@1": "accuracy", "hr@10": "HR@10", "ndcg@10": "NDCG@10", "mrr": "MRR"}


def privacy_summary(path: pathlib.Path) -> str:
    """Accuracy, HR@10 and the attack's AUC by epsilon, a log a line of each."""
    suites = json.loads(path.read_text()) if path.exists() else {}
    lines = ["| log | epsilon | accuracy | HR@10 | attack's AUC |", "|---|---|---|---|---|"]
    for name, results in suites.items():
        for key in sorted(results["rows"], key=_order):
            row = results["rows"][key]
            cells = [f"{row[metric]:.4f} ± {row[f'{metric} s.e.']:.4f}" for metric in _SHORT]
            auc = f"{row['attack']['auc']:.3f} ± {row['attack']['auc s.e.']:.3f}"
            lines.append(f"| {name} | {_title(key, row)} | {' | '.join(cells)} | {auc} |")
    return "\n".join(lines)


def privacy_table(path: pathlib.Path) -> str:
    """Accuracy and the attack's AUC by epsilon, and the time of a step, for each suite there is."""
    suites = json.loads(path.read_text()) if path.exists() else {}
    if not suites:
        return "Not measured yet: `python -m benchmarks.bench_privacy --help` says how."
    return "\n\n".join("\n".join(_suite(name, results)) for name, results in suites.items())


def _suite(name: str, results: dict[str, Any]) -> list[str]:
    rows, baselines = results["rows"], results.get("baselines", {})
    lines = [
        f"{name}: {results['members']:,} members and {results['others']:,} others, "
        f"{results['items']:,} items, split `{results['split_hash'][:16]}`, request time "
        f"{results['mode']}{_conditions(list(rows.values()))} (`benchmarks/results/privacy.json`).",
        "",
        f"| | epsilon spent | noise | steps | {' | '.join(_COLUMNS.values())} | attack's AUC |",
        "|---|" + "---|" * (len(_COLUMNS) + 4),
    ]
    shown = [one for one in ("popularity", _best(baselines)) if one in baselines]
    for baseline in dict.fromkeys(shown):
        cells = [f"{baselines[baseline][metric]:.4f}" for metric in _COLUMNS]
        lines.append(f"| {baseline}, not private | | | | {' | '.join(cells)} | |")
    for key in sorted(rows, key=_order):
        row = rows[key]
        cells = [
            _title(key, row) if key in ("inf", OVERFITTED) else f"**epsilon {key}**",
            "" if row["epsilon_spent"] is None else f"{row['epsilon_spent']:.3f}",
            "" if row["noise"] is None else f"{row['noise']:.3f}",
            f"{row['steps']:,}",
            *(f"{row[metric]:.4f} ± {row[f'{metric} s.e.']:.4f}" for metric in _COLUMNS),
            f"{row['attack']['auc']:.3f} ± {row['attack']['auc s.e.']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, *_speed(results.get("speed"))]


def _conditions(rows: list[dict[str, Any]]) -> str:
    """What all rows share, as far as there are any."""
    if not rows:
        return ""
    private = next((row for row in rows if row["noise"] is not None), None)
    drawn = (
        ""
        if private is None
        else (
            f"; delta {private['delta']:g}, each person in a step with probability "
            f"{private['sampling_rate']:.3g}"
        )
    )
    row = rows[0]
    return (
        f", {row['num_targets']:,} test targets{drawn}; {row['cores']} cores of "
        f"{row['processor']}, jax {row['jax']}"
    )


def _best(baselines: dict[str, Any]) -> str:
    return max(baselines, key=lambda name: baselines[name]["mrr"], default="")


def _order(key: str) -> tuple[bool, float]:
    return key == OVERFITTED, 0.0 if key == OVERFITTED else -float(key)


def _title(key: str, row: dict[str, Any]) -> str:
    of_others = {"inf": "not private", OVERFITTED: f"overfitted to {row['people']:,} people"}
    return of_others.get(key, key)


def _speed(speed: dict[str, Any] | None) -> list[str]:
    if speed is None:
        return []
    lines = [
        "",
        "| step | people | events | ms | people/s | events/s | private takes times as long |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kind in speed["kinds"].items():
        lines.append(
            f"| {name} | {kind['people']:,} | {kind['events']:,} | {kind['step_ms']:,.1f} ± "
            f"{kind['step_ms spread']:,.1f} | {kind['people_per_s']:,.0f} | "
            f"{kind['events_per_s']:,.0f} | {kind['private_takes_times_as_long']:.2f} |"
        )
    return lines
