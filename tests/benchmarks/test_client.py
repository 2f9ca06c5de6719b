"""The process of a peer, as our side sees it."""

import sys

import pytest

from benchmarks.peers.client import Client

SERVER = """
import json, os, sys
print("a library says hello")
ready = {"options": json.loads(sys.argv[1]), "threads": os.environ["OMP_NUM_THREADS"]}
print("answer " + json.dumps(ready), flush=True)
for line in sys.stdin:
    print("and more")
    print("answer " + json.dumps({"steps": json.loads(line)["steps"]}), flush=True)
    if json.loads(line)["steps"] == 2:
        sys.exit(3)
"""


def test_answers_are_told_from_what_libraries_print(tmp_path):
    server = tmp_path / "server.py"
    server.write_text(SERVER.strip())
    client = Client(sys.executable, str(server), {"width": 3}, {})
    assert client.ready == {"options": {"width": 3}, "threads": "2"}
    assert client(steps=1) == {"steps": 1}
    assert client(steps=2) == {"steps": 2}
    with pytest.raises((RuntimeError, BrokenPipeError)):
        client(steps=3)
    client.stop()
