"""What the model says of requests: a mixture over the catalogue, in parts, never spelt out."""

from __future__ import annotations

import jax
from flax import struct

from stt_jax.model import crowd
from stt_jax.model.head import ItemScorer


@struct.dataclass
class Prediction:
    """The mixture of each request, in parts, so that a loss need not spell out the catalogue.

    Attributes:
      queries: [B, R, E] in the model's dtype and
      places: float32 [B, R, 3], what `scorer` compares the catalogue with.
      scorer: scores of the catalogue's rows.
      log_gates: float32 [B, R, 1 + M], log-probability of generating and of each other source:
        the pointers, then the crowd's.
      target_log_masses: float32 [B, R, M], log of each source's mass on the target.
      boosts: [B, R, P], what the scorer's logits lack of some items; None = nothing.
    """

    queries: jax.Array
    places: jax.Array
    scorer: ItemScorer
    log_gates: jax.Array
    target_log_masses: jax.Array
    boosts: crowd.Boosts | None


@struct.dataclass
class Answer:
    """The mixture of each request for serving, in parts, so that no catalogue is spelt out.

    Attributes:
      queries: [B, R, E] in the model's dtype and
      places: float32 [B, R, 3], what an `ItemScorer` compares the catalogue with.
      gates: float32 [B, R], probability of generating; 1 without other sources.
      items: int32 [B, R, P], what the other sources name, an item as often as they do; the first
        S are those of the history, if there is a pointer.
      masses: float32 [B, R, P], how probable each is in the mixture by that source.
      boosts: [B, R, P'], what the scorer's logits lack of some items; None = nothing.
    """

    queries: jax.Array
    places: jax.Array
    gates: jax.Array
    items: jax.Array
    masses: jax.Array
    boosts: crowd.Boosts | None
