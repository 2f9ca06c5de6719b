"""A service over a log with pseudonyms, whose run was validated without what people had."""

import dataclasses
import json
import logging
import pathlib

import pytest

from stt_jax import serve
from stt_jax.config import RequestConfig
from stt_jax.data.pseudonyms import HIDDEN_IDS, KEY_CHECK, check_value, pseudonym
from stt_jax.data.store import open_log
from stt_jax.recommender import recommend_items
from stt_jax.service.logs import JsonLines
from stt_jax.training.run import load_run
from tests.stt_jax.service.served import MODEL, serving, write_run
from tests.stt_jax.tiny_logs import random_log

KEY = bytes(range(32))
SMALL = dataclasses.replace(
    MODEL, use_pointer=False, use_crowd=False, use_decoder=False, use_gate=False
)


def hidden(text, role="user"):
    return pseudonym(text, KEY, role)


def write_key(path, key=KEY):
    path.write_text(key.hex())
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    log = random_log(num_users=6, seed=5)
    statistics = {KEY_CHECK: check_value(KEY), HIDDEN_IDS: "users_and_items"}
    return write_run(
        tmp_path_factory.mktemp("hidden"),
        SMALL,
        seen="leave_out",
        meta=dataclasses.replace(log.meta, statistics=statistics),
        user_ids=[*sorted(hidden(f"u{i}") for i in range(5)), hidden("u5")],
        item_ids=["", *(hidden(f"i{i}", "item") for i in range(1, 12))],
    )


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    return write_key(tmp_path_factory.mktemp("key") / "key")


@pytest.fixture(scope="module")
def client(run, key_file, tmp_path_factory):
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/events.db"
    with serving(run, key_file=key_file, store=store, max_batch=1) as client:
        yield client


def names(answer):
    return [item["item"] for item in answer["items"]]


def test_people_are_known_by_their_raw_ids(run, key_file, client):
    log = open_log(run.parent / "prepared")
    request = RequestConfig(user="u4", key_file=key_file, k=11, exclude_seen="false")
    expected = recommend_items(load_run(run, log), log, request)
    answer = client.recommend(user="u4", k=11, exclude_seen=False)
    assert names(answer) == [item.item_id for item in expected]
    assert answer["num_events"] > 0
    assert client.recommend(user=hidden("u4"), k=11, exclude_seen=False)["num_events"] == 0
    assert client("GET", "/users/u4").json()["in_training"]
    assert client("GET", "/trail/u4").json()
    assert client("GET", "/map").json()["people"] == []


def test_no_raw_id_is_stored_or_logged(client, caplog):
    caplog.set_level(logging.INFO)
    url = client.service.store._engine.url.database
    client.events(
        {"user": "anna-raw", "item": "i3", "time": "2012-05-01T08:30Z"},
        {"user": "anna-raw", "item": hidden("i4", "item"), "time": "2012-05-02T08:30Z"},
        {"user": "anna-raw", "item": "new-raw", "time": "2012-05-03T08:30Z"},
    )
    stored = client.service.store.read([hidden("anna-raw")])[hidden("anna-raw")]
    assert [event.item for event in stored] == [hidden(i, "item") for i in ("i3", "i4", "new-raw")]
    assert client.recommend(user="anna-raw")["num_events"] == 3
    assert hidden("i5", "item") not in names(client.recommend(k=11, exclude_items=["i5"]))
    known = client("GET", "/users/anna-raw").json()
    assert known["user"] == "anna-raw"
    assert known["num_events"] == 3
    assert client("DELETE", "/users/anna-raw").json() == {"deleted_events": 3}
    assert client("GET", "/users/anna-raw").status_code == 404
    on_disk = b"".join(pathlib.Path(url + end).read_bytes() for end in ("", "-wal"))
    assert b"events_by_time" in on_disk
    assert b"-raw" not in on_disk
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert lines
    assert "anna" not in json.dumps(lines)


def test_a_run_validated_without_what_was_seen_lists_none_of_it_unless_told(run, key_file, client):
    seen = {event["item"] for event in client("GET", "/trail/u4").json()} - {""}
    whole = client.recommend(user="u4", k=11, exclude_seen=False)
    assert len(names(whole)) == 11
    for wish in ({}, {"exclude_seen": None}, {"exclude_seen": True}):
        fresh = client.recommend(user="u4", k=11, **wish)
        assert names(fresh) == [item for item in names(whole) if item not in seen]
    assert client("GET", "/map").json()["fresh"] is True

    log = open_log(run.parent / "prepared")
    for wish, expected in (
        ("as_run", fresh), ("true", fresh), (True, fresh), ("false", whole), (False, whole),
    ):  # fmt: skip
        request = RequestConfig(user="u4", key_file=key_file, k=11, exclude_seen=wish)
        found = recommend_items(load_run(run, log), log, request)
        assert [item.item_id for item in found] == names(expected)


def test_without_its_key_it_does_not_start(run, tmp_path, capsys):
    plain = write_run(tmp_path, SMALL)
    key, wrong = write_key(tmp_path / "key"), write_key(tmp_path / "wrong", KEY[::-1])
    for directory, flag, message in (
        (run, "", "name the key that they were made with by --key_file"),
        (run, f"--key_file={tmp_path}/none", "no such file"),
        (run, f"--key_file={wrong}", "is not the key that"),
        (plain, f"--key_file={key}", "has no pseudonyms; leave out --key_file"),
    ):
        assert serve.main(["serve", f"--run={directory}", "--port=0", *filter(None, [flag])]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert not (directory / "events.db").exists()


def test_items_that_training_did_not_know_are_served_under_pseudonyms(run, key_file, tmp_path):
    (run.parent / "prepared/prepare.flags").write_text("--item=item\n")
    (tmp_path / "items.csv").write_text("item\nnew\n")
    options = {"items": str(tmp_path / "items.csv"), "store": f"sqlite:///{tmp_path}/events.db"}
    with serving(run, key_file=key_file, max_batch=1, **options) as client:
        assert client.service.model.log.item_ids[-1] == hidden("new", "item")
