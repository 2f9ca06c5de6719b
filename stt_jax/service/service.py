"""The service without HTTP: a store, a model with its live states, and the threads between them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stt_jax.config import ServeConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.pseudonyms import Ids, open_ids
from stt_jax.data.store import UNKNOWN_E7
from stt_jax.service.asks import Answer, Ask
from stt_jax.service.batcher import Batcher
from stt_jax.service.events import person_events
from stt_jax.service.metrics import Metrics
from stt_jax.service.models import ServedModel, load_model, model_identity, open_run_log
from stt_jax.service.people import LiveTable
from stt_jax.service.store import EventStore, StoredEvent, StoreError, default_url
from stt_jax.service.trending import Trending

_log = logging.getLogger("stt_jax.service")
_MAX_WRITES = 256  # requests with events in one commit
_SHOWN_EVENTS = 100


@dataclasses.dataclass(frozen=True)
class Known:
    """What the service knows of a person.

    Attributes:
      in_training: the model was trained with the person, and they were not forgotten since.
      num_log_events: events in the prepared log that are used.
      events: those that came to the service, oldest first.
    """

    in_training: bool
    num_log_events: int
    events: list[StoredEvent]


class Service:
    """Everything that runs between `start` and `stop`."""

    def __init__(self, config: ServeConfig) -> None:
        """Opens the event log; the model comes with `start`.

        Raises:
          ValueError, OSError: no run at `config.run`, no log, or not the key of its pseudonyms.
          StoreError: the event log cannot be opened.
        """
        if not config.run:
            raise ValueError("--run is missing: name the directory of a trained run")
        self.config = config
        self.metrics = Metrics()
        self._directory = pathlib.Path(config.run)
        self.ids = self._open_ids(open_run_log(self._directory, config.data))
        self.store = EventStore(config.store or default_url(config.run))
        self._table: LiveTable | None = None
        self._trending: Trending | None = None
        self.failure = ""
        self.on_failure: Callable[[], object] = lambda: None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="models", daemon=True)
        self._asks: Batcher[Ask, Answer] = Batcher(
            "recommend",
            self._answer,
            max_batch=config.max_batch,
            max_waiting=config.max_waiting,
            timeout_s=config.timeout_s,
        )
        self._writes: Batcher[Sequence[StoredEvent], int] = Batcher(
            "store",
            self._write,
            max_batch=_MAX_WRITES,
            max_waiting=config.max_waiting,
            timeout_s=config.timeout_s,
        )
        self.metrics.add(_Gauges(self))

    @property
    def model(self) -> ServedModel:
        """The model that answers.

        Raises:
          StoreError: none is loaded yet.
        """
        if self._table is None:
            raise StoreError("the model is being loaded; try again later")
        return self._table.served

    @property
    def not_ready(self) -> str:
        """Why the service cannot answer now; empty = it can."""
        try:
            self.model  # noqa: B018
            self.store.check()
        except StoreError as error:
            return str(error)
        return ""

    def load(self) -> None:
        """Loads and warms the model, in the calling thread, and begins to look for newer ones."""
        self._answer_with(self._load_model())
        self._watcher.start()

    def stop(self) -> None:
        """Finishes what was accepted and closes the event log."""
        self._stopping.set()
        self._asks.stop()
        self._writes.stop()
        if self._watcher.is_alive():
            self._watcher.join()
        self.store.close()

    def recommend(self, ask: Ask) -> concurrent.futures.Future[Answer]:
        """Answers an ask; BusyError where too many wait."""
        self.model  # noqa: B018
        return self._asks.submit(ask)

    def add(self, events: Sequence[StoredEvent]) -> concurrent.futures.Future[int]:
        """Stores events: the future's number, of the new ones, means that they are durable."""
        return self._writes.submit(events)

    def known(self, user: str) -> Known | None:
        """What is known of a person; None = nothing."""
        forgotten = self.store.versions([user])[user].forgotten
        events = self.store.read([user])[user]
        log = self.model.log
        row = None if forgotten else self.model.user_row(user)
        if row is None:
            return Known(False, 0, events) if events else None
        num_log_events = int(log.user_offsets[row + 1] - log.user_offsets[row])
        return Known(row < log.num_train_users, num_log_events, events)

    def trail(self, user: str) -> list[dict[str, Any]]:
        """The last events that a request of a person sees, oldest first, to be shown."""
        served = self.model
        forgotten = self.store.versions([user])[user].forgotten
        row = None if forgotten else served.user_row(user)
        events = person_events(self.store.read([user])[user], served, row)
        events = events[max(0, len(events) - _SHOWN_EVENTS) :]
        return [
            {
                "item": served.log.item_ids[item],
                "name": served.log.item_names[item] if item else "unknown to the model",
                "time_s": time_s,
                "utc_offset_s": offset_s,
                "place": None if latitude == UNKNOWN_E7 else [latitude / 1e7, longitude / 1e7],
            }
            for item, time_s, offset_s, latitude, longitude in zip(
                events.items.tolist(),
                events.times.tolist(),
                events.utc_offsets_s.tolist(),
                events.latitudes_e7.tolist(),
                events.longitudes_e7.tolist(),
                strict=True,
            )
        ]

    def forget(self, user: str) -> int:
        """Forgets a person: events are deleted, the prepared log's are not used any more."""
        num_events = self.store.forget(user)
        if self._trending is not None:  # last, or it would look up what is being deleted
            self._trending.forget(user)
        return num_events

    def _answer(self, asks: Sequence[Ask]) -> Sequence[Answer | Exception]:
        table = self._table
        assert table is not None
        self.metrics.batch_sizes.labels("recommend").observe(len(asks))
        try:
            return table.ask(asks)
        except StoreError:
            raise
        except Exception:
            # Rows may be half written: no answer is better than somebody else's.
            table.reset()
            raise

    def _write(self, batches: Sequence[Sequence[StoredEvent]]) -> Sequence[int | Exception]:
        events = [event for batch in batches for event in batch]
        self.metrics.batch_sizes.labels("store").observe(len(events))
        new = self.store.add(events)
        self.metrics.events.labels("stored").inc(len(new))
        self.metrics.events.labels("duplicate").inc(len(events) - len(new))
        counts: list[int | Exception] = []
        for batch in batches:
            mine = {(event.user, event.event_id) for event in batch} & new
            new -= mine
            counts.append(len(mine))
        return counts

    def _open_ids(self, log: PreparedLog) -> Ids:
        return open_ids(log, self.config.key_file, needed=True)

    def _load_model(self) -> ServedModel:
        config = self.config
        return load_model(self._directory, config.data, config.items, config.key_file)

    def count_trends(self) -> None:
        """Shows the model what is popular by now; the watching thread does it time and again.

        A store that cannot be read leaves the trends as they are: they are caught up with later,
        and a newer model does not have to wait for it.
        """
        if self._table is not None:
            self._show_trends(self._table)

    def _show_trends(self, table: LiveTable) -> None:
        if self._trending is None:
            return
        try:
            shown = self._trending.refresh()
        except StoreError as error:
            _log.warning("trends", extra={"fields": {"outcome": "old", "reason": str(error)}})
            return
        if shown is not None:
            table.show(*shown)

    def _answer_with(self, served: ServedModel) -> None:
        """Warms a model, shows it what is popular by now, and puts it in the place of the last."""
        table = self._table_for(served)
        # The counts first: who is forgotten while the new ones are made is forgotten in them.
        before, self._trending = (
            self._trending,
            Trending(served, self.store) if Trending.needed(served) else None,
        )
        try:
            self._show_trends(table)
        except Exception:
            self._trending = before
            raise
        self._table = table

    def _table_for(self, served: ServedModel) -> LiveTable:
        ids = self._open_ids(served.log)
        table = LiveTable(
            served,
            self.store,
            state_bytes=self.config.state_megabytes << 20,
            max_batch=self.config.max_batch,
            index_candidates=self.config.index_candidates,
        )
        table.warm_up()
        self.ids = ids
        _log.info("model", extra={"fields": {"outcome": "loaded", "step": served.run.step}})
        return table

    def _watch(self) -> None:
        looked_at = self.model.identity
        while not self._stopping.wait(self.config.swap_seconds):
            try:
                self.store.erase_forgotten()
                self.count_trends()
                identity = model_identity(self._directory)
                if identity == looked_at:
                    continue
                looked_at = identity
                served = self._load_model()
                if served.checkpoint == self.model.checkpoint:
                    continue  # what is new is not the best
                self._answer_with(served)
                self.metrics.swaps.labels("loaded").inc()
            except Exception as error:
                # Half a run, another log, a model of NaNs: the one that answers goes on.
                self.metrics.swaps.labels("refused").inc()
                fields = {"outcome": "refused", "reason": " ".join(str(error).split())}
                _log.warning("model", extra={"fields": fields})


class _Gauges(Collector):
    """What is read off a service when the metrics are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        waiting = GaugeMetricFamily("stt_waiting", "Jobs that wait.", labels=["work"])
        waiting.add_metric(["recommend"], service._asks.num_waiting)
        waiting.add_metric(["store"], service._writes.num_waiting)
        yield waiting
        table = service._table
        yield GaugeMetricFamily(
            "stt_model_loaded", "1 if a model answers.", value=table is not None
        )
        if table is None:
            return
        yield GaugeMetricFamily("stt_live_people", "People with a live state.", table.num_people)
        yield GaugeMetricFamily("stt_model_step", "Step of the checkpoint.", table.served.run.step)
        done = CounterMetricFamily("stt_states", "What was done to states.", labels=["done"])
        for name, count in sorted(table.counts.items()):
            done.add_metric([name], count)
        yield done
