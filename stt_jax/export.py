"""Export: a trained run as files that answer without this package.

    python -m stt_jax.export --run=runs/nyc --out=exported/nyc

    encode.stablehlo append.stablehlo score.stablehlo    jax.export artifacts for cpu, cuda and tpu
    weights.npz          parameters and catalogue, in the order in which the artifacts take them
    vocabularies.json    ids of items, people, categories and context values, by row; what was done
                         to numeric columns
    manifest.json        every argument and result by name, shape and dtype
    README.md            model card: what it is, what it was made from, how to call it

The number of people b is symbolic: one artifact serves any batch. Attention is the dense XLA form,
the one whose operations all take a symbolic batch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from stt_jax import command, session
from stt_jax.config import ExportConfig
from stt_jax.data.catalogue import traits_of_user
from stt_jax.data.newitems import open_with_items
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.histories import (
    Anchor,
    Question,
    Tokens,
    history_rows,
    log_events,
    request_rows,
    wanted_domains,
)
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.run import Run, load_run, read_run_files

PLATFORMS = ("cpu", "cuda", "tpu")
_CHUNK_ITEMS = 65_536  # whose logits `score` holds at once, a person; how many people, no one knows


@dataclasses.dataclass(frozen=True)
class Exported:
    """The functions of a run over flat lists of arrays, and examples of their arguments.

    Attributes:
      weights: parameters and catalogue by name.
      functions: "encode", "append", "score"; each takes the list of weights first.
      examples: by function and argument, arrays by name for one person.
      results: by function, names of the arrays of its result.
    """

    weights: dict[str, np.ndarray]
    functions: dict[str, Callable]
    examples: dict[str, dict[str, dict[str, Any]]]
    results: dict[str, list[str]]


def flat_functions(run: Run, log: PreparedLog, num_items_listed: int) -> Exported:
    """The run's functions, each for one person and batched by `vmap`.

    Args:
      run, log: a trained run and its log.
      num_items_listed: k of `score`.
    """
    config = dataclasses.replace(run.model_config, attention="reference")
    model = SpatiotemporalTransformer(config, run.info.sizes)
    weights = (jax.device_get(run.params), model_catalogue(log, config, live_trends=True))
    window = run.training.asked_tokens
    nothing = Tokens(log_events(log, 0, 0), None, Anchor(0, np.zeros(3), False))
    events = history_rows([nothing], 1, window, has_times=log.meta.has_times)
    event = history_rows([nothing], 1, 1, has_times=log.meta.has_times)
    anybody = Question(
        0, None, 0, None, 0, nothing.anchor, traits_of_user(log, None), wanted_domains(log, None)
    )
    requests = request_rows([anybody], 1)
    cache = session.new_cache(model, 1, window)
    one = jnp.zeros(1, jnp.int32)
    _, weights_def = jax.tree.flatten(weights)

    def flat(template: Any) -> Callable[[list], Any]:
        treedef = jax.tree.structure(template)
        return lambda leaves: jax.tree.unflatten(treedef, [leaf[None] for leaf in leaves])

    as_events, as_event, as_cache, as_requests = map(flat, (events, event, cache, requests))

    def encode(weights: list, history: list) -> list:
        params, _ = jax.tree.unflatten(weights_def, weights)
        empty = session.new_cache(model, 1, window)
        state = session.start(model, params, empty, one, as_events(history))
        return [leaf[0] for leaf in jax.tree.leaves(state)]

    def append(weights: list, state: list, num_events: jax.Array, new: list) -> list:
        params, _ = jax.tree.unflatten(weights_def, weights)
        starts = num_events[None]
        grown = session.append(model, params, as_cache(state), one, starts, as_event(new))
        return [leaf[0] for leaf in jax.tree.leaves(grown)]

    def score(weights: list, state: list, request: list) -> list:
        params, items = jax.tree.unflatten(weights_def, weights)
        scorer = session.item_scorer(model, params, items)
        ranked = session.score(
            model, params, scorer, as_cache(state), one, as_requests(request), None,
            k=num_items_listed, chunk_items=_CHUNK_ITEMS,
        )  # fmt: skip
        return [ranked.items[0], ranked.probabilities[0]]

    state_names = list(_named(cache))
    state = _named(jax.eval_shape(lambda: cache))
    return Exported(
        weights=_named(weights),
        functions={
            "encode": jax.vmap(encode, in_axes=(None, 0)),
            "append": jax.vmap(append, in_axes=(None, 0, 0, 0)),
            "score": jax.vmap(score, in_axes=(None, 0, 0)),
        },
        examples={
            "encode": {"history": _named(events)},
            "append": {
                "state": state,
                "num_events": {"": np.zeros(1, np.int32)},
                "event": _named(event),
            },
            "score": {"state": state, "request": _named(requests)},
        },
        results={
            "encode": state_names,
            "append": state_names,
            "score": ["items", "probabilities"],
        },
    )


def export_run(
    run: Run, log: PreparedLog, out: str | os.PathLike, num_items_listed: int = 100
) -> None:
    """Writes the artifacts of a run to a directory, which is made.

    Args:
      run, log: a trained run and its log.
      out: the directory.
      num_items_listed: items that `score` gives a person, at most as many as there are.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    num_items_listed = min(num_items_listed, log.num_listed)
    exported = flat_functions(run, log, num_items_listed)
    (people,) = jax.export.symbolic_shape("b")
    for name, function in exported.functions.items():
        arguments = [
            _shape(next(iter(leaves.values())), people)
            if list(leaves) == [""]
            else [_shape(leaf, people) for leaf in leaves.values()]
            for leaves in exported.examples[name].values()
        ]
        weights = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in exported.weights.values()]
        artifact = jax.export.export(jax.jit(function), platforms=PLATFORMS)(weights, *arguments)
        (out / f"{name}.stablehlo").write_bytes(artifact.serialize())
    np.savez(
        out / "weights.npz",
        allow_pickle=False,
        **{f"{number:04d} {name}": w for number, (name, w) in enumerate(exported.weights.items())},
    )
    vocabularies = {
        "items": _of_items(log, log.item_ids),
        "item_names": _of_items(log, log.item_names),
        "people": ["", *log.user_ids[: log.num_train_users]],
        "categories": list(log.category_values),
        "contexts": {name: list(values) for name, values in log.context_values.items()},
        "numbers": {name: log.meta.numerics.get(name, []) for name in run.info.sizes.numbers},
        "item_traits": {name: list(values) for name, values in log.item_trait_values.items()},
        "user_traits": {name: list(values) for name, values in log.user_trait_values.items()},
    }
    (out / "vocabularies.json").write_text(json.dumps(vocabularies), encoding="utf-8")
    (out / "manifest.json").write_text(json.dumps(_manifest(exported, run), indent=1))
    (out / "README.md").write_text(model_card(run, log, num_items_listed), encoding="utf-8")


def _of_items(log: PreparedLog, texts: Sequence[str]) -> list[str]:
    """A text a row; "" for the unknown item and where an item was forgotten."""
    return [text if holds else "" for text, holds in zip(texts, log.is_item, strict=True)]


def _manifest(exported: Exported, run: Run) -> dict[str, Any]:
    def described(leaves: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"name": name, "shape": ["b", *leaf.shape[1:]], "dtype": str(leaf.dtype)}
            for name, leaf in leaves.items()
        ]

    return {
        "format_version": 1,
        "window": run.training.asked_tokens,
        "hop": session.window_hop(run.training),
        "functions": {
            name: {
                "arguments": {argument: described(v) for argument, v in arguments.items()},
                "results": exported.results[name],
            }
            for name, arguments in exported.examples.items()
        },
    }


def model_card(run: Run, log: PreparedLog, num_items_listed: int) -> str:
    """What is exported, what it was made from, what it tells of people, and how to call it."""
    sizes, window = run.info.sizes, run.training.asked_tokens
    hop = session.window_hop(run.training)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    return f"""# Spatiotemporal recommender, exported

What comes next for a person, at a time and place: {log.num_listed:,} items, {sizes.num_users:,}
people, {sizes.num_categories:,} categories; {num_parameters:,} parameters; step {run.step}; trained
on a prepared log with hash `{run.info.data_hash}`, split `{run.info.split_hash}`
({log.num_events:,} events). It knows what that log held: new items are unknown (row 0), new people
have no vector of their own but are answered from their events.

{_privacy(run)}

```python
import json, jax, jax.export, numpy as np

read = lambda name: jax.export.deserialize(bytearray(open(name, "rb").read()))
encode, append, score = (read(f"{{n}}.stablehlo") for n in ("encode", "append", "score"))
weights = [array for _, array in sorted(np.load("weights.npz").items())]
state = encode.call(weights, history)                   # [b, {window}, ...]: padded, oldest first
state = append.call(weights, state, num_events, event)  # [b, 1, ...]
items, probabilities = score.call(weights, state, request)   # [b, {num_items_listed}], best first
```

`manifest.json` lists the arrays of `history`, `event` and `request` in their order. Items,
categories, contexts and traits (of an event's item, as the catalogue in `weights.npz` has them; of
the person) are rows of `vocabularies.json`. Times are int32 seconds from the person's
first encoded event, gaps seconds since the event before (-1 = none), phases the local hour of the
week (Monday 00:00 is 0, -1 = unknown). Coordinates are metres on a sphere of radius 6,371,008.8 m
(x, y, z) minus `origins`, the person's first known place; NaN = unknown. `segment_ids` is 1 for an
event and 0 for padding. A request's `last_tokens` is the number of events - 1; `time_known` false
hides its time, NaN its place; `minutes` are those since 1970 at the request, `last_minutes` what
stands for them where its time is hidden (2**30 = now): what was popular then, and what followed
what, is known of the exported log alone, as the trends and successions in `weights.npz`. Where the
log has domains, `domains` is true for those that are wanted, all or some, in the order of the trait
`domain` from row 1 on.{_numbers(run)}

A person's events are encoded from number max(0, (n // {hop} + 1) * {hop} - 1 - {window}) on, n
being how many there are: when the next would not fit, encode again from there.
"""


def _numbers(run: Run) -> str:
    names = run.info.sizes.numbers
    if not names:
        return ""
    return f"""

Numeric columns of an event ({", ".join(names)}) are float32 as the prepared log has them, NaN =
unknown. `numbers` of `vocabularies.json` lists what was done to each, in its order, and
`stt_jax.data.numerics.apply_stage` defines every step; the unknown stays so but for "fill"."""


def _privacy(run: Run) -> str:
    if run.epsilon is None:
        return "Trained without differential privacy: keep it as you would keep the log itself."
    training = run.training
    spent = f"epsilon {run.epsilon:.3f} spent at delta {training.dp_delta:g}"
    return f"""Trained with differential privacy for people: {spent},
each person's gradient clipped to {training.dp_clip:g}. Not covered: vocabularies and statistics of
the prepared log (`vocabularies.json` names its people), and what is chosen by validation."""


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shape(leaf: Any, people: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((people, *leaf.shape[1:]), leaf.dtype)


def export(export: ExportConfig) -> None:
    """Loads the run and writes the artifacts."""
    if not export.run or not export.out:
        raise ValueError("--run and --out must name the run and a directory for the artifacts")
    directory = pathlib.Path(export.run)
    _, configs = read_run_files(directory)
    data = export.data or configs["training"].data
    log = open_with_items(data, export.items, export.key_file)
    export_run(load_run(directory, log), log, export.out, export.k)
    print(f"exported to {export.out}; its README.md says how to call it")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(export, {"export": ExportConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
