"""The tables of `benchmarks.bench_domains`: in full, and in short for the README."""

from __future__ import annotations

import json
import pathlib
from typing import Any

_METRICS = {"accuracy@1": "accuracy", "hr@10": "HR@10", "ndcg@10": "NDCG@10", "mrr": "MRR"}


def domain_summary(path: pathlib.Path) -> str:
    """A line a suite: how far the model goes, or what one model gains over one each."""
    lines = ["| suite | targets | measure | found |", "|---|---|---|---|"]
    for suite, found in json.loads(path.read_text()).items():
        if suite.startswith("city"):
            measure = "of the way from popularity to the best possible"
            lines.append(f"| {suite} | {found['num_targets']:,} | {measure} | {_way(found)} |")
            continue
        targets = ", ".join(f"{one['num_targets']:,}" for one in found["domains"].values())
        measure = "MRR of one model less that of the domain's own"
        lines.append(f"| {suite} | {targets} | {measure} | {_differences(found)} |")
    return "\n".join(lines)


def domain_tables(path: pathlib.Path) -> str:
    """A table a suite, of those that were run."""
    results = json.loads(path.read_text())
    lines: list[str] = []
    for suite, found in results.items():
        is_city = suite.startswith("city")
        lines += [*(_city(suite, found) if is_city else _against_each(suite, found)), ""]
    return "\n".join(lines).rstrip()


def _city(suite: str, found: dict[str, Any]) -> list[str]:
    return [
        f"{suite}: {found['num_targets']:,} targets in the domain that is hidden; "
        f"± s.e. over people, {_made_by(found)}:",
        "",
        *_head("| |"),
        *(_line(f"| {name} |", row, name == "model") for name, row in found["rows"].items()),
        "",
        f"The model goes so much of the way from popularity to the best possible: {_way(found)}.",
    ]


def _against_each(suite: str, found: dict[str, Any]) -> list[str]:
    lines = [f"{suite}: {_made_by(found)}:", "", *_head("| domain | targets | |")]
    for domain, of_domain in found["domains"].items():
        for name, row in of_domain["rows"].items():
            start = f"| {domain} | {of_domain['num_targets']:,} | {name} |"
            lines.append(_line(start, row, name == "one model"))
    return [*lines, "", f"MRR of one model less that of the domain's own: {_differences(found)}."]


def _way(found: dict[str, Any]) -> str:
    return ", ".join(f"{title} {found['way'][name]:.0%}" for name, title in _METRICS.items())


def _differences(found: dict[str, Any]) -> str:
    return "; ".join(
        f"{domain} {apart['mrr']:+.4f} ± {apart['mrr s.e.']:.4f} ({apart['relative']:+.1%})"
        for domain, apart in ((name, one["difference"]) for name, one in found["domains"].items())
    )


def _made_by(found: dict[str, Any]) -> str:
    options = found["options"]
    return (
        f"split `{found['split_hash'][:16]}`, {options['epochs']:g} epochs at "
        f"{options['learning_rate']:g}, width {options['width']}, "
        f"{options['hide_domain_rate']:.0%} of histories without a domain, dropout "
        f"{options.get('dropout', 0.3):g}{', event norm' * options.get('use_event_norm', False)}, "
        f"seed {options['seed']}, jax {found['jax']}"
    )


def _head(start: str) -> list[str]:
    columns = start.count("|") - 1 + len(_METRICS)
    return [f"{start} {' | '.join(_METRICS.values())} |", "|" + "---|" * columns]


def _line(start: str, row: dict[str, float], ours: bool) -> str:
    cells = [f"{row[name]:.4f} ± {row[f'{name} s.e.']:.4f}" for name in _METRICS]
    cells = [f"**{cell}**" for cell in cells] if ours else cells
    return f"{start} {' | '.join(cells)} |"
