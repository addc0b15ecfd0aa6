"""A filter in front of Kannel's smsbox: takes sendsms calls, asks jingyin, hands on what is not blocked. See kannel.md.

    python -m jingyin.serve.gateways.kannel --port 13014 --smsbox http://127.0.0.1:13013 --jingyin http://127.0.0.1:8080

Any trouble with a verdict (jingyin is down, slow, refusing or talks nonsense) hands the message on, or with
`--on-failure block` stops it: it is answered in any case. No URL is ever printed: they hold messages and passwords.
"""

import argparse
import json
import os
import re
import sys
from base64 import b64encode
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

SCORE_SECONDS = 0.2
"""Longest wait for a verdict, unless told otherwise; jingyin's own deadline is 50 ms."""
SMSBOX_SECONDS = 30
REASONS = ("scored", "burst", "conversation", "deadline", "error")
"""What jingyin gives as the reason of an action."""
MAX_BODY = 1 << 20

# Kannel converts by iconv, which has names of its own; those without a byte order mean the machine's, as UTF-16 does.
_CODINGS = {
    **dict.fromkeys(("UTF-16BE", "UTF16BE", "UCS-2BE", "UNICODEBIG"), "ucs2"),
    **dict.fromkeys(("GBK", "GB2312"), "gbk"),
    "BINARY": "latin1",
}
_CODECS = {
    **dict.fromkeys(("UCS-2", "UCS2", "ISO-10646/UCS2", "UNICODE", "CSUNICODE"), "utf-16"),
    **dict.fromkeys(("UCS-2LE", "UNICODELITTLE"), "utf-16-le"),
}
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_NOT_IN_A_URL = re.compile(rb"[^ -~]")
_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


def question(query: str) -> dict[str, Any]:
    """Turn a sendsms query into a question to /v1/score.

    Kannel's defaults: text is UTF-8 for coding 0, binary for 1, UTF-16BE for 2; `charset` overrules. Of a field that
    comes several times Kannel takes the first. Raises LookupError or ValueError for a charset that can't be read here:
    Kannel might read it, so its text must not be judged as if it were another.
    """
    # Latin-1 keeps every byte; what the bytes mean is decided below.
    given = parse_qs(query, keep_blank_values=True, encoding="latin-1")
    fields = {name: values[0].encode("latin-1") for name, values in given.items()}
    text, coding = fields.get("text", b""), fields.get("coding", b"0")
    charset = fields.get("charset", b"").decode("latin-1").upper() or {b"1": "BINARY", b"2": "UTF-16BE"}.get(
        coding, "UTF-8"
    )
    if wire := _CODINGS.get(charset):
        udh = b64encode(fields.get("udh", b"")).decode()
        return {"payload": b64encode(text).decode(), "coding": wire, "udh": udh}
    return {"text": text.decode(_CODECS.get(charset, charset), "replace")}


class Filter(BaseHTTPRequestHandler):
    """One call of sendsms, by GET or POST."""

    protocol_version = "HTTP/1.1"
    timeout = SMSBOX_SECONDS
    raw_requestline: bytes
    jingyin: SplitResult
    smsbox: SplitResult
    key: str
    seconds: float
    on_failure: str

    def parse_request(self) -> bool:
        """Escape the bytes that a URL can't hold first: the base class splits the line at some of them."""
        self.raw_requestline = _NOT_IN_A_URL.sub(_escape, self.raw_requestline.rstrip(b"\r\n")) + b"\r\n"
        return super().parse_request()

    def do_GET(self) -> None:
        """Handle a call with its fields in the URL."""
        self._handle("", None)

    def do_POST(self) -> None:
        """Handle a call with its fields in a form."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY:
            self.close_connection = True
            return self._answer(413, b"a form of at most 1 MiB with Content-Length is wanted")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return self._answer(400, b"the form ended before its Content-Length")
        return self._handle(body.decode("latin-1"), body)

    def _handle(self, form: str, body: bytes | None) -> None:
        target = _ORIGIN.sub("", self.path)  # there is one when a proxy is asked
        if not target.startswith("/"):
            return self._answer(400, b"a path that begins with / is wanted")
        query = target.partition("?")[2]  # to its end: Kannel knows no fragments
        action, reason = self._judge("&".join(filter(None, (query, form))))
        if action != "pass" or reason != "scored":
            _log(action, reason)
        if action == "block":
            return self._answer(403, b"Blocked")
        return self._answer(*self._hand_on(target, body))

    def _judge(self, query: str) -> tuple[str, str]:
        """Return action and reason; when there is no verdict the action set for that, and what failed."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            body = json.dumps(question(query)).encode()
            status, reply = _call(self.jingyin, "POST", "/v1/score", body, headers, self.seconds)
            if status != 200:
                return self.on_failure, f"status {status}"
            verdict = json.loads(reply)
            action, reason = verdict["action"], verdict["reason"]
            known = action in ("pass", "review", "block") and reason in REASONS
            return (action, reason) if known else (self.on_failure, "no verdict")
        except Exception as error:  # whatever it is, the message must not be lost with it
            return self.on_failure, type(error).__name__

    def _hand_on(self, target: str, body: bytes | None) -> tuple[int, bytes]:
        """Return the status and body of smsbox's answer."""
        headers = {} if body is None else _FORM
        try:
            return _call(self.smsbox, self.command, target, body, headers, SMSBOX_SECONDS)
        except (OSError, HTTPException, ValueError):
            return 502, b"smsbox can't be reached"

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that can't be read, without a word of it."""
        self.close_connection = True
        self._answer(code, self.responses[code][0].encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class named it
        """Stay silent: the base class logs URLs, and these hold messages."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Log the kind of an error: the base class prints tracebacks, which hold messages."""
        _log("none", type(sys.exception()).__name__)


def _escape(byte: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(byte[0])


def _call(
    base: SplitResult, method: str, target: str, body: bytes | None, headers: Mapping[str, str], seconds: float
) -> tuple[int, bytes]:
    """Return status and body of an answer; `base` gives scheme, host and path prefix.

    Raises OSError, HTTPException, ValueError.
    """
    connection = (HTTPSConnection if base.scheme == "https" else HTTPConnection)(base.netloc, timeout=seconds)
    try:
        connection.request(method, base.path + target, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _log(action: str, reason: str) -> None:
    line = json.dumps({"event": "sendsms", "action": action, "reason": reason})
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def make_server(
    port: int,
    smsbox: str,
    jingyin: str,
    *,
    host: str = "127.0.0.1",
    key: str = "",
    seconds: float = SCORE_SECONDS,
    on_failure: str = "pass",
) -> ThreadingHTTPServer:
    """Return a filter that listens on `host`, to be run by serve_forever; it waits `seconds` for a verdict.

    `on_failure`, "pass" or "block", is what becomes of a message without one.
    """
    bound = {
        "jingyin": urlsplit(jingyin.rstrip("/")),
        "smsbox": urlsplit(smsbox.rstrip("/")),
        "key": key,
        "seconds": seconds,
        "on_failure": on_failure,
    }
    handler = type("BoundFilter", (Filter,), bound)
    return _Server((host, port), handler)


def main() -> None:
    """Run the filter; the key, if jingyin wants one, comes from JINGYIN_KEY."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=13014)
    parser.add_argument("--smsbox", default="http://127.0.0.1:13013")
    parser.add_argument("--jingyin", default="http://127.0.0.1:8080")
    parser.add_argument("--seconds", type=float, default=SCORE_SECONDS, help="longest wait for a verdict")
    parser.add_argument("--on-failure", choices=("pass", "block"), default="pass", help="for a message without one")
    given = parser.parse_args()
    key = os.environ.get("JINGYIN_KEY", "")
    server = make_server(
        given.port, given.smsbox, given.jingyin,
        host=given.host, key=key, seconds=given.seconds, on_failure=given.on_failure,
    )  # fmt: skip
    server.serve_forever()


if __name__ == "__main__":
    main()
