"""A filter in front of Kannel's smsbox: takes sendsms calls, asks jingyin, passes on calls that are not blocked.

    python -m jingyin.serve.gateways.kannel --port 13014 --smsbox http://127.0.0.1:13013 --jingyin http://127.0.0.1:8080

A query is read as Kannel 1.4.5 reads it (gw/smsbox.c, gwlib/http.c): the first parameter of a name counts, coding is
parsed as by sscanf, 64 bits cut to 32. The query passed on is rebuilt from the parsed values, with its text in the one
form that needs no charset, so that Kannel can't read another text. An ambiguous or invalid query is answered 400.
"""

import argparse
import asyncio
import re
from collections.abc import Collection
from encodings import aliases, normalize_encoding
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote
from weakref import WeakValueDictionary

from jingyin.model.errors import InputError
from jingyin.serve.gateways.accounts import Accounts
from jingyin.serve.gateways.assembly import HeldPart, Owner
from jingyin.serve.gateways.client import Http, Ruling, VerdictClient, log
from jingyin.serve.gateways.codec import MAX_ADDRESS, FrameError, Message, Parsed, message
from jingyin.serve.gateways.parts import Joiner
from jingyin.serve.gateways.program import HelpFormatter, Listener, accounts, add_options, joiner, run
from jingyin.serve.gateways.source import read_source
from jingyin.serve.sms import MAX_PAYLOAD, Segment

SMSBOX_SECONDS = 30.0
READ_SECONDS = 60.0
"""Longest wait for a complete request, also on a connection that is kept open."""
DRAIN_SECONDS = 10.0
MAX_CONNECTIONS = 1_000

RECEIVED = b"/received"
"""Path for messages from phones."""

_ESCAPE = re.compile(rb"\+|%([0-9A-Fa-f]{2})|%..|%.?\Z", re.DOTALL)
_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]{1,18})(?![0-9])")
_PATH = re.compile(rb"/[!-~]*")
_NUL = "a parameter holds a NUL, where Kannel or a phone stops reading; leave it out"
# Encodings that iconv and Python name differently; without a byte order mark Kannel assumes little-endian.
_CODECS = {
    **dict.fromkeys(("UTF-16", "UTF16", "UCS-2", "UCS2", "ISO-10646-UCS-2", "UNICODE", "CSUNICODE"), "utf-16"),
    **dict.fromkeys(("UCS-2LE", "UNICODELITTLE"), "utf-16-le"),
    **dict.fromkeys(("UCS-2BE", "UNICODEBIG"), "utf-16-be"),
    **dict.fromkeys(("GBK", "GB2312", "GB18030", "CP936", "EUC-CN"), "gb18030"),
}
_KNOWN = frozenset((*aliases.aliases, *aliases.aliases.values()))
HttpResponse = tuple[int, bytes]


class SendsmsCall(NamedTuple):
    """A sendsms call: its message, the query that sends exactly that, and the user who calls."""

    message: Message
    query: str
    account: str


def read_query(query: bytes) -> SendsmsCall:
    """Read a query. Raises InputError if Kannel might read a different message."""
    fields: dict[bytes, bytes] = {}
    for parameter in filter(None, query.split(b"&")):
        name, _, value = map(_unescape, parameter.partition(b"="))
        if b"\0" in name or (b"\0" in value and name not in (b"text", b"udh")):
            raise InputError(_NUL)
        fields.setdefault(name, value)
    udh, text = fields.get(b"udh", b""), fields.get(b"text", b"")
    if udh and len(udh) != udh[0] + 1:
        raise InputError("udh does not have the length that its first byte says")
    coding = _coding(fields.get(b"coding", b""), has_udh=bool(udh))
    if coding == 0 and b"\0" in text:
        raise InputError(_NUL)
    charset = fields.pop(b"charset", b"").decode("latin-1")
    is_sent_as_it_is = coding == 1 or (coding == 2 and not charset and (udh or len(text) % 2 == 0))
    payload = text if is_sent_as_it_is else _convert(text, charset, coding)
    if len(payload) > MAX_PAYLOAD:
        raise InputError(f"the text has {len(payload)} bytes, at most {MAX_PAYLOAD} are wanted; send several messages")
    source = fields.get(b"from", b"").decode("latin-1")
    receivers = [number.decode("latin-1") for number in fields.get(b"to", b"").split()]
    scheduled = b"deferred" in fields
    texts = [Segment(payload, udh)]
    if not (meta := _unescape(fields.get(b"meta-data", b""))).isascii():  # parameters of SMPP
        texts.append(Segment(meta))
    parsed = Parsed(texts, ("utf8", 4, 8)[coding], source, receivers or [""], scheduled=scheduled)
    fields |= {b"text": payload, b"coding": b"%d" % coding}
    quoted = (f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in fields.items())
    account = (fields.get(b"username") or fields.get(b"user", b""))[:MAX_ADDRESS]  # parts are kept with it
    return SendsmsCall(message(parsed), "&".join(quoted), account.decode("latin-1"))


def _unescape(data: bytes) -> bytes:
    def character(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes.fromhex(match[1].decode())
        return b" " if match[0] == b"+" else match[0] if len(match[0]) == 3 else b""

    return _ESCAPE.sub(character, data)


def _coding(value: bytes, *, has_udh: bool) -> int:
    if re.match(rb"[ \t\n\v\f\r]*[+-]?[0-9]{19}", value):
        raise InputError("coding has too many digits; 0, 1 or 2 is wanted")
    match = _NUMBER.match(value)
    number = (int(match[1]) + (1 << 31)) % (1 << 32) - (1 << 31) if match else -1
    if number == -1:
        return int(has_udh)
    if not 0 <= number <= 2:
        raise InputError("coding must be 0, 1 or 2")
    return number


def _convert(text: bytes, charset: str, coding: int) -> bytes:
    """Return the text in the encoding that Kannel assumes without a charset: UTF-8 for coding 0, UTF-16BE for 2."""
    codec = _CODECS.get(charset.upper(), charset) or ("utf-8" if coding == 0 else "utf-16-be")
    if codec == "utf-16" and text[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        codec = "utf-16-le"
    try:
        codec = normalize_encoding(codec).lower()
        if codec not in _KNOWN:  # Python never forgets a name that it has looked up, known or not
            raise LookupError(codec)
        read = text.decode(codec)
        return read.encode("utf-8" if coding == 0 else "utf-16-be")
    except (LookupError, ValueError):
        raise InputError(
            "the text can't be read in its charset; send UTF-8 with charset=UTF-8 and coding 0 or 2"
        ) from None


class KannelFilter:
    """Accepts applications' connections, and judges and forwards their calls."""

    def __init__(
        self, smsbox: Http, joiner: Joiner, accounts: Accounts, *, client: VerdictClient,
        paths: Collection[bytes] = (), application: Http | None = None, begins_with_source: bool = False,
    ) -> None:  # fmt: skip
        """Paths but .../sendsms and `paths` are refused: sendota, say, takes texts in parameters of its own.

        Messages from phones, at RECEIVED, go to the `application`, and never out through smsbox.
        """
        self._smsbox, self._application, self._joiner = smsbox, application, joiner
        self._accounts, self._client, self._begins_with_source = accounts, client, begins_with_source
        self._paths = frozenset(paths)
        self._users: WeakValueDictionary[str, Owner] = WeakValueDictionary()  # those with open calls or kept parts
        self._listener = Listener(MAX_CONNECTIONS)
        self._busy = 0
        self._draining = False

    async def listen(self, host: str, port: int) -> int:
        """Begin to serve and return the port. Raises ConfigError if the address is unavailable."""
        return await self._listener.listen(host, port, self._serve)

    async def drain(self) -> None:
        """Stop after answering the calls received."""
        self._listener.close()
        self._draining = True
        self._joiner.flush()
        end = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while self._busy and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        await self._listener.end()
        self._smsbox.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._begins_with_source:
                async with asyncio.timeout(READ_SECONDS):
                    await read_source(reader)
            while await self._serve_one(reader, writer) and not self._draining:
                pass
        except (OSError, FrameError, asyncio.IncompleteReadError):  # the client went away, or sent nothing for too long
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether another may follow on the connection."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                line, *headers = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        except asyncio.LimitOverrunError:
            writer.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            return False
        fields = {
            name.strip().lower(): value.strip().lower() for name, _, value in (each.partition(b":") for each in headers)
        }
        method, _, target_and_version = line.partition(b" ")
        target, _, version = target_and_version.rpartition(b" ")
        keep = version == b"HTTP/1.1" and fields.get(b"connection") != b"close" and not self._draining
        has_body = fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields
        self._busy += 1
        try:
            if method not in (b"GET", b"HEAD"):
                keep, response = False, (405, b"GET is wanted, with the parameters in the URL")
            elif version not in (b"HTTP/1.0", b"HTTP/1.1") or has_body:
                keep, response = False, (400, b"a request without a body is wanted")
            else:
                response = await self._handle(target)
            status, body = response
            phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Answer"
            writer.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s"
                % (
                    status, phrase.encode(), len(body), b"keep-alive" if keep else b"close",
                    b"" if method == b"HEAD" else body,
                )
            )  # fmt: skip
            await writer.drain()
        finally:
            self._busy -= 1
        return keep

    async def _handle(self, target: bytes) -> HttpResponse:
        path, _, query = target.partition(b"?")
        try:
            if not _PATH.fullmatch(path) or re.search(rb"[\0\t\r\n ]", query):
                raise InputError("a path that begins with / is wanted, and %XX for white space")
            received = self._application is not None and path == RECEIVED
            if not (received or path.endswith(b"/sendsms") or path in self._paths):
                self._accounts.count("", Ruling("refuse", "path"))
                return 403, b"only sendsms is passed on"
            call = read_query(query)
        except InputError as error:
            self._accounts.count("", Ruling("refuse", "unreadable"))
            return 400, str(error).encode()
        answer, part = await self._judge(call, "deliver" if received else "submit")
        self._accounts.count(call.account, answer)
        if answer.refused:
            return (403, b"Blocked") if answer.action == "block" else (503, b"Temporal failure, try again later.")
        if received and self._application:
            return await self._pass_on(self._application, f"?{call.query}", part)
        return await self._pass_on(self._smsbox, f"{path.decode()}?{call.query}", part)

    async def _judge(self, call: SendsmsCall, direction: str) -> tuple[Ruling, HeldPart | None]:
        if direction == "submit" and not self._accounts.admit(call.account, len(call.message.destinations)):
            return self._client.delay("rate"), None
        user = self._users.setdefault(f"{direction} {call.account}", Owner())
        if not call.message.part:
            return await self._joiner.judge(call.message, user), None
        part = self._joiner.add(call.message, direction, user, call.account, hold=True)
        return await part.answer, part

    async def _pass_on(self, server: Http, target: str, part: HeldPart | None) -> HttpResponse:
        """Return the answer of smsbox or of the application."""
        try:
            async with asyncio.timeout(SMSBOX_SECONDS):
                status, body = await server.request("GET", target)
        except (OSError, ValueError) as error:
            log("smsbox_fails" if server is self._smsbox else "application_fails", error=type(error).__name__)
            return 502, b"the server behind the filter can't be reached"  # though it may have sent the part
        if part and status >= 400:
            self._joiner.forget(part)
        return status, body


async def start(options: argparse.Namespace, client: VerdictClient) -> KannelFilter:
    """Listen as the options say."""
    started = KannelFilter(
        Http(options.smsbox), joiner(options, client, {}), accounts(options), client=client,
        paths=[path.encode() for path in options.path],
        application=Http(options.application) if options.application else None,
        begins_with_source=options.proxy_protocol,
    )  # fmt: skip
    await started.listen(options.host, options.port)
    return started


def main() -> None:
    """Run the filter until SIGTERM."""
    program = "python -m jingyin.serve.gateways.kannel"
    parser = argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=HelpFormatter)
    add_options(parser, 13_014)
    parser.add_argument("--smsbox", default="http://127.0.0.1:13013", help="URL of smsbox")
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        help="path of smsbox besides .../sendsms that is passed on, and judged as if it were sendsms; repeatable",
    )
    parser.add_argument("--application", help=f"URL that gets messages from phones, which come to {RECEIVED.decode()}")
    run(parser.parse_args(), start)


if __name__ == "__main__":
    main()
