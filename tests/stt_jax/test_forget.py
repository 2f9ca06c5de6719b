"""After forgetting nothing of a person can be found, and everybody else is as before."""

import dataclasses
import pathlib
import shutil
import types

import numpy as np
import pyarrow as pa
import pytest

from stt_jax import forget
from stt_jax.config import (
    ModelConfig,
    PrepareConfig,
    ProtocolConfig,
    RequestConfig,
    TrainingConfig,
)
from stt_jax.counting import Cells, Scores, TrainingCounts
from stt_jax.data.catalogue import catalogue
from stt_jax.data.findings import describe_log
from stt_jax.data.forgetting import without_person
from stt_jax.data.newitems import add_items
from stt_jax.data.preparation import prepare_log
from stt_jax.data.recbole import write_recbole
from stt_jax.data.report import render_report
from stt_jax.data.store import open_log, write_log
from stt_jax.export import model_card
from stt_jax.recommender import recommend_items
from stt_jax.service.models import ServedModel
from stt_jax.training.lineage import runs_before, runs_that_saw
from stt_jax.training.run import check_same_log, identity, load_run, run_info, write_run_files
from stt_jax.training.warm_start import open_source
from tests.stt_jax.service.served import MODEL, SEED, write_run
from tests.stt_jax.tiny_logs import random_log

LINES = [
    "user,item,time,lat,lon,cat,device",
    "anna-1,secret-home,2024-01-01T09:00,40.71234,-74.04321,Hideout,brick",
    "anna-1,bar,2024-01-01T10:00,40.7,-74.0,Bar,phone",
    "anna-1,bar,2024-01-02T10:00,40.7,-74.0,Bar,phone",
    "bob,bar,2024-01-01T11:00,40.7,-74.0,Bar,phone",
    "bob,shop,2024-01-03T11:00,40.8,-74.1,Shop,desk",
    "cleo,shop,2024-01-02T11:00,40.8,-74.1,Shop,desk",
    "cleo,bar,2024-01-04T11:00,40.7,-74.0,Bar,phone",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forget")
    (folder / "log.csv").write_text("\n".join(LINES) + "\n")
    prepare_log(
        PrepareConfig(
            input=(str(folder / "log.csv"),),
            output=str(folder / "prepared"),
            user="user",
            item="item",
            time="time",
            latitude="lat",
            longitude="lon",
            category="cat",
            context=("device",),
            split="leave_one_out",
        )
    )
    return folder / "prepared"


@pytest.fixture
def directory(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "prepared")
    return tmp_path / "prepared"


def run(*arguments):
    return forget.main(["forget.py", *arguments])


def test_no_file_holds_the_id_the_rows_or_words_of_their_own(directory, capsys):
    traces = [b"anna-1", b"secret-home", b"Hideout", b"brick"]
    place = np.array([407_123_400], np.int32).tobytes()
    before = b"".join(path.read_bytes() for path in directory.iterdir())
    assert [trace for trace in [*traces, place] if trace not in before] == []
    assert run(f"--data={directory}", "--user=anna-1", f"--runs={directory.parent}") == 0
    for path in directory.iterdir():
        found = [trace for trace in [*traces, place] if trace in path.read_bytes()]
        assert found == [], path
    assert "3 events of 1 person removed" in capsys.readouterr().out
    log = open_log(directory)
    assert list(log.user_ids) == ["bob", "cleo"]
    assert log.num_events == 4
    assert [step.dropped for step in log.meta.steps][-1] == {"by a person's wish": 3}


def test_everybody_else_keeps_their_events_and_their_words(directory):
    before = open_log(directory)
    kept = {
        user: [
            (before.item_ids[before.items[e]], int(before.times[e]), int(before.parts[e]))
            for e in range(before.user_offsets[row], before.user_offsets[row + 1])
        ]
        for row, user in enumerate(before.user_ids)
    }
    assert run(f"--data={directory}", "--user=anna-1") == 0
    after = open_log(directory)
    for row, user in enumerate(after.user_ids):
        events = range(after.user_offsets[row], after.user_offsets[row + 1])
        assert [
            (after.item_ids[after.items[e]], int(after.times[e]), int(after.parts[e]))
            for e in events
        ] == kept[user]
    assert after.meta.data_hash != before.meta.data_hash


@pytest.mark.parametrize("row", [0, 3, 5])
def test_a_log_stays_whole(row):
    log = random_log(seed=2)
    after = without_person(log, log.user_ids[row])
    assert after.num_users == log.num_users - 1
    assert after.num_train_users == log.num_train_users - (row < log.num_train_users)
    assert after.user_offsets[-1] == after.num_events
    for name in ("items", "times", "parts", "sessions"):
        assert len(getattr(after, name)) == after.num_events
        assert getattr(after, name).dtype == getattr(log, name).dtype
    train = after.items[after.parts == 0]
    np.testing.assert_array_equal(
        after.item_train_counts[1:], np.bincount(train, minlength=log.num_items + 1)[1:]
    )
    sessions = np.unique(after.sessions)
    np.testing.assert_array_equal(sessions, np.arange(1, len(sessions) + 1))


def test_items_that_went_with_them_are_in_no_list_and_no_count(tmp_path):
    log = random_log(seed=SEED)
    theirs = [10, 11]  # of u2 alone
    rows = slice(*log.user_offsets[2:4])
    items = np.where(np.isin(log.items, theirs), 1, log.items)
    items[rows] = theirs[0] + np.arange(rows.stop - rows.start) % 2
    left = without_person(dataclasses.replace(log, items=items), "u2")
    fields = {field.name: getattr(left, field.name) for field in dataclasses.fields(left)}
    del fields["directory"]
    model = dataclasses.replace(MODEL, use_crowd=False)
    directory = write_run(tmp_path, model, **fields)
    log = open_log(tmp_path / "prepared")
    assert [log.item_ids[row] for row in theirs] == ["forgotten-10", "forgotten-11"]
    assert log.meta.forgotten_items == tuple(theirs)
    assert log.num_listed == describe_log(log)["num_items"] == log.num_items - 2
    assert f">{log.num_listed}</b>items in training" in render_report(log)
    assert not log.has_item("forgotten-10")
    # Others that come without training events are items nevertheless.
    added = add_items(log, ["new"])
    assert np.flatnonzero(~catalogue(added).is_item[: added.num_items + 1]).tolist() == [0, *theirs]

    trained = load_run(directory, log)
    found = recommend_items(trained, log, RequestConfig(user="u1", k=log.num_items))
    assert sorted(one.item_id for one in found) == sorted(f"i{row}" for row in range(1, 10))
    assert sum(one.probability for one in found) == pytest.approx(1, abs=1e-5)
    assert "place: 9 items" in model_card(trained, log, 5)
    assert ServedModel(trained, log, None, "").item_rows == {f"i{row}": row for row in range(1, 10)}
    # A target that ties with all others is behind those that are left.
    no_cells = Cells.of(np.zeros(0, np.int64), log.num_items + 1)
    ties = Scores(no_cells, np.zeros(0), np.zeros(log.num_items + 1))
    assert ties.ranks(np.array([1, 5]), TrainingCounts(log).apart).tolist() == [9, 9]


def test_runs_that_have_seen_them_are_named(directory, capsys):
    log = open_log(directory)
    seen, other = directory.parent / "runs/seen", directory.parent / "runs/other"
    for run_directory, data_hash in ((seen, log.meta.data_hash), (other, "f" * 64)):
        (run_directory / "checkpoints/20").mkdir(parents=True)
        (run_directory / "run.json").write_text(f'{{"data_hash": "{data_hash}"}}')
    (directory.parent / "runs/broken").mkdir()
    (directory.parent / "runs/broken/run.json").write_text("{")
    assert runs_that_saw(log, directory.parent / "runs") == {seen: [20]}
    assert run(f"--data={directory}", "--user=anna-1", f"--runs={directory.parent / 'runs'}") == 0
    said = capsys.readouterr().out
    assert "refuse these runs from now on" in said
    assert f"{seen} has seen them, in checkpoints 20" in said
    assert str(other) not in said


def test_a_run_of_before_says_why_it_answers_no_more(directory):
    info = types.SimpleNamespace(data_hash=open_log(directory).meta.data_hash)
    assert run(f"--data={directory}", "--user=anna-1") == 0
    with pytest.raises(ValueError, match="of which a person was forgotten since"):
        check_same_log(directory, info, open_log(directory))
    info.data_hash = "f" * 64
    with pytest.raises(ValueError, match=r"train a new run on this one$"):
        check_same_log(directory, info, open_log(directory))


def test_runs_are_found_after_others_were_forgotten_and_whatever_began_from_them(tmp_path, capsys):
    """Two people go one after the other; of three runs each began from the one before."""
    first = write_run(tmp_path)
    log = open_log(tmp_path / "prepared")
    newer = dataclasses.replace(log, directory=tmp_path / "newer", times=log.times + 1)
    write_log(newer, "")
    newer = open_log(tmp_path / "newer")
    training = TrainingConfig(
        run=str(tmp_path / "second"), data=str(tmp_path / "newer"), resume_from=str(first)
    )
    model = dataclasses.replace(MODEL, id_dropout=0.1)
    source = open_source(newer, training, model)
    write_run_files(
        tmp_path / "second", run_info(newer, source.origin), training, model, ProtocolConfig()
    )
    name = identity(tmp_path / "second", run_info(newer, source.origin))
    for number, origin in (("third", f"{name}/7"), ("other", "0123456789abcdef/7"), ("new", "")):
        info = run_info(newer, origin)
        write_run_files(tmp_path / number, info, training, ModelConfig(), ProtocolConfig())
    expected = [first, tmp_path / "second", tmp_path / "third"]
    for user in ("u2", "u3"):
        before = open_log(tmp_path / "prepared")
        assert sorted(runs_that_saw(before, tmp_path)) == sorted(expected)
        assert run(f"--data={tmp_path / 'prepared'}", f"--user={user}", f"--runs={tmp_path}") == 0
        said = capsys.readouterr().out
        assert [f"{one} has seen them" in said for one in expected] == [True] * 3
        assert f"{tmp_path / 'other'} has" not in said
    assert len(open_log(tmp_path / "prepared").meta.former_hashes) == 2


def test_what_a_run_began_from_is_named_apart(tmp_path, capsys):
    """Forgetting on the newest of three logs, each of whose runs began from the one before."""
    write_run(tmp_path)
    log, runs = open_log(tmp_path / "prepared"), tmp_path / "runs"
    origin = ""
    for number, name in enumerate(("oldest", "old", "new")):
        dated = dataclasses.replace(log, directory=tmp_path / name, times=log.times + 1 + number)
        write_log(dated, "")
        info = run_info(open_log(tmp_path / name), origin)
        training = TrainingConfig(
            data=str(tmp_path / name), run=str(runs / name), resume_from=origin and "before"
        )
        write_run_files(runs / name, info, training, MODEL, ProtocolConfig())
        origin = f"{identity(runs / name, info)}/7"
    info = run_info(log)
    write_run_files(runs / "other", info, TrainingConfig(), MODEL, ProtocolConfig())
    newest = open_log(tmp_path / "new")
    assert list(runs_that_saw(newest, runs)) == [runs / "new"]
    assert runs_before(newest, runs) == [runs / "old", runs / "oldest"]
    assert run(f"--data={tmp_path / 'new'}", "--user=u3", f"--runs={runs}") == 0
    said = capsys.readouterr().out
    assert f"{runs / 'new'} has seen them" in said
    for name in ("old", "oldest"):
        assert f"{runs / name} is what one of them began from" in said
        assert f"--data={tmp_path / name}, may hold them, too: forget them there first" in said
        assert f"{runs / name} has seen" not in said
    assert str(runs / "other") not in said
    # On the oldest log all three have seen them, and nothing is left to be named apart.
    assert runs_before(open_log(tmp_path / "oldest"), runs) == []


def test_nothing_of_them_is_left_in_the_files_of_recbole(directory, capsys):
    folder = directory / "recbole"
    log = open_log(directory)
    write_recbole(log, pa.chunked_array([[log.item_ids[row] for row in log.items]]), folder)
    assert b"anna-1" in (folder / "log.train.inter").read_bytes()
    assert run(f"--data={directory}", "--user=anna-1") == 0
    assert not folder.exists()
    assert f"the RecBole files in {folder} held them and are removed\n" in capsys.readouterr().out


def test_statistics_and_warnings_are_those_of_the_people_who_are_left(tmp_path):
    log = random_log(num_users=6, seed=5)
    log = dataclasses.replace(log, directory=tmp_path, times=log.times + 4_200_000_000)
    known = {**describe_log(log), "num_missing": {"place": [3, 1]}}
    meta = dataclasses.replace(log.meta, statistics=known, warnings=("of u3", "of others"))
    log = dataclasses.replace(log, meta=meta)
    after = without_person(log, "u3")
    assert after.meta.statistics == {**describe_log(after), "num_missing": {"place": [3, 1]}}
    assert after.meta.statistics["num_events"] == after.num_events < log.num_events
    assert "is --time the right column?" in " ".join(after.meta.warnings)
    assert "of u3" not in after.meta.warnings


def test_errors_are_one_line(directory, capsys):
    assert run(f"--data={directory}", "--user=ann") == 2
    assert "near ids: anna-1" in capsys.readouterr().err
    assert run("--user=anna-1") == 2
    assert "--data is missing" in capsys.readouterr().err
    only = dataclasses.replace(random_log(num_users=2), directory=pathlib.Path("tiny"))
    with pytest.raises(ValueError, match="is the only person in the training part"):
        without_person(only, only.user_ids[0])


def test_a_prepared_log_is_data_and_never_code(directory):
    """A pickle in place of a table is refused, not loaded."""
    (directory / "events.arrow").write_bytes(
        b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    )
    with pytest.raises(ValueError, match="damaged prepared log"):
        open_log(directory)
