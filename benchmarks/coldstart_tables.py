"""The tables of `benchmarks.bench_coldstart`: in full, and in short for the README."""

from __future__ import annotations

import json
import pathlib
from typing import Any


def coldstart_summary(path: pathlib.Path) -> str:
    """By number of known events the model, and whichever model that only counts is best there."""
    suites = json.loads(path.read_text())
    counts = list(next(iter(suites.values()))["rows"]["popularity"]["people"])
    lines = [f"| NDCG@10 | | {' | '.join(counts)} |", "|---|---|" + "---|" * len(counts)]
    for suite, results in suites.items():
        counted = [row["people"] for row in results["rows"].values() if "warm" not in row]
        best = [max(people[count]["ndcg@10"] for people in counted) for count in counts]
        ours = results["rows"]["whole model"]["people"]
        shown = " | ".join(f"{value:.4f}" for value in best)
        lines.append(f"| {suite} | best of {len(counted)} baselines there | {shown} |")
        shown = " | ".join(_with_error(ours[count], "ndcg@10") for count in counts)
        lines.append(f"| {suite} | model | {shown} |")
    return "\n".join(lines)


def coldstart_table(path: pathlib.Path) -> str:
    """NDCG@10 by number of known events, for held-out people, and recall of held-out items."""
    lines: list[str] = []
    for suite, results in json.loads(path.read_text()).items():
        rows = results["rows"]
        counts = list(rows["popularity"]["people"])
        lines += [
            f"{suite}: {results['cold_users']:,} people and {results['cold_items']:,} items held "
            f"out, {results['train_users']:,} and {results['train_items']:,} in training; split "
            f"`{results['split_hash'][:16]}`, seed {results['seed']}, request time "
            f"{results['mode']}{_drawn(results)}. NDCG@10 ± s.e. by number of known events:",
            "",
            f"| | {' | '.join(counts)} |",
            "|---|" + "---|" * len(counts),
        ]
        models = [name for name in rows if "warm" in rows[name]]
        for name in [*(name for name in rows if name not in models), *models]:
            cells = [_with_error(rows[name]["people"][count], "ndcg@10") for count in counts]
            cells = [f"**{cell}**" for cell in cells] if name in models else cells
            lines.append(f"| {name} | {' | '.join(cells)} |")
        items = [name for name in rows if "items" in rows[name]]
        shown = "; ".join(
            f"{name} {_with_error(rows[name]['items']['among_cold'], 'recall@10')} and "
            f"{_with_error(rows[name]['items']['among_all'], 'recall@10')}"
            for name in items
        )
        warm = "; ".join(f"{name} {rows[name]['warm']['ndcg@10']:.4f}" for name in models)
        of_items = f"Held-out items, recall@10 among them alone and among all items: {shown}. "
        lines += [
            "",
            f"{of_items if items else ''}People and items of training, NDCG@10: {warm}.",
            "",
        ]
    return "\n".join(lines).rstrip()


def _drawn(results: dict[str, Any]) -> str:
    most = results.get("most_targets", 0)
    return f", at most {most:,} targets drawn for each number" if most else ""


def _with_error(measures: dict[str, Any], name: str) -> str:
    return f"{measures[name]:.4f} ± {measures[f'{name} s.e.']:.4f}"
