"""Tables of `benchmarks.bench_quality`, and of what others published."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

_COLUMNS = {
    "accuracy@1": "accuracy",
    "hr@5": "HR@5",
    "hr@10": "HR@10 = recall@10",
    "hr@20": "HR@20",
    "f1@10": "F1@10",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
}


_ABLATED = "without "  # how the names of rows begin that lack a part of the model


def quality_table(path: pathlib.Path) -> str:
    """The table of one suite of `benchmarks.bench_quality`."""
    results = json.loads(path.read_text())
    first = {**results, **results["rows"][0]}
    seeds = len(next(iter(first["metrics"].values()))["mrr"]["values"])
    lines = [
        f"Test split `{results['split_hash'][:16]}`, {results['num_targets']['known']:,} targets, "
        f"mean ± s.d. of {seeds} seeds, full-catalogue ranking, ties against the model; "
        f"{first['machine'].strip(', ')}, jax {first['versions']['jax']} "
        f"(`benchmarks/results/quality/{path.name}`)."
    ]
    for key, mode in _modes(results["rows"][0]["metrics"]).items():
        context = key.split("/")[0]
        seen = {"all": "everything before the target", "strict": "strict context"}[context]
        lines += ["", f"Request time {mode}, {seen}:", ""]
        lines.append("| | " + " | ".join(_COLUMNS.values()) + " | parameters | minutes |")
        lines.append("|---|" + "---|" * (len(_COLUMNS) + 2))
        others = results["baselines"][key]
        best = others.pop("best possible", None)
        for other, metrics in others.items():
            lines.append(_line(other, [number(metrics.get(m)) for m in _COLUMNS], "", ""))
        for row in results.get("peers", ()):
            if key not in row["metrics"]:
                continue  # it cannot do without the request's time
            cells = [_mean(row["metrics"][key][m]) for m in _COLUMNS]
            of_row = len(row["metrics"][key]["mrr"]["values"])
            lines.append(
                _line(
                    f"{row['name']} ({of_row} seed{'s' * (of_row > 1)})",
                    cells,
                    f"{row['parameters']:,}",
                    f"{row['minutes']:.1f}",
                )
            )
        for row in _with_together(results):
            if row["name"].startswith(_ABLATED):
                continue  # of `ablation_table`
            cells = [_mean(row["metrics"][key][m]) for m in _COLUMNS]
            cells = [f"**{cell}**" for cell in cells] if row is results["rows"][0] else cells
            of_row = len(row["metrics"][key]["mrr"]["values"])
            name_of_row = row["name"]
            if of_row != seeds and "of_seeds" not in row:
                name_of_row += f" ({of_row} seed{'s' * (of_row > 1)})"
            lines.append(
                _line(name_of_row, cells, f"{row['parameters']:,}", f"{row['minutes']:.1f}")
            )
        if best:
            cells = [number(best.get(m)) for m in _COLUMNS]
            lines.append(_line("best possible", cells, "", ""))
    return "\n".join(lines)


def _with_together(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of our model; behind each that of its seeds as one model, if they were so asked."""
    rows = []
    for row in results["rows"]:
        rows += [row, row["together"]] if "together" in row else [row]
    return rows


def quality_summary(path: pathlib.Path) -> str:
    """A suite in short: in every setting the best baseline by MRR, ours, and the limit."""
    results = json.loads(path.read_text())
    chosen = {m: title for m, title in _COLUMNS.items() if m not in ("f1@10", "hr@20")}
    lines = [f"| request time, context | | {' | '.join(chosen.values())} |"]
    lines.append("|---|---|" + "---|" * len(chosen))
    for key in results["rows"][0]["metrics"]:
        context, mode = key.split("/")
        others = dict(results["baselines"][key])
        limit = others.pop("best possible", None)
        best = max(others, key=lambda name: others[name]["mrr"])
        cells = [(f"best baseline: {best}", [number(others[best].get(m)) for m in chosen])]
        for row in _with_together(results):
            if not row["name"].startswith(_ABLATED):
                cells.append((row["name"], [_mean(row["metrics"][key][m]) for m in chosen]))
        if limit:
            cells.append(("best possible", [number(limit.get(m)) for m in chosen]))
        lines += [f"| {mode}, {context} | {name} | {' | '.join(row)} |" for name, row in cells]
    return "\n".join(lines)


def ablation_table(path: pathlib.Path) -> str:
    """What a suite's model is without each of its parts: accuracy and MRR in every setting."""
    results = json.loads(path.read_text())
    rows = [
        row
        for number, row in enumerate(results["rows"])
        if number == 0 or row["name"].startswith(_ABLATED)
    ]
    keys = list(rows[0]["metrics"])
    settings = [f"{key.partition('/')[2]} time, {key.partition('/')[0]}" for key in keys]
    lines = ["| accuracy / MRR | seeds | " + " | ".join(settings) + " |"]
    lines.append("|---|---|" + "---|" * len(keys))
    for row in rows:
        cells = " | ".join(
            " / ".join(_mean(row["metrics"][key][m]) for m in ("accuracy@1", "mrr")) for key in keys
        )
        lines.append(f"| {row['name']} | {row['seeds']} | {cells} |")
    return "\n".join(lines)


def published_table(path: pathlib.Path, name: str) -> str:
    """Figures of others, cited and not measured here; ours of the same log where `ours` names it.

    Ours counts targets whose item training does not know as misses, as others do.
    """
    published = json.loads(path.read_text())[name]
    columns = {key: title for key, title in _COLUMNS.items() if key in published["columns"]}
    lines = [
        f"| cited, not measured here | request time | {' | '.join(columns.values())} | source |",
        "|---|---|" + "---|" * (len(columns) + 1),
    ]
    for row in published["rows"]:
        cells = " | ".join(number(row.get(key)) for key in columns)
        lines.append(f"| {row['name']} | {row['mode']} | {cells} | {row['source']} |")
    for suite, title in published.get("ours", {}).items():
        results = json.loads((path.parent / "quality" / f"{suite}.json").read_text())
        asked, row = results["num_targets"], results["rows"][0]
        share = asked["known"] / asked["evaluated"]
        metrics = next(iter(row["metrics"].values()))
        cells = " | ".join(f"**{share * metrics[key]['mean']:.4f}**" for key in columns)
        mode = next(iter(_modes(row["metrics"]).values()))
        source = f"mean of {row['seeds']} seeds"
        lines.append(f"| **{title}** | {mode} | {cells} | {source} |")
    return "\n".join(lines)


def peers_table(paths: Iterable[pathlib.Path]) -> str:
    """RecTools' models beside ours, where they were run, and by how much ours leads the better."""
    metrics = ("hr@10", "ndcg@10")
    lines = [
        "| log | request time (context) | | seeds | HR@10 | NDCG@10 | ahead of the better of "
        "RecTools' |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in paths:
        results = json.loads(path.read_text())
        first, *others = results["rows"]
        ours = [first, *(row for row in others if row.get("knows") == "less")]
        modes = _modes(first["metrics"])
        several = len({key.split("/")[0] for key in modes}) > 1
        for key, mode in modes.items():
            asked = f"{mode} ({key.split('/')[0]})" if several else mode
            peers = [row for row in results["peers"] if key in row["metrics"]]
            if not peers:
                continue
            best = {m: max(row["metrics"][key][m]["mean"] for row in peers) for m in metrics}
            for row in (*peers, *ours):
                found = row["metrics"][key]
                gains = [f"{found[m]['mean'] / best[m] - 1:+.0%}" for m in metrics]
                cells = [_mean(found[m]) for m in metrics]
                cells.append(", ".join(gains) if row in ours else "")
                start = f"| {path.stem} | {asked} | {row['name']} | {len(found['mrr']['values'])}"
                lines.append(f"{start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def quality_overview(paths: Iterable[pathlib.Path]) -> str:
    """One line a log: the model against the best counting baseline."""
    lines = [
        "| log | targets | request time | best baseline: accuracy / HR@10 / MRR | model: accuracy "
        "/ HR@10 / MRR | seeds | gain over the best by it: accuracy, HR@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in paths:
        results = json.loads(path.read_text())
        # Of the others those that train on more.
        rows = [one for one in _with_together(results) if _compared(one, results)]
        for row, (key, mode) in itertools.product(rows, _modes(rows[0]["metrics"]).items()):
            context, metrics = key.split("/")[0], row["metrics"][key]
            others = {k: v for k, v in results["baselines"][key].items() if k != "best possible"}
            best_name = max(others, key=lambda k: others[k]["mrr"])
            best, chosen = others[best_name], ("accuracy@1", "hr@10", "mrr")
            ours = {m: metrics[m]["mean"] for m in chosen}
            # Each against whichever is best by it, which need not be the one that is shown.
            bests = {m: max(other[m] for other in others.values()) for m in chosen[:2]}
            gains = [f"{ours[m] / bests[m] - 1:+.0%}" if bests[m] else "" for m in bests]
            baseline = f"{best_name}: " + " / ".join(f"{best[m]:.4f}" for m in chosen)
            seeds = row.get("seeds", "") if row is rows[0] else row["name"]
            if "data" in row and row.get("knows") != "less":  # the baselines did not see as much
                baseline, gains = "", []
                seeds = row["name"] if "of_seeds" in row else f"{row['seeds']}, {row['name']}"
            lines.append(
                f"| {path.stem}{', strict' if context == 'strict' else ''} | "
                f"{results['num_targets']['known']:,} | {mode} | {baseline} | "
                + " / ".join(f"{ours[m]:.4f}" for m in chosen)
                + f" | {seeds} | {', '.join(gains)} |"
            )
    return "\n".join(lines)


def _compared(row: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether the overview has a line for a row."""
    return row is results["rows"][0] or "of_seeds" in row or "data" in row


def _modes(settings: dict[str, Any]) -> dict[str, str]:
    """Request mode of every setting; of a log without times, where all are alike, of one: none."""
    first, *others = settings
    if others and all(settings[other] == settings[first] for other in others):
        return {first: "none"}
    return {key: key.split("/")[1] for key in settings}


def _line(name: str, cells: list[str], parameters: str, minutes: str) -> str:
    return f"| {name} | " + " | ".join(cells) + f" | {parameters} | {minutes} |"


def _mean(found: dict[str, Any]) -> str:
    """A mean over seeds with its deviation, where there are several."""
    deviation = f" ± {found['sd']:.4f}" if len(found["values"]) > 1 else ""
    return f"{found['mean']:.4f}{deviation}"


def number(value: Any) -> str:
    """Four digits; None is an empty cell."""
    return "" if value is None else f"{value:.4f}"
