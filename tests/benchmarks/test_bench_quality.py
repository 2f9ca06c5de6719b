import json

from benchmarks.bench_quality import with_others
from benchmarks.quality_tables import quality_table


def test_seeds_together_stand_behind_the_model_that_they_are_of(tmp_path):
    def row(name, value, count):
        found = {"mean": value, "sd": 0.01, "values": [value] * count}
        metrics = dict.fromkeys(("accuracy@1", "hr@5", "hr@10", "f1@10", "ndcg@10", "mrr"), found)
        return {
            "name": name, "machine": "", "versions": {"jax": "0"}, "parameters": 7, "minutes": 1.0,
            "metrics": {"all/known": metrics},
        }  # fmt: skip

    results = {
        "split_hash": "s", "num_targets": {"known": 7}, "baselines": {"all/known": {}},
        "rows": [row("whole model", 0.25, 3), row("blind", 0.125, 1)],
        "together": row("3 seeds of it together", 0.5, 1),
    }  # fmt: skip
    path = tmp_path / "some.json"
    path.write_text(json.dumps(results))
    lines = quality_table(path).splitlines()[-3:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| whole model", "| 3 seeds of it together", "| blind (1 seed)"
    ]  # fmt: skip
    assert "**0.2500 ± 0.0100**" in lines[0]
    assert " 0.5000 |" in lines[1]


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
