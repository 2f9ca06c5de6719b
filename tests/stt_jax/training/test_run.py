"""What a run on disk says of itself fits the log, or is refused."""

import json

import pytest

from stt_jax.config import RequestConfig
from stt_jax.data.store import open_log
from stt_jax.recommender import recommend_items
from stt_jax.training import run as runs
from tests.stt_jax.service.served import add_checkpoint, write_run


def test_a_run_that_never_read_the_numbers_of_its_log_is_used_but_not_trained_on(tmp_path):
    """As the runs were before the model read numeric columns."""
    found = []
    for has_numbers in (False, True):
        folder = tmp_path / str(has_numbers)
        folder.mkdir()
        directory = write_run(folder, has_numbers=has_numbers)
        info = json.loads((directory / "run.json").read_text())
        assert info["sizes"].pop("numbers") == (["pieces", "price"] if has_numbers else [])
        (directory / "run.json").write_text(json.dumps(info))
        add_checkpoint(directory, step=2, mrr=0.5)
        log = open_log(folder / "prepared")
        loaded = runs.load_run(directory, log)
        assert loaded.step == 2
        found.append(recommend_items(loaded, log, RequestConfig(user="u2")))
    assert found[0] == found[1]
    _, configs = runs.read_run_files(directory)
    options = (configs["training"], configs["model"], configs["validation"])
    with pytest.raises(ValueError, match="did not read the numeric columns pieces, price of"):
        runs.open_directory(log, *options, None, write=True)
