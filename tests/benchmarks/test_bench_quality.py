import json

import pytest

from benchmarks.bench_quality import with_others
from benchmarks.quality_tables import (
    peers_table,
    published_table,
    quality_overview,
    quality_summary,
    quality_table,
)

METRICS = ("accuracy@1", "hr@5", "hr@10", "hr@20", "f1@10", "ndcg@10", "mrr")


def row(name, value, count):
    found = {"mean": value, "sd": 0.01, "values": [value] * count}
    return {
        "name": name, "machine": "", "versions": {"jax": "0"}, "parameters": 7, "minutes": 1.0,
        "metrics": {"all/known": dict.fromkeys(METRICS, found)},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("known", "shown"), [(0.25, ["none"]), (0.375, ["unknown", "known"])], ids=["alike", "apart"]
)
def test_a_log_without_times_has_one_line_in_the_overview(tmp_path, known, shown):
    of_model = row("whole model", 0.25, 1)
    of_model["metrics"] = {
        "all/unknown": of_model["metrics"]["all/known"],
        "all/known": row("", known, 1)["metrics"]["all/known"],
    }
    mix = {"mix": dict.fromkeys(METRICS, 0.125)}
    results = {
        "num_targets": {"known": 7}, "rows": [of_model],
        "baselines": {"all/unknown": mix, "all/known": mix},
    }  # fmt: skip
    path = tmp_path / "some.json"
    path.write_text(json.dumps(results))
    lines = [line.split(" | ") for line in quality_overview([path]).splitlines()[2:]]
    assert [line[2] for line in lines] == shown
    assert lines[0][3] == "mix: 0.1250 / 0.1250 / 0.1250"
    assert lines[-1][-1].startswith(f"{known / 0.125 - 1:+.0%}")


def test_the_overview_names_seeds_that_were_asked_as_one(tmp_path):
    results = {
        "num_targets": {"known": 7}, "rows": [row("whole model", 0.25, 2)],
        "baselines": {"all/known": {"mix": dict.fromkeys(METRICS, 0.125)}},
    }  # fmt: skip
    together = row("2 seeds of it together", 0.375, 1) | {"of_seeds": 2}
    results["rows"][0] |= {"seeds": 2, "together": together}
    path = tmp_path / "some.json"
    path.write_text(json.dumps(results))
    lines = [line.split(" | ")[4:] for line in quality_overview([path]).splitlines()[2:]]
    assert lines == [
        ["0.2500 / 0.2500 / 0.2500", "2", "+100%, +100% |"],
        ["0.3750 / 0.3750 / 0.3750", "2 seeds of it together", "+200%, +200% |"],
    ]


def test_a_summary_shows_the_best_baseline_ours_and_the_limit(tmp_path):
    baselines = {
        name: dict.fromkeys(METRICS, value)
        for name, value in {"popularity": 0.0625, "mix": 0.125, "best possible": 0.5}.items()
    }
    rows = [row("whole model", 0.25, 3), row("without time", 0.1, 1), row("blind", 0.1, 1)]
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"baselines": {"all/known": baselines}, "rows": rows}))
    lines = [line.split(" | ")[1:3] for line in quality_summary(path).splitlines()[2:]]
    assert lines == [
        ["best baseline: mix", "0.1250"],
        ["whole model", "0.2500 ± 0.0100"],
        ["blind", "0.1000"],
        ["best possible", "0.5000"],
    ]


def test_seeds_together_stand_behind_the_model_that_they_are_of(tmp_path):
    results = {
        "split_hash": "s", "num_targets": {"known": 7}, "baselines": {"all/known": {}},
        "rows": [row("whole model", 0.25, 3), row("blind", 0.125, 1)],
    }  # fmt: skip
    together = row("3 seeds of it together", 0.5, 1) | {"of_seeds": 3}
    results["rows"][0]["together"] = together
    path = tmp_path / "some.json"
    path.write_text(json.dumps(results))
    lines = quality_table(path).splitlines()[-3:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| whole model", "| 3 seeds of it together", "| blind (1 seed)"
    ]  # fmt: skip
    assert "**0.2500 ± 0.0100**" in lines[0]
    assert " 0.5000 |" in lines[1]


def test_a_row_that_trains_on_more_says_so_and_is_not_held_against_the_baselines(tmp_path):
    more = row("trained on more", 0.375, 2) | {"data": "some_more", "seeds": 2}
    of_both = row("2 seeds of it together, trained on more", 0.5, 1)
    more["together"] = of_both | {"data": "some_more", "of_seeds": 2}
    results = {
        "split_hash": "s", "num_targets": {"known": 7},
        "rows": [row("whole model", 0.25, 3) | {"seeds": 3}, row("blind", 0.125, 1), more],
        "baselines": {"all/known": {"mix": dict.fromkeys(METRICS, 0.125)}},
    }  # fmt: skip
    path = tmp_path / "some.json"
    path.write_text(json.dumps(results))
    whole, of_more, together = quality_overview([path]).splitlines()[2:]
    assert whole.startswith("| some | 7 | known | mix: 0.1250 ")
    of_model = "0.3750 / 0.3750 / 0.3750"
    assert of_more == f"| some | 7 | known |  | {of_model} | 2, trained on more |  |"
    assert together.endswith(" | 2 seeds of it together, trained on more |  |")
    names = [line.split(" | ")[0] for line in quality_table(path).splitlines()[-2:]]
    assert names == ["| trained on more (2 seeds)", "| 2 seeds of it together, trained on more"]
    assert "| known, all | trained on more |" in quality_summary(path)


def test_a_gain_is_over_whichever_baseline_is_best_by_that_metric(tmp_path):
    mix = dict.fromkeys(METRICS, 0.125)
    popular = {**dict.fromkeys(METRICS, 0.0625), "hr@10": 0.5}
    results = {
        "num_targets": {"known": 7}, "rows": [row("whole model", 0.25, 2) | {"seeds": 2}],
        "baselines": {"all/known": {"mix": mix, "popularity": popular}},
    }  # fmt: skip
    path = tmp_path / "some.json"
    path.write_text(json.dumps(results))
    (line,) = quality_overview([path]).splitlines()[2:]
    assert line.split(" | ")[3] == "mix: 0.1250 / 0.1250 / 0.1250"  # the best by MRR is shown
    assert line.endswith(" | +100%, -50% |")


def test_a_row_that_knows_less_is_held_against_the_baselines(tmp_path):
    less = row("not told", 0.25, 2) | {"data": "some_ids", "knows": "less", "seeds": 2}
    results = {
        "num_targets": {"known": 7},
        "rows": [row("whole model", 0.5, 2) | {"seeds": 2}, less],
        "baselines": {"all/known": {"mix": dict.fromkeys(METRICS, 0.125)}},
    }  # fmt: skip
    path = tmp_path / "some.json"
    path.write_text(json.dumps(results))
    assert quality_overview([path]).splitlines()[-1].endswith(" | not told | +100%, +100% |")


def test_peers_stand_beside_ours_in_the_settings_that_they_can_answer(tmp_path):
    ours = row("whole model", 0.25, 2)
    ours["metrics"]["all/unknown"] = row("", 0.5, 2)["metrics"]["all/known"]
    less = row("not told", 0.1875, 1) | {"knows": "less"}
    more = row("trained on more", 0.5, 1) | {"knows": "more"}
    peers = [row("RecTools HSTU", 0.125, 1), row("RecTools SASRec", 0.0625, 1)]
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"rows": [ours, less, more], "peers": peers}))
    lines = peers_table([path]).splitlines()[2:]
    assert lines == [
        "| some | known | RecTools HSTU | 1 | 0.1250 | 0.1250 |  |",
        "| some | known | RecTools SASRec | 1 | 0.0625 | 0.0625 |  |",
        "| some | known | whole model | 2 | 0.2500 ± 0.0100 | 0.2500 ± 0.0100 | +100%, +100% |",
        "| some | known | not told | 1 | 0.1875 | 0.1875 | +50%, +50% |",
    ]


def test_where_there_are_several_contexts_the_peers_stand_in_each(tmp_path):
    metrics = row("", 0.25, 1)["metrics"]["all/known"]
    ours = row("whole model", 0.25, 1) | {
        "metrics": {"strict/known": metrics, "all/known": row("", 0.5, 1)["metrics"]["all/known"]}
    }
    peer = row("RecTools HSTU", 0.125, 1) | {
        "metrics": {key: row("", 0.125, 1)["metrics"]["all/known"] for key in ours["metrics"]}
    }
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"rows": [ours], "peers": [peer]}))
    assert peers_table([path]).splitlines()[2:] == [
        "| some | known (strict) | RecTools HSTU | 1 | 0.1250 | 0.1250 |  |",
        "| some | known (strict) | whole model | 1 | 0.2500 | 0.2500 | +100%, +100% |",
        "| some | known (all) | RecTools HSTU | 1 | 0.1250 | 0.1250 |  |",
        "| some | known (all) | whole model | 1 | 0.5000 | 0.5000 | +300%, +300% |",
    ]


def test_beside_published_figures_unknown_items_count_as_misses(tmp_path):
    cited = {"name": "theirs", "mode": "none", "source": "a paper", "hr@10": 0.25}
    published = {"log": {"columns": ["hr@10"], "ours": {"some": "ours"}, "rows": [cited]}}
    (tmp_path / "published.json").write_text(json.dumps(published))
    (tmp_path / "quality").mkdir()
    results = {
        "num_targets": {"known": 6, "evaluated": 8},
        "rows": [row("whole model", 0.5, 2) | {"seeds": 2}],
    }
    (tmp_path / "quality" / "some.json").write_text(json.dumps(results))
    lines = published_table(tmp_path / "published.json", "log").splitlines()[2:]
    assert lines == [
        "| theirs | none | 0.2500 | a paper |",
        "| **ours** | known | **0.3750** | mean of 2 seeds |",
    ]


def test_rows_of_others_stay_while_the_targets_are_the_same():
    before = {
        "split_hash": "s",
        "num_targets": {"known": 7},
        "baselines": {"all/known": {"ALS (implicit)": {"mrr": 0.1}, "mix": {"mrr": 0.2}}},
    }
    report = {"num_targets": {"known": 7}, "baselines": {"all/known": {"mix": {"mrr": 0.3}}}}
    both = {"all/known": {"ALS (implicit)": {"mrr": 0.1}, "mix": {"mrr": 0.3}}}
    assert with_others(before, "s", report) == both
    assert with_others({}, "s", report) == report["baselines"]
    assert with_others(before, "another", report) == report["baselines"]
    fewer = report | {"num_targets": {"known": 6}}
    assert with_others(before, "s", fewer) == report["baselines"]
