"""How many events a second does training learn from, against other trainers at the same sizes?

An event is one prediction that is learned from. All take turns, round by round, each in a process
of its own with two threads; ours runs in this one, reads its batches as `stt_jax.train` does, and
cuts the CPU into two devices that share the rows of a batch (`--mesh_data=2`).

    movielens   MovieLens-100K, 2 blocks, 64 wide, 2 heads, length 200, dropout .2, all items in the
                softmax: RecTools' HSTU and SASRec, RecBole's SASRec. Ours has time encodings on.
                RecTools trains on the last 201 events of a person and pads to that; ours takes them
                all, and packs them: its batch of 64 rows holds about as many events as theirs of
                128. RecBole makes a row of every event, so its batch of 128 holds 128.
    seed        the Keras model that this project began from: width 512, 8 heads, 1 block, 10,000
                items, length 1,000, random events. Ours has time, place and causal masking on.

    python -m benchmarks.bench_training --quick
    python -m benchmarks.bench_training --suite=movielens --data=prepared/ml100k
        --rectools=ENVIRONMENT/bin/python --recbole=ENVIRONMENT/bin/python
        --output=benchmarks/results/training_cpu.json
    python -m benchmarks.bench_training --suite=seed --keras=ENVIRONMENT/bin/python --output=...

With `--epochs=20` the movielens suite then goes on training to so many epochs and reports HR@10 on
the held-out last events: all items ranked, those already seen included, validation event in the
history. A request tells its time or not, where a model can be told. Learning rates, ours and
theirs, are chosen with `--part=validation`, which asks for the last events but one.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from benchmarks import timing
from benchmarks.made_log import make_log
from benchmarks.peers.client import NUM_THREADS, Client
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import find_targets
from stt_jax.data.schema import PART_NAMES
from stt_jax.data.store import open_log
from stt_jax.metrics import ranking_metrics
from stt_jax.training.loop import READ_AHEAD
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.setup import set_up
from stt_jax.training.step import make_train_step

MOVIELENS: dict[str, Any] = {
    "blocks": 2,
    "width": 64,
    "heads": 2,
    "length": 200,
    "rows": 128,
    "dropout": 0.2,
}
MOVIELENS_ROWS = 64  # packed rows that hold as many events as their 128
SEED: dict[str, Any] = {"width": 512, "heads": 8, "length": 1000, "rows": 4, "num_items": 10_000}
RANK = 10


class Ours:
    """Our model, trained some steps on request, on batches from the input pipeline."""

    def __init__(self, log: PreparedLog, training: TrainingConfig, model: ModelConfig) -> None:
        """Compiles the step and runs it once."""
        size = jax.device_count() if training.batch_rows % jax.device_count() == 0 else 1
        protocol = ProtocolConfig(targets="last")
        self.setup = setup = set_up(log, training, model, protocol, DeviceConfig(mesh_data=size))
        self._data = iter(grain.MapDataset.source(setup.batches).to_iter_dataset(READ_AHEAD))
        with jax.set_mesh(setup.placement.mesh):
            self._state = setup.initial_state()
            self._step = make_train_step(
                setup.model, setup.optimizer, training, setup.placement, setup.shardings
            )
        self.steps_done = 0
        self.train(1)

    def train(self, steps: int) -> dict[str, Any]:
        """Trains so many steps; seconds and events."""
        start = time.perf_counter()
        counts = []
        with jax.set_mesh(self.setup.placement.mesh):
            for _ in range(steps):
                history, requests = self.setup.put(next(self._data))
                self._state, measures = self._step(self._state, self.setup.items, history, requests)
                counts.append(measures["requests"])
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - start
        self.steps_done += steps
        return {"seconds": seconds, "events": int(sum(float(count) for count in counts))}

    def hit_rates(self, part: int) -> dict[str, float]:
        """HR@10 of a part's held-out events, for requests without and with their time."""
        setup = self.setup
        targets = find_targets(setup.log, part, targets="last", context="all")
        with jax.set_mesh(setup.placement.mesh):
            ranks = model_ranks(
                make_ranker(setup.model),
                self._state.params,
                setup.items,
                setup.log,
                targets[targets.known(setup.log)],
                window=setup.config.window,
                placement=setup.placement,
            )
        return {mode: ranking_metrics(r, (RANK,))[f"hr@{RANK}"] for mode, r in ranks.items()}

    def facts(self) -> dict[str, Any]:
        """What a row says about it."""
        setup = self.setup
        leaves = jax.tree.leaves(setup.shapes.params)
        return {
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
            "parameters": sum(leaf.size for leaf in leaves),
            "batch_rows": setup.config.batch_rows,
            "devices": setup.placement.mesh.size,
            "fill": round(setup.batches.fill, 4),
            "time": setup.model.config.use_time,
            "place": setup.model.config.use_place,
            "pointer": setup.model.config.use_pointer,
        }


def movielens(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Against RecTools and RecBole on MovieLens-100K."""
    log = open_log(options.data)
    training = TrainingConfig(
        window=MOVIELENS["length"],
        requests=MOVIELENS["length"],
        batch_rows=MOVIELENS_ROWS,
        epochs=max(options.epochs, 1),
        learning_rate=options.learning_rate,
        # The same numbers; what a part of the batch leaves behind stays in the cache of a CPU.
        loss="chunked",
        accumulate=4,
    )
    model = ModelConfig(
        num_layers=MOVIELENS["blocks"],
        width=MOVIELENS["width"],
        num_heads=MOVIELENS["heads"],
        dropout=MOVIELENS["dropout"],
        use_pointer=False,  # nobody rates a film twice, and the others have none
        use_crowd=False,  # nor do they have that
    )
    ours = Ours(log, training, model)
    clients: dict[str, Client] = {}
    with tempfile.TemporaryDirectory() as folder:
        exported = {**MOVIELENS, "log": export(log, folder), "folder": folder}
        for name in ("hstu", "sasrec") if options.rectools else ():
            request = {**exported, "model": name, "learning_rate": options.peer_learning_rate}
            clients[f"rectools_{name}"] = Client(
                options.rectools, "rectools_sequential.py", request, {}
            )
        if options.recbole:
            clients["recbole_sasrec"] = Client(options.recbole, "recbole_sasrec.py", exported, {})
        steps = ours.setup.batches.num_steps(1.0)
        runs: dict[str, Callable[[], dict[str, Any]]] = {"ours": lambda: ours.train(steps)}
        for name, client in clients.items():
            request = {"steps": 10} if name == "recbole_sasrec" else {"epochs": 1}
            runs[name] = functools.partial(client, **request)
        rows = compare(runs, options.rounds, {"ours": ours.facts()}, clients)
        if options.epochs:
            add_hit_rates(rows, ours, clients, options)
        for client in clients.values():
            client.stop()
    return [{"suite": "movielens", **MOVIELENS, **row} for row in rows]


def export(log: PreparedLog, folder: str) -> str:
    """The log as arrays, for the peers."""
    path = str(pathlib.Path(folder) / "log.npz")
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    np.savez(path, users=users, items=log.items, times=log.times, parts=log.parts)
    return path


def add_hit_rates(
    rows: list[dict[str, Any]], ours: Ours, clients: dict[str, Client], options: argparse.Namespace
) -> None:
    """Trains everyone who can be ranked on to `options.epochs`, and adds HR@10 to the rows."""
    part = PART_NAMES.index(options.part)
    for row in rows:
        done = 1 + options.rounds + 1  # its first epoch, the warm-up and the rounds
        if row["candidate"] == "ours":
            ours.train(ours.setup.num_steps - ours.steps_done)
            row["hit_rates"] = ours.hit_rates(part)
            row["epochs"] = options.epochs
        elif row["candidate"].startswith("rectools"):
            client = clients[row["candidate"]]
            client(epochs=options.epochs - done)
            found = client(rank=RANK, part=part, leave_out_seen=False)
            # Of items that training knows, as of ours.
            known = ours.setup.log.items[ours.setup.log.parts == part] > 0
            row["hit_rates"] = {found["time"]: float(np.mean(np.array(found["ranks"])[known] > 0))}
            row["epochs"] = options.epochs
        if "hit_rates" in row:
            row["part"] = options.part
            row["learning_rate"] = (
                options.learning_rate if row["candidate"] == "ours" else options.peer_learning_rate
            )
        print(row["candidate"], row.get("hit_rates"), flush=True)


def seed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Against the Keras model that this project began from."""
    sizes = dict(SEED)
    if options.quick:
        sizes |= {"width": 16, "heads": 2, "length": 32, "num_items": 50}
    length = sizes["length"]
    log = make_log(
        pathlib.Path("unwritten"),
        20 * sizes["rows"] * (length + 1),
        num_items=sizes["num_items"],
        person_events=length + 1,  # the last is the test's: one full window is left to train on
        vary=False,
    )
    training = TrainingConfig(window=length, requests=length, batch_rows=sizes["rows"])
    model = ModelConfig(
        num_layers=1, width=sizes["width"], num_heads=sizes["heads"], use_crowd=False
    )
    ours = Ours(log, training, model)
    clients = {}
    for backend in ("tensorflow", "jax") if options.keras and not options.quick else ():
        clients[f"keras_{backend}"] = Client(
            options.keras, "keras_seed.py", sizes, {"KERAS_BACKEND": backend}
        )
    steps = options.steps
    runs: dict[str, Callable[[], dict[str, Any]]] = {"ours": lambda: ours.train(steps)}
    for name, client in clients.items():
        runs[name] = functools.partial(client, steps=steps)
    rows = compare(runs, options.rounds, {"ours": ours.facts()}, clients)
    for client in clients.values():
        client.stop()
    return [{"suite": "seed", **sizes, **row} for row in rows]


def compare(
    runs: dict[str, Callable[[], dict[str, Any]]],
    num_rounds: int,
    facts: dict[str, dict[str, Any]],
    clients: dict[str, Client],
) -> list[dict[str, Any]]:
    """Lets all take turns; a row each."""

    def milliseconds_an_event(run: Callable[[], dict[str, Any]]) -> Callable[[], float]:
        def measure() -> float:
            found = run()
            return 1e3 * float(found["seconds"]) / found["events"]

        return measure

    measured = {name: milliseconds_an_event(run) for name, run in runs.items()}
    times = timing.alternate(measured, num_rounds, num_warmups=1)
    rows = []
    for name, found in times.items():
        row = {
            "candidate": name,
            "events_per_s": round(1e3 / found.median_ms, 1),
            "rounds_events_per_s": [round(1e3 / t, 1) for t in found.times_ms],
            "ours_times_as_fast": round(found.ratio_to(times["ours"]), 2),
            "threads": NUM_THREADS,
            **(facts[name] if name in facts else clients[name].ready),
        }
        rows.append(row | timing.environment())
        print(
            f"{name:18s} {row['events_per_s']:12,.0f} events/s   ours is "
            f"{row['ours_times_as_fast']:.2f} times as fast",
            flush=True,
        )
    return rows


SUITES = {"movielens": movielens, "seed": seed}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the seed suite, tiny, without peers")
    parser.add_argument("--suite", choices=tuple(SUITES), default="seed")
    parser.add_argument("--data", help="movielens: the prepared log")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each that count")
    parser.add_argument("--steps", type=int, default=2, help="seed: steps in a turn")
    parser.add_argument("--epochs", type=int, default=0, help="movielens: epochs before HR@10")
    parser.add_argument("--learning_rate", type=float, default=0.012, help="movielens: ours")
    parser.add_argument(
        "--peer_learning_rate",
        type=float,
        default=0.004,
        help="movielens: of RecTools, whose default is 0.001",
    )
    parser.add_argument(
        "--part", choices=("validation", "test"), default="test", help="movielens: of HR@10"
    )
    parser.add_argument("--rectools", help="python of an environment with RecTools")
    parser.add_argument("--recbole", help="python of an environment with RecBole")
    parser.add_argument("--keras", help="python of an environment with Keras, TensorFlow and JAX")
    parser.add_argument("--output", type=pathlib.Path, help="where to write this suite's rows")
    options = parser.parse_args(argv)
    rows = SUITES["seed" if options.quick else options.suite](options)
    if options.output:
        kept = []
        if options.output.exists():
            old = [json.loads(line) for line in options.output.read_text().splitlines()]
            kept = [row for row in old if row["suite"] != rows[0]["suite"]]
        timing.write_rows(options.output, kept + rows)
    return 0


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", NUM_THREADS)
    sys.exit(main())
