"""RecTools' HSTU and SASRec, trained an epoch at a time on request.

Usage: rectools_sequential.py OPTIONS, JSON: model "hstu" or "sasrec", log (a .npz with users,
items, times, parts), blocks, width, heads, length, rows, dropout, learning_rate, seed. Each line
on standard input is {"epochs": n}: trains n more epochs and prints the seconds between their starts
and ends, as Lightning's callbacks see them (what is set up around a call of `fit_partial` is not
counted); or {"rank": k, "part": p, "leave_out_seen": b}: prints, for each event held out for that
part, its item's rank among the first k of all items (of those that the person has not had), 0 =
further back, and whether the model was told the time of that event (HSTU asks for it).

Everything not named above is as in `rectools_models`: Adam, for HSTU relative attention by time
and position.
"""

import json
import sys
import time

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import rectools
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.dataset.context import get_context
from rectools_models import make_model

TRAIN = 0


def answer(**values):
    """One line for the other side."""
    print("answer " + json.dumps(values), flush=True)


class Clock(lightning.Callback):
    """Adds up the seconds of training epochs."""

    seconds = 0.0  # of the class: RecTools copies its trainer

    def on_train_epoch_start(self, trainer, module):
        """Starts."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        """Stops."""
        Clock.seconds += time.perf_counter() - self._start


def get_trainer():
    """A trainer that only trains."""
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )


def find_ranks(model, dataset, held_out, k, leave_out_seen):
    """Of each held-out event its item's rank among the first k, 0 = further back."""
    users = held_out[Columns.User].to_numpy()
    context = get_context(held_out) if model.require_recommend_context else None
    table = model.recommend(
        users=users, dataset=dataset, k=k, filter_viewed=leave_out_seen, context=context
    )
    pairs = zip(table[Columns.User], table[Columns.Item], strict=True)
    ranks = dict(zip(pairs, table[Columns.Rank], strict=True))
    wanted = zip(held_out[Columns.User], held_out[Columns.Item], strict=True)
    return [int(ranks.get(pair, 0)) for pair in wanted]


def main(options):
    """Builds the model and answers until standard input ends."""
    torch.set_num_threads(2)
    lightning.seed_everything(options.get("seed", 0), verbose=False)
    log = np.load(options["log"])
    table = pd.DataFrame(
        {
            Columns.User: log["users"],
            Columns.Item: log["items"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(log["times"], unit="s"),
        }
    )
    parts = log["parts"]
    train = parts == TRAIN
    dataset = Dataset.construct(table[train])
    model = make_model(options, get_trainer)
    counts = np.bincount(log["users"][train])
    events = int(np.minimum(np.maximum(counts - 1, 0), options["length"]).sum())
    model.fit_partial(dataset, min_epochs=1, max_epochs=1)
    answer(
        versions={
            "rectools": rectools.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
        parameters=sum(p.numel() for p in model.lightning_model.torch_model.parameters()),
        epochs=1,
    )
    for line in sys.stdin:
        request = json.loads(line)
        if "rank" in request:
            part = request["part"]
            before = Dataset.construct(table[parts < part])
            held_out = table[parts == part]
            ranks = find_ranks(model, before, held_out, request["rank"], request["leave_out_seen"])
            answer(ranks=ranks, time="known" if model.require_recommend_context else "unknown")
            continue
        before = Clock.seconds
        model.fit_partial(dataset, min_epochs=request["epochs"], max_epochs=request["epochs"])
        answer(seconds=Clock.seconds - before, events=events * request["epochs"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
