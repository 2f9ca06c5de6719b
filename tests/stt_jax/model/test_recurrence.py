import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.model.recurrence import find_recurrence, find_recurrences


def random_rows():
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, (3, 24)), axis=1)
    segments[:, 20:] = 0
    return rng.integers(0, 5, (3, 24)).astype(np.int32), segments.astype(np.int32)


def test_tokens_are_grouped_by_segment_and_id_in_order():
    ids, segments = random_rows()
    found = jax.tree.map(np.asarray, jax.jit(find_recurrences)(ids, segments))
    for row in range(3):
        keys = [
            (int(segment), int(item)) if segment and item else None
            for segment, item in zip(segments[row], ids[row], strict=True)
        ]
        for token, key in enumerate(keys):
            if key is None:
                assert found.classes[row, token] == 0
                assert found.counts[row, token] == 0
                continue
            same = [other for other, its in enumerate(keys) if its == key]
            np.testing.assert_array_equal(
                found.classes[row] == found.classes[row, token], [its == key for its in keys]
            )
            assert found.counts[row, token] == same.index(token) + 1


def test_one_token_a_row_finds_the_class_that_sorting_finds():
    ids, segments = random_rows()
    every = jax.tree.map(np.asarray, find_recurrences(jnp.asarray(ids), jnp.asarray(segments)))
    for token in range(-1, 24):
        tokens = np.full((3, 1), token, np.int32)
        found = find_recurrence(jnp.asarray(ids), jnp.asarray(segments), jnp.asarray(tokens))
        wanted = every.classes[:, token, None] if token >= 0 else np.zeros((3, 1))
        ours = (every.classes == wanted) & (wanted > 0)
        np.testing.assert_array_equal(found.classes, ours)
        np.testing.assert_array_equal(found.counts, np.where(ours, every.counts, 0))
