from benchmarks.bench_quality import with_others


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
