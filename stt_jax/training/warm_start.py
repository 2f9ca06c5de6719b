"""What a new run takes over from a run on an older log: `--resume_from`.

Parameters go over as they are, but for the tables with a row an item, category, context value or
person: rows go over by id, however the vocabularies have grown, shrunk or been reordered; rows of
ranges of people's numbers by what they hold. Rows of ids that the older log does not have start
from what is known of their like, and numeric columns that it does not have from nothing, see
`transfer_params`. The optimiser starts afresh, and what the crowd did (`stt_jax.relations`) is
counted in the new log.

Whoever evaluates on the newer log has to see to it that its later parts hold nothing that the older
run was trained on: a log that only got longer, split by time, is so.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stt_jax.config import ModelConfig, TrainingConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.pseudonyms import KEY_CHECK
from stt_jax.data.store import open_log
from stt_jax.data.traits import range_of
from stt_jax.training import run as runs
from stt_jax.training.checkpoint import whole_steps
from stt_jax.training.sharding import parameter_name

# How a model is computed and trained, which its parameters know nothing of.
_FREE_OPTIONS = ("attention", "dropout", "dtype", "id_dropout", "remat")
# What can become of a numeric column, beside that it is kept.
_NEW, _GONE = "new", "gone"
_OTHER = "begun anew, as other steps prepare it now"


@dataclasses.dataclass(frozen=True)
class Source:
    """A run to begin from, and the log whose ids say what its rows are."""

    run: runs.Run
    log: PreparedLog

    @property
    def origin(self) -> str:
        """Tells what a run began from, wherever it lies."""
        return f"{runs.identity(self.run.directory, self.run.info)}/{self.run.step}"


@dataclasses.dataclass(frozen=True)
class TransferredParams:
    """Parameters for the new log, on its devices, and a line that says what was kept."""

    params: Any
    kept: str


def open_source(
    log: PreparedLog, training: TrainingConfig, model_config: ModelConfig
) -> Source | None:
    """The run that `training.resume_from` names, at its best validation.

    Args:
      log: of the new run.
      training, model_config: the new run's.

    Returns:
      None where none is named, or the new run has checkpoints of its own to go on from.

    Raises:
      ValueError: no run there; a damaged one; its log is not where it was or has changed; model
        options, context columns or pseudonyms that are not those of the new run.
    """
    if not training.resume_from or whole_steps(pathlib.Path(training.run)):
        return None
    directory = pathlib.Path(training.resume_from)
    flag = f"--resume_from={directory}"
    if not (directory / "run.json").is_file():
        raise ValueError(f"{flag} holds no run (no run.json); name the directory of a trained run")
    try:
        info, configs = runs.read_run_files(directory)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
    old_log = _open_old_log(flag, configs["training"].data, info.data_hash)
    fitted = runs.fit_to_log(configs["model"], old_log)
    _check_options(flag, fitted, runs.fit_to_log(model_config, log))
    _check_vocabularies(flag, old_log, log)
    try:
        return Source(runs.load_run(directory, old_log), old_log)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def transfer_params(source: Source, log: PreparedLog, shapes: Any) -> TransferredParams:
    """The parameters of a run for another log.

    New items get the mean vector and bias of the old items of their category; where it is unknown
    or had none, a vector of zeros, which leaves them their category and place, and the mean bias.
    New people get the mean person: the rest of the model has only met requests with a person added,
    so a vector of zeros would be a stranger than anybody it knows. New categories, context values
    and traits get the mean of theirs for the same reason. Where the run was trained with
    --id_dropout, it knows what to make of the row of the unknown, and new items and people get
    that.

    A numeric column that the run does not read begins at zero, as if it were not there, and so does
    one to which the newer log does other things; one that the newer log does not have is left
    behind. Where the same steps were only fitted anew (another mean, another median), what was
    learned goes over as it is: the same number may mean a little more or less of its unit.

    Args:
      source: of `open_source`.
      log: of the new run.
      shapes: of the new run's parameters, with their shardings.

    Raises:
      ValueError: the parameters are not those of this version of the model.
    """
    old = source.log
    items = _match(old.item_ids, log.item_ids)
    categories = _match(old.category_values, log.category_values)
    people = _match(_people(old), _people(log))
    knows_strangers = source.run.model_config.id_dropout > 0
    of_category = np.where(log.item_categories > 0, categories.rows[log.item_categories], -1)
    traits = {
        **{
            f"items/trait_{name}": _match(old.item_trait_values[name], values)
            for name, values in log.item_trait_values.items()
        },
        **{
            f"decoder/trait_{name}": _match_traits(old.user_trait_values[name], values)
            for name, values in log.user_trait_values.items()
        },
    }
    tables = {
        **traits,
        "items/categories": categories,
        "generate/distance_encodings": categories,
        "decoder/people": people,
        **{
            f"events/context_{name}": _match(old.context_values[name], values)
            for name, values in log.context_values.items()
        },
        "decoder/domains": _match(old.domain_values, log.domain_values),
    }
    learned = {
        parameter_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(source.run.params)
    }

    fates = _number_fates(source, log)
    fresh = {f"events/number_{name}" for name, fate in fates.items() if fate in (_NEW, _OTHER)}

    def carried(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = parameter_name(path)
        if name in fresh:
            learned.pop(name, None)
            return jax.make_array_from_callback(
                shape.shape, shape.sharding, lambda at: np.zeros(shape.shape, shape.dtype)[at]
            )
        if name not in learned:
            raise ValueError(_another_version(source, name))
        array = learned.pop(name)
        if name in ("items/ids", "generate/bias"):
            # Only differences of biases count, so that 0 would be as good as any other number.
            usual = array[1 : items.num_old].mean() if name == "generate/bias" else 0.0
            means = _category_means(array, old.item_categories, old.num_categories, usual)
            stand_ins = array[:1] if knows_strangers else means[of_category]
            array = _carry(array, items, stand_ins, shape.shape[0])
        elif name in tables:
            stand_ins = array[1 : max(2, tables[name].num_old)].mean(axis=0, keepdims=True)
            if knows_strangers and name == "decoder/people":
                stand_ins = array[:1]
            array = _carry(array, tables[name], stand_ins, shape.shape[0])
        if (array.shape, array.dtype) != (shape.shape, shape.dtype):
            raise ValueError(_another_version(source, name))
        return jax.make_array_from_callback(shape.shape, shape.sharding, lambda at: array[at])

    params = jax.tree_util.tree_map_with_path(carried, shapes)
    for name, fate in fates.items():
        if fate == _GONE:
            learned.pop(f"events/number_{name}", None)
    if learned:
        raise ValueError(_another_version(source, min(learned)))
    counts = {"items": items, "people": people, "categories": categories}
    for name, matched in traits.items():
        group, _, trait = name.partition("/trait_")
        counts[f"{trait} of {'items' if group == 'items' else 'people'}"] = matched
    kept = ", ".join(f"{name}: {matched.counts}" for name, matched in counts.items())
    if fates:
        kept += f", numeric columns: {', '.join(f'{name} {fate}' for name, fate in fates.items())}"
    return TransferredParams(
        params, f"from step {source.run.step} of {source.run.directory}: {kept}"
    )


def _number_fates(source: Source, log: PreparedLog) -> dict[str, str]:
    """What becomes of each numeric column of the run and of the new log, in words, by name."""
    before, now = source.run.info.sizes.numbers, log.numbers
    fates = {}
    for name in sorted({*before, *now}):
        stages = [one.meta.numerics.get(name, []) for one in (source.log, log)]
        steps = [[_step(stage) for stage in one] for one in stages]
        if name not in before or name not in now:
            fates[name] = _GONE if name in before else _NEW
        elif steps[0] != steps[1]:
            fates[name] = _OTHER
        else:
            fates[name] = "kept" if stages[0] == stages[1] else "kept, its scale fitted anew"
    return fates


def _step(stage: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a stage does, whatever was fitted for it: a median of 3 is not one of 5."""
    return stage["kind"], stage.get("window"), stage.get("weight")


@dataclasses.dataclass(frozen=True)
class _Matched:
    """Two vocabularies side by side.

    Attributes:
      rows: int64 [rows of the new one], where each id is in the old one; -1 = it is new. Several
        ranges may have been one.
      num_old: rows of the old one; row 0, the unknown, is the same in both.
    """

    rows: np.ndarray
    num_old: int

    @property
    def counts(self) -> str:
        kept = int(np.sum(self.rows > 0))
        gone = self.num_old - 1 - len(np.unique(self.rows[self.rows > 0]))
        return f"{kept:,} kept, {len(self.rows) - 1 - kept:,} new, {gone:,} gone"


def _match(old: Sequence[str], new: Sequence[str]) -> _Matched:
    rows = {text: row for row, text in enumerate(old) if row}
    found = [rows.get(text, -1) if row else 0 for row, text in enumerate(new)]
    return _Matched(np.array(found, np.int64), len(old))


def _match_traits(old: Sequence[str], new: Sequence[str]) -> _Matched:
    """As `_match`; ranges of numbers by what they hold: their bounds move with everybody who comes.

    A range has the row of the old one that most of it was in, or where there is none any more, that
    of the old one with the nearest middle.
    """
    matched = _match(old, new)
    was, now = (
        {row: bounds for row, value in enumerate(values) if (bounds := range_of(value))}
        for values in (old, new)
    )
    moved = [row for row in now if matched.rows[row] < 0]
    if not was or not moved:
        return matched
    # What is below or above all bounds is as wide as all that is between them.
    edges = np.array([*was.values(), *now.values()])
    known = edges[np.isfinite(edges)]
    width = np.ptp(known) or 1.0
    edges = np.clip(edges, known.min() - width, known.max() + width)
    of_old = edges[: len(was)]
    of_new = dict(zip(now, edges[len(was) :], strict=True))
    for row in moved:
        low, high = of_new[row]
        overlaps = np.minimum(high, of_old[:, 1]) - np.maximum(low, of_old[:, 0])
        apart = np.abs(of_old.mean(axis=1) - (low + high) / 2)
        best = np.argmax(overlaps) if overlaps.max() > 0 else np.argmin(apart)
        matched.rows[row] = list(was)[best]
    return matched


def _people(log: PreparedLog) -> list[str]:
    """The people that have a row in the table, behind the unknown one."""
    return ["", *log.user_ids[: log.num_train_users]]


def _carry(
    table: np.ndarray, matched: _Matched, stand_ins: np.ndarray, num_rows: int
) -> np.ndarray:
    """The table [num_rows, ...] of the new vocabulary; padding is zero.

    Args:
      table: [old rows, ...].
      matched: where the rows come from.
      stand_ins: [new rows or 1, ...], for those that are new.
      num_rows: with padding.
    """
    is_old = (matched.rows >= 0).reshape(-1, *(1,) * (table.ndim - 1))
    carried = np.zeros((num_rows, *table.shape[1:]), table.dtype)
    carried[: len(matched.rows)] = np.where(is_old, table[matched.rows], stand_ins)
    return carried


def _category_means(
    table: np.ndarray, item_categories: np.ndarray, num_categories: int, otherwise: float
) -> np.ndarray:
    """The mean row of the items of each category, [C + 2, ...].

    A category without items has `otherwise`; so has the last row, that of index -1, which stands
    for all categories that are not known.
    """
    sums = np.zeros((num_categories + 2, *table.shape[1:]))
    np.add.at(sums, item_categories[1:], table[1 : len(item_categories)])
    counts = np.bincount(item_categories[1:], minlength=num_categories + 2)
    counts = counts.reshape(-1, *(1,) * (table.ndim - 1))
    return np.where(counts > 0, sums / np.maximum(counts, 1), otherwise)


def _open_old_log(flag: str, data: str, data_hash: str) -> PreparedLog:
    """The log of the run to resume from: its ids say what the rows of the tables are."""
    try:
        log = open_log(data)
    except ValueError as error:
        raise ValueError(
            f"{flag} was trained on --data={data}, whose ids say which row is whose, and that "
            f"cannot be opened ({error}); put it back there"
        ) from error
    if log.meta.data_hash != data_hash:
        raise ValueError(
            f"{flag} was trained on --data={data} when its hash was {data_hash[:12]}; now it is "
            f"{log.meta.data_hash[:12]}, and nothing says which row is whose. Prepare the older "
            "log again there, and the newer one into another --output"
        )
    return log


def _check_options(flag: str, old: ModelConfig, new: ModelConfig) -> None:
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        before, now = getattr(old, name), getattr(new, name)
        if before != now and name not in _FREE_OPTIONS:
            hint = ", which a log without them turns off" if name[4:] in ("time", "place") else ""
            raise ValueError(
                f"{flag} has --{name}={before} and this run --{name}={now}{hint}; parameters only "
                f"go over to the same model: give --{name}={before}, or train without --resume_from"
            )


def _check_vocabularies(flag: str, old: PreparedLog, new: PreparedLog) -> None:
    for field, what, flags in (
        ("context_values", "context columns", "--context, --cells and --features"),
        ("item_trait_values", "traits of items", "--item_traits"),
        ("user_trait_values", "traits of people", "--user_traits"),
    ):
        if getattr(old, field).keys() != getattr(new, field).keys():
            names = [", ".join(sorted(getattr(log, field))) or "none" for log in (old, new)]
            raise ValueError(
                f"{flag}: its log has the {what} {names[0]}, {new.directory} has {names[1]}; "
                f"prepare the newer log with the same {flags}"
            )
    if old.meta.statistics.get(KEY_CHECK) != new.meta.statistics.get(KEY_CHECK):
        raise ValueError(
            f"{flag}: the ids of its log and of {new.directory} are not pseudonyms under one key, "
            "so that nobody can be known again; prepare the newer log with the --key_file of the "
            "older"
        )
    known = set(old.item_ids[1:])
    if not any(item in known for item in new.item_ids[1:]):
        raise ValueError(
            f"{flag}: no item of {new.directory} is one of the run's; is --data the right log?"
        )


def _another_version(source: Source, name: str) -> str:
    return (
        f"--resume_from={source.run.directory}: its parameters are not those of this version of "
        f"stt_jax ({name} differs); train without --resume_from, into another --run"
    )
