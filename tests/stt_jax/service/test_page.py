"""The page in a real browser: trail, list and reasons of a person."""

import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time

import pytest
import uvicorn

from stt_jax.service.api import create_app
from tests.stt_jax.service.served import serving, write_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("served"))
    with serving(run) as client, socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        app = create_app(client.service, managed=False)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield "http://{}:{}".format(*port.getsockname())
        server.should_exit = True
        thread.join()


def browse(folder: pathlib.Path, url: str, *flags: str) -> str:
    """The page's document after its scripts have run."""
    if BROWSER is None:
        pytest.skip("there is no browser: apt-get install chromium")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={folder}", "--virtual-time-budget=20000", *flags, "--dump-dom", url,
        ],
        capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip
    return done.stdout


def test_the_page_shows_trail_list_and_reasons(address, tmp_path):
    document = browse(tmp_path, f"{address}/?user=u4")
    assert len(re.findall(r'<span class="rank">', document)) == 10
    assert "19 events known" in document
    reason = r"been there 2012-0\d-\d\d \d\d:\d\d: [\d.]+ % points there"
    assert re.search(reason + r", distance [+\u2212][\d.]+, time [+\u2212][\d.]+", document)
    assert '<div id="problem" role="alert"></div>' in document
