"""Exported artifacts answer as the model does, where the model's code cannot be imported."""

import json
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from stt_jax import session
from stt_jax.data.catalogue import traits_of_user
from stt_jax.data.newitems import open_with_items
from stt_jax.export import main
from stt_jax.histories import Question, Tokens, anchor, history_rows, log_events, request_rows
from stt_jax.relations import model_catalogue
from stt_jax.training.run import load_run
from tests.stt_jax.service.served import write_run

_STRANGER = """
    import sys
    sys.modules["stt_jax"] = sys.modules["stt_kernels"] = sys.modules["flax"] = None
    import jax, jax.export, numpy as np

    read = lambda name: jax.export.deserialize(bytearray(open(name, "rb").read()))
    encode, append, score = (read(f"{n}.stablehlo") for n in ("encode", "append", "score"))
    assert encode.platforms == append.platforms == score.platforms == ("cpu", "cuda", "tpu")
    weights = [array for _, array in sorted(np.load("weights.npz").items())]
    given = np.load("given.npz")
    part = lambda name: [given[key] for key in sorted(given) if key.startswith(name)]
    state = encode.call(weights, part("history"))
    state = append.call(weights, state, given["num_events"], part("event"))
    items, probabilities = score.call(weights, state, part("request"))
    np.savez("answer.npz", items=items, probabilities=probabilities)
"""


@pytest.mark.parametrize("num_people", [3])
def test_artifacts_answer_without_the_model_code(tmp_path, num_people):
    directory, out = write_run(tmp_path, has_numbers=True), tmp_path / "out"
    new = tmp_path / "new.csv"
    new.write_text("item_id,genres\nnew,loud|late\n")
    arguments = [f"--run={directory}", f"--out={out}", f"--items={new}", "--k=12"]
    assert main(["export", *arguments]) == 0
    log = open_with_items(tmp_path / "prepared", str(new))
    run = load_run(directory, log)
    people = [0, 1, 3][:num_people]
    window, count = run.training.asked_tokens, 6
    firsts = [int(log.user_offsets[user]) for user in people]
    events = [log_events(log, first, first + count) for first in firsts]
    anchors = [anchor(one) for one in events]

    def rows(start, end, num_tokens):
        tokens = [
            Tokens(one[start:end], int(one.times[start - 1]) if start else None, its_anchor)
            for one, its_anchor in zip(events, anchors, strict=True)
        ]
        return history_rows(tokens, num_people, num_tokens, has_times=True)

    history, event = rows(0, count - 1, window), rows(count - 1, count, 1)
    requests = request_rows(
        [
            Question(
                user + 1,
                int(one.times[-1]) + 999,
                -14_400,
                None,
                count,
                its_anchor,
                traits_of_user(log, user),
            )
            for user, one, its_anchor in zip(people, events, anchors, strict=True)
        ],
        num_people,
    )
    numbers = np.arange(num_people, dtype=np.int32)
    starts = np.full(num_people, count - 1, np.int32)
    cache = session.start(
        run.model, run.params, session.new_cache(run.model, num_people, window), numbers, history
    )
    cache = session.append(run.model, run.params, cache, numbers, starts, event)
    items = model_catalogue(log, run.model_config, live_trends=True)
    scorer = session.item_scorer(run.model, run.params, items)
    expected = session.score(run.model, run.params, scorer, cache, numbers, requests, None, k=12)

    given = {"num_events": starts}
    for name, tree in (("history", history), ("event", event), ("request", requests)):
        given |= {f"{name}{i:02d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    np.savez(out / "given.npz", **given)
    stranger = [sys.executable, "-c", textwrap.dedent(_STRANGER)]
    subprocess.run(stranger, cwd=out, check=True)
    answer = np.load(out / "answer.npz")
    np.testing.assert_array_equal(answer["items"], expected.items)
    np.testing.assert_allclose(answer["probabilities"], expected.probabilities, atol=1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["window"] == window != run.training.window
    names = [one["name"] for one in manifest["functions"]["score"]["arguments"]["request"]]
    assert names == sorted(names, key=names.index)
    assert "users" in names
    history = [one["name"] for one in manifest["functions"]["encode"]["arguments"]["history"]]
    assert {"numbers.pieces", "numbers.price"} <= set(history)
    vocabularies = json.loads((out / "vocabularies.json").read_text())
    assert vocabularies["numbers"] == log.meta.numerics
    named = vocabularies["items"]
    assert (named[1], named[-1]) == ("i1", "new")
    assert (answer["items"] == len(named) - 1).any(axis=1).all(), "all are listed, the new one too"
    card = (out / "README.md").read_text()
    assert log.meta.data_hash in card
    assert "Numeric columns of an event (pieces, price)" in card
