import asyncio
import encodings
import re
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.free_ports import free_ports
from tests.serve.gateways.boxes import kannel, poll
from tests.serve.gateways.dialects import udh
from tests.serve.gateways.fakes import GREETING, HALVES, THREAT, Scenario, Scoring, Test, as_test, counts, until

from jingyin.model.errors import InputError
from jingyin.serve.gateways.accounts import Accounts
from jingyin.serve.gateways.client import Http, VerdictClient
from jingyin.serve.gateways.kannel import KannelFilter, read_query
from jingyin.serve.gateways.parts import Joiner
from jingyin.serve.sms import Segment

# ---- what a query says


def sent(query: str | bytes) -> dict[str, bytes]:
    """Return the parameters of the query that is passed on."""
    made = read_query(query if isinstance(query, bytes) else query.encode()).query
    assert re.fullmatch(r"[!-~]*", made)
    return {name: values[0].encode("latin-1") for name, values in parse_qs(made, True, encoding="latin-1").items()}


@pytest.mark.parametrize(
    ("query", "coding", "text"),
    [
        ("text=a", 0, b"a"),
        ("", 0, b""),
        ("text=a&text=b&text=", 0, b"a"),
        ("text=&text=b", 0, b""),
        ("te%78t=a", 0, b"a"),
        ("Text=a", 0, b""),
        ("text=a;b&&coding=", 0, b"a;b"),
        ("text=a#b?c", 0, b"a#b?c"),
        ("text=a+b%2Bc", 0, b"a b+c"),
        ("text=%%41", 0, b"%%41"),
        ("text=%u60A8", 0, b"%u60A8"),
        ("text=abc%4", 0, b"abc"),
        ("text=abc%", 0, b"abc"),
        ("text=%zz%41", 0, b"%zzA"),
        ("text=你".encode(), 0, "你".encode()),
        ("text=O%60Y%7D&coding=2", 2, b"O`Y}"),
        *[
            (f"text=O%60&coding={coding}", 2, b"O`")
            for coding in ("%202", "%2B2", "2abc", "2.0", "%0A2", "002", "4294967298")
        ],
        ("text=a&coding=4294967295", 0, b"a"),  # -1: not given
        ("text=a&coding=x", 0, b"a"),
        ("text=a&coding=0x2", 0, b"a"),
        ("text=a&udh=%02%00%00", 1, b"a"),
        ("text=a&udh=%02%00%00&coding=0", 0, b"a"),
        ("text=%00%ff&coding=1&charset=gbk", 1, b"\0\xff"),
        (b"text=\xc4\xe3&charset=gbk&coding=2", 2, b"O`"),
        (b"text=\xc4\xe3&charset=gb2312", 0, "你".encode()),
        ("text=%60O&charset=ucs-2le&coding=2", 2, b"O`"),
        ("text=%60O&charset=utf-16&coding=2", 2, b"O`"),
        ("text=%fe%ff%4f%60&charset=UCS2&coding=2", 2, b"O`"),
        ("text=%ff%fe%60%4f&charset=unicode&coding=2", 2, b"O`"),
        ("text=%E4%BD%A0&charset=utf-8&coding=2", 2, b"O`"),
        ("text=%D8%3D&coding=2", 2, b"\xd8\x3d"),  # half of a surrogate pair, cut by the application
    ],
)  # fmt: skip
def test_the_text_and_how_it_is_passed_on(query: str | bytes, coding: int, text: bytes) -> None:
    read = read_query(query if isinstance(query, bytes) else query.encode()).message
    assert (read.coding, read.texts[0].payload) == (("utf8", 4, 8)[coding], text)
    passed = sent(query)
    assert (passed["coding"], passed["text"]) == (b"%d" % coding, text)
    assert "charset" not in passed


@pytest.mark.parametrize(
    "query",
    [
        "text%00=a", "text=a%00b", "coding%00=2&text=a", "x=%00", "text=a&coding=3", "text=a&coding=-2",
        "text=a&coding=99999999999999999999", "text=%ff", "text=%ff&charset=utf-8", "text=a&coding=2",
        "text=a&udh=%05%00", "text=a&from=" + "1" * 257, "text=a&to=2+" + "1" * 257,
        "text=%D8%3D&charset=UTF-16BE&coding=2", "charset=UTF-8&coding=2&text=" + "a" * 33_000,
        *[f"text=aaaa&charset={charset}&coding=2"
          for charset in ("UCS-4BE", "UTF-8//IGNORE", "CN-GB", "WCHAR_T", "hex", "no")],
    ],
)  # fmt: skip
def test_what_has_two_readings_or_none_is_refused(query: str) -> None:
    with pytest.raises(InputError, match=r"wanted|leave it out|must be|send|does not have"):
        read_query(query.encode())


def test_names_of_accounts_are_cut() -> None:
    assert read_query(b"text=a&username=" + b"u" * 60_000).account == "u" * 256


@pytest.mark.parametrize("charset", ["no-such-{}", "punycode", "utf-8{} "])
def test_names_of_charsets_are_not_kept(charset: str) -> None:
    before = len(encodings._cache)  # type: ignore[attr-defined]
    for i in range(3):
        with suppress(InputError):
            read_query(f"text=a&charset={charset.format('%20' * i)}".encode())
    assert len(encodings._cache) <= before + 1  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="can't be read in its charset"):
        read_query(b"text=a&charset=punycode")


def test_everything_else_is_passed_on_once() -> None:
    passed = sent("username=u&password=a%26b&from=100&to=1+2&smsc=%C3%A9&dlr-url=http://x/?a=%25p&username=other")
    assert passed == {
        "username": b"u", "password": b"a&b", "from": b"100", "to": b"1 2", "smsc": "é".encode(),
        "dlr-url": b"http://x/?a=%p", "text": b"", "coding": b"0",
    }  # fmt: skip


def test_sender_receivers_and_part() -> None:
    call = read_query(b"from=100&to=200+%2B300%0A400&text=a&udh=%05%00%03%07%02%01&username=u&deferred=60")
    read = call.message
    assert (call.account, read.scheduled) == ("u", True)
    assert (read.source, read.destinations, read.part) == ("100", ["200", "+300", "400"], (7, 2, 1))


def test_text_in_meta_data_counts_too() -> None:
    meta = quote("?smpp?note=" + quote("弄死你") + "&")
    assert read_query(f"text=a&meta-data={meta}".encode()).message.texts == [
        Segment(b"a"), Segment("?smpp?note=弄死你&".encode())
    ]  # fmt: skip
    assert read_query(b"text=a&meta-data=%3Fsmpp%3Fid%3D7").message.texts == [Segment(b"a")]


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["text", "from", "x y", "é"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    )
)
def test_what_is_passed_on_reads_the_same(fields: dict[str, str]) -> None:
    call = read_query(urlencode(fields).encode())
    assert read_query(call.query.encode()) == call


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_nothing_but_input_errors(query: bytes) -> None:
    try:
        call = read_query(query)
    except InputError:
        return
    assert read_query(call.query.encode()) == call


# ---- the filter between sockets


class Smsbox:
    """Accepts every call, hangs up if `status` is 0; `targets` holds what it was asked."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.status = 202

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.targets.append(head.split(b" ")[1].decode())
                assert head.startswith(b"GET ")
                if not self.status:
                    return
                body = b"0: Accepted for delivery"
                writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (self.status, len(body), body))


class KannelWorld:
    smsbox: Smsbox
    application: Smsbox
    scoring: Scoring
    filter: KannelFilter
    port: int

    async def send(self, request: bytes) -> bytes:
        """Send raw bytes and return all that is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    async def get(self, query: str | bytes) -> int:
        query = query if isinstance(query, bytes) else query.encode()
        answer = await self.send(b"GET /cgi-bin/sendsms?" + query + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        return int(answer.split(b" ")[1])


def play(
    scenario: Callable[[KannelWorld], Awaitable[None]],
    *,
    jingyin: int | None = None,
    hold: float = 0.05,
    rate: float = 0,
    begins_with_source: bool = False,
    smsbox: int | None = None,
    port: int = 0,
    **judging: Any,
) -> None:
    """Run a scenario; `jingyin` and `smsbox` are ports of theirs, by default of fakes."""

    async def run() -> None:
        world = KannelWorld()
        world.smsbox, world.scoring = Smsbox(), Scoring()
        scoring = await world.scoring.start()
        http = Http(f"http://127.0.0.1:{scoring if jingyin is None else jingyin}")
        client = VerdictClient(http, **{"seconds": 20, **judging})
        joiner = Joiner(client, {}, hold=hold, remember=60)
        world.application = Smsbox()
        box = await world.smsbox.start()
        world.filter = KannelFilter(
            Http(f"http://127.0.0.1:{smsbox or box}"), joiner, Accounts(rate), client=client,
            application=Http(f"http://127.0.0.1:{await world.application.start()}/inbox"),
            begins_with_source=begins_with_source,
        )  # fmt: skip
        world.port = await world.filter.listen("127.0.0.1", port)
        try:
            async with asyncio.timeout(60):
                await scenario(world)
        finally:
            await world.filter.drain()
            client.close()
            world.smsbox.server.close()
            world.application.server.close()
            await world.scoring.runner.cleanup()

    asyncio.run(run())


def played(*, given: str = "", **options: Any) -> Callable[[Scenario], Test]:
    """Make a test of a scenario, which gets the `world`; parameters named in `given` are options too."""

    def run(scenario: Scenario, fixtures: dict[str, Any]) -> None:
        play(scenario, **options, **{name: fixtures[name] for name in given.split()})

    return lambda scenario: as_test(scenario, run, "world")


def threat(coding: int) -> bytes:
    return quote(THREAT.encode("utf-16-be" if coding == 2 else "utf-8")).encode()


@played()
@pytest.mark.parametrize("coding", ["2", "%202", "+2", "2abc", "2.0", "4294967298"])
async def test_a_threat_is_blocked_however_its_coding_is_written(world: KannelWorld, coding: str) -> None:
    assert await world.get(b"text=" + threat(2) + b"&coding=" + coding.encode()) == 403
    assert await world.get(f"text={quote(GREETING.encode('utf-16-be'))}&coding={coding}") == 202
    assert world.smsbox.targets == [f"/cgi-bin/sendsms?text={quote(GREETING.encode('utf-16-be'), safe='')}&coding=2"]


@played()
@pytest.mark.parametrize(
    "query",
    [
        b"coding=2&charset=UTF-8&text%00=" + threat(0) + b"&text=hi",
        b"coding%00=2&text=" + threat(2),
        b"text=hi%00&text=" + threat(0),
        b"text=" + threat(0) + b"%00",
        b"charset=UCS-4BE&coding=2&text=" + quote(THREAT.encode("utf-32-be")).encode(),
        b"charset=UTF-8//IGNORE&coding=2&text=" + threat(0),
        b"charset=WCHAR_T&coding=2&text=" + quote(THREAT.encode("utf-32-le")).encode(),
        b"udh=%FF%70%FF" + b"%01" * 253 + b"&coding=2&charset=UTF-8&text=" + b"a" * 32_640,  # with its header too long
    ],
)
async def test_what_kannel_might_read_as_another_text_is_answered_400(world: KannelWorld, query: bytes) -> None:
    with counts({("refuse", "unreadable"): 1}):
        assert await world.get(query) == 400
    assert world.smsbox.targets == []


@played()
async def test_gbk_under_coding_1_and_a_wrong_utf_16_are_read(world: KannelWorld) -> None:
    assert await world.get(b"coding=1&text=" + quote(THREAT.encode("gbk")).encode()) == 403
    assert await world.get(b"coding=2&text=" + quote(THREAT.encode("utf-16-le")).encode()) == 403


@played()
async def test_a_damaged_header_is_read_as_text_too(world: KannelWorld) -> None:
    assert await world.get(b"coding=2&udh=%03%00%62%53&text=" + quote("你".encode("utf-16-be")).encode()) == 202
    assert [each["text"] for each in world.scoring.asked] == ["你", "\u0300打你"]


@played()
async def test_parts_that_an_application_cut_are_joined(world: KannelWorld) -> None:
    one, two = (f"from=100&to=200&coding=2&udh={quote(udh(7, 2, n))}&text={quote(HALVES[n - 1])}" for n in (1, 2))
    assert await world.get(one) == 202
    assert await world.get(two) == 403
    to_another = [world.get(each.replace("200", "201")) for each in (one, two)]
    assert await asyncio.gather(*to_another) == [403, 403]


@played(hold=0.4)
async def test_who_sends_part_after_part_is_held_up_once(world: KannelWorld) -> None:
    start = time.monotonic()
    for number in range(1, 9):
        assert await world.get(f"to=200&coding=2&udh={quote(udh(7, 9, number))}&text=%65%e9") == 202
    assert 0.4 <= time.monotonic() - start < 3  # 3.2 if each was


@played()
@pytest.mark.parametrize(("box", "first", "second"), [(403, 403, 202), (0, 502, 403)], ids=["refused", "unanswered"])
async def test_a_part_that_smsbox_may_have_taken_is_remembered(
    world: KannelWorld, box: int, first: int, second: int
) -> None:
    world.smsbox.status = box
    assert await world.get(f"to=200&coding=2&udh={quote(udh(7, 2, 1))}&text={quote(HALVES[0])}") == first
    assert len(world.smsbox.targets) == 1
    world.smsbox.status = 202
    assert await world.get(f"to=200&coding=2&udh={quote(udh(7, 2, 2))}&text={quote(HALVES[1])}") == second


@played()
async def test_messages_from_phones_go_to_the_application_and_never_out_again(world: KannelWorld) -> None:
    async def received(text: str) -> bytes:
        query = b"from=138&to=106&coding=2&udh=&text=" + quote(text.encode("utf-16-be")).encode()
        return (await world.send(b"GET /received?" + query + b" HTTP/1.1\r\nHost: x\r\n\r\n")).split(b" ")[1]

    assert (await received(THREAT), await received(GREETING)) == (b"403", b"202")
    assert world.smsbox.targets == []
    text = quote(GREETING.encode("utf-16-be"), safe="")
    assert world.application.targets == [f"/inbox?from=138&to=106&coding=2&udh=&text={text}"]


@played(rate=0.001)
async def test_an_account_has_a_rate(world: KannelWorld) -> None:
    with counts({("refuse", "rate"): 1}):
        assert [await world.get(f"username={name}&to=1&text=a") for name in "aab"] == [202, 503, 202]


@played(begins_with_source=True)
async def test_a_call_behind_a_load_balancer(world: KannelWorld) -> None:
    call = b"GET /sendsms?to=1&text=a HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert b" 202 " in await world.send(b"PROXY TCP4 192.0.2.7 192.0.2.8 5000 13014\r\n" + call)
    assert await world.send(call) == b""


@played()
async def test_sender_and_receivers_come_with_each_question(world: KannelWorld) -> None:
    query = urlencode({"from": "100", "to": "200 +86138000000000", "text": "弄"})
    assert await world.get(query) == 202
    asked = {(each["sender"], each["receiver"]) for each in world.scoring.asked}
    assert asked == {("100", "200"), ("100", "138000000000")}
    assert await world.get("from=100&to=200&text=" + quote("完")) == 403


@played(given="on_failure", jingyin=1)
@pytest.mark.parametrize(("on_failure", "status"), [("pass", 202), ("block", 403)])
async def test_without_jingyin(
    world: KannelWorld, on_failure: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await world.get(b"password=secret&text=" + threat(0)) == status
    log = capfd.readouterr().err
    assert "jingyin_fails" in log
    assert "secret" not in log
    assert "%E6" not in log


@played(dry_run=True)
async def test_a_dry_run_blocks_nothing(world: KannelWorld) -> None:
    with counts({("would_block", "scored"): 1}):
        assert await world.get(b"text=" + threat(0)) == 202


@played()
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET x HTTP/1.1", 400), (b"GET http://127.0.0.1:1/sendsms?text=a HTTP/1.1", 400), (b"GET * HTTP/1.1", 400),
        (b"GET /sendsms?text=a b HTTP/1.1", 400), (b"GET /sendsms?text=a\tb HTTP/1.1", 400),
        (b"GET /a\xff HTTP/1.1", 400),
        (b"GET /sendsms?text=a", 400), (b"secret", 405), (b"", 405), (b"GET /sendsms HTTP/0.9", 400),
        (b"POST /sendsms?text=a HTTP/1.1", 405), (b"GET /x HTTP/1.1\r\nContent-Length: 3", 400),
        (b"GET /x HTTP/1.1\r\nTransfer-Encoding: chunked", 400), (b"GET /" + b"a" * 70_000 + b" HTTP/1.1", 431),
        (b"HEAD /sendsms?text=" + threat(0) + b" HTTP/1.1", 403),
        (b"GET /cgi-bin/sendota?text=a HTTP/1.1", 403), (b"GET /cgi-bin/sendota?type=settings&text=%3C HTTP/1.1", 403),
        (b"GET /sendsms?text=" + threat(0) + b" HTTP/1.1\r\nContent-Length: 0", 403),
    ],
)  # fmt: skip
async def test_other_requests(
    world: KannelWorld, request_: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await world.send(request_ + b"\r\n\r\n")
    assert int(answer.split(b" ")[1]) == status
    assert world.smsbox.targets == []
    assert "secret" not in capfd.readouterr().err


@played()
async def test_one_connection_carries_many_calls(world: KannelWorld) -> None:
    call = b"GET /sendsms?text=%s HTTP/1.1\r\n\r\n"
    last = b"GET /sendsms?text=%s HTTP/1.0\r\n\r\n"
    answer = await world.send(call % b"a" + call % threat(0) + b"HEAD" + (call % b"b")[3:] + last % b"c" + call % b"d")
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"403", b"202", b"202"]
    assert answer.count(b"Accepted for") == 2  # the answer to HEAD has no body
    assert [each.split("text=")[1][0] for each in world.smsbox.targets] == ["a", "b", "c"]


@played()
async def test_smsbox_that_is_down(world: KannelWorld) -> None:
    world.filter._smsbox = Http("http://127.0.0.1:1")
    assert await world.get("text=a") == 502


@played()
async def test_calls_that_came_are_answered_at_the_end(world: KannelWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [asyncio.create_task(world.get("text=" + quote("慢" * 100))) for _ in range(5)]
    await until(lambda: world.filter._busy >= 5)
    idle = await asyncio.open_connection("127.0.0.1", world.port)
    await world.filter.drain()
    assert [await each for each in calls] == [202] * 5
    assert await idle[0].read() == b""
    idle[1].close()


@played()
async def test_connections_are_bounded(world: KannelWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.filter._listener, "_most", 1)
    first = await asyncio.open_connection("127.0.0.1", world.port)
    await until(lambda: world.filter._listener.tasks)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    first[1].close()


# ---- Kannel itself

_FAKE = """
smsc = fake
smsc-id = fake
port = {smsc}
connect-allow-ip = 127.0.0.1
"""
_SERVICE = """
group = sms-service
keyword = default
catch-all = true
max-messages = 0
get-url = "http://127.0.0.1:{filter}/received?from=%p&to=%P&coding=%c&udh=%u&text=%b"
"""


class Kannel:
    """The phones of a fake SMSC: `phone` sends and receives lines "from to type text"."""

    def __init__(self, phone: socket.socket) -> None:
        self.phone, self.received = phone, b""

    def delivered(self, seconds: float) -> list[tuple[bytes, bytes]]:
        """Return type and content of what phones received, up to `seconds` of silence."""
        self.phone.settimeout(seconds)
        try:
            while True:
                self.received += self.phone.recv(65_536)
        except TimeoutError:
            pass
        taken, self.received = b"\n" + self.received, b""
        fields = [line.split(b" ", 1) for line in re.split(rb"\n100 200 ", taken)[1:]]  # a text may hold line breaks
        return [(each[0], unquote_to_bytes(each[-1].replace(b"+", b" ").removesuffix(b"\n"))) for each in fields]


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return dict(zip(("admin", "smsbox", "smsc", "sendsms", "filter"), free_ports(5), strict=True))


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[Kannel]:
    if not (shutil.which("bearerbox") and shutil.which("smsbox")):
        pytest.skip("Kannel is not installed (Debian package kannel)")
    with kannel(tmp_path_factory.mktemp("kannel"), _FAKE, _SERVICE, **ports):
        phone = poll(lambda: socket.create_connection(("127.0.0.1", ports["smsc"])), "fake SMSC")
        with closing(phone):
            yield Kannel(phone)


def through_kannel(
    ports: dict[str, int], scenario: Callable[[Callable[[bytes], Awaitable[int]], Scoring], Awaitable[None]]
) -> list[str]:
    """Run a scenario with a function that sends a query to a filter in front of the boxes.

    Returns what the application received.
    """

    worlds: list[KannelWorld] = []

    async def bound(world: KannelWorld) -> None:
        worlds.append(world)
        await scenario(
            lambda query: world.get(b"username=user&password=secret&from=100&to=200&" + query), world.scoring
        )

    play(bound, smsbox=ports["sendsms"], port=ports["filter"])
    return worlds[0].application.targets


@pytest.mark.external
@pytest.mark.exhaustive
def test_kannel_sends_what_was_judged(boxes: Kannel, ports: dict[str, int]) -> None:
    """Each line was tried on Kannel alone too: what it takes for the text is what the filter judges."""
    wanted = {
        b"coding=2&text=" + quote(GREETING.encode("utf-16-be")).encode(): GREETING,
        b"coding=2&charset=UTF-8&text=" + quote(GREETING).encode(): GREETING,
        b"coding=+2abc&charset=GBK&text=" + quote(GREETING.encode("gbk")).encode(): GREETING,
        b"coding=4294967298&charset=UTF-8&text=a%41&text=" + threat(0): "aA",
        b"coding=2&charset=UTF-8&te%78t=%%41%u60A8%zz%4": "%%41%u60A8%zz",
        b"coding=2&charset=UTF-16&text=%60O": "你",
        b"coding=2&text=&text=" + threat(2): "",
    }

    async def scenario(send: Callable[[bytes], Awaitable[int]], scoring: Scoring) -> None:
        for query in wanted:
            assert await send(query) == 202, query
        assert await send(b"coding=%202&text=" + threat(2)) == 403
        assert await send(b"coding=2&text%00=" + threat(2)) == 400
        assert [each["text"] for each in scoring.asked[:-1]] == list(wanted.values())

    through_kannel(ports, scenario)
    assert [content.decode("utf-16-be") for _, content in boxes.delivered(0.7)] == list(wanted.values())


@pytest.mark.external
@pytest.mark.exhaustive
def test_a_message_from_a_phone_reaches_the_application_and_no_phone(boxes: Kannel, ports: dict[str, int]) -> None:
    async def scenario(_: object, scoring: Scoring) -> None:
        for text in (THREAT, GREETING):
            boxes.phone.sendall(f"100 200 ucs2 {quote(text.encode('utf-16-be'))}\n".encode())
        await until(lambda: len(scoring.asked) >= 2)
        await asyncio.sleep(0.3)

    (target,) = through_kannel(ports, scenario)
    assert quote(GREETING.encode("utf-16-be"), safe="") in target
    assert boxes.delivered(0.7) == []  # max-messages = 0: nor does its sender hear anything
