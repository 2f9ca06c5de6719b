"""What the service does with callers that are wrong, hostile or too many."""

import contextlib
import json
import logging
import socket
import threading
import time
import types
import urllib.parse

import httpx
import pytest
import uvicorn

from stt_jax import serve
from stt_jax.config import ServeConfig
from stt_jax.service.api import create_app
from stt_jax.service.batcher import Batcher, BusyError
from stt_jax.service.guards import impatient_protocol
from stt_jax.service.logs import JsonLines
from stt_jax.service.service import Service
from tests.stt_jax.service.served import Client, config, write_run

TOKEN = "a-token-of-this-test"
RUN = types.SimpleNamespace(step=1)
EVENT = {"user": "u", "item": "i1", "time": "2012-05-01T08:30Z"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("served"))


@pytest.fixture
def client(run, tmp_path):
    """A service that has not loaded its model: events can be stored already."""
    service = Service(config(run, store=f"sqlite:///{tmp_path}/events.db"))
    yield Client(service, TOKEN)
    service.stop()


def test_only_who_has_the_token_comes_in(client):
    for header in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ü"):
        headers = {"authorization": header.encode("latin-1")}
        for method, path in (
            ("POST", "/events"),
            ("GET", "/users/u"),
            ("GET", "/metrics"),
            ("GET", "/docs"),
        ):
            answer = client(method, path, headers=headers, json=EVENT)
            assert answer.status_code == 401, (header, path)
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client("GET", "/healthz", headers={"authorization": ""}).text == "alive\n"
    assert "<canvas" in client("GET", "/", headers={"authorization": ""}).text
    assert client("POST", "/events", json=EVENT).status_code == 200
    assert client(
        "POST", "/events", json=EVENT, headers={"authorization": f"bearer {TOKEN}"}
    ).is_success


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "[::2]:80", ""])
def test_without_a_token_nobody_asks_under_another_name(client, host):
    """A web page of that name may have led its browser to this machine (DNS rebinding)."""
    open_client = Client(client.service)
    answer = open_client("GET", "/readyz", headers={"host": host})
    assert answer.status_code == 421
    assert "localhost" in answer.json()["detail"]
    assert open_client("POST", "/events", json=EVENT, headers={"host": host}).status_code == 421
    assert client.service.store.read(["u"]) == {"u": []}
    for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"):
        assert open_client("GET", "/healthz", headers={"host": name}).status_code == 200, name
    assert client("POST", "/events", json=EVENT, headers={"host": host}).status_code == 200


def test_without_a_token_the_host_that_it_listens_on_is_answered(run, tmp_path):
    options = {"host": "127.0.0.9", "store": f"sqlite:///{tmp_path}/events.db"}
    service = Service(config(run, **options))
    headers = {"host": "127.0.0.9:8000"}
    assert Client(service)("GET", "/healthz", headers=headers).status_code == 200
    service.stop()


WRONG_BODIES = {
    "no json": b"{",
    "empty": b"",
    "not utf-8": b'{"user": "\xff", "item": "i"}',
    "lone surrogate": b'{"user": "\\ud800", "item": "i"}',
    "control character": b'{"user": "a\\u0000b", "item": "i"}',
    "nan": b'{"user": "u", "item": "i", "latitude": NaN, "longitude": 1}',
    "deep": b"[" * 100_000,
    "long number": b'{"user": "u", "item": "i", "time": ' + b"9" * 5000 + b"}",
    "far number": b'{"user": "u", "item": "i", "time": 99999999999}',
    "fraction": b'{"user": "u", "item": "i", "time": 1.5}',
    "not a time": b'{"user": "u", "item": "i", "time": "yesterday"}',
    "no zone": b'{"user": "u", "item": "i", "time": "2012-05-01T08:30"}',
    "next year": b'{"user": "u", "item": "i", "time": "2099-05-01T08:30Z"}',
    "half a place": b'{"user": "u", "item": "i", "latitude": 4}',
    "no such place": b'{"user": "u", "item": "i", "latitude": 91, "longitude": 0}',
    "true for a place": b'{"user": "u", "item": "i", "latitude": true, "longitude": 1}',
    "text for a place": b'{"user": "u", "item": "i", "latitude": "40.1", "longitude": 1}',
    "misspelt": b'{"user": "u", "item": "i", "tyme": 4}',
    "no item": b'{"user": "u"}',
    "empty id": b'{"user": "", "item": "i"}',
    "long id": b'{"item": "i", "user": "' + b"u" * 2000 + b'"}',
    "long id in bytes": b'{"item": "i", "user": "' + "ü".encode() * 1000 + b'"}',
    "no events": b'{"events": []}',
    "too many events": b'{"events": ['
    + b'{"user":"u","item":"i"},' * 1000
    + b'{"user":"u","item":"i"}]}',
}


@pytest.mark.parametrize("name", WRONG_BODIES)
def test_a_wrong_body_gets_a_clear_answer_and_stores_nothing(client, name):
    headers = {"content-type": "application/json"}
    answer = client("POST", "/events", content=WRONG_BODIES[name], headers=headers)
    unreadable = name in ("no json", "not utf-8", "deep", "long number")
    assert answer.status_code == (400 if unreadable else 422), answer.text
    assert 10 < len(answer.json()["detail"]) < 2001
    assert client("GET", "/users/u").status_code == 503  # no model yet
    assert client.service.store.read(["u"]) == {"u": []}


MANY = [EVENT, EVENT, EVENT]
MESSAGES = {
    "no zone": (
        "/events",
        {"events": [*MANY, EVENT | {"time": "2012-05-01T08:30"}]},
        "events.3.time: an event's time needs a zone, e.g. 2012-12-22T08:30-05:00",
    ),
    "no zone, one": (
        "/events",
        EVENT | {"time": "2012-05-01T08:30"},
        "time: an event's time needs a zone, e.g. 2012-12-22T08:30-05:00",
    ),
    "misspelt": (
        "/events",
        {"events": [*MANY, {"user": "u", "itm": "i"}]},
        "events.3.item: Field required; events.3.itm: Extra inputs are not permitted",
    ),
    "half a place": (
        "/events",
        {"events": [EVENT | {"latitude": 4}]},
        "events.0: latitude and longitude go together; give both or none",
    ),
    "half a place, one": (
        "/events",
        EVENT | {"latitude": 4},
        "body: latitude and longitude go together; give both or none",
    ),
    "milliseconds": (
        "/events",
        EVENT | {"time": 1_700_000_000_000},
        "time: unix seconds, not milliseconds",
    ),
    "fraction": (
        "/events",
        EVENT | {"time": 1.5},
        "time: Input should be a valid integer",
    ),
    "a list for a time": (
        "/events",
        EVENT | {"time": [1]},
        "time: write unix seconds or ISO 8601, e.g. 2012-12-22T08:30Z",
    ),
    "a list": ("/events", [EVENT], "body: must be a JSON object"),
    "long id": (
        "/events",
        EVENT | {"user": 1000 * "ü"},
        "user: an id has at most 1600 bytes in UTF-8",
    ),
    "milliseconds of a request": (
        "/recommend",
        {"time": 1_700_000_000_000},
        "time: unix seconds, not milliseconds",
    ),
    "trail": (
        "/recommend",
        {"trail": [{"item": "i"}, {"item": "i", "time": "2012-05-01T08:30"}]},
        "trail.1.time: an event's time needs a zone, e.g. 2012-12-22T08:30-05:00",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_says_which_field_and_what_to_do_and_nothing_else(client, monkeypatch, name):
    path, body, message = MESSAGES[name]
    monkeypatch.setattr(Service, "model", property(lambda self: types.SimpleNamespace(run=RUN)))
    answer = client("POST", path, json=body)
    assert (answer.status_code, answer.json()["detail"]) == (422, message)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_called_json_is_told_so(client, kind):
    headers = {"content-type": kind} if kind else {}
    for path, body in (("/events", EVENT), ("/recommend", {"user": "u"})):
        answer = client("POST", path, content=json.dumps(body).encode(), headers=headers)
        assert answer.status_code == 422
        assert "Content-Type: application/json" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["https://example.org/" + 1500 * "a", 800 * "ü"])
def test_an_id_may_be_as_long_as_a_web_address(client, name):
    event = EVENT | {"user": name, "item": name}
    assert client("POST", "/events", json=event).json() == {"stored": 1, "duplicates": 0}
    path = f"/users/{urllib.parse.quote(name, safe='')}"
    assert client("DELETE", path).json() == {"deleted_events": 1}


def test_what_was_sent_is_not_sent_back(client):
    body = {"user": "secret-person", "item": "i", "latitude": 1}
    assert "secret" not in client("POST", "/events", json=body).text


def test_large_bodies_are_refused_however_they_come(client):
    large = b'{"user": "' + b"u" * (10 << 20) + b'", "item": "i"}'

    async def parts():
        for first in range(0, len(large), 1 << 16):
            yield large[first : first + (1 << 16)]

    for content in (large, parts()):
        answer = client("POST", "/events", content=content)
        assert answer.status_code == 413
        assert "larger than 1048576 bytes" in answer.json()["detail"]


def test_without_a_model_events_are_taken_and_requests_told_to_wait(client):
    assert client("POST", "/events", json=EVENT).json() == {"stored": 1, "duplicates": 0}
    answer = client("POST", "/recommend", json={"user": "u"})
    assert answer.status_code == 503
    assert "being loaded" in answer.json()["detail"]
    assert answer.headers["retry-after"]
    ready = client("GET", "/readyz")
    assert ready.status_code == 503
    assert "being loaded" in ready.text
    metrics = client("GET", "/metrics").text
    assert 'stt_requests_total{route="/events",status="200"} 1.0' in metrics
    assert 'stt_events_total{outcome="stored"} 1.0' in metrics
    assert "stt_model_loaded 0.0" in metrics


def test_a_log_that_breaks_is_told_and_does_not_stop_the_service(client):
    with client.service.store._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE events RENAME TO gone")
    answer = client("POST", "/events", json=EVENT)
    assert answer.status_code == 503
    assert "not stored" in answer.json()["detail"]
    with client.service.store._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO events")
    assert client("POST", "/events", json=EVENT).json() == {"stored": 1, "duplicates": 0}


def test_logs_name_nobody(client, caplog):
    caplog.set_level(logging.INFO, "stt_jax")
    client("POST", "/events", json=EVENT | {"user": "secret-person", "item": "secret-item"})
    client("DELETE", "/users/secret-person")
    client("GET", "/trail/secret-person")
    client.service.forget = lambda user: {}[user]  # an error whose message quotes the person
    assert client("DELETE", "/users/secret-person").status_code == 500
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert {"/events", "/users/{user:path}"} <= {line.get("route") for line in lines}
    assert any("KeyError at" in line.get("where", "") for line in lines)
    assert "secret" not in json.dumps(lines)


def test_a_clock_that_goes_back_does_no_harm(client, monkeypatch):
    from stt_jax.service import api

    for number, clock_s in enumerate((1_700_000_000, 1_600_000_000, 1_650_000_000)):
        monkeypatch.setattr(api, "now_s", lambda clock_s=clock_s: clock_s)
        sent = {"user": "u", "item": f"i{number}"}
        assert client("POST", "/events", json=sent).json()["stored"] == 1
    assert [e.item for e in client.service.store.read(["u"])["u"]] == ["i1", "i2", "i0"]


def test_jobs_that_wait_are_done_together_and_too_many_are_refused():
    started, go = threading.Event(), threading.Event()
    batches = []

    def work(jobs):
        batches.append(list(jobs))
        started.set()
        go.wait(10)
        if "all" in jobs:
            raise OSError("for all")
        return [KeyError(job) if job == "bad" else job.upper() for job in jobs]

    batcher = Batcher("test", work, max_batch=3, max_waiting=4, timeout_s=30)
    first = batcher.submit("a")
    started.wait(10)
    waiting = [batcher.submit(job) for job in ("b", "bad", "c", "all")]
    gone = batcher.num_waiting
    with pytest.raises(BusyError, match="too many"):
        batcher.submit("d")
    go.set()
    assert first.result(10) == "A"
    assert waiting[0].result(10) == "B"
    with pytest.raises(KeyError):
        waiting[1].result(10)
    assert waiting[2].result(10) == "C"
    with pytest.raises(OSError, match="for all"):
        waiting[3].result(10)
    assert gone == 4
    assert batches == [["a"], ["b", "bad", "c"], ["all"]]
    last = batcher.submit("z")
    batcher.stop()
    assert last.result(0) == "Z"
    with pytest.raises(BusyError, match="stopping"):
        batcher.submit("late")


def test_a_job_that_waited_too_long_is_not_begun():
    go = threading.Event()
    batcher = Batcher(
        "test", lambda jobs: go.wait(10) and jobs, max_batch=1, max_waiting=9, timeout_s=0.05
    )
    first, second = batcher.submit("a"), batcher.submit("b")
    time.sleep(0.2)
    go.set()
    assert first.result(10) == "a"
    with pytest.raises(BusyError, match="waited too long"):
        second.result(10)
    batcher.stop()


def test_a_full_service_says_429(client):
    def busy(_):
        raise BusyError("too many requests are waiting")

    client.service.add = busy
    answer = client("POST", "/events", json=EVENT)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


@contextlib.contextmanager
def listening(app, receive_s):
    """The address of a real server of this application."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, http=impatient_protocol(receive_s), log_config=None, lifespan="off")
        )
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield port.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def test_slow_clients_are_hung_up_on_and_bother_nobody(client):
    app = create_app(client.service, managed=False)
    with listening(app, receive_s=0.5) as address:
        slow = [socket.create_connection(address) for _ in range(60)]
        texts = (
            b"",
            b"GET /healthz HTTP/1.1\r\nx-slow: ",
            b"POST /events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{",
        )
        for number, one in enumerate(slow):
            one.sendall(texts[number % 3])
        with httpx.Client(base_url="http://{}:{}".format(*address)) as fast:
            for _ in range(5):
                assert fast.get("/healthz").text == "alive\n"
            assert fast.post("/events", json=EVENT).is_success
            # A quick client may be silent between two requests for longer than a request may take.
            time.sleep(0.8)
            assert fast.get("/healthz").text == "alive\n"
        for one in slow:
            one.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(10) == b""
            one.close()


def test_headers_without_end_are_hung_up_on(client):
    app = create_app(client.service, managed=False)
    headers = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 100) for number in range(100_000))
    with listening(app, receive_s=60) as address, socket.create_connection(address) as endless:
        endless.sendall(b"GET /healthz HTTP/1.1\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            endless.sendall(headers)


def test_long_bodies_and_requests_that_follow_at_once_are_not_taken_for_headers(
    client, monkeypatch
):
    monkeypatch.setattr("stt_jax.service.guards._MOST_HEAD_BYTES", 1000)
    app = create_app(client.service, managed=False)
    events = [EVENT | {"event_id": f"long-{number}"} for number in range(1000)]
    body = json.dumps({"events": events}).encode()
    head = b"POST /events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    whole = head + b"content-length: %d\r\n\r\n" % len(body) + body
    with listening(app, receive_s=60) as address, socket.create_connection(address) as sender:
        sender.settimeout(60)
        answers = b""
        for count, sent in ((2, whole + whole + whole[: len(head)]), (3, whole[len(head) :])):
            sender.sendall(sent)
            while answers.count(b'"stored"') < count:
                received = sender.recv(1 << 16)
                assert received, "hung up on"
                answers += received
    assert answers.count(b"200 OK") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--run is missing"),
        ({"run": "nowhere"}, "holds no run"),
        ({"host": "0.0.0.0"}, "a token is needed"),
        ({"host": "example.org"}, "a token is needed"),
        ({"api_token_file": "missing"}, "missing"),
        ({"api_token_file": "short"}, "16 or more"),
        ({"store": "sqlite:////nowhere/at/all/events.db", "run": "RUN"}, "--store: the event log"),
        ({"port": -1}, "--port=-1"),
        ({"max_batch": 0}, "--max_batch=0"),
    ],
)
def test_wrong_use_gets_one_line(run, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("secret\n")
    options = {name: str(run) if value == "RUN" else value for name, value in options.items()}
    flags = [f"--{name}={value}" for name, value in ({"port": 0} | options).items()]
    assert serve.main(["serve", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:hunter2@127.0.0.1:1/name",
        "postgresql+psycopg://user@127.0.0.1:1/name?password=hunter2",
        "postgresql+psycopg://user@127.0.0.1:1/name?sslpassword=hunter2&connect_timeout=2",
    ],
)
def test_a_password_of_the_store_is_not_printed(run, capsys, url):
    pytest.importorskip("psycopg", reason="psycopg of the extra 'postgres' is not installed")
    assert serve.main(["serve", f"--run={run}", "--port=0", f"--store={url}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --store: ")
    assert "hunter2" not in error


def test_loopback_needs_no_token_and_a_file_gives_one(tmp_path):
    for host in ("127.0.0.1", "::1", "localhost"):
        assert serve.read_token(ServeConfig(host=host)) == ""
    (tmp_path / "token").write_text("0123456789abcdef\n")
    given = ServeConfig(host="0.0.0.0", api_token_file=str(tmp_path / "token"))
    assert serve.read_token(given) == "0123456789abcdef"
