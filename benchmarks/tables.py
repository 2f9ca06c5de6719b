"""Fills the tables of the documents from the result files, so that no number is typed by hand.

    python -m benchmarks.tables            rewrites README.md and docs/*.md
    python -m benchmarks.tables --check    fails if one of them does not hold what the files say

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import kernel_tables
from benchmarks.coldstart_tables import coldstart_summary, coldstart_table
from benchmarks.domain_tables import domain_summary, domain_tables
from benchmarks.privacy_tables import privacy_summary, privacy_table
from benchmarks.quality_tables import (
    ablation_table,
    number,
    peers_table,
    published_table,
    quality_overview,
    quality_summary,
    quality_table,
)

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RESULTS = ROOT / "benchmarks" / "results"
QUALITY = RESULTS / "quality"


def transcript(name: str) -> str:
    """What a command printed, as it was."""
    return "```\n" + (RESULTS / f"{name}.txt").read_text().rstrip() + "\n```"


def realtime_table() -> str:
    """What one more event costs, of `benchmarks.bench_realtime`."""
    rows = _json_lines("realtime")
    first, loads = rows[0], [row["load"] for row in rows]
    lines = [
        "One appended event and a new top-10, one person; a model of the default sizes with random "
        f"parameters, as a library, without HTTP; {first['processor']}, {first['cores']} "
        f"cores, load {min(loads):.1f} to {max(loads):.1f}, jax {first['jax']} "
        "(`benchmarks/results/realtime.json`). The full recompute scores every item.",
        "",
        "| items | history | live p50 / p95 / p99, ms | full recompute p50, ms | times faster |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["question"] == "one event and top-10":
            live = " / ".join(f"{row['live_ms'][p]:.1f}" for p in ("p50", "p95", "p99"))
            whole, faster, how = row["recompute_ms"], row["speedup"], ""
            if "num_candidates" in row:
                whole, faster = row["exact_recompute_ms"], row["speedup_of_exact"]
                how = f", {row['num_candidates']} candidates of an index"
            lines.append(
                f"| {row['num_items']:,}{how} | {row['history']:,} | {live} | "
                f"{whole['p50']:.1f} | {faster:.1f} |"
            )
    lines.append("")
    indexed = [row for row in rows if "num_candidates" in row]
    alike = ", ".join(f"{row['speedup']:.1f} ({row['history']:,})" for row in indexed)
    lines.append(f"- Times faster where the recompute takes the index, too (history): {alike}.")
    for row in rows:
        if row["question"] == "many people at once":
            lines.append(
                f"- {row['batch']} people at once, history {row['history']:,}, "
                f"{row['num_items']:,} items: {row['events_per_s']:,.0f} events/s, "
                f"{row['requests_per_s']:,.0f} requests/s."
            )
        elif row["question"] == "approximate index":
            found = "; ".join(
                f"{one['recall@10 by itself']:.2f} and {one['recall@10']:.2f} in "
                f"{one['ms_per_request']:.1f} ms with {one['num_candidates']:,} candidates"
                for one in row["rows"]
            )
            exact = row["rows"][0]["exact_ms_per_request"]
            lines.append(
                f"- Approximate index of {row['num_items']:,} random vectors: recall@10 of the "
                f"largest logits by itself, and of whole answers, of whose best {row['named']:.0%} "
                f"are named by history or crowd and need no index: {found}; exact in "
                f"{exact:.1f} ms (a request of {row['batch']} at once)."
            )
    return "\n".join(lines)


def service_table() -> str:
    """Load and kills, of `benchmarks.bench_service`."""
    rows = {row["question"]: row for row in _json_lines("service")}
    load, kills = rows["load"], rows["kills"]
    answers = ", ".join(f"{count:,} with {status}" for status, count in load["statuses"].items())
    memory = load["resident_mb"]
    lines = [
        f"A model of the log `{load['log']}` ({load['num_items']:,} items, {load['num_people']:,} "
        f"people, {load['width']} wide, {load['num_layers']} blocks, {load['window']} events); "
        f"{load['connections']} connections for {load['seconds']:.0f} s, 80 % requests and 20 % "
        f"events, clients on the same {load['cores']} cores, load {load['load']:.0f} "
        "(`benchmarks/results/service.json`):",
        "",
        "| | calls a second, both | p50, ms | p95, ms | p99, ms |",
        "|---|---|---|---|---|",
    ]
    sent = {"load": "as fast as they are answered", "paced": "paced"}
    for (question, pace), name in itertools.product(sent.items(), ("recommend", "events")):
        if question in rows:
            times = rows[question][f"{name}_ms"]
            cells = " | ".join(f"{times[p]:.0f}" for p in ("p50", "p95", "p99"))
            calls = f"{rows[question]['calls_per_s']:,.0f}"
            lines.append(f"| POST /{name}, {pace} | {calls} | {cells} |")
    lines += [
        "",
        f"Answers to the first: {answers}; memory "
        f"{memory['start']:.0f} MB at the start, {memory['half']:.0f} MB half way, "
        f"{memory['end']:.0f} MB at the end. "
        f"{kills['kills']} kills (`kill -9`) under load: {kills['acknowledged']:,} acknowledged "
        f"events, {kills['missing']} missing, {kills['twice']} twice.",
    ]
    return "\n".join(lines)


def freshness_table() -> str:
    """What age does to a model and to states, of `benchmarks.bench_freshness`."""
    rows = _json_lines("freshness")
    there = {row["model"] for row in rows}
    models = [name for name in ("older", "older, new items added", "newer") if name in there]
    lines = [
        "| log | a person's state | "
        + " | ".join(f"{name}: accuracy / HR@10 / MRR" for name in models)
        + f" | MRR of {models[-1]} less than live |",
        "|---|---|" + "---|" * (len(models) + 1),
    ]
    notes = []
    for suite in dict.fromkeys(row["suite"] for row in rows):
        cells = {
            (r["model"], r["trends"], r["state_age_h"]): r for r in rows if r["suite"] == suite
        }
        live = cells["older", "live", 0]
        for trends, age in sorted({(trends, age) for _, trends, age in cells}):
            state = "live, and what is popular too" if trends == "live" else "live"
            if age:
                state = f"{age} hours old" if age % 24 else f"{age // 24} day{'s' * (age > 24)} old"
            row = cells[models[-1], trends, age]
            loss = cells[models[-1], "live", 0]["mrr"] - row["mrr"]
            found = [_fresh(cells.get((model, trends, age))) for model in models]
            error = f"{loss:.4f} ± {row['mrr_difference_error']:.4f}"
            found.append("" if trends == "live" else error)
            lines.append(f"| {suite} | {state} | " + " | ".join(found) + " |")
        note = (
            f"- {suite}: {live['num_targets']:,} events of {live['num_people']:,} people from "
            f"{live['asked_from']} UTC until {live['asked_until']}, {live['new_items']:.1%} of "
            f"them of items that the older model, trained until {live['trained_until']}, never met."
        )
        control = cells.get(("older, as many steps more", "live", 0))
        if control is not None:
            note += (
                " The newer one goes on from it until the asking begins; the older one, gone on "
                f"with as long without a newer event, live: {_fresh(control)}."
            )
        notes.append(note)
    return "\n".join([*lines, "", *notes])


def _fresh(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return " / ".join(number(row[name]) for name in ("accuracy@1", "hr@10", "mrr"))


def _json_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / f"{name}.json").read_text().splitlines()]


def training_table() -> str:
    """Events a second of `benchmarks.bench_training`, and HR@10 of a second run."""
    rows = _json_lines("training_cpu")
    asked = {row["candidate"]: row for row in _json_lines("hit_rates_cpu")}
    lines = [
        "| suite | trainer | events/s | ours is so many times as fast | parameters | "
        "learning rate | HR@10, time unknown / known |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        of_second = asked.get(row["candidate"], {}) if row["suite"] == "movielens" else {}
        rates = of_second.get("hit_rates", {})
        shown = " / ".join(number(rates.get(mode)) or "not asked" for mode in ("unknown", "known"))
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        lines.append(
            f"| {row['suite']} | {row['candidate']} ({versions}) | {row['events_per_s']:,.0f} | "
            f"{row['ours_times_as_fast']:.2f} | {row['parameters']:,} | "
            f"{of_second.get('learning_rate', '')} | {shown if rates else ''} |"
        )
    return "\n".join([*lines, "", _machine(rows)])


def input_table() -> str:
    """The input pipeline alone, of `benchmarks.bench_input`."""
    rows = _json_lines("input_cpu")
    lines = [
        "| events in the log | file, MB | opened in, s | events/s | tokens/s | "
        "private memory, MB: at start, packed, most |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['events']:,} | {row['file_mb']:,} | {row['opened_s']} | {row['events_per_s']:,} | "
        f"{row['tokens_per_s']:,} | {row['start_mb']}, {row['packed_mb']}, {row['most_mb']} |"
        for row in rows
    ]
    return "\n".join([*lines, "", _machine(rows)])


def scaling_table() -> str:
    """Step time over size, of `benchmarks.bench_scaling`."""
    rows = _json_lines("scaling_cpu")
    lines = [
        "| varied | step, ms | of the arithmetic floor | exponent: time, operations |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["series"] for row in rows):
        points = [row for row in rows if row["series"] == name]
        first = points[0]
        sizes = ", ".join(f"{row[first['varied']]:,}" for row in points)
        times = ", ".join(f"{row['step_ms']:,.0f}" for row in points)
        floors = ", ".join(f"{row['fraction_of_floor']:.0%}" for row in points)
        lines.append(
            f"| {name}: {sizes} | {times} | {floors} | "
            f"{first['exponent']:.2f}, {first['flop_exponent']:.2f} |"
        )
    return "\n".join([*lines, "", _machine(rows)])


def _machine(rows: list[dict[str, Any]]) -> str:
    row = rows[0]
    loads = sorted(row["load"] for row in rows)
    return (
        f"{row['cores']} cores of {row['processor']}, jax {row['jax']}, while "
        f"{loads[0]} to {loads[-1]} threads wanted to run on them."
    )


def prepare_table() -> str:
    """What `benchmarks.bench_prepare` found."""
    found = json.loads((RESULTS / "prepare.json").read_text())
    where = found["environment"]
    lines = [
        f"{where['processor']}, {where['cores']} cores, Python {where['python']}.",
        "",
        "| log | rows read | seconds | microseconds a row | seconds of all threads | "
        "most memory, GB | threads that wanted to run before |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        each_us = 1e6 * row["seconds"] / row["rows_read"]
        lines.append(
            f"| {row['name']} | {row['rows_read']:,} | {row['seconds']:,.1f} | {each_us:.1f} | "
            f"{row['cpu_seconds']:,.1f} | {row['peak_gb']:.1f} | {row['load_before']:.1f} |"
        )
    return "\n".join(lines)


def repair_table() -> str:
    """What `benchmarks.bench_repair` found: later events are those after the training part."""
    rows = json.loads((RESULTS / "repair.json").read_text())["rows"]
    lines = [
        "| log | hidden | repair | training: filled | right | later: filled | right |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        right = "right" if row["what"] == "category" else "within_200_m"
        cells = [row[f"{p}_{what}"] for p in ("train", "later") for what in ("filled", right)]
        if row["what"].startswith("noise"):
            what = row["what"]
            cells = [
                f"{1000 * row[f'{part}_median_km']:.0f} m" if name == "right" else ""
                for part in ("train", "later")
                for name in ("filled", "right")
            ]
        else:
            what = f"{row['hidden']:.0%} of {row['what'].replace('category', 'categorie')}s"
            cells = [f"{cell:.1%}" for cell in cells]
        lines.append(f"| {row['log']} | {what} | {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def repair_value_table() -> str:
    """What `benchmarks.bench_repair_value` found: accuracy and MRR after each repair."""
    logs = json.loads((RESULTS / "repair_value.json").read_text())
    metrics = {"accuracy@1": "accuracy", "hr@10": "HR@10", "mrr": "MRR"}
    lines = [
        f"| log | damage | repair | {' | '.join(metrics.values())} |",
        "|---|---|---|" + "---|" * len(metrics),
    ]
    for name, found in logs.items():
        intact = [found["intact"][metric] for metric in metrics]
        cells = " | ".join(f"{one['mean']:.3f} ± {one['sd']:.3f}" for one in intact)
        lines.append(f"| {name} | none ({found['seeds']} seeds) | | {cells} |")
        for row in found["rows"]:
            cells = " | ".join(f"{row[metric]:.3f}" for metric in metrics)
            lines.append(f"| {name} | {row['damage']} | {row['repair']} | {cells} |")
    return "\n".join(lines)


_OVERVIEW = (
    "ml100k", "ml1m", "gowalla", "calgary", "online_retail",
    "amazon_beauty", "amazon_sports", "amazon_toys", "globo",
)  # fmt: skip

SECTIONS: dict[str, Callable[[], str]] = {
    "kernel speed": kernel_tables.speed,
    "kernel summary": kernel_tables.speed_summary,
    "kernel model": kernel_tables.model_speed,
    "kernel devices": kernel_tables.device_kernels,
    "quickstart": lambda: transcript("quickstart"),
    "kernel training": kernel_tables.training_steps,
    "accelerator": lambda: transcript("accelerator_h200"),
    "accelerator ml1m": lambda: transcript("accelerator_h100"),
    "kernel tiles": kernel_tables.tiles,
    "prepare": prepare_table,
    "repair": repair_table,
    "repair value": repair_value_table,
    "summary city": lambda: quality_summary(QUALITY / "city.json"),
    "summary nyc": lambda: quality_summary(QUALITY / "nyc.json"),
    "published nyc": lambda: published_table(RESULTS / "published.json", "nyc"),
    "published ml1m": lambda: published_table(RESULTS / "published.json", "ml1m"),
    "published amazon": lambda: published_table(RESULTS / "published.json", "amazon"),
    "ablation nyc": lambda: ablation_table(QUALITY / "nyc.json"),
    "domains": lambda: domain_tables(RESULTS / "domains.json"),
    "domains summary": lambda: domain_summary(RESULTS / "domains.json"),
    "coldstart": lambda: coldstart_table(RESULTS / "coldstart.json"),
    "coldstart summary": lambda: coldstart_summary(RESULTS / "coldstart.json"),
    "privacy": lambda: privacy_table(RESULTS / "privacy.json"),
    "privacy summary": lambda: privacy_summary(RESULTS / "privacy.json"),
    "realtime": realtime_table,
    "service": service_table,
    "freshness": freshness_table,
    "training speed": training_table,
    "scaling": scaling_table,
    "input speed": input_table,
    **{
        f"quality {name}": functools.partial(quality_table, QUALITY / f"{name}.json")
        for name in ("city", "nyc", *_OVERVIEW)
    },
    "peers": lambda: peers_table(QUALITY / f"{name}.json" for name in ("nyc", *_OVERVIEW)),
    "quality overview": lambda: quality_overview(QUALITY / f"{name}.json" for name in _OVERVIEW),
}


def fill(text: str) -> str:
    """Gives a document with every section filled from its file."""

    def section(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- begin {name} -->\n{SECTIONS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([^>]+?) -->\n.*?<!-- end \1 -->", section, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    check = "--check" in (sys.argv if argv is None else argv)
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            stale.append(str(path.relative_to(ROOT)))
        if not check:
            path.write_text(filled, encoding="utf-8")
    if check and stale:
        print(f"not what the result files say: {', '.join(stale)}; run python -m benchmarks.tables")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
