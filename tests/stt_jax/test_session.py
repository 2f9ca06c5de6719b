"""A live state answers as a full recompute of what it holds does, at every step."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from stt_jax import session
from stt_jax.config import ModelConfig, TrainingConfig
from stt_jax.data.catalogue import model_users, traits_of_user
from stt_jax.data.gather import gather_history, gather_requests
from stt_jax.data.windows import Windows, training_windows
from stt_jax.histories import Question, Tokens, anchor, history_rows, log_events, request_rows
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.run import model_sizes
from stt_kernels import spatiotemporal_attention
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=6, seed=5, has_numbers=True)
USERS = range(4)
WINDOW, HOP = 16, 8
WHOLE = ModelConfig(
    width=16,
    num_heads=2,
    num_layers=2,
    attention="reference",
    use_boost=True,
    habit_share=0.3,
    succession_half_lives_h=(24.0,),
)
BARE = dataclasses.replace(
    WHOLE,
    use_time=False,
    use_order=True,
    use_place=False,
    use_event_norm=True,
    use_pointer=False,
    use_crowd=False,
    use_boost=False,
)
HIDES_TIME = dataclasses.replace(WHOLE, likely_times=3)


@functools.cache
def make(config):
    """A model with random parameters everywhere, and its scorer."""
    model = SpatiotemporalTransformer(config, model_sizes(LOG))
    items = model_catalogue(LOG, dataclasses.replace(WHOLE, likely_times=config.likely_times))
    history, requests, _ = recompute_inputs(dict.fromkeys(USERS, 3))
    init = jax.jit(model.init, static_argnames="deterministic")
    params = init(jax.random.key(0), items, history, requests, deterministic=True)["params"]
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    noise = [np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape) for leaf in leaves]
    params = jax.tree.unflatten(treedef, [leaf.astype(np.float32) for leaf in noise])
    return model, params, session.item_scorer(model, params, items)


def recompute_inputs(counts):
    """The training pipeline's arrays for people with so many events, and who asks for the next."""
    users = np.array(list(counts))
    firsts = LOG.user_offsets[users]
    ends = firsts + np.array(list(counts.values()))
    starts = firsts + [session.window_start(n, WINDOW, HOP) for n in counts.values()]
    befores = np.where(starts > firsts, starts - 1, -1)
    windows = Windows(users, starts, starts, starts, ends, ends, ends + 1, befores)
    rows = [np.array([row]) for row in range(len(users))]
    history, layout = gather_history(LOG, windows, rows, row_tokens=WINDOW)
    requests = gather_requests(LOG, layout, (len(users), 1))
    # A live state is asked now, after all that was counted, and not as of the last event.
    return history, requests.replace(last_minutes=np.full_like(requests.minutes, 2**30)), users


@functools.partial(jax.jit, static_argnums=0)
def recompute(model, params, items, history, requests):
    variables = {"params": params}
    states = model.apply(variables, history, deterministic=True, method=model.encode)
    return model.apply(
        variables, items, history, requests, states, method=model.item_probabilities
    )[:, 0, : LOG.num_items + 1]


class People:
    """Live states of the first people of the log, driven as a service would."""

    def __init__(self, config, num_rows=6):
        self.config = config
        self.model, self.params, self.scorer = make(config)
        self.cache = session.new_cache(self.model, num_rows, WINDOW)
        self.rows = np.array([4, 1, 5, 0], np.int32)
        self.starts, self.anchors = {}, {}

    def events(self, user, first, end):
        offset = int(LOG.user_offsets[user])
        return log_events(LOG, offset + first, offset + end)

    def tokens(self, user, first, end):
        events = self.events(user, first, end)
        before = int(self.events(user, first - 1, first).times[0]) if first else None
        return Tokens(events, before, self.anchors[user])

    def start(self, counts):
        tokens = []
        for user, count in counts.items():
            self.starts[user] = session.window_start(count, WINDOW, HOP)
            self.anchors[user] = anchor(self.events(user, self.starts[user], count))
            tokens.append(self.tokens(user, self.starts[user], count))
        rows = np.append(self.rows[list(counts)], [6] * (len(USERS) - len(counts)))
        history = history_rows(tokens, len(USERS), WINDOW, has_times=LOG.meta.has_times)
        self.cache = session.start(
            self.model, self.params, self.cache, rows.astype(np.int32), history
        )

    def grow(self, counts):
        """Appends one event to everybody whose window has room, starts the others again."""
        appended, restarted = {}, {}
        for user, count in counts.items():
            fits = session.window_start(count, WINDOW, HOP) == self.starts[user]
            (appended if fits else restarted)[user] = count
        if appended:
            for user, count in appended.items():
                self.anchors[user] = self.anchors[user].seeing(self.events(user, count - 1, count))
            tokens = [self.tokens(user, count - 1, count) for user, count in appended.items()]
            padding = len(USERS) - len(appended)
            starts = [count - 1 - self.starts[user] for user, count in appended.items()]
            self.cache = session.append(
                self.model,
                self.params,
                self.cache,
                np.append(self.rows[list(appended)], [6] * padding).astype(np.int32),
                np.array(starts + [0] * padding, np.int32),
                history_rows(tokens, len(USERS), 1, has_times=LOG.meta.has_times),
            )
        if restarted:
            self.start(restarted)

    def questions(self, counts):
        questions = []
        for user, count in counts.items():
            event = self.events(user, count, count + 1)
            place = (int(event.latitudes_e7[0]), int(event.longitudes_e7[0]))
            questions.append(
                Question(
                    user=int(model_users(LOG, np.array(user))),
                    time_s=None if self.config.likely_times else int(event.times[0]),
                    utc_offset_s=int(event.utc_offsets_s[0]),
                    place_e7=place,
                    num_events=count - self.starts[user],
                    anchor=self.anchors[user],
                    traits=traits_of_user(LOG, user),
                )
            )
        return request_rows(questions, len(questions))

    def score(self, counts, allowed=None, **options):
        options = {"k": LOG.num_items, "chunk_items": 4} | options
        ranked = session.score(
            self.model,
            self.params,
            self.scorer,
            self.cache,
            self.rows[list(counts)],
            self.questions(counts),
            allowed,
            **options,
        )
        return np.asarray(ranked.items), np.asarray(ranked.probabilities)

    def recompute(self, history, requests):
        return recompute(self.model, self.params, self.scorer.catalogue, history, requests)

    def probabilities(self, counts):
        items, found = self.score(counts)
        np.testing.assert_array_equal(np.sort(items), np.arange(LOG.num_items) + 1 + 0 * items)
        dense = np.zeros((len(counts), LOG.num_items + 1), np.float32)
        np.put_along_axis(dense, items, found, axis=1)
        return dense


def counts_at(step):
    """Everybody has other numbers of events, at most what leaves one to ask for."""
    lengths = np.diff(LOG.user_offsets)
    return {user: int(min(max(0, step - 2 * user), lengths[user] - 1)) for user in USERS}


@pytest.mark.parametrize("config", [WHOLE, BARE, HIDES_TIME], ids=["whole", "bare", "hides time"])
def test_every_step_equals_a_full_recompute(config):
    people = People(config)
    people.start(counts_at(3))
    longest = max(counts_at(100).values())
    assert longest > 2 * WINDOW
    for step in range(3, longest + 1):
        counts = counts_at(step)
        history, requests, _ = recompute_inputs(counts)
        if config.likely_times:
            requests = requests.replace(time_known=np.zeros_like(requests.time_known))
        expected = people.recompute(history, requests)
        np.testing.assert_allclose(people.probabilities(counts), expected, rtol=0, atol=1e-5)
        after = counts_at(step + 1)
        people.grow({user: n for user, n in after.items() if n > counts[user]})


def test_several_events_at_once_equal_one_by_one():
    people = People(WHOLE)
    counts = dict.fromkeys(USERS, 2)
    people.start(counts)
    tokens = []
    for user in USERS:
        people.anchors[user] = people.anchors[user].seeing(people.events(user, 2, 5))
        tokens.append(people.tokens(user, 2, 5 - user % 2))
    history = history_rows(tokens, 4, 4, has_times=True)
    people.cache = session.append(
        people.model, people.params, people.cache, people.rows, np.full(4, 2, np.int32), history
    )
    counts = {user: 5 - user % 2 for user in USERS}
    expected = people.recompute(*recompute_inputs(counts)[:2])
    np.testing.assert_allclose(people.probabilities(counts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 4, 5])
def test_padding_of_appended_events_changes_nothing(num_rows):
    """Also where it makes them as many as the cache holds."""
    model, params, _ = make(WHOLE)
    events = log_events(LOG, int(LOG.user_offsets[0]), int(LOG.user_offsets[0]) + 4)
    origin, row = anchor(events), np.zeros(1, np.int32)

    def start(first_events):
        history = history_rows([Tokens(first_events, None, origin)], 1, 4, has_times=True)
        return session.start(model, params, session.new_cache(model, 1, 4), row, history)

    last = [Tokens(events[3:], int(events.times[2]), origin)]
    grown = session.append(
        model,
        params,
        start(events[:3]),
        row,
        np.array([3], np.int32),
        history_rows(last, 1, num_rows, has_times=True),
    )
    np.testing.assert_allclose(grown.states, start(events).states, rtol=0, atol=1e-5)


def test_times_beyond_int32_minutes_stay_after_all_that_was_counted():
    asked = Question(0, 253_370_764_800, 0, None, 0, anchor(log_events(LOG, 0, 1)))
    question = dataclasses.replace(asked, traits=traits_of_user(LOG, None))  # the year 9999
    assert request_rows([question], 1).minutes.tolist() == [[2**30]]


def test_a_row_shows_nothing_of_its_earlier_owner():
    used, fresh = People(WHOLE), People(WHOLE)
    used.start({3: 9, 2: 9, 1: 12, 0: 12})
    used.rows = used.rows[::-1]
    for people in (used, fresh):
        people.start(dict.fromkeys(USERS, 3))
    np.testing.assert_array_equal(
        used.probabilities(dict.fromkeys(USERS, 3)), fresh.probabilities(dict.fromkeys(USERS, 3))
    )


@pytest.mark.parametrize("chunk_items", [4, 100])
def test_top_k_in_chunks_is_the_top_of_everything_allowed(chunk_items):
    people = People(WHOLE)
    counts = dict.fromkeys(USERS, 7)
    people.start(counts)
    dense = people.probabilities(counts)
    allowed = np.random.default_rng(0).random(dense.shape) < 0.5
    allowed[:, 0] = False
    items, probabilities = people.score(counts, allowed, k=5, chunk_items=chunk_items)
    for row in range(len(counts)):
        order = np.argsort(-np.where(allowed[row], dense[row], -1), kind="stable")
        order = order[: min(5, allowed[row].sum())]
        found = items[row][items[row] > 0]
        np.testing.assert_array_equal(found, order)
        np.testing.assert_allclose(probabilities[row][: len(found)], dense[row][found], atol=1e-6)


def test_windows_are_cut_as_in_training():
    """What training showed with the request for event n is what the state after n holds."""
    for window, requests in ((16, 8), (20, 6), (128, 64)):
        hop = session.window_hop(TrainingConfig(window=window, requests=requests))
        assert hop == requests
        windows = training_windows(LOG, window=window, requests=requests)
        for w in range(len(windows)):
            first = LOG.user_offsets[windows.users[w]]
            whole = windows.num_requests[w] == requests
            for event in range(windows.request_starts[w], windows.request_ends[w]):
                start = session.window_start(int(event - first), window, hop)
                # A person's last requests, fewer than a window takes, saw a longer past.
                shown = windows.starts[w] - first
                assert start == shown if whole else start >= shown
    assert session.window_hop(TrainingConfig(window=64, requests=64)) == 32
    assert session.window_hop(TrainingConfig(window=64, requests=64, asked_window=128)) == 64
    held = [n - session.window_start(n, 64, 32) for n in range(400)]
    assert held[:64] == list(range(64))
    assert min(held[64:]) == 33
    assert max(held) == 64


def test_size_buckets():
    assert [session.size_bucket(size, (1, 4, 16)) for size in (1, 2, 4, 16)] == [1, 4, 4, 16]
    with pytest.raises(ValueError, match="17 is more than the largest size"):
        session.size_bucket(17, (1, 4, 16))


def test_one_query_over_kept_keys_equals_its_row_of_a_full_pass_with_both_normalisers():
    rng = np.random.default_rng(0)
    filled, room = 9, 12
    q, k, v = (rng.standard_normal((2, room, 2, 8)).astype(np.float32) for _ in range(3))
    times = np.cumsum(rng.integers(0, 9999, (2, room)), axis=1).astype(np.int32)
    segments = np.broadcast_to(np.arange(room) < filled, (2, room)).astype(np.int32)
    table = rng.standard_normal((2, 32)).astype(np.float32)
    at = slice(filled - 1, filled)

    @functools.partial(jax.jit, static_argnums=0)
    def attend(normalizer, q, **query):
        return spatiotemporal_attention(
            q, k, v, times=times, time_table=table, segment_ids=segments, normalizer=normalizer,
            implementation="reference", **query,
        )  # fmt: skip

    for normalizer in ("softmax", "silu"):
        whole = attend(normalizer, q)
        one = attend(
            normalizer,
            q[:, at],
            query_times=times[:, at],
            query_positions=np.full((2, 1), filled - 1, np.int32),
            query_segment_ids=np.ones((2, 1), np.int32),
        )
        np.testing.assert_allclose(one, np.asarray(whole)[:, at], atol=1e-6)
        assert np.abs(np.asarray(one)).max() > 0.01
