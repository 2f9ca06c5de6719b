import numpy as np
import scipy.sparse

from benchmarks.peers.factorisation import ranks
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST
from stt_jax.metrics import MISS
from tests.stt_jax.tiny_logs import random_log


def test_factors_rank_all_items_but_those_left_out_and_the_unknown_one():
    log = random_log(seed=4)
    rng = np.random.default_rng(0)
    factors = (rng.normal(size=(log.num_train_users, 3)), rng.normal(size=(log.num_items + 1, 3)))
    had = rng.random((log.num_train_users, log.num_items + 1)) < 0.3
    targets = find_targets(log, TEST)
    targets = targets[targets.known(log)]
    assert len(targets) > 5
    for keep_seen in (True, False):
        found = ranks(log, factors, scipy.sparse.csr_matrix(had), targets, keep_seen=keep_seen)
        for rank, user, event in zip(found, targets.users, targets.events, strict=True):
            scores = factors[1] @ factors[0][user]
            left = [i for i in range(1, log.num_items + 1) if keep_seen or not had[user, i]]
            item = int(log.items[event])
            expected = sum(scores[i] >= scores[item] for i in left) if item in left else MISS
            assert rank == expected
