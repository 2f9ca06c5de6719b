"""A run that begins with what another has learned on an older log."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax import train
from stt_jax.config import DeviceConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.store import open_log, write_log
from stt_jax.data.traits import encode_user_trait
from stt_jax.training import run as runs
from stt_jax.training.loop import train_model
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.setup import set_up
from stt_jax.training.warm_start import Source, _match_traits, open_source, transfer_params
from tests.stt_jax.service import served
from tests.stt_jax.service.served import add_checkpoint, write_run
from tests.stt_jax.tiny_logs import STAGES, random_log

MODEL = dataclasses.replace(
    served.MODEL, use_pointer=False, use_crowd=False, use_decoder=False, use_gate=False
)
TRAINING = TrainingConfig(window=16, requests=8, batch_rows=4, epochs=1, seed=3)


def write(log, directory):
    write_log(dataclasses.replace(log, directory=directory), "")
    return open_log(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An older log of people u0 to u4 in training, in prepared, and a run on it, in run."""
    folder = tmp_path_factory.mktemp("warm_start")
    write_run(folder, MODEL)
    return folder


@pytest.fixture(scope="module")
def old(folder):
    return runs.load_run(folder / "run", open_log(folder / "prepared"))


@pytest.fixture(scope="module")
def new(folder):
    """People, items, categories and values of the older log in another order; some new, some gone.

    Item i1 and person u3 are gone. New are item i20 of category b, i21 of the new category d, i22
    of none, person u90, and the value "watch".
    """
    log = random_log(num_users=6, seed=7, num_items=13)
    return write(
        dataclasses.replace(
            log,
            item_ids=["", *(f"i{i}" for i in range(11, 1, -1)), "i20", "i21", "i22"],
            category_values=["", "d", "c", "b", "a"],
            item_categories=np.array(
                [0, *(-i % 4 and 5 - i % 4 for i in range(11, 1, -1)), 3, 1, 0], np.int32
            ),
            user_ids=["u0", "u1", "u2", "u4", "u90", "u5"],
            context_values={"device": ["", "desk", "watch", "phone"]},
        ),
        folder / "newer",
    )


def set_up_from(folder, log):
    options = dataclasses.replace(TRAINING, run=str(folder / "none"), resume_from=f"{folder}/run")
    setup = set_up(log, options, MODEL, ProtocolConfig(), DeviceConfig())
    return setup, transfer_params(open_source(log, options, MODEL), log, setup.shapes.params)


def test_rows_go_over_by_id_and_new_ones_start_from_their_like(folder, old, new):
    _, taken = set_up_from(folder, new)
    assert taken.kept == (
        f"from step 1 of {folder}/run: items: 10 kept, 3 new, 1 gone, "
        "people: 4 kept, 1 new, 1 gone, categories: 3 kept, 1 new, 0 gone, "
        "genres of items: 3 kept, 0 new, 0 gone, job of people: 2 kept, 0 new, 0 gone"
    )
    was, now = jax.device_get(old.params), jax.device_get(taken.params)
    same, close = np.testing.assert_array_equal, np.testing.assert_allclose

    items, bias = was["items"]["ids"], was["generate"]["bias"]
    rows = [0, *range(11, 1, -1)]
    same(now["items"]["ids"][:11], items[rows])
    same(now["generate"]["bias"][:11], bias[rows])
    like = [2, 6, 10]  # the older log's items of category b
    close(now["items"]["ids"][11], items[like].mean(axis=0), atol=1e-6)
    close(now["generate"]["bias"][11], bias[like].mean(), atol=1e-6)
    assert not now["items"]["ids"][12:].any()
    close(now["generate"]["bias"][12:14], bias[1:12].mean(), atol=1e-6)

    people = was["decoder"]["people"]
    same(now["decoder"]["people"][:5], people[[0, 1, 2, 3, 5]])
    close(now["decoder"]["people"][5], people[1:6].mean(axis=0), atol=1e-6)

    for group, name, rows, fresh in (
        ("items", "categories", [0, 4, 3, 2], 1),
        ("generate", "distance_encodings", [0, 4, 3, 2], 1),
        ("events", "context_device", [0, 3, 1], 2),
    ):
        same(now[group][name][rows], was[group][name], err_msg=name)
        close(now[group][name][fresh], was[group][name][1:].mean(axis=0), atol=1e-6)
    for name in ("blocks_0", "mixer"):
        jax.tree.map(same, now[name], was[name])


def test_ranges_of_peoples_numbers_go_over_by_what_they_hold(tmp_path):
    """One more person moves all bounds, which ranges are named by."""
    ages = np.random.default_rng(0).normal(35, 12, 900).round(1)
    more = np.concatenate([ages, [36.2, 41.7, 17.3]])
    before, now = (
        encode_user_trait([str(age) for age in numbers], len(numbers), 8)[1]
        for numbers in (ages, more)
    )
    assert len(set(before[1:]) & set(now[1:])) < 4
    matched = _match_traits(before, now)
    assert matched.rows.tolist() == list(range(9))
    assert matched.counts == "8 kept, 0 new, 0 gone"
    # Fewer, wider ranges each have what most of them was; the others of the older log are gone.
    coarse = ["", "below 30", "30 to below 65", "65 and above"]
    fine = ["", "below 10", "10 to below 31", "31 to below 60", "60 and above"]
    assert _match_traits(fine, coarse).rows.tolist() == [0, 1, 3, 4]
    assert _match_traits(fine, coarse).counts == "3 kept, 0 new, 1 gone"
    # Where the one that held them was forgotten, the nearest; names go by name.
    fine[2] = "forgotten-2"
    assert _match_traits(fine, ["", "12 to below 30", "forgotten-9"]).rows.tolist() == [0, 3, -1]
    assert _match_traits(["", "any"], coarse).rows.tolist() == [0, 1, 1, 1]
    assert _match_traits(["", "baker", "any"], ["", "poet", "baker"]).rows.tolist() == [0, -1, 1]
    assert _match_traits(["", "below average"], ["", "below 3"]).rows.tolist() == [0, -1]


def test_rows_of_ranges_keep_what_was_learned_of_them(tmp_path):
    names = [["", "below 20", "20 and above"], ["", "below 21.5", "21.5 and above"]]
    write_run(tmp_path, MODEL, user_trait_values={"job": names[0]})
    log = dataclasses.replace(open_log(tmp_path / "prepared"), user_trait_values={"job": names[1]})
    _, taken = set_up_from(tmp_path, write(log, tmp_path / "newer"))
    assert "job of people: 2 kept, 0 new, 0 gone" in taken.kept
    was = runs.load_run(tmp_path / "run", open_log(tmp_path / "prepared")).params
    table = "trait_job"
    np.testing.assert_array_equal(taken.params["decoder"][table], was["decoder"][table])


def test_a_model_that_has_learned_to_do_without_ids_takes_new_ones_for_unknown(folder, old, new):
    setup, _ = set_up_from(folder, new)
    config = dataclasses.replace(old.model_config, id_dropout=0.1)
    source = Source(dataclasses.replace(old, model_config=config), open_log(folder / "prepared"))
    now = jax.device_get(transfer_params(source, new, setup.shapes.params).params)
    was = jax.device_get(old.params)
    for group, name, fresh in (
        ("items", "ids", [11, 12, 13]),
        ("generate", "bias", [11, 12, 13]),
        ("decoder", "people", [5]),
    ):
        for row in fresh:
            np.testing.assert_array_equal(now[group][name][row], was[group][name][0])


def test_numeric_columns_go_over_where_they_are_the_same_and_begin_at_zero_where_not(tmp_path):
    write_run(tmp_path, MODEL, has_numbers=True)
    log = open_log(tmp_path / "prepared")
    was = runs.load_run(tmp_path / "run", log).params["events"]

    def now(**numerics):
        """On a log whose columns have these stages; price and pieces are the older one's."""
        newer = dataclasses.replace(
            log,
            numbers={name: log.numbers["price"] for name in numerics},
            was_missing={},
            meta=dataclasses.replace(log.meta, numerics=numerics),
        )
        _, taken = set_up_from(tmp_path, write(newer, tmp_path / "newer"))
        return taken.kept.split("numeric columns: ")[1], jax.device_get(taken.params["events"])

    refitted = [STAGES["price"][0], {**STAGES["price"][1], "centre": 2.0}]
    said, events = now(price=refitted, pieces=STAGES["pieces"])
    assert said == "pieces kept, price kept, its scale fitted anew"
    for name in ("number_price", "number_pieces"):
        np.testing.assert_array_equal(events[name], was[name])
    said, events = now(price=STAGES["price"][:1], weight=[])
    assert said == ("pieces gone, price begun anew, as other steps prepare it now, weight new")
    assert "number_pieces" not in events
    for name in ("number_price", "number_weight"):
        assert not events[name].any()


def test_a_run_from_itself_on_the_same_log_validates_as_before(folder, old):
    log = open_log(folder / "prepared")
    setup, taken = set_up_from(folder, log)
    assert "items: 11 kept, 0 new, 0 gone" in taken.kept
    ranker = make_ranker(old.model)
    ranks = [
        model_ranks(ranker, params, setup.items, log, setup.targets, window=16)
        for params in (old.params, jax.tree.map(jnp.asarray, jax.device_get(taken.params)))
    ]
    jax.tree.map(np.testing.assert_array_equal, *ranks)
    assert len(np.unique(ranks[0]["known"])) > 1


def test_the_command_goes_on_from_its_own_checkpoint_and_tells_another_source(
    folder, new, tmp_path, capsys
):
    shutil.copytree(folder / "run", tmp_path / "old")
    flags = [f"--flagfile={folder}/run/run.flags", f"--data={new.directory}", "--batch_rows=4"]
    # A learning rate that moves nothing.
    flags += ["--epochs=1", "--learning_rate=1e-12", f"--run={tmp_path}/new"]

    def run(source):
        code = train.main(["train", *flags, f"--resume_from={source}"])
        return code, " ".join(capsys.readouterr().err.split())

    code, said = run(tmp_path / "old")
    assert code == 0, said
    assert "items: 10 kept, 3 new, 1 gone" in said
    info, configs = runs.read_run_files(tmp_path / "new")
    assert configs["training"].resume_from == f"{tmp_path}/old"
    assert info.origin.endswith("/1")
    _, taken = set_up_from(folder, new)
    jax.tree.map(
        lambda now, before: np.testing.assert_allclose(now, before, atol=1e-10),
        runs.load_run(tmp_path / "new", new).params,
        taken.params,
    )

    # It has checkpoints of its own now: wherever the older run is, if at all, it goes on.
    shutil.move(tmp_path / "old", tmp_path / "moved")
    code, said = run(tmp_path / "moved")
    assert code == 0, said
    assert "going on from step" in said
    assert "kept" not in said
    code, said = run("")
    assert code == 2
    assert "holds a run with other options (--resume_from=" in said

    # Without them it has to begin again, and from the same.
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    shutil.copytree(tmp_path / "moved", tmp_path / "other")
    add_checkpoint(tmp_path / "other", step=2, mrr=0.5)
    code, said = run(tmp_path / "other")
    assert code == 2
    assert "other is not what it began from" in said


def refusal(folder, log, model=MODEL, source="run"):
    given = {"run": str(folder / "none"), "resume_from": str(folder / source)}
    with pytest.raises(ValueError, match="--resume_from") as error:
        train_model(log, dataclasses.replace(TRAINING, **given), model)
    assert not (folder / "none").exists()
    return str(error.value)


def test_what_does_not_fit_is_refused_by_name(folder, new, tmp_path):
    text = refusal(folder, new, dataclasses.replace(MODEL, width=16))
    assert "--width=8 and this run --width=16" in text
    text = refusal(folder, new, dataclasses.replace(MODEL, use_person=False))
    assert "--use_person=True and this run --use_person=False" in text
    untimed = write(random_log(num_users=6, has_times=False), tmp_path / "untimed")
    text = refusal(folder, untimed)
    assert "--use_time=True and this run --use_time=False, which a log without them" in text
    other = write(dataclasses.replace(new, contexts={}, context_values={}), tmp_path / "other")
    assert "context columns device" in refusal(folder, other)
    hidden = dataclasses.replace(
        new, meta=dataclasses.replace(new.meta, statistics={"pseudonym_key_check": "x"})
    )
    assert "under one key" in refusal(folder, write(hidden, tmp_path / "hidden"))
    foreign = dataclasses.replace(new, item_ids=["", *(f"x{i}" for i in range(13))])
    assert "is --data the right log" in refusal(folder, write(foreign, tmp_path / "foreign"))
    assert "holds no run" in refusal(folder, new, source="nowhere")
    with pytest.raises(ValueError, match="--dp_epsilon says nothing of what --resume_from"):
        dataclasses.replace(TRAINING, dp_epsilon=1.0, resume_from="x")


def test_without_the_log_of_the_older_run_nothing_is_guessed(new, tmp_path):
    write_run(tmp_path, MODEL)
    write(random_log(num_users=6, seed=9), tmp_path / "prepared")
    text = refusal(tmp_path, new)
    assert f"--resume_from={tmp_path}/run was trained on --data={tmp_path}/prepared when" in text
    shutil.rmtree(tmp_path / "prepared")
    assert "cannot be opened" in refusal(tmp_path, new)
    (tmp_path / "run" / "run.json").write_text("{")
    assert "damaged" in refusal(tmp_path, new)


def test_how_a_model_is_trained_may_change(folder, new):
    options = dataclasses.replace(TRAINING, run="none", resume_from=f"{folder}/run")
    changed = dataclasses.replace(MODEL, dropout=0.0, dtype="bfloat16", remat=True, id_dropout=0.1)
    assert open_source(new, options, changed) is not None
