"""Structured logs: one JSON object a line on standard error, never with text of a message."""

import logging
import os
import sys
import time
from contextlib import suppress
from typing import Literal

import orjson

Level = Literal["info", "warning", "error"]


def log(event: str, *, level: Level = "info", **fields: object) -> None:
    """Write one line: time (seconds since 1970), level, event, and fields that the caller knows to hold no text.

    A line that can't be written (a full disk, a closed pipe, a lone surrogate) is lost: a log must not end what it
    tells of.
    """
    with suppress(OSError, ValueError, orjson.JSONEncodeError):
        line = orjson.dumps({"time": round(time.time(), 3), "level": level, "event": event, **fields}, default=str)
        # Past Python's buffer, which would keep what could not be written and fail with it again.
        os.write(sys.stderr.fileno(), line + b"\n")


def where(error: BaseException) -> dict[str, str]:
    """Say which error happened where. Its message stays out: it may quote what it choked on."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    at = f"{frame.tb_frame.f_code.co_qualname}:{frame.tb_lineno}" if frame else ""
    return {"error": type(error).__name__, "at": at}


class JsonHandler(logging.Handler):
    """Puts what libraries log (uvicorn, asyncio) into the same form; exceptions without their messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fault = where(record.exc_info[1]) if record.exc_info and record.exc_info[1] else {}
        level: Level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        # The template, not the filled-in line: uvicorn's templates are constant, their arguments need not be. asyncio
        # has none, and fills its lines with the repr of what failed.
        message = {} if record.name == "asyncio" else {"message": str(record.msg)}
        log("server", level=level, logger=record.name, **message, **fault)


def take_over_logging() -> None:
    """Send the logs of uvicorn and asyncio through `log`; uvicorn's access log stays off, guard.py keeps ours."""
    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [JsonHandler()]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True
