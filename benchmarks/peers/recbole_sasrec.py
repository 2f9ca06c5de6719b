"""RecBole's SASRec, trained some batches at a time on request.

Usage: recbole_sasrec.py OPTIONS, JSON: log (a .npz with users, items, times, parts), folder (for
RecBole's files), blocks, width, heads, length, rows, dropout. Each line on standard input,
{"steps": n}, trains n batches with RecBole's own trainer and prints the seconds.

RecBole makes a row of every event to predict, with all that came before it: a batch of 128 rows
learns from 128 events. Everything not named above is RecBole's default for SASRec (inner_size 256,
Adam with learning rate 0.001, cross-entropy over all items).
"""

import itertools
import json
import pathlib
import sys
import time

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer


def answer(**values):
    """One line for the other side."""
    print("answer " + json.dumps(values), flush=True)


class Batches:
    """The next n batches of an endless stream, as the loader that RecBole's trainer wants."""

    def __init__(self, loader):
        self._loader, self.steps = loader, 0
        self._stream = itertools.chain.from_iterable(itertools.repeat(loader))
        self.rows = 0

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __len__(self):
        return self.steps

    def __iter__(self):
        self.rows = 0
        for batch in itertools.islice(self._stream, self.steps):
            self.rows += len(batch)
            yield batch


def write_log(log, folder):
    """The log as RecBole's atomic file."""
    folder = pathlib.Path(folder) / "log"
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, item, when in zip(log["users"], log["items"], log["times"], strict=True):
        rows.append(f"{user}\t{item}\t{when}")
    (folder / "log.inter").write_text("\n".join(rows) + "\n")


def main(options):
    """Builds the model and answers until standard input ends."""
    torch.set_num_threads(2)
    write_log(np.load(options["log"]), options["folder"])
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    config = Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": options["folder"],
            "checkpoint_dir": options["folder"],
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "train_neg_sample_args": None,
            "MAX_ITEM_LIST_LENGTH": options["length"],
            "n_layers": options["blocks"],
            "hidden_size": options["width"],
            "n_heads": options["heads"],
            "hidden_dropout_prob": options["dropout"],
            "attn_dropout_prob": options["dropout"],
            "train_batch_size": options["rows"],
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
        },
    )
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    batches = Batches(train)

    def step(steps):
        batches.steps = steps
        start = time.perf_counter()
        trainer._train_epoch(batches, 0, show_progress=False)
        return time.perf_counter() - start

    step(1)
    answer(
        versions={"recbole": recbole.__version__, "torch": torch.__version__},
        parameters=sum(p.numel() for p in model.parameters()),
    )
    for line in sys.stdin:
        seconds = step(json.loads(line)["steps"])
        answer(seconds=seconds, events=batches.rows)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
