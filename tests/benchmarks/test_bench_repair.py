from benchmarks.bench_repair import rows_of
from tests.stt_jax.tiny_logs import random_log


def test_every_repair_of_a_tiny_log_is_measured():
    rows = list(rows_of(random_log(num_users=20), (0.3,), models=False))
    methods = {(row["what"], row["method"]): row for row in rows}
    # An item of this log has one category and one place: what its other events know is right.
    by_item = methods["category", "mode_item"]
    assert by_item["train_right"] == by_item["train_filled"] > 0.9
    place = methods["place", "median_item"]
    assert place["train_within_200_m"] > methods["place", "median"]["train_within_200_m"]
    assert methods["noise of 30 m", "none"]["train_median_km"] > 0
    assert methods["noise of 30 m", "kalman"]["train_filled"] == 1
