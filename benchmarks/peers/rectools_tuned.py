"""RecTools' SASRec or HSTU, trained until the validation part likes no later epoch better.

Usage: rectools_tuned.py JOB ANSWER, two paths. JOB is JSON: log (a .npz of
`benchmarks.bench_rectools`, beside it), model "hstu" or "sasrec", width, heads, blocks, length,
rows, dropout, learning_rate, seed, step_epochs, max_epochs, patience, leave_out_seen, with_times,
threads. ANSWER says of the best state the epochs, its validation MRR, and the ranks of the items of
the test targets, 0 = left out or unknown to it; it is written anew whenever there is a better one,
and says `finished` once training has stopped.

Everything not named is as in `rectools_models`.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import rectools
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools_models import make_model

CHUNK = 256  # targets that are ranked at a time


class Judge(lightning.Callback):
    """Calls a function after every so many epochs; training ends once it says so."""

    def __init__(self, judge, step_epochs):
        super().__init__()
        self._judge, self._step_epochs = judge, step_epochs

    def on_train_epoch_end(self, trainer, module):
        """Asks, and leaves the model as it was."""
        epochs = trainer.current_epoch + 1
        if epochs % self._step_epochs == 0 and self._judge(epochs):
            trainer.should_stop = True
        module.train()


class Asked:
    """The targets of one set, ready to be ranked."""

    def __init__(self, model, log, name, job):
        """Prepares what the model reads, and which items are left out."""
        prepare = model.data_preparator
        self._targets = log[f"{name}/events"]
        contexts = [
            np.concatenate([np.arange(start, end), np.arange(session, event)])
            for start, end, session, event in zip(
                log[f"{name}/history_starts"],
                log[f"{name}/history_ends"],
                log[f"{name}/session_starts"],
                self._targets,
                strict=True,
            )
        ]
        items, times = log["items"], log["times"]
        inner = pd.Series(
            prepare.item_id_map.get_sorted_internal(),
            index=prepare.item_id_map.get_external_sorted_by_internal(),
        )
        inner = inner.reindex(np.arange(items.max() + 1)).fillna(0).astype(int).to_numpy()
        inner[0] = 0  # of no item
        self._wanted = inner[items[self._targets]]
        self._viewed = [inner[np.unique(items[c])] for c in contexts]
        self._leave_out_seen = job["leave_out_seen"]
        read = [c[inner[items[c]] > 0][-job["length"] :] for c in contexts]
        owners = np.repeat(np.arange(len(read)), [len(c) for c in read])
        events = np.concatenate(read)
        table = pd.DataFrame(
            {
                Columns.User: owners,
                Columns.Item: items[events],
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(times[events], unit="s"),
            }
        )
        users = np.unique(owners)  # who has done nothing known cannot be asked for
        context = None
        if model.require_recommend_context:
            context = pd.DataFrame(
                {
                    Columns.User: users,
                    Columns.Weight: 0.0,
                    Columns.Datetime: pd.to_datetime(times[self._targets[users]], unit="s"),
                }
            )
        dataset = prepare.transform_dataset_u2i(Dataset.construct(table), users, context)
        self._owners = dataset.user_id_map.get_external_sorted_by_internal()
        self._loader = prepare.get_dataloader_recommend(dataset, CHUNK)

    def ranks(self, model):
        """int64 [T], 1 = the item is ahead of all others; ties against it."""
        lightning_model = model.lightning_model
        device = str(lightning_model.device)
        users, items = lightning_model._get_user_item_embeddings(self._loader, device)
        similarity = lightning_model.torch_model.similarity_module
        ranks = np.zeros(len(self._wanted), int)
        with torch.no_grad():
            for start in range(0, len(users), CHUNK):
                owners = self._owners[start : start + CHUNK]
                scores = similarity(users[start : start + CHUNK].to(items.device), items)
                scores[:, 0] = -torch.inf  # of padding
                wanted = torch.as_tensor(self._wanted[owners], device=items.device)
                own = scores.gather(1, wanted[:, None])
                if self._leave_out_seen:
                    viewed = [self._viewed[owner] for owner in owners]
                    rows = np.repeat(np.arange(len(owners)), [len(of_one) for of_one in viewed])
                    scores[rows, np.concatenate(viewed)] = -torch.inf
                found = (scores >= own).sum(1)
                kept = (scores.gather(1, wanted[:, None]) == own)[:, 0] & (wanted > 0)
                ranks[owners] = torch.where(kept, found, 0).cpu().numpy()
        return ranks


def mean_reciprocal(ranks):
    """MRR of ranks of which 0 is none."""
    return float(np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0).mean())


def main(job_path, answer_path):
    """Trains, judges and writes."""
    start = time.perf_counter()
    job = json.loads(pathlib.Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("high")
    lightning.seed_everything(job["seed"], verbose=False)
    log = dict(np.load(pathlib.Path(job_path).parent / job["log"]))
    train = np.flatnonzero((log["parts"] == 0) & (log["items"] > 0))
    dataset = Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: log["users"][train],
                Columns.Item: log["items"][train],
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(log["times"][train], unit="s"),
            }
        )
    )
    contexts = [name.split("/")[1] for name in log if name.startswith("test/") and "events" in name]
    best: dict = {"validation_mrr": -1.0}
    asked: dict[str, Asked] = {}
    tried: list[tuple[int, float]] = []

    def write(**more):
        best.update(more, tried=tried, minutes=(time.perf_counter() - start) / 60)
        pathlib.Path(answer_path + ".part").write_text(json.dumps(best))
        os.replace(answer_path + ".part", answer_path)

    def judge(epochs):
        if not asked:
            names = ["validation", *(f"test/{context}" for context in contexts)]
            asked.update({name: Asked(model, log, name, job) for name in names})
        mrr = mean_reciprocal(asked["validation"].ranks(model))
        tried.append((epochs, mrr))
        print(f"{pathlib.Path(answer_path).stem}: {epochs} epochs, MRR {mrr:.4f}", flush=True)
        if mrr > best["validation_mrr"]:
            best.update(validation_mrr=mrr, epochs=epochs)
            best["ranks"] = {c: asked[f"test/{c}"].ranks(model).tolist() for c in contexts}
            write(finished=False)
        return epochs - best["epochs"] >= job["patience"] * job["step_epochs"]

    def get_trainer():
        return lightning.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=job["max_epochs"],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Judge(judge, job["step_epochs"])],
        )

    model = make_model(job, get_trainer)
    model.fit(dataset)
    on_gpu = torch.cuda.is_available()
    write(
        finished=True,
        time="known" if model.require_recommend_context else "unknown",
        parameters=sum(p.numel() for p in model.lightning_model.torch_model.parameters()),
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        versions={
            "rectools": rectools.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
