"""Steps that leave less to tell who it was: pseudonyms, coarse places, coarse times.

They stand after the cleaning, which needs the exact values, and before the split: whatever is
stored or estimated comes from what they leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data.arrays import texts_to_arrow, to_arrow, to_numpy
from stt_jax.data.clean import condition_column
from stt_jax.data.features import load_h3
from stt_jax.data.pseudonyms import PSEUDONYMISED, open_key, pseudonym
from stt_jax.data.schema import UNKNOWN_E7
from stt_jax.data.steps import Steps
from stt_jax.data.traits import parse_user_trait


def take_key(config: PrepareConfig) -> bytes | None:
    """The key of the pseudonyms; None: there are to be none.

    Raises:
      ValueError, OSError: as `open_key`; or another option would store what is to be hidden.
    """
    hidden = {getattr(config, role): "pseudonymise" for role in PSEUDONYMISED[config.pseudonymise]}
    if config.coarsen_cell:
        hidden |= {config.latitude: "coarsen_cell", config.longitude: "coarsen_cell"}
    if config.coarsen_time_s:
        hidden[config.time] = "coarsen_time_s"
    kept = [(name, f"--numeric={name}") for name in config.numeric]
    kept += [(name, f"--context={name}") for name in config.context]
    kept += [(name, f"--item_traits={name}") for name in config.item_traits]
    kept += [(parse_user_trait(text)[0], f"--user_traits={text}") for text in config.user_traits]
    kept += [
        (config.domain, f"--domain={config.domain}"),
        (config.name, f"--name={config.name}"),
        (config.category, f"--category={config.category}"),
    ]
    # What rows are dropped by is written into the report.
    kept += [(condition_column(text), f"--drop_if={text}") for text in config.drop_if]
    for name, flag in kept:
        if name and name in hidden:
            raise ValueError(
                f"{flag} would store values of the column {name!r}, which --{hidden[name]} is to "
                "hide; leave one of them out"
            )
    if not config.pseudonymise:
        return None
    return open_key(config.key_file, make=config.make_key, outside=config.output)


def protect(steps: Steps, config: PrepareConfig, key: bytes | None) -> None:
    """Takes `steps.table` through the steps that `config` asks for; `key` is `take_key`'s."""
    if key is not None:
        replace_ids(steps, key, PSEUDONYMISED[config.pseudonymise])
    if config.coarsen_cell:
        coarsen_places(steps, int(config.coarsen_cell))
    if config.coarsen_time_s:
        steps.run(
            f"coarse times: {config.coarsen_time_s} s",
            mark_coarse_times(steps.table, config.coarsen_time_s),
        )


def replace_ids(steps: Steps, key: bytes, roles: Sequence[str]) -> None:
    """Puts pseudonyms in the place of the text columns `roles` of `steps.table`."""
    table, changed = steps.table, {}
    for role in roles:
        column = steps.engine.fetch(table.select(role).distinct())[role]
        texts = column.to_pylist()
        made = texts_to_arrow([pseudonym(text, key, role) for text in texts])
        found = pa.table([texts_to_arrow(texts), made], names=[role, "pseudonym"])
        lookup = steps.engine.insert(f"{role}_pseudonyms", found.schema, [found])
        table = table.join(lookup, role).drop(role).rename({role: "pseudonym"})
        changed[f"{len(texts):,} {role}s have pseudonyms"] = steps.num_rows
    steps.replace(f"pseudonyms: {', '.join(roles)}", table, {}, changed)
    for role in roles:
        steps.engine.drop(f"{role}_pseudonyms")


def coarsen_places(steps: Steps, resolution: int) -> None:
    """Moves every known place to the centre of its H3 cell of a resolution 0..15."""
    h3: Any = load_h3("coarsen_cell")
    table = steps.table
    known = table.latitude_e7 != UNKNOWN_E7
    pairs = table.filter(known).select("latitude_e7", "longitude_e7").distinct()
    rows = steps.engine.fetch(pairs)
    places = np.stack([to_numpy(rows[name]) for name in rows.column_names], 1)
    centres = np.array(
        [
            h3.cell_to_latlng(h3.latlng_to_cell(latitude * 1e-7, longitude * 1e-7, resolution))
            for latitude, longitude in places.tolist()
        ]
    ).reshape(-1, 2)
    coarse = np.rint(centres * 1e7).astype(np.int32)
    found = pa.table(
        [to_arrow(column) for column in (*places.T, *coarse.T)],
        names=["latitude_e7", "longitude_e7", "coarse_latitude_e7", "coarse_longitude_e7"],
    )
    lookup = steps.engine.insert("coarse_places", found.schema, [found])
    num_known = table.filter(known).count().to_pyarrow().as_py()
    table = table.left_join(lookup, ["latitude_e7", "longitude_e7"])
    table = table.drop(*(name for name in table.columns if name.endswith("_right")))
    table = table.mutate(
        **{name: table[f"coarse_{name}"].fill_null(UNKNOWN_E7) for name in rows.column_names}
    ).drop("coarse_latitude_e7", "coarse_longitude_e7")
    reason = "moved to the centre of the cell"
    steps.replace(f"coarse places: H3 {resolution}", table, {}, {reason: num_known})
    steps.engine.drop("coarse_places")


def mark_coarse_times(table: ir.Table, grid_s: int) -> ir.Table:
    """Moves `time_s`, `time_us` back to a whole multiple of `grid_s` seconds; adds `changed`."""
    rest_s = (table.time_s % grid_s + grid_s) % grid_s  # the sign of % is that of the time
    moved = (rest_s != 0) | (table.time_us != 0)
    return table.mutate(
        time_s=table.time_s - rest_s,
        time_us=table.time_us - table.time_us,
        changed=moved.ifelse("moved back to the grid", None).cast("string"),
    )
