import datetime
import json
import types

import numpy as np
import pyarrow as pa
import pytest

from stt_jax import evaluate, evaluation
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST, TRAIN, open_log
from stt_jax.evaluate import print_report
from stt_jax.evaluation import _groups
from tests.stt_jax.service.served import SEED, write_run
from tests.stt_jax.tiny_logs import random_log


def test_targets_are_grouped_by_their_local_hour():
    log = random_log(seed=2)
    targets = find_targets(log, TEST)
    zone = datetime.timezone(datetime.timedelta(hours=-4))  # of every event of a random log
    expected = [
        datetime.datetime.fromtimestamp(int(log.times[event]), zone).strftime("%H")
        for event in targets.events
    ]
    np.testing.assert_array_equal(_groups(log, targets)["hour_of_day"], expected)


def test_what_another_log_knows_is_told_by_ids():
    log = random_log(seed=2)
    targets = find_targets(log, TEST)
    # Numbered in another order, without half of the items and the last two people of training.
    num_people, num_items = log.num_train_users - 2, log.num_items // 2
    other = types.SimpleNamespace(
        user_ids=[*log.user_ids[:num_people][::-1], *log.user_ids[num_people:]],
        num_train_users=num_people,
        item_ids=[log.item_ids[0], *log.item_ids[1 : num_items + 1][::-1]],
    )
    items = log.items[targets.events]
    has_person, has_item = targets.users < num_people, (items > 0) & (items <= num_items)
    assert (has_person & ~has_item).any()
    assert (has_item & ~has_person).any()
    expected = has_person & has_item
    assert expected.any()
    np.testing.assert_array_equal(targets.known_in(log, other), expected)


def test_targets_are_grouped_by_domain_where_there_are_any():
    log = random_log(seed=2, has_domains=True)
    targets = find_targets(log, TEST)
    expected = [
        "" if not item else ("shop", "news")[item % 2] for item in log.items[targets.events]
    ]
    np.testing.assert_array_equal(_groups(log, targets)["domain"], expected)


def test_a_log_without_times_has_no_hours():
    log = random_log(seed=2, has_times=False)
    assert "hour_of_day" not in _groups(log, find_targets(log, TEST))


@pytest.mark.parametrize(("tuned_on", "says"), [(0, True), (7, False)])
def test_untuned_baselines_are_named_so(capsys, tuned_on, says):
    counts = ("known", "unseen_person", "unseen_item", "in_part", "evaluated")
    report = {
        "part": "test",
        "targets": "every",
        "context": "all",
        "split_hash": "0",
        "num_targets": dict.fromkeys(counts, 1),
        "baselines_tuned_on": tuned_on,
        "modes": {},
    }
    print_report(report)
    assert ("default options" in capsys.readouterr().out) == says


def test_what_cannot_be_read_or_written_is_refused_before_the_model_is_asked(
    tmp_path, capsys, monkeypatch
):
    def ask(*arguments, **options):
        raise AssertionError("asked")

    monkeypatch.setattr(evaluation, "model_ranks", ask)
    run = write_run(tmp_path)
    other = tmp_path / "other.arrow"
    table = pa.table({"user_id": ["u0"], "time_s": [0], "recall@1_unknown": [0.5]})
    with pa.OSFile(str(other), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "file").write_text("")
    for argument, message in (
        (f"--optimum={other}", "other.arrow is no optimum.arrow of stt_jax.generate: it has no"),
        (f"--optimum={tmp_path / 'file'}", "; give city/optimum.arrow"),
        (f"--output={tmp_path}", "is a folder or may not be written; name another file"),
        (f"--output={tmp_path / 'file/x.json'}", "its folder cannot be made"),
    ):
        assert evaluate.main(["evaluate.py", f"--run={run}", argument]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert argument in said


def test_a_private_run_is_not_asked_at_times_that_nothing_protects(tmp_path, capsys):
    run = write_run(tmp_path, dp_epsilon=8.0)
    arguments = ["evaluate.py", f"--run={run}", "--baselines=false"]
    assert evaluate.main([*arguments, "--likely_times=4"]) == 2
    said = capsys.readouterr().err
    assert f"{run} was trained with --dp_epsilon, which does not cover" in said
    assert "give --likely_times=0" in said
    assert evaluate.main([*arguments, "--likely_times=0"]) == 0


@pytest.mark.parametrize(
    ("has_domains", "arguments", "message"),
    [
        (True, [], "--domains=named ranks within one domain"),
        (False, ["--seen=leave_out"], "--seen=leave_out ranks what is new to the person"),
    ],
)
def test_the_best_possible_is_not_shown_where_fewer_items_are_ranked(
    tmp_path, capsys, has_domains, arguments, message
):
    log = random_log(num_users=6, seed=SEED, has_domains=has_domains)
    run = write_run(tmp_path, item_traits=log.item_traits, item_trait_values=log.item_trait_values)
    optimum = write_optimum(open_log(tmp_path / "prepared"), tmp_path)
    assert evaluate.main(["evaluate.py", f"--run={run}", f"--optimum={optimum}", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert f"give {'--domains=any' if has_domains else '--seen=keep'}, or leave out" in said


@pytest.mark.parametrize("all_known", [True, False])
def test_the_best_possible_says_where_it_may_be_passed(tmp_path, capsys, all_known):
    log = random_log(num_users=6, seed=SEED)
    items = np.maximum(log.items, 1)
    if not all_known:
        items[np.flatnonzero(log.parts == TEST)[0]] = 0  # of a person that training knows
    run = write_run(tmp_path, items=items)
    optimum = write_optimum(open_log(tmp_path / "prepared"), tmp_path)
    arguments = [f"--run={run}", f"--optimum={optimum}", "--baselines=false"]
    assert evaluate.main(["evaluate.py", *arguments]) == 0
    assert ("it may be passed" in capsys.readouterr().out) == (not all_known)
    report = json.loads((run / "evaluation-test.json").read_text())
    assert report["best_possible_is_bound"] == all_known
    assert report["modes"]["known"]["best_possible"]["mrr"] == 0.5


def write_optimum(log, folder):
    """A file of best possible metrics, 0.5 all of them."""
    users = np.repeat(log.user_ids, np.diff(log.user_offsets))
    metrics = (*(f"recall@{k}" for k in (1, 5, 10, 20)), "ndcg@10", "mrr")
    columns = [f"{name}_{mode}" for name in metrics for mode in ("unknown", "known")]
    table = pa.table(
        {"user_id": users.tolist(), "time_s": np.asarray(log.times)}
        | dict.fromkeys(columns, np.full(log.num_events, 0.5))
    )
    path = folder / "best.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def test_a_report_on_one_person_is_valid_json(tmp_path):
    log = random_log(num_users=6, seed=SEED)
    parts = np.array(log.parts)
    parts[log.user_offsets[1] : log.user_offsets[log.num_train_users]] = TRAIN
    run = write_run(tmp_path, parts=parts)
    assert evaluate.main(["evaluate.py", f"--run={run}", "--baselines=false"]) == 0

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (run / "evaluation-test.json").read_text()
    results = json.loads(text, parse_constant=refuse)["modes"]["known"]
    assert results["model"]["mrr"] > 0
    assert results["standard_errors"]["mrr"] is None


def test_the_folder_of_the_report_is_made(tmp_path):
    run, output = write_run(tmp_path), tmp_path / "new/folder/report.json"
    arguments = [f"--run={run}", f"--output={output}", "--baselines=false"]
    assert evaluate.main(["evaluate.py", *arguments]) == 0
    assert output.is_file()
    assert evaluate.main(["evaluate.py", f"--run={tmp_path / 'nowhere'}"]) == 2
    assert not (tmp_path / "nowhere").exists()
