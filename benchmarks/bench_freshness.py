"""How much does a model lose as it ages, and how much does live state give back?

    python -m benchmarks.bench_freshness --suite=nyc --data_root=PATH
    python -m benchmarks.bench_freshness --suite=news --data_root=PATH --only_states

Events are cut at two moments, `trained_until` and `asked_from`. The older model is trained on what
came before the first; the newer begins with what the older has learned (`--resume_from`) and goes
on with everything before the second. Both are asked for the same events after the second, with the
request's time known, everything of the catalogue ranked:

- live: the state holds everything that the person did before the target, and what is popular is
  counted up to its hour, as the service has it;
- live state: what is popular is that of the training part;
- so old: it is, and the state holds what they did up to so long before the target, as a nightly job
  would have it.

Every model keeps the vocabulary and the other counts of its own training part: an item that came
later is a miss for the older one, unless it is told of it, as by `--items`. That the newer one has
made more steps is told apart by a third model: the older one, gone on with for the same number of
steps without a newer event.

With `--only_states` the older one is all there is: what its states lose as they age.

Small models that a shared CPU trains in minutes: what is asked is how answers age, not how good
they can be. PATH is the folder that holds the raw log. Appends to, or replaces the suite's rows in,
benchmarks/results/freshness.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import timing
from stt_jax import prepare
from stt_jax.config import ModelConfig, PrepareConfig, ProtocolConfig, TrainingConfig, flagfile
from stt_jax.data.newitems import add_items
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.data.preparation import prepare_log
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets, find_targets
from stt_jax.data.store import TEST, open_log
from stt_jax.metrics import ranking_metrics
from stt_jax.relations import model_catalogue
from stt_jax.training.loop import train_model
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.run import Run

RESULTS = pathlib.Path(__file__).parent / "results" / "freshness.json"
HOUR_S = 3600


@dataclasses.dataclass(frozen=True)
class Suite:
    """A log, where it is cut, and how the models are trained.

    Attributes:
      flagfile, flags: of prepare.
      trained_until, asked_from, asked_until: UTC moments, ISO 8601.
      lags_h: ages of states, hours.
      epochs, more_epochs: of the first training and of going on.
    """

    flagfile: str
    flags: tuple[str, ...]
    trained_until: str
    asked_from: str
    asked_until: str
    lags_h: tuple[int, ...]
    model: ModelConfig
    training: TrainingConfig
    more_epochs: float


_NYC = ("train_reconstructed", "val", "test")
_TRAINING = TrainingConfig(
    window=32, requests=32, batch_rows=32, epochs=2, learning_rate=5e-3, patience=0
)
SUITES = {
    "nyc": Suite(
        flagfile="configs/prepare/nyc.flags",
        flags=(
            "--input=" + ",".join(f"foursquare_nyc_getnext/NYC_{name}.csv.gz" for name in _NYC),
            "--validation_input=",
            "--test_input=",
        ),
        trained_until="2012-12-15T05:00",
        asked_from="2012-12-22T05:00",
        asked_until="2013-01-05T05:00",
        lags_h=(24, 72, 168),
        model=ModelConfig(width=32, num_layers=1, num_heads=2, use_sequel=False),
        training=_TRAINING,
        more_epochs=0.5,
    ),
    "news": Suite(
        flagfile="configs/prepare/globo.flags",
        flags=("--time_from=2017-10-03T03:00",),
        trained_until="2017-10-05T03:00",
        asked_from="2017-10-06T03:00",
        asked_until="2017-10-07T03:00",
        lags_h=(1, 6, 24),
        model=ModelConfig(
            width=32,
            num_layers=1,
            num_heads=2,
            use_sequel=False,
            use_person=False,
            trend_half_lives_h=(0.25, 1.0, 24.0),
        ),
        training=dataclasses.replace(_TRAINING, epochs=0.5, loss="sampled", num_negatives=512),
        more_epochs=0.25,
    ),
}


def frozen(log: PreparedLog, targets: Targets, lag_s: int) -> Targets:
    """The same targets, without what the person did in the last `lag_s` seconds before each."""
    seen = [
        start + np.searchsorted(log.times[start:event], log.times[event] - lag_s, side="right")
        for start, event in zip(targets.history_starts, targets.events, strict=True)
    ]
    ends = np.array(seen, np.int64) if lag_s else targets.events
    return dataclasses.replace(targets, history_ends=ends, session_starts=targets.events)


def same_targets(log: PreparedLog, targets: Targets, other: PreparedLog) -> Targets:
    """The targets of `other` that are those of `log`: its people and items may be numbered anew."""
    rows = {user: row for row, user in enumerate(other.user_ids)}
    users = np.array([rows[log.user_ids[user]] for user in targets.users], np.int64)
    starts = other.user_offsets[users]
    events = starts + targets.events - log.user_offsets[targets.users]
    if not np.array_equal(other.times[events], log.times[targets.events]):
        raise ValueError("the two logs do not hold the same events; remove them and begin again")
    return Targets(users, events, starts, events, events)


def with_new_items(log: PreparedLog, other: PreparedLog) -> PreparedLog:
    """The log told of the items that `other`, of the same events, knows besides."""
    there = set(log.item_ids)
    wider = add_items(log, [item for item in other.item_ids if item not in there])
    rows = {item: row for row, item in enumerate(wider.item_ids)}
    of_other = np.array([rows[item] for item in other.item_ids], np.int32)
    users = {user: row for row, user in enumerate(other.user_ids)}
    events = np.concatenate(
        [
            np.arange(*other.user_offsets[row : row + 2])
            for row in (users[user] for user in log.user_ids)
        ]
    )
    if not np.array_equal(other.times[events], log.times):
        raise ValueError("the two logs do not hold the same events; remove them and begin again")
    items = np.where(log.items > 0, log.items, of_other[other.items[events]])
    return dataclasses.replace(wider, items=items)


def reciprocal_errors(ranks: np.ndarray, live: np.ndarray, people: np.ndarray) -> float:
    """Standard error of the mean difference of reciprocal ranks from those of another state."""
    gains = [np.where(one > 0, 1 / np.maximum(one, 1), 0.0) for one in (ranks, live)]
    difference = gains[0] - gains[1]
    _, clusters = np.unique(people, return_inverse=True)
    sums = np.bincount(clusters, weights=difference - difference.mean())
    return float(np.sqrt(np.square(sums).sum()) / len(ranks))


def bench(
    name: str, data_root: str, work: pathlib.Path, num_targets: int, goes_on: bool
) -> list[dict]:
    """Prepares, trains and asks; gives the rows. `goes_on`: not of the older model alone."""
    suite = SUITES[name]
    older = _prepared(suite, data_root, work / "older", suite.trained_until)
    newer = _prepared(suite, data_root, work / "newer", suite.asked_from)
    until_s = np.datetime64(suite.asked_until, "s").astype(np.int64)
    targets = find_targets(newer, TEST)
    targets = targets[newer.times[targets.events] < until_s]
    targets = targets[targets.known(newer)].sample(num_targets, seed=0)

    def train(log: PreparedLog, run: str, epochs: float, source: str = "") -> Run:
        options = dataclasses.replace(
            suite.training,
            data=str(log.directory),
            run=str(work / run),
            epochs=epochs,
            resume_from=source,
        )
        return train_model(log, options, suite.model, ProtocolConfig())

    first = train(older, "first", suite.training.epochs)
    models = {"older": (first, older)}
    if goes_on:
        source = str(first.directory)
        newer_run = train(newer, "newer-run", suite.more_epochs, source)
        same_steps = newer_run.step / _num_steps(older, suite)
        models["older, as many steps more"] = train(older, "longer", same_steps, source), older
        models["newer"] = newer_run, newer
    models["older, new items added"] = first, with_new_items(older, newer)
    asked: dict[tuple[str, str, int], np.ndarray] = {}
    for model, (run, log) in models.items():
        mine = same_targets(newer, targets, log)
        older_states = suite.lags_h if model in ("older", "newer") else ()
        for trends, lags in (("live", (0,)), ("training", (0, *older_states))):
            ranks = _ranks(run, log, mine, [lag * HOUR_S for lag in lags], trends)
            for lag, found in zip(lags, ranks, strict=True):
                asked[model, trends, lag] = found
    common = {
        "suite": name,
        "num_targets": len(targets),
        "num_people": len(np.unique(targets.users)),
        "new_items": float(np.mean(same_items(newer, targets, older) == 0)),
        "trained_until": suite.trained_until,
        "asked_from": suite.asked_from,
        "asked_until": suite.asked_until,
        **timing.environment(),
    }
    return [
        {
            **common,
            "model": model,
            "trends": trends,
            "state_age_h": lag,
            "steps": models[model][0].step,
            **{key: ranking_metrics(ranks)[key] for key in ("accuracy@1", "hr@10", "mrr")},
            "mrr_difference_error": reciprocal_errors(
                ranks, asked[model, "live", 0], targets.users
            ),
        }
        for (model, trends, lag), ranks in asked.items()
    ]


def same_items(log: PreparedLog, targets: Targets, other: PreparedLog) -> np.ndarray:
    """The items of the targets in the rows of another log; 0 = it has none."""
    mine = same_targets(log, targets, other)
    return other.items[mine.events]


def _prepared(suite: Suite, data_root: str, directory: pathlib.Path, test_from: str) -> PreparedLog:
    if (directory / "meta.json").exists():
        return open_log(directory)
    # Nothing is validated: a model is that of its last step.
    flags = [
        f"--flagfile={suite.flagfile}", *suite.flags, f"--data_root={data_root}",
        f"--output={directory}", "--split=time", f"--validation_from={test_from}",
        f"--test_from={test_from}",
    ]  # fmt: skip
    groups = flagfile.parse(prepare.GROUPS, ["prepare", *flags])
    options = {
        field.name: getattr(group, field.name)
        for group in groups.values()
        for field in dataclasses.fields(group)
    }
    return prepare_log(PrepareConfig(**options))


def _num_steps(log: PreparedLog, suite: Suite) -> int:
    """Steps of an epoch."""
    config = suite.training
    return TrainingBatches(
        log,
        window=config.window,
        requests=config.requests,
        batch_rows=config.batch_rows,
        seed=config.seed,
    ).num_steps(1.0)


def _ranks(
    run: Run, log: PreparedLog, targets: Targets, lags_s: list[int], trends: str
) -> list[np.ndarray]:
    """Ranks with states of each age; `MISS` where the model does not know the item."""
    ranker = make_ranker(run.model)
    items = model_catalogue(log, run.model_config, live_trends=trends == "live")
    items = jax.tree.map(jax.numpy.asarray, items)
    window = run.training.asked_tokens
    return [
        model_ranks(
            ranker, run.params, items, log, frozen(log, targets, lag_s),
            modes=("known",), window=window,
        )["known"]
        for lag_s in lags_s
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suite", choices=list(SUITES), default="nyc")
    parser.add_argument("--data_root", default=".", help="folder of the raw log's folder")
    parser.add_argument("--work", default="runs/freshness", help="folder for logs and runs")
    parser.add_argument("--targets", type=int, default=1500, help="most targets")
    parser.add_argument("--only_states", action="store_true", help="leave the newer model out")
    parser.add_argument("--output", default=str(RESULTS))
    given = parser.parse_args(None if argv is None else list(argv))
    work = pathlib.Path(given.work) / given.suite
    goes_on = not given.only_states
    rows = bench(given.suite, given.data_root, work, given.targets, goes_on)
    path = pathlib.Path(given.output)
    lines = path.read_text().splitlines() if path.exists() else []
    others = [row for row in map(json.loads, lines) if row["suite"] != given.suite]
    timing.write_rows(path, [*others, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
