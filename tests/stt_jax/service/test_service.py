"""Events in, recommendations out: what a caller of the service is promised."""

import dataclasses

import hypothesis
import numpy as np
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from stt_jax import approximate, ranking, session
from stt_jax.config import ListsConfig, RequestConfig
from stt_jax.data.store import UNKNOWN_E7, open_log
from stt_jax.recommend import recommend
from stt_jax.recommender import recommend_items
from stt_jax.service.asks import Ask
from stt_jax.service.models import load_model
from stt_jax.service.schemas import iso_time
from stt_jax.training.run import load_run
from tests.stt_jax.service.served import (
    MODEL,
    SEED,
    add_checkpoint,
    serving,
    together,
    write_run,
)
from tests.stt_jax.tiny_logs import random_log, raw_numbers

MONDAY = 1_333_324_800


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/events.db"
    with serving(run, store=store) as client:
        yield client


def event(user, item, day, **more):
    return {"user": user, "item": item, "time": MONDAY + 86_400 * day, **more}


def names(answer):
    return [item["item"] for item in answer["items"]]


def probabilities(answer):
    return {item["item"]: item["probability"] for item in answer["items"]}


def test_a_person_of_the_log_is_answered_as_by_the_command_line(run, client):
    log = open_log(run.parent / "prepared")
    loaded = load_run(run, log)
    for user in ("u0", "u2", "u4", "u5"):
        for options in ({}, {"time": "2012-05-01T08:30"}, {"latitude": 40.7, "longitude": -74.0}):
            texts = {name: str(value) for name, value in options.items()}
            expected = recommend_items(loaded, log, RequestConfig(user=user, k=11, **texts))
            answer = client.recommend(user=user, k=11, **options)
            assert names(answer) == [item.item_id for item in expected]
            for found, item in zip(answer["items"], expected, strict=True):
                assert found["probability"] == pytest.approx(item.probability, abs=1e-5)
                assert found["distance_km"] == pytest.approx(item.distance_km)


@pytest.fixture(scope="module")
def crowd_run(tmp_path_factory):
    """A run that asks what is popular, and what follows what."""
    model = dataclasses.replace(
        MODEL, trend_half_lives_h=(24.0,), trend_step_min=20, succession_half_lives_h=(0.5,)
    )
    return write_run(tmp_path_factory.mktemp("crowd"), model)


@pytest.mark.parametrize("index_candidates", [0, 16])
def test_nothing_is_compiled_after_the_service_is_ready(crowd_run, tmp_path, index_candidates):
    def num_compiled():
        steps = (session.start, session.append, session.score, session.explain)
        return [step._cache_size() for step in (*steps, approximate._answer, approximate._rescore)]

    # A batch size of its own, so that no other test has compiled the same.
    size = 3 + index_candidates
    options = {"max_batch": size, "index_candidates": index_candidates}
    with serving(crowd_run, store=f"sqlite:///{tmp_path}/events.db", **options) as client:
        ready = num_compiled()
        for user in ("u0", "u1", "somebody new"):
            client.recommend(user=user)
            client.events(event(user, "i1", 400))
            client.service.count_trends()
            client.recommend(user=user)
            client.recommend(user=user, categories=["a"], why=True)
        assert client.service._table.counts["refreshed_trends"] == 3
        assert num_compiled() == ready


def test_somebody_new_is_answered_by_what_is_told_of_them(run, client):
    log = open_log(run.parent / "prepared")
    loaded = load_run(run, log)
    lists = []
    for traits in ({}, {"job": "poet"}, {"job": "baker"}):
        for time in ("", "2012-05-01T08:30", "2012-05-01T08:30+02:00"):
            told = tuple(f"{name}={value}" for name, value in traits.items())
            expected = recommend_items(loaded, log, RequestConfig(traits=told, time=time, k=11))
            options = {"time": time} if time else {}
            answer = client.recommend(traits=traits, k=11, **options)
            assert names(answer) == [item.item_id for item in expected]
            for found, item in zip(answer["items"], expected, strict=True):
                assert found["probability"] == pytest.approx(item.probability, abs=1e-5)
            lists.append(tuple(sorted(probabilities(answer).items())))
    assert len(set(lists)) >= 6  # job and time are heard
    for traits, message in (
        ({"job": "king"}, "nobody in training had job=king"),
        ({"height": "9"}, "'height' is no trait of people of this log; it has job"),
    ):
        answer = client("POST", "/recommend", json={"traits": traits})
        assert answer.status_code == 422
        assert message in answer.text
    known, told = (
        client.recommend(user="u1", k=11),
        client.recommend(user="u1", traits={"job": "poet"}, k=11),
    )
    assert probabilities(told) != probabilities(known)


def test_events_one_by_one_all_at_once_and_in_another_order_give_the_same_answers(client):
    days = [0, 1, 1, 3, 4, 7, 8, 8, 9, 12, 13, 14, 15, 16, 17, 18, 20, 22]
    events = [
        event("?", f"i{1 + (3 * i) % 11}", day, latitude=40.7 + 0.001 * i, longitude=-74.0)
        for i, day in enumerate(days)
    ]
    for one in events:
        client.events(one | {"user": "slow"})
        one_by_one = client.recommend(user="slow", k=11)
    client.events(*(one | {"user": "fast"} for one in events))
    # The events of a day in their order: ties stay as they came.
    order = np.random.default_rng(0).permutation(sorted(set(days)))
    for day in order:
        client.events(
            *(one | {"user": "mixed"} for one in events if one["time"] == MONDAY + 86_400 * day)
        )
        client.recommend(user="mixed")
    at_once = client.recommend(user="fast", k=11)
    assert at_once["num_events"] == len(events)
    assert names(one_by_one) == names(at_once) == names(client.recommend(user="mixed", k=11))
    assert probabilities(one_by_one) == pytest.approx(probabilities(at_once), abs=1e-5)


def test_an_event_changes_the_next_answer(client):
    before = client.recommend(user="u1", k=11)
    client.events(event("u1", names(before)[-1], 400))
    after = client.recommend(user="u1", k=11)
    assert after["num_events"] == before["num_events"] + 1
    assert probabilities(after) != probabilities(before)


def test_an_event_is_stored_once(client):
    first = event("once", "i1", 0, event_id="a")
    assert client.events(first) == {"stored": 1, "duplicates": 0}
    assert client.events(first, event("once", "i2", 9, event_id="a")) == {
        "stored": 0,
        "duplicates": 2,
    }
    equal = event("once", "i3", 1)
    assert client.events(equal, equal) == {"stored": 1, "duplicates": 1}
    assert client.events(equal | {"user": "other"}) == {"stored": 1, "duplicates": 0}
    known = client("GET", "/users/once").json()
    assert [one["item"] for one in known["events"]] == ["i1", "i3"]


def test_what_is_known_is_told_and_forgotten_for_good(client):
    client.events(event("u3", "i1", 401))
    known = client("GET", "/users/u3").json()
    assert known["in_training"]
    assert known["num_log_events"] > 0
    assert known["num_events"] == 1
    assert client("DELETE", "/users/u3").json() == {"deleted_events": 1}
    gone = client("GET", "/users/u3")
    assert gone.status_code == 404
    assert gone.json()["detail"] == "no person with this id is known"
    described = client("GET", "/openapi.json").json()["paths"]["/users/{user}"]["get"]["responses"]
    assert described["404"]["description"] == "No person with this id is known."
    nobody = client.recommend(user="nobody at all", k=11)
    assert client.recommend(user="u3", k=11) == nobody
    assert client.recommend(k=11) == nobody
    client.events(event("u3", "i1", 402))
    assert client.recommend(user="u3")["num_events"] == 1
    assert not client("GET", "/users/u3").json()["in_training"]


def test_unknown_items_are_kept_and_count_as_context(client):
    client.events(event("explorer", "brand new", 0), event("explorer", "i2", 1))
    assert client.recommend(user="explorer")["num_events"] == 2
    assert client("GET", "/users/explorer").json()["events"][0]["item"] == "brand new"


def test_numbers_of_an_event_are_kept_and_have_to_be_numbers(client):
    client.events(event("payer", "i1", 0, numbers={"price": 3, "weight": 0.5}))
    assert client("GET", "/users/payer").json()["events"][0]["numbers"] == {
        "price": 3.0,
        "weight": 0.5,
    }
    for text in ("NaN", "Infinity", "-1e999", "1" + 400 * "0", '"3.5"', "true", "null", "[1]"):
        body = f'{{"user": "payer", "item": "i1", "numbers": {{"price": {text}}}}}'
        headers = {"content-type": "application/json"}
        answer = client("POST", "/events", content=body, headers=headers)
        assert answer.status_code == 422, text
        assert "numbers.price" in answer.json()["detail"], text
    assert client("GET", "/users/payer").json()["num_events"] == 1


def test_raw_numbers_are_answered_as_those_of_the_prepared_log(tmp_path):
    """Somebody without training events: once in the log, once told to the service."""
    model = dataclasses.replace(MODEL, use_pointer=False, use_crowd=False)
    nowhere = np.full(12, UNKNOWN_E7, np.int32)  # else an event without a place has its item's
    places = {"item_latitudes_e7": nowhere, "item_longitudes_e7": nowhere}
    directory = write_run(tmp_path, model, has_numbers=True, **places)
    log = open_log(tmp_path / "prepared")
    row = log.user_row("u5")
    own = slice(int(log.user_offsets[row]), int(log.user_offsets[row + 1]))
    expected = recommend_items(
        load_run(directory, log), log, RequestConfig(user="u5", k=11, traits=("job=poet",))
    )
    raw = raw_numbers(log, SEED)
    assert np.isnan(raw["price"][own]).any()
    told = [
        event("told", log.item_ids[log.items[at]] or "unknown", 0)
        | {
            "event_id": str(at),
            "time": iso_time(int(log.times[at]), int(log.utc_offsets_s[at])),
            "latitude": log.latitudes_e7[at] / 1e7,
            "longitude": log.longitudes_e7[at] / 1e7,
            "category": log.category_values[log.categories[at]],
            "context": {"device": log.context_values["device"][log.contexts["device"][at]]},
            "numbers": {name: raw[name][at] for name in raw if not np.isnan(raw[name][at])},
        }
        for at in range(own.start, own.stop)
    ]
    for one in told:  # what is unknown is left out
        if one["latitude"] < -90:
            del one["latitude"], one["longitude"]
        one["context"] = {name: value for name, value in one["context"].items() if value}
        one["category"] = one["category"] or None
    store = f"sqlite:///{tmp_path}/events.db"
    with serving(directory, store=store, max_batch=1) as client:
        client.events(*told)
        client.events(*({**one, "user": "silent", "numbers": {}} for one in told))
        answers = [
            client.recommend(user=user, k=11, traits={"job": "poet"}) for user in ("told", "silent")
        ]
        # What is unknown is no news, though NaN is never equal to NaN.
        client.events(event("told", "i1", 400))
        client.recommend(user="told")
        assert client.service._table.counts["appended_events"] == 1
    assert names(answers[0]) == [item.item_id for item in expected]
    wanted = {item.item_id: item.probability for item in expected}
    assert probabilities(answers[0]) == pytest.approx(wanted, abs=1e-6)
    assert probabilities(answers[1]) != pytest.approx(wanted, abs=1e-4)


def test_unknown_people_take_no_room(client):
    table, size = client.service._table, client.service.config.max_batch
    live, encoded = table.num_people, table.counts["encoded_histories"]
    lists = set()
    for first in range(0, 100_000, size):
        answers = table.ask([Ask(f"stranger {i}") for i in range(first, first + size)])
        lists |= {tuple(item.item_id for item in answer.items) for answer in answers}
    assert len(lists) == 1
    assert (table.num_people, table.counts["encoded_histories"]) == (live, encoded)


def test_the_list_obeys_its_rules(client):
    whole = client.recommend(user="u4", k=11)
    assert len(whole["items"]) == 11
    fresh = client.recommend(user="u4", k=11, exclude_items=["i3", "never heard of"])
    assert names(fresh) == [item for item in names(whole) if item != "i3"]
    only = client.recommend(user="u4", k=11, categories=["a", "b"])
    assert {item["category"] for item in only["items"]} == {"a", "b"}
    capped = client.recommend(user="u4", k=6, max_per_category=2)
    known = [item["category"] for item in capped["items"] if item["category"]]
    assert max(known.count(category) for category in known) == 2
    near = client.recommend(user="u4", k=11, radius_km=0.2, latitude=40.7, longitude=-74.0)
    assert 0 < len(near["items"]) < 11
    assert all(item["distance_km"] <= 0.2 for item in near["items"])
    seen = {one["item"] for one in client("GET", "/trail/u4").json()}
    assert not seen & set(names(client.recommend(user="u4", k=11, exclude_seen=True)))
    varied = client.recommend(user="u4", k=11, diversity=0.9)
    assert names(varied)[0] == names(whole)[0]
    assert sorted(names(varied)) == sorted(names(whole))
    assert names(varied) != names(whole)
    assert client("POST", "/recommend", json={"user": "u4", "categories": ["z"]}).status_code == 422
    alone = {"radius_km": 1, "user": "nobody"}
    assert "needs a place" in client("POST", "/recommend", json=alone).json()["detail"]


def test_an_index_lists_what_the_whole_catalogue_does(run, tmp_path):
    store = f"sqlite:///{tmp_path}/events.db"
    with (
        serving(run, store=store) as client,
        serving(run, store=store, index_candidates=16) as indexed,
    ):

        def num_indexed():
            lines = indexed("GET", "/metrics").text.splitlines()
            name = 'stt_states_total{done="indexed_requests"}'
            (line,) = (line for line in lines if line.startswith(name))
            return float(line.split()[1])

        before = num_indexed()
        for asked in ({"user": "u4"}, {"user": "u1", "latitude": 40.7, "longitude": -74.0}):
            expected = client.recommend(k=11, **asked)
            found = indexed.recommend(k=11, **asked)
            assert names(found) == names(expected)
            assert probabilities(found) == pytest.approx(probabilities(expected), abs=1e-5)
        assert num_indexed() == before + 2
        asked = {"user": "u4", "k": 5, "categories": ["a", "b"]}
        assert names(indexed.recommend(**asked)) == names(client.recommend(**asked))
        assert num_indexed() == before + 2, "it knows of no filters"


def test_time_and_place_and_trail_are_heard(client):
    now = client.recommend(user="u4", k=11, time="2012-06-01T08:30")
    assert now["time"] == "2012-06-01T08:30:00-04:00"
    assert client.recommend(user="u4", k=11, time="2012-06-01T12:30Z")["items"] == now["items"]
    later = client.recommend(user="u4", k=11, time="2012-06-01T20:30")
    there = client.recommend(user="u4", k=11, latitude=40.9, longitude=-74.2)
    assert len({str(a["items"]) for a in (now, later, there)}) == 3
    early = client.recommend(user="u4", time=MONDAY)
    assert early["num_events"] < now["num_events"]
    trail = [{"item": "i4", "time": MONDAY + 60 * i} for i in range(3)]
    drawn = client.recommend(trail=trail, k=11)
    assert drawn["num_events"] == 3
    client.events(*({"user": "drawn"} | one for one in trail))
    assert probabilities(client.recommend(user="drawn", k=11)) == pytest.approx(
        probabilities(drawn), abs=1e-5
    )


def test_a_time_in_the_past_is_in_the_clock_of_then_served_and_on_the_command_line(tmp_path):
    """Half way through the log somebody has moved from New York to Tokyo, half a day ahead."""
    log = random_log(num_users=6, seed=SEED)
    num_events = int(log.user_offsets[1])
    offsets, move = log.utc_offsets_s.copy(), num_events // 2
    offsets[move:num_events] = 9 * 3600
    run = write_run(tmp_path, utc_offsets_s=offsets)
    log = open_log(tmp_path / "prepared")
    loaded = load_run(run, log)
    with serving(run) as client:
        for at in (3, move - 4, move + 3, num_events - 1):
            offset_s, time_s = int(offsets[at]), int(log.times[at]) + 30
            local = iso_time(time_s, offset_s)
            num_before = int(np.searchsorted(log.times[:num_events], time_s, side="right"))
            for text in (local, local[:19], iso_time(time_s, 0)):
                answer = client.recommend(user="u0", k=11, time=text)
                assert (answer["time"], answer["num_events"]) == (local, num_before), text
                request = RequestConfig(user="u0", time=text, k=11)
                expected = {one.item_id: one for one in recommend_items(loaded, log, request)}
                assert names(answer) == list(expected)
                for item, probability in probabilities(answer).items():
                    assert probability == pytest.approx(expected[item].probability, abs=1e-5)
        first = log.times[0] - 60
        early = client.recommend(user="u0", time=iso_time(int(first), -4 * 3600)[:19])
        assert (early["time"], early["num_events"]) == (iso_time(int(first), -4 * 3600), 0)


def test_an_offset_of_the_request_is_local_time_where_no_event_told_one(client):
    client.events(*(event("nowhere", f"i{item}", item) for item in (1, 2, 3)))
    trail = [{"item": "i4", "time": MONDAY}]
    there = "2012-06-01T08:30:00-05:00"
    for who in ({"user": "nowhere"}, {"trail": trail}, {}):
        told = client.recommend(**who, k=11, time=there)
        assert told["time"] == there
        in_utc = client.recommend(**who, k=11, time="2012-06-01T13:30Z")
        assert in_utc["time"] == "2012-06-01T13:30:00+00:00"
        assert probabilities(told) != probabilities(in_utc)
    trail[0]["time"] = "2012-04-02T00:00+09:00"
    for who, local in (({"user": "u4"}, "09:30:00-04:00"), ({"trail": trail}, "22:30:00+09:00")):
        assert client.recommend(**who, time=there)["time"] == f"2012-06-01T{local}"


def test_the_place_0_0_is_unknown_as_in_preparing(run, client):
    nowhere = {"latitude": 0, "longitude": 0.0}
    client.events(event("no fix", "i3", 1), event("no fix", "i4", 2, **nowhere))
    client.events(event("no place", "i3", 1), event("no place", "i4", 2))
    for options in ({}, nowhere):
        found = client.recommend(user="no fix", k=11, **options)
        assert found == client.recommend(user="no place", k=11)
        assert found["items"][0]["distance_km"] < 100
    answer = client("POST", "/recommend", json={"radius_km": 5, **nowhere})
    assert "radius_km needs a place" in answer.json()["detail"]
    log = open_log(run.parent / "prepared")
    request = RequestConfig(user="u4", latitude="0", longitude="0", k=3)
    known = RequestConfig(user="u4", k=3)
    loaded = load_run(run, log)
    assert recommend_items(loaded, log, request) == recommend_items(loaded, log, known)


def test_the_list_says_why(client):
    answer = client.recommend(user="u4", k=11, why=True)
    reasons = [reason for item in answer["items"] for reason in item["why"]]
    assert reasons
    assert 0 < sum(reason["share"] for reason in reasons) <= 1 + 1e-5
    assert all({"time", "distance"} == set(reason["effects"]) for reason in reasons)


def test_reasons_are_in_the_clock_of_their_events(client):
    times = ["2024-01-01T09:00:00+09:00", "2024-01-05T08:00:00-05:00"]
    client.events(*({"user": "moved", "item": "i1", "time": time} for time in times))
    answer = client.recommend(user="moved", k=11, why=True)
    reasons = [reason["time"] for item in answer["items"] for reason in item["why"]]
    assert sorted(reasons) == times


def test_people_who_ask_at_once_get_their_own_answers(client):
    """More people than states fit, all at the same time, each with other events."""
    users = [f"crowd{i}" for i in range(40)]
    client.events(*(event(u, f"i{1 + i % 11}", i) for i, u in enumerate(users)))
    client.events(*(event(u, f"i{1 + i % 7}", 50 + i) for i, u in enumerate(users)))
    alone = [client.recommend(user=user, k=11) for user in users]
    for _ in range(2):
        answers = together([lambda user=user: client.recommend(user=user, k=11) for user in users])
        for found, expected in zip(answers, alone, strict=True):
            assert probabilities(found) == pytest.approx(probabilities(expected), abs=1e-5)


def test_rows_of_one_person_that_cannot_be_read_bother_nobody_else(client):
    client.events(event("broken", "i1", 400), event("whole", "i1", 400))
    client.recommend(user="broken")
    before = {user: client.recommend(user=user) for user in ("u0", "whole")}
    with client.service.store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE events SET contexts = '{oops' WHERE user = 'broken'")
    client.events(event("whole", "i2", 401))
    client.events(event("broken", "i2", 401))
    table = client.service._table
    num_encoded, num_people = table.counts["encoded_histories"], table.num_people
    answers = table.ask([Ask(user=user) for user in ("u0", "broken", "whole", "broken")])
    kinds = [isinstance(answer, Exception) for answer in answers]
    assert kinds == [False, True, False, True]
    assert answers[2].num_events == before["whole"]["num_events"] + 1
    answer = client("POST", "/recommend", json={"user": "broken"})
    assert answer.status_code == 500
    assert "oops" not in answer.text
    assert "column" not in answer.text
    assert client.recommend(user="u0") == before["u0"]
    assert table.num_people == num_people - 1
    assert table.counts["encoded_histories"] == num_encoded
    client("DELETE", "/users/broken")
    assert client.recommend(user="broken")["num_events"] == 0


def test_only_what_callers_did_wrong_is_told_them(client, monkeypatch):
    for wrong in ({"categories": ["never heard of"]}, {"traits": {"age": "9"}}):
        answer = client("POST", "/recommend", json={"user": "u0", **wrong})
        assert answer.status_code == 422
        assert next(iter(wrong)) in answer.json()["detail"]
    answer = client("POST", "/recommend", json={"user": "u0", "categories": ["never heard of"]})
    assert answer.json()["detail"] == (
        "categories: 'never heard of' is not in the model's log; it has e.g. a, b, c"
    )
    answer = client("POST", "/recommend", json={"radius_km": 1})
    assert answer.status_code == 422
    assert "radius_km needs a place" in answer.json()["detail"]

    def failing(*_):
        raise ValueError("a text of the inside")

    for name in ("pick", "allowed_items"):
        with monkeypatch.context() as patch:
            patch.setattr(ranking, name, failing)
            answer = client("POST", "/recommend", json={"user": "u0"})
        assert answer.status_code == 500
        assert "inside" not in answer.text
    assert client.recommend(user="u0")["items"]


def test_the_service_keeps_to_its_own_description(client):
    """Right and wrong requests drawn from the OpenAPI: no 5xx, nothing that is not described."""
    checks = [
        schemathesis.checks.not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    tried = set()
    host = {"host": "localhost"}  # without a token nobody else is answered
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers=host)
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @hypothesis.settings(
                max_examples=8,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                case.call_and_validate(checks=checks, headers=host)

            check()
            tried.add((operation.method.upper(), operation.path))
    assert tried == {
        ("POST", "/events"),
        ("POST", "/recommend"),
        ("GET", "/users/{user}"),
        ("DELETE", "/users/{user}"),
    }


def test_a_newer_checkpoint_is_taken_without_a_failed_request_and_a_broken_one_is_not(
    tmp_path,
):
    run = write_run(tmp_path)
    with serving(run, swap_seconds=0.2) as client:
        client.events(event("u4", "brand new", 400))
        before = client.recommend(user="u4", k=11)
        add_checkpoint(run, step=2, mrr=0.3, broken=True)
        _wait(lambda: b'outcome="refused"} 1.0' in client.service.metrics.text(), client)
        assert client.recommend(user="u4", k=11) == before
        add_checkpoint(run, step=3, mrr=0.5)
        _wait(lambda: client.recommend(user="u4")["model_step"] == 3, client)
        after = client.recommend(user="u4", k=11)
        assert after["num_events"] == before["num_events"]
        assert probabilities(after) != probabilities(before)


def test_new_items_that_a_newer_model_knows_are_left_out_and_counted(run, tmp_path, caplog):
    table = tmp_path / "new.csv"
    table.write_text("item_id,genres\ni3,loud\nbrand new,loud|late\n")
    with caplog.at_level("INFO", "stt_jax.service"):
        served = load_model(run, "", str(table))
    assert served.log.item_ids[-1] == "brand new"
    assert list(served.log.item_ids).count("i3") == 1
    assert [record.fields["left_out"] for record in caplog.records] == [1]
    offline = RequestConfig(run=str(run), user="u0", items=str(table))
    with pytest.raises(ValueError, match="'i3' is an item of the log already; leave it out"):
        recommend(offline, ListsConfig())


def _wait(condition, client):
    for _ in range(1000):
        if condition():
            return
        client.recommend(user="u4")
    raise AssertionError("it did not come")
