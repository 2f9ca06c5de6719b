"""Fills the tables of README.md from the result files, so that no number is typed by hand.

    python -m benchmarks.tables            rewrites README.md
    python -m benchmarks.tables --check    fails if README.md does not hold what the files say

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_QUALITY_COLUMNS = {
    "accuracy@1": "accuracy",
    "hr@5": "HR@5",
    "hr@10": "HR@10 = recall@10",
    "f1@10": "F1@10",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
}


def quality_table(name: str) -> str:
    """The table of one suite of `benchmarks.bench_quality`."""
    results = json.loads((RESULTS / "quality" / f"{name}.json").read_text())
    seeds = len(next(iter(results["rows"][0]["metrics"].values()))["mrr"]["values"])
    lines = [
        f"Test split `{results['split_hash'][:16]}`, {results['num_targets']['known']:,} targets, "
        f"mean ± s.d. of {seeds} seeds, full-catalogue ranking, ties against the model; "
        f"{results['machine'].strip(', ')}, jax {results['versions']['jax']} "
        f"(`benchmarks/results/quality/{name}.json`)."
    ]
    for key in results["rows"][0]["metrics"]:
        context, mode = key.split("/")
        seen = {"all": "everything before the target", "strict": "strict context"}[context]
        lines += ["", f"Request time {mode}, {seen}:", ""]
        lines.append("| | " + " | ".join(_QUALITY_COLUMNS.values()) + " | parameters | minutes |")
        lines.append("|---|" + "---|" * (len(_QUALITY_COLUMNS) + 2))
        others = results["baselines"][key]
        best = others.pop("best possible", None)
        for other, metrics in others.items():
            lines.append(_line(other, [_number(metrics.get(m)) for m in _QUALITY_COLUMNS], "", ""))
        for row in results["rows"]:
            cells = [
                f"{row['metrics'][key][m]['mean']:.4f} ± {row['metrics'][key][m]['sd']:.4f}"
                for m in _QUALITY_COLUMNS
            ]
            cells = [f"**{cell}**" for cell in cells] if row is results["rows"][0] else cells
            lines.append(
                _line(row["name"], cells, f"{row['parameters']:,}", f"{row['minutes']:.1f}")
            )
        if best:
            cells = [_number(best.get(m)) for m in _QUALITY_COLUMNS]
            lines.append(_line("best possible", cells, "", ""))
    return "\n".join(lines)


def quality_overview(names: tuple[str, ...]) -> str:
    """One line a log: the model against the best counting baseline."""
    lines = [
        "| log | targets | request time | best baseline: accuracy / HR@10 / MRR | model: accuracy "
        "/ HR@10 / MRR | accuracy gain |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        results = json.loads((RESULTS / "quality" / f"{name}.json").read_text())
        for key, metrics in results["rows"][0]["metrics"].items():
            context, mode = key.split("/")
            others = {k: v for k, v in results["baselines"][key].items() if k != "best possible"}
            best_name = max(others, key=lambda k: others[k]["mrr"])
            best, chosen = others[best_name], ("accuracy@1", "hr@10", "mrr")
            ours = {m: metrics[m]["mean"] for m in chosen}
            gain = ours["accuracy@1"] / best["accuracy@1"] - 1 if best["accuracy@1"] else 0.0
            lines.append(
                f"| {name}{', strict' if context == 'strict' else ''} | "
                f"{results['num_targets']['known']:,} | {mode} | {best_name}: "
                + " / ".join(f"{best[m]:.4f}" for m in chosen)
                + " | "
                + " / ".join(f"{ours[m]:.4f}" for m in chosen)
                + f" | {gain:+.0%} |"
            )
    return "\n".join(lines)


def transcript(name: str) -> str:
    """What a command printed, as it was."""
    return "```\n" + (RESULTS / f"{name}.txt").read_text().rstrip() + "\n```"


SECTIONS: dict[str, Callable[[], str]] = {
    "quickstart": lambda: transcript("quickstart"),
    "quality city": lambda: quality_table("city"),
    "quality nyc": lambda: quality_table("nyc"),
    "quality overview": lambda: quality_overview(
        ("ml100k", "gowalla", "calgary", "online_retail", "globo")
    ),
}


def fill(text: str) -> str:
    """Gives the README with every section filled from its file."""

    def section(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- begin {name} -->\n{SECTIONS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([^>]+?) -->\n.*?<!-- end \1 -->", section, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    check = "--check" in (sys.argv if argv is None else argv)
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    filled = fill(text)
    if check and filled != text:
        print("README.md is not what the result files say; run python -m benchmarks.tables")
        return 1
    path.write_text(filled, encoding="utf-8")
    return 0


def _line(name: str, cells: list[str], parameters: str, minutes: str) -> str:
    return f"| {name} | " + " | ".join(cells) + f" | {parameters} | {minutes} |"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
