"""Well-known shapes of logs by name: defaults of options, which explicit ones override."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from stt_jax.config import PrepareConfig
from stt_jax.data.files import ReadOptions
from stt_jax.data.formats import open_file

_NO_PRODUCTS = ("POST", "DOT", "M", "C2", "D", "BANK CHARGES", "S", "PADS", "AMAZONFEE")
LAYOUTS: dict[str, dict[str, Any]] = {
    # dataset_TSMC2014_NYC.txt and _TKY.txt
    "foursquare_tsmc2014": {
        "columns": (
            "user_id",
            "venue_id",
            "category_id",
            "category",
            "latitude",
            "longitude",
            "utc_offset_min",
            "time",
        ),
        "format": "csv",
        "delimiter": "tab",
        "encoding": "latin-1",
        "item": "venue_id",
        "time": "time",
        "time_format": "%a %b %d %H:%M:%S %z %Y",
        "utc_offset_column": "utc_offset_min",
        "latitude": "latitude",
        "longitude": "longitude",
        "category": "category",
    },
    # loc-gowalla_totalCheckins.txt of SNAP
    "gowalla_snap": {
        "columns": ("user_id", "time", "latitude", "longitude", "location_id"),
        "format": "csv",
        "delimiter": "tab",
        "item": "location_id",
        "time": "time",
        "latitude": "latitude",
        "longitude": "longitude",
    },
    # NYC_train.csv and the like of GETNext and STHGCN
    "getnext": {
        "item": "POI_id",
        "time": "UTC_time",
        "utc_offset_column": "timezone",
        "latitude": "latitude",
        "longitude": "longitude",
        "category": "POI_catname",
        "session": "trajectory_id",
    },
    # ratings.csv; with --items=movies.csv also titles and genres
    "movielens": {
        "user": "userId",
        "item": "movieId",
        "time": "timestamp",
        "numeric": ("rating",),
        "normalise": ("rating:zscore",),
    },
    "recbole": {"format": "recbole", "time": "timestamp"},
    "online_retail": {
        "user": "Customer ID",
        "item": "StockCode",
        "name": "Description",
        "time": "InvoiceDate",
        "timezone": "Europe/London",
        "context": ("Country",),
        "numeric": ("Price", "Quantity"),
        "transform": ("Price:log1p", "Quantity:log1p"),
        "normalise": ("Price:zscore", "Quantity:zscore"),
        "session": "Invoice",
        "drop_missing": ("Customer ID",),
        "drop_if": (
            "Customer ID=0",
            "Invoice^=C",
            "Quantity<=0",
            "Price<=0",
            *(f"StockCode={code}" for code in _NO_PRODUCTS),
            *(f"StockCode^={start}" for start in ("ADJUST", "TEST", "gift_")),
        ),
    },
    # clicks_hour_*.csv
    "globo": {
        "item": "click_article_id",
        "time": "click_timestamp",
        "timezone": "America/Sao_Paulo",
        "session": "session_id",
        "context": (
            "click_environment",
            "click_deviceGroup",
            "click_os",
            "click_country",
            "click_region",
            "click_referrer_type",
        ),
    },
    "generic": {},
}
# What generic looks for, in small letters without spaces and signs; earlier ones first.
_USUAL_NAMES = {
    "user": "userid user uid customerid customer memberid visitorid accountid personid",
    "item": "itemid item productid product poiid venueid placeid locationid movieid articleid asin "
    "stockcode sku",
    "time": "timestamp time datetime utctime unixtime eventtime checkintime createdat date",
    "latitude": "latitude lat",
    "longitude": "longitude lon lng long",
    "category": "category categoryname poicatname venuecategory genres genre class",
    "name": "name itemname title description",
    "session": "sessionid session trajectoryid orderid invoice",
}


def apply_layout(config: PrepareConfig) -> PrepareConfig:
    """The config with the options of its layout, wherever it has the default.

    Raises:
      ValueError, OSError: --layout=generic cannot read the first file.
    """
    if not config.layout:
        return config
    options = dict(LAYOUTS[config.layout])
    if config.layout == "movielens" and config.items:
        options |= {"name": "title", "category": "genres", "item_traits": ("genres",)}
    if config.layout == "generic":
        options |= _find_columns(config)
    defaults = {field.name: field.default for field in dataclasses.fields(PrepareConfig)}
    if config.utc_offset_minutes or config.zone_column or config.utc_offset_column:
        options.pop("timezone", None)
    if config.timezone or config.zone_column or config.utc_offset_minutes:
        options.pop("utc_offset_column", None)
    if config.session_gap_h:
        options.pop("session", None)
    if config.numeric or config.transform or config.normalise:
        # Whoever chooses the numbers or their scales chooses all of it.
        options.pop("transform", None)
        options.pop("normalise", None)
    chosen = {
        name: value for name, value in options.items() if getattr(config, name) == defaults[name]
    }
    return dataclasses.replace(config, layout="", **chosen)


def _find_columns(config: PrepareConfig) -> Mapping[str, str]:
    path = pathlib.Path(config.data_root) / config.input[0]
    reading = ReadOptions(config.format, config.delimiter, config.columns, config.encoding)
    names = open_file(path, reading).names
    plain = {re.sub("[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    found = {}
    for role, usual in _USUAL_NAMES.items():
        for name in usual.split():
            if name in plain:
                found[role] = plain[name]
                break
    if not ("latitude" in found and "longitude" in found):
        found = {role: name for role, name in found.items() if not role.endswith("itude")}
    return found
