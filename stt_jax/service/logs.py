"""Logs as one JSON object a line, of what the service did; never of whom it did it for."""

from __future__ import annotations

import json
import logging
import sys
import time


class JsonLines(logging.Formatter):
    """A record's name, level and `fields`. The text of a foreign record is left out on purpose."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        values: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
        }
        if record.name.startswith("stt_jax"):
            values |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        else:
            # Another library's message may quote a request: where it came from has to do.
            values |= {"event": "library", "logger": record.name, "line": record.lineno}
        return json.dumps(values)


def set_up() -> None:
    """Sends everything to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("stt_jax").setLevel(logging.INFO)
