"""How many floating-point operations a training step takes, by formula: the model's own work.

A multiply-add counts as two, a backward pass as two forward passes, padding as if it were filled,
and of causal attention only the half that counts. What an implementation adds (computing again
what it did not keep, masked tiles) is not counted: the ratio to the time is model FLOPs
utilisation.

Source: Chowdhery et al., PaLM (2022), appendix B. Differs from it: dense layers are counted one by
one, because the output layer is as large as all the others together.
"""

from __future__ import annotations

from stt_jax.batch import table_rows
from stt_jax.config import ModelConfig
from stt_jax.model.embedding import PLACE_WAVELENGTHS_M
from stt_jax.model.stt import ModelSizes


def step_flops(
    config: ModelConfig,
    sizes: ModelSizes,
    *,
    rows: int,
    tokens: int,
    requests: int,
    scored_items: int | None = None,
) -> int:
    """Operations of one forward and backward pass.

    Args:
      config, sizes: of the model.
      rows: in a batch.
      tokens, requests: in a row.
      scored_items: items that each request is compared with; None = the whole catalogue.
    """
    width = config.width
    square = 2 * width * width  # one dense layer, one vector
    place = 2 * 6 * len(PLACE_WAVELENGTHS_M) * width if config.use_place else 0
    gate = square if config.use_gate else 0
    block = 4 * square + gate + 4 * square  # q, k, v, out; gate; two layers to twice the width
    catalogue = table_rows(sizes.num_items)
    scored_items = catalogue if scored_items is None else min(scored_items, sizes.num_items)

    per_token = square + place + config.num_layers * block
    per_token += config.num_layers * 2 * width * tokens  # q k^T and p v, of the causal half
    per_request = place
    if config.use_decoder:
        per_token += 2 * square  # its keys and values
        per_request += block - 2 * square + 2 * width * tokens
    per_request += 2 * width * scored_items
    if config.use_pointer:
        per_token += square
        per_request += (2 if config.use_sequel else 1) * (square + width * tokens)
    forward = rows * (tokens * per_token + requests * per_request) + catalogue * place
    return 3 * forward
