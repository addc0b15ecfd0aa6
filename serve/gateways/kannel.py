"""A filter in front of Kannel's smsbox: takes sendsms calls, asks jingyin, hands on what is not blocked. See kannel.md.

    python -m jingyin.serve.gateways.kannel --port 13014 --smsbox http://127.0.0.1:13013 --jingyin http://127.0.0.1:8080

Any trouble with jingyin (down, slow, refusing) hands the message on: a filter must not lose mail.
"""

import argparse
import json
import os
import sys
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

SCORE_SECONDS = 0.2
"""Longest wait for a verdict, unless told otherwise; jingyin's own deadline is 50 ms."""
SMSBOX_SECONDS = 30
MAX_BODY = 1 << 20


def question(query: str) -> dict[str, Any]:
    """Turn a sendsms query into a question to /v1/score.

    Kannel's defaults: text is UTF-8 for coding 0, binary for 1, UTF-16BE for 2; `charset` overrules.
    """
    # Latin-1 keeps every byte; what the bytes mean is decided below.
    fields = {name: values[-1].encode("latin-1") for name, values in parse_qs(query, encoding="latin-1").items()}
    text, coding = fields.get("text", b""), fields.get("coding", b"0")
    charset = fields.get("charset", b"").decode("latin-1").upper() or {b"1": "BINARY", b"2": "UTF-16BE"}.get(
        coding, "UTF-8"
    )
    wire = {"UTF-16BE": "ucs2", "BINARY": "latin1", "GBK": "gbk", "GB2312": "gbk"}.get(charset)
    if wire:
        udh = b64encode(fields.get("udh", b"")).decode()
        return {"payload": b64encode(text).decode(), "coding": wire, "udh": udh}
    try:
        return {"text": text.decode(charset, "replace")}
    except LookupError:  # a charset that Python doesn't know
        return {"text": text.decode("utf-8", "replace")}


class Filter(BaseHTTPRequestHandler):
    """One call of sendsms, by GET or POST."""

    protocol_version = "HTTP/1.1"
    timeout = SMSBOX_SECONDS
    jingyin: str
    smsbox: str
    key: str
    seconds: float

    def do_GET(self) -> None:
        """Handle a call with its fields in the URL."""
        self._handle(urlsplit(self.path).query, None)

    def do_POST(self) -> None:
        """Handle a call with its fields in a form."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            return self._answer(413, b"a form of at most 1 MiB with Content-Length is wanted")
        body = self.rfile.read(int(length))
        return self._handle(body.decode("latin-1"), body)

    def _handle(self, query: str, body: bytes | None) -> None:
        action, reason = self._ask(question(query))
        if action != "pass" or reason != "scored":
            self._log(action, reason)
        if action == "block":
            return self._answer(403, b"Blocked")
        request = Request(self.smsbox + self.path, body)
        try:
            with urlopen(request, timeout=SMSBOX_SECONDS) as answer:
                return self._answer(answer.status, answer.read())
        except HTTPError as error:
            return self._answer(error.code, error.read())
        except OSError:
            return self._answer(502, b"smsbox can't be reached")

    def _ask(self, body: dict[str, Any]) -> tuple[str, str]:
        """Return action and reason; pass and what failed when there is no verdict."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            with urlopen(
                Request(f"{self.jingyin}/v1/score", json.dumps(body).encode(), headers), timeout=self.seconds
            ) as answer:
                verdict = json.load(answer)
            return str(verdict["action"]), str(verdict["reason"])
        except HTTPError as error:
            return "pass", f"status {error.code}"
        except (OSError, ValueError, KeyError) as error:
            return "pass", type(error).__name__

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _log(self, action: str, reason: str) -> None:
        print(json.dumps({"event": "sendsms", "action": action, "reason": reason}), file=sys.stderr, flush=True)  # noqa: T201

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class named it
        """Stay silent: the base class logs URLs, and these hold messages."""


def make_server(
    port: int, smsbox: str, jingyin: str, *, key: str = "", seconds: float = SCORE_SECONDS
) -> ThreadingHTTPServer:
    """Return a filter on 127.0.0.1, to be run by serve_forever; it waits `seconds` for a verdict."""
    bound = {"jingyin": jingyin.rstrip("/"), "smsbox": smsbox.rstrip("/"), "key": key, "seconds": seconds}
    handler = type("BoundFilter", (Filter,), bound)
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    """Run the filter; the key, if jingyin wants one, comes from JINGYIN_KEY."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=13014)
    parser.add_argument("--smsbox", default="http://127.0.0.1:13013")
    parser.add_argument("--jingyin", default="http://127.0.0.1:8080")
    parser.add_argument("--seconds", type=float, default=SCORE_SECONDS, help="longest wait for a verdict")
    given = parser.parse_args()
    key = os.environ.get("JINGYIN_KEY", "")
    make_server(given.port, given.smsbox, given.jingyin, key=key, seconds=given.seconds).serve_forever()


if __name__ == "__main__":
    main()
