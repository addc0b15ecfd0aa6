"""`jingyin known` and `jingyin cases`: call a running service over HTTP."""

import json
import os
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from jingyin.model.errors import ConfigError, JingyinError
from jingyin.model.labels import BENIGN, FLAGGED

ACTION_OF = {**dict.fromkeys(BENIGN, "pass"), **dict.fromkeys(FLAGGED, "block")}
"""Label of a campaign -> action for its wording; other_threat is outside the scope of this filter."""


class AnswerError(JingyinError):
    """A service answered with an error; `code` is the status."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def ask(url: str, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  by path
    """Return a service's JSON answer; its key is in JINGYIN_KEY.

    Raises AnswerError with the service's message, JingyinError if there is no answer.
    """
    try:
        return json.loads(ask_text(url, method, path, body))
    except ValueError:
        raise JingyinError(f"{url} gives no JSON; is jingyin running there?") from None


def ask_text(url: str, method: str, path: str, body: object = None) -> str:
    """Return a service's answer as text; raises as `ask` does."""
    headers = {"content-type": "application/json"}
    if key := os.environ.get("JINGYIN_KEY"):
        headers["authorization"] = f"Bearer {key}"
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url} is no address of a service; wanted http://HOST:PORT")
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url.rstrip("/") + path, data, headers, method=method), timeout=30) as answer:
            return str(answer.read().decode())
    except HTTPError as error:
        try:
            message = json.load(error)["error"]
        except (ValueError, KeyError, TypeError):
            message = error.reason
        raise AnswerError(f"{url} answers {error.code}: {message}", error.code) from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: no address of a host, or no JSON
        raise JingyinError(f"{url} can't be reached ({type(error).__name__}); is the service running there?") from None


def add_file(url: str, file: Path) -> Iterator[tuple[str, str]]:
    """Make the wordings of a file known (JSON lines as for POST /admin/known); yield the id and action of each.

    Raises ConfigError for a malformed line, by its number, never its content; JingyinError as `ask` does.
    """
    for number, line in enumerate(file.read_bytes().splitlines(), 1):  # those of a str end at U+2028 too
        try:
            body = json.loads(line)
            action = str(body["action"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"line {number} of {file} is no wording; wanted JSON with text and action") from None
        yield ask(url, "POST", "/admin/known", body)["id"], action


def add_campaigns(url: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Make the templates of a folder's answered campaigns known; yield the id and action of each.

    `folder` is the output of `jingyin campaigns --answers`. Raises JingyinError.
    """
    import pyarrow.compute as pc  # the extra `batch`
    import pyarrow.parquet as pq

    try:
        labels = pq.read_table(folder / "labels.parquet", columns=["campaign", "label"])
        campaigns = pq.read_table(folder / "campaigns.parquet", columns=["campaign", "template"])
    except OSError as error:
        kind = type(error).__name__
        raise ConfigError(f"{folder} holds no answers ({kind}); run jingyin campaigns --answers") from None
    answered = dict(zip(*labels.filter(pc.is_valid(labels["label"])).to_pydict().values(), strict=True))
    for campaign, template in zip(*campaigns.to_pydict().values(), strict=True):
        if action := ACTION_OF.get(answered.get(campaign, "")):
            note = f"campaign {campaign}"
            yield ask(url, "POST", "/admin/known", {"template": template, "action": action, "note": note})["id"], action
