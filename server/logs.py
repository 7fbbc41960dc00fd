"""The server's log on stderr, as text or as JSON lines. Imports the standard library.

A line about a model begins with "model %s:", and its first argument is the model's name. Further fields come from the
argument `extra` of the call. Nobody passes a token to a logger; tests look for them.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
from collections.abc import Mapping
from datetime import UTC, datetime

FIELDS = ("model", "worker", "version", "request")
"""What a line may say beside its message: the model, a worker id, a version, the id of a request."""

LEVELS = ("debug", "info", "warning", "error")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ABOUT_A_MODEL = "model %s:"


class JsonFormatter(logging.Formatter):
    """Writes each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a record that are known."""
    found = {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
    if "model" not in found and isinstance(record.args, tuple) and str(record.msg).startswith(_ABOUT_A_MODEL):
        found["model"] = record.args[0]
    return found


def push_fields(worker_id: str, epoch: int, sequence: int) -> Mapping[str, object]:
    """Return the fields of a push. Its id has what makes a push unique within its model."""
    return {"worker": worker_id, "request": f"{worker_id}/{epoch}/{sequence}"}


class Log:
    """The log of `numba-adam serve`. It keeps its first lines until the settings say how to write them."""

    def __init__(self) -> None:
        self._stderr = logging.StreamHandler()
        self._stderr.setFormatter(logging.Formatter(_TEXT))
        self._first = logging.handlers.MemoryHandler(1 << 20, logging.CRITICAL + 1, self._stderr)
        logging.basicConfig(level=logging.INFO, handlers=[self._first])

    def begin(self, log_format: str = "text", log_level: str = "info") -> None:
        """Write the first lines, and from now on each line at once.

        Args:
            log_format: "text" or "json".
            log_level: one of LEVELS; other packages log from "info" on.
        """
        if log_format == "json":
            self._stderr.setFormatter(JsonFormatter())
        logging.getLogger("numba_adam").setLevel(log_level.upper())
        root = logging.getLogger()
        if self._first in root.handlers:
            root.addHandler(self._stderr)
            root.removeHandler(self._first)
            self._first.close()  # flushes
