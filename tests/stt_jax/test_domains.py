"""Several domains in one log, from raw rows to lists that hold one of them alone."""

import contextlib
import dataclasses
import io
import json

import jax
import numpy as np
import pytest

from stt_jax import evaluate, prepare, recommend, train
from stt_jax.config import EvaluationConfig, ModelConfig, PrepareConfig, RequestConfig
from stt_jax.data.newitems import read_new_items
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.data.preparation import prepare_log
from stt_jax.data.store import open_log
from stt_jax.evaluation import evaluate_model
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.recommender import recommend_items
from stt_jax.relations import model_catalogue
from stt_jax.service.models import load_model
from stt_jax.training.run import load_run, model_sizes
from tests.stt_jax.service.served import serving, write_run
from tests.stt_jax.tiny_logs import random_log


def raw_log(folder):
    """Two people a row of hours: 1, 2, 3 are articles and products alike."""
    rng = np.random.default_rng(0)
    lines = ["who,what,when,kind,topic"]
    for user in range(12):
        for hour in range(24):
            kind = ("news", "shop")[int(rng.random() < 0.3)]
            item = 1 + (user + hour // 8 + int(rng.random() < 0.2)) % 3
            lines.append(
                f"u{user},{item},{1_600_000_000 + 3600 * hour + user},{kind},{kind} {item}"
            )
    lines.append("u1,1,1600000001,,")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return [
        f"--input={folder}/log.csv", f"--output={folder}/prepared", "--user=who", "--item=what",
        "--time=when", "--domain=kind", "--category=topic",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A log of two domains and a run on it, made by the commands."""
    folder = tmp_path_factory.mktemp("domains")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert prepare.main(["prepare", *raw_log(folder)]) == 0
        flags = {
            "data": folder / "prepared", "run": folder / "run", "epochs": 3, "window": 16,
            "requests": 8, "batch_rows": 4, "width": 8, "num_heads": 1, "num_layers": 1,
            "balance_domains": 1, "use_sequel": "false",
        }  # fmt: skip
        assert train.main(["train", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    return folder, printed.getvalue()


def test_each_domain_has_items_of_its_own_and_rows_without_one_are_counted(trained):
    folder, printed = trained
    log = open_log(folder / "prepared")
    assert sorted(log.item_ids[1:]) == [
        f"{kind}/{i}" for kind in ("news", "shop") for i in (1, 2, 3)
    ]
    of_items = [log.domain_values[row] for row in log.item_domains]
    assert of_items == [item.partition("/")[0] for item in log.item_ids]
    assert "kind is empty" in printed
    (ids,) = [step for step in log.meta.steps if step.name == "ids"]
    assert ids.dropped == {"kind is empty": 1}


def test_a_list_of_one_domain_holds_nothing_else(trained):
    folder, _ = trained
    log = open_log(folder / "prepared")
    run = load_run(folder / "run", log)
    for domains, kinds in ((("shop",), {"shop"}), (("news", "shop"), {"news", "shop"}), ((), None)):
        items = recommend_items(run, log, RequestConfig(user="u1", k=6, domains=domains))
        found = {one.item_id.partition("/")[0] for one in items}
        assert found == (kinds or {"news", "shop"})
    with pytest.raises(ValueError, match="--domains: 'films' is not in the model's log; it has"):
        recommend_items(run, log, RequestConfig(user="u1", domains=("films",)))
    assert recommend.main(["recommend", f"--run={folder}/run", "--user=u1", "--domains=news"]) == 0


def test_an_evaluation_that_names_domains_ranks_within_them(trained):
    folder, _ = trained
    assert evaluate.main(["evaluate", f"--run={folder}/run"]) == 0
    named = json.loads((folder / "run" / "evaluation-test.json").read_text())
    log = open_log(folder / "prepared")
    run = load_run(folder / "run", log)
    config = EvaluationConfig(run=str(folder / "run"), domains="any")
    free = evaluate_model(run, log, config)
    assert (named["domains"], free["domains"]) == ("named", "any")
    for name in ("model", "popularity"):
        ranks = []
        for report in (named, free):
            metrics = report["modes"]["known"]
            ranks.append((metrics.get(name) or metrics["baselines"][name])["mrr"])
        assert ranks[0] > ranks[1]  # three items compete, not six
    assert set(named["modes"]["known"]["groups"]["domain"]) == {"news", "shop"}


def test_new_items_say_which_domain_they_are_of(trained):
    folder, _ = trained
    log = open_log(folder / "prepared")
    (folder / "new.csv").write_text("what,kind,topic\n9,shop,shop 1\n9,news,news 1\n")
    grown = read_new_items(log, folder / "new.csv")
    assert grown.item_ids[-2:] == ["shop/9", "news/9"]
    assert [grown.domain_values[row] for row in grown.item_domains[-2:]] == ["shop", "news"]
    (folder / "new.csv").write_text("what,kind\n9,films\n")
    with pytest.raises(ValueError, match="row 1: 'films' is none of the log's domains news, shop"):
        read_new_items(log, folder / "new.csv")
    (folder / "new.csv").write_text("what\n9\n")
    with pytest.raises(ValueError, match="no column 'kind'"):
        read_new_items(log, folder / "new.csv")


def test_new_items_are_listed_by_the_command_and_known_to_the_service(trained, capsys):
    folder, _ = trained
    (folder / "more.csv").write_text("what,kind,topic\n7,shop,shop 1\n8,shop,shop 2\n")
    flags = [f"--run={folder}/run", "--user=u1", f"--items={folder}/more.csv", "--domains=shop"]
    assert recommend.main(["recommend", *flags, "--k=5"]) == 0
    assert {"shop/7", "shop/8"} <= set(capsys.readouterr().out.split())
    served = load_model(folder / "run", "", str(folder / "more.csv"))
    assert served.item_rows["shop/8"] == served.log.num_items
    assert served.domain_rows == {"news": 1, "shop": 2}


def test_domain_is_a_name_that_traits_cannot_have():
    with pytest.raises(ValueError, match="no column of --item_traits can be named 'domain'"):
        PrepareConfig(
            input=("log.csv",), output="out", time="t", domain="kind", item_traits=("domain",)
        )


def test_a_separator_does_not_cut_the_name_of_a_domain(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,t,kind\n" + "a,1,1,x|y\n" * 2 + "a,1,5,z\n")
    log = prepare_log(
        PrepareConfig(
            input=(str(tmp_path / "log.csv"),),
            output=str(tmp_path / "out"),
            time="t",
            domain="kind",
            split="leave_one_out",
            keep_duplicates=True,
        )
    )
    assert list(log.domain_values) == ["", "x|y"]


def test_naming_a_domain_moves_all_probability_there_and_naming_all_is_naming_none():
    log = random_log(num_users=8, seed=5, has_domains=True)
    config = ModelConfig(width=8, num_heads=1, num_layers=1, attention="reference")
    model = SpatiotemporalTransformer(config, model_sizes(log))
    items = jax.tree.map(jax.numpy.asarray, model_catalogue(log, config))
    source = TrainingBatches(log, window=16, requests=8, batch_rows=3, seed=0)
    history, requests = jax.tree.map(jax.numpy.asarray, source[0])
    init = jax.jit(model.init, static_argnames="deterministic")
    params = init(jax.random.key(0), items, history, requests, deterministic=True)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)

    @jax.jit
    def ask(domains):
        asked = dataclasses.replace(requests, domains=domains)
        states = model.apply({"params": params}, history, deterministic=True, method=model.encode)
        return model.apply(
            {"params": params}, items, history, asked, states, method=model.item_probabilities
        )

    shape = requests.domains.shape
    rows = np.zeros(items.is_item.shape[0], np.int32)
    rows[: log.num_items + 1] = log.item_domains
    for domain in (1, 2):
        found = np.asarray(ask(np.broadcast_to(np.arange(1, 3) == domain, shape)))
        assert not found[..., rows != domain].any()
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    found = np.asarray(ask(np.ones(shape, bool)))
    assert (found[..., rows > 0] > 0).all()


def test_the_service_keeps_to_the_domains_that_are_named(tmp_path):
    log = random_log(num_users=6, seed=5, has_domains=True)
    directory = write_run(
        tmp_path, item_traits=log.item_traits, item_trait_values=log.item_trait_values
    )
    with serving(directory) as client:
        for names, parities in ((["shop"], {0}), (["news"], {1}), ([], {0, 1})):
            listed = client.recommend(user="u1", k=5, domains=names)["items"]
            assert {int(one["item"][1:]) % 2 for one in listed} == parities
        answer = client("POST", "/recommend", json={"user": "u1", "domains": ["films"]})
        assert answer.status_code == 422, answer.text
        assert "films" in answer.text
