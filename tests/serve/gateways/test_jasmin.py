"""The script under Jasmin's contract: evaluated with separate globals and locals, judged by what it leaves in them."""

from collections.abc import Iterator
from enum import Enum
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.serve.http.http_fakes import InThread

SCRIPT = Path(__file__).parents[3] / "serve/gateways/jasmin.py"
Default = Enum("Default", ["UCS2", "LATIN_1", "SMSC_DEFAULT_ALPHABET", "KS_C_5601", "JIS"])
Feature = Enum("Feature", ["UDHI_INDICATOR_SET"])
Coding = Enum("Coding", ["DATA_8BIT", "DEFAULT_ALPHABET"])
BLOCKED = (0x45, 403)


def pdu(
    payload: bytes, coding: Any, *, udhi: bool = False, following: Any = None, field: str = "short_message"
) -> SimpleNamespace:
    classes = SimpleNamespace(gsmFeatures=[Feature.UDHI_INDICATOR_SET] if udhi else [])
    made = SimpleNamespace(params={field: payload, "data_coding": coding, "esm_class": classes, "source_addr": b"1"})
    if following is not None:
        made.nextPdu = following
    return made


def both(short: str, payload: str) -> SimpleNamespace:
    made = pdu(short.encode("utf-16-be"), 8)
    made.params["message_payload"] = payload.encode("utf-16-be")
    return made


def intercept(first: Any) -> tuple[int | None, int | None]:
    given: dict[str, Any] = {"routable": SimpleNamespace(pdu=first), "extra": {}}
    given |= {"smpp_status": None, "http_status": None}
    exec(compile(SCRIPT.read_text("utf-8"), "", "exec"), {}, given)
    return given["smpp_status"], given["http_status"]


UCS2 = SimpleNamespace(scheme=None, schemeData=Default.UCS2)
THREAT = "呼死你".encode("utf-16-be")
HEADER = b"\x05\x00\x03\x07\x02"
SECOND_HALF = pdu(HEADER + b"\x02" + THREAT[3:], UCS2, udhi=True)


@pytest.fixture(scope="module")
def server() -> Iterator[InThread]:
    with InThread() as server:
        yield server


@pytest.fixture
def _jingyin(server: InThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGYIN_SECONDS", "5")
    monkeypatch.setenv("JINGYIN_URL", f"http://127.0.0.1:{server.port}")


@pytest.mark.usefixtures("_jingyin")
@pytest.mark.parametrize(
    ("first", "statuses"),
    [
        (pdu("你好".encode("utf-16-be"), 8), (None, None)),
        (pdu(THREAT, 8), BLOCKED),  # over HTTP the coding is a number
        (pdu(THREAT, UCS2), BLOCKED),  # over SMPP an object
        (pdu("呼死你".encode("gbk"), 15), BLOCKED),
        (pdu(HEADER + b"\x01" + THREAT, UCS2, udhi=True), BLOCKED),
        (pdu(HEADER + b"\x01" + THREAT[:3], UCS2, udhi=True, following=SECOND_HALF), BLOCKED),
        (pdu(THREAT[:2], 8, following=pdu(THREAT[2:], 8)), BLOCKED),
        (pdu(THREAT, 8, field="message_payload"), BLOCKED),
        (pdu(b"hello", SimpleNamespace(schemeData=Default.SMSC_DEFAULT_ALPHABET)), (None, None)),
        (pdu("今夜不弄死".encode("euc_kr"), SimpleNamespace(schemeData=Default.KS_C_5601)), BLOCKED),
        (pdu("今夜不弄死".encode("iso2022_jp"), SimpleNamespace(schemeData=Default.JIS)), BLOCKED),
        (pdu(b"", None), (None, None)),
        (pdu(b"\xff", UCS2, udhi=True), (None, None)),  # a header that says more than there is
        (pdu(b"\xff\x00\x03\x07" + THREAT, UCS2, udhi=True), BLOCKED),
        (pdu(bytes((len(THREAT) + 2, 0)) + THREAT, UCS2, udhi=True), BLOCKED),  # by one byte
        *[(pdu(THREAT, number), BLOCKED) for number in (0x18, 0x19, 0xE0)],
        (pdu(THREAT, SimpleNamespace(schemeData=0x18)), BLOCKED),
        (pdu("呼死你".encode("gbk"), 0), BLOCKED),
        (pdu("呼死你".encode("gbk"), SimpleNamespace(schemeData=SimpleNamespace(msgCoding=Coding.DATA_8BIT))), BLOCKED),
        (both("你好", "呼死你"), BLOCKED),
        (both("呼死你", "你好"), BLOCKED),
        (both("你好", "你好吗"), (None, None)),
    ],
)
def test_statuses(first: Any, statuses: tuple[int | None, int | None]) -> None:
    assert intercept(first) == statuses


@pytest.mark.parametrize("first", [pdu(THREAT, 8), None])
def test_trouble_lets_the_message_go_on(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGYIN_URL", "http://127.0.0.1:1")
    assert intercept(first) == (None, None)


def test_trouble_blocks_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGYIN_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("JINGYIN_ON_FAILURE", "block")
    assert intercept(pdu(THREAT, 8)) == BLOCKED


def test_trouble_with_one_field_does_not_undo_the_verdict_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [b'{"action":"block"}', b""]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: BytesIO(answers.pop(0)))
    assert intercept(both("呼死你", "你好")) == BLOCKED
    assert answers == []


@pytest.mark.parametrize(("failure", "statuses"), [("pass", (0x58, 503)), ("block", BLOCKED)])
def test_trouble_after_a_question_without_an_answer_in_time_refuses(
    monkeypatch: pytest.MonkeyPatch, failure: str, statuses: tuple[int, int]
) -> None:
    monkeypatch.setenv("JINGYIN_ON_FAILURE", failure)
    answers = [b'{"action":"pass","reason":"deadline","risk":0.9}', b""]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: BytesIO(answers.pop(0)))
    assert intercept(both("呼死你", "你好")) == statuses


def custom(tag: int, value: object, short: bytes = b"") -> SimpleNamespace:
    made = pdu(short, 8)
    made.custom_tlvs = [(tag, None, "OctetString", value)]
    return made


@pytest.mark.usefixtures("_jingyin")
@pytest.mark.parametrize(
    ("first", "statuses"),
    [
        (custom(0x0424, THREAT), BLOCKED),
        (custom(0x0424, THREAT.hex()), BLOCKED),
        (custom(0x1403, "呼死你".encode("gbk")), BLOCKED),
        (custom(0x0424, "你好".encode("utf-16-be"), "你好".encode("utf-16-be")), BLOCKED),  # two texts
        (custom(0x0424, "你好".encode("utf-16-be")), (None, None)),
        (custom(0x3000, 5, "你好".encode("utf-16-be")), (None, None)),
        (pdu("你好".encode("utf-16-be"), 8, following=custom(0x0424, THREAT)), BLOCKED),
    ],
)
def test_parameters_of_the_clients_own_are_judged(first: Any, statuses: tuple[int | None, int | None]) -> None:
    assert intercept(first) == statuses


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("JINGYIN_UNREAD", b'{"action":"review","reason":"deadline","risk":0.7}'),
        ("JINGYIN_UNREAD", b'{"action":"pass","reason":"scored","risk":0.01,"edits":{"cut":28000,"unread":10000}}'),
        ("JINGYIN_UNREAD", b'{"action":"pass","reason":"scored","risk":0.1,"edits":{"cut":22}}'),
        ("JINGYIN_REVIEW", b'{"action":"review","reason":"scored","risk":0.7}'),
    ],
)
@pytest.mark.parametrize(("value", "statuses"), [("refuse", (0x58, 503)), ("forward", (None, None))])
def test_what_was_not_read_in_full_or_is_to_be_reviewed(
    monkeypatch: pytest.MonkeyPatch, setting: str, answer: bytes, value: str, statuses: Any
) -> None:
    monkeypatch.setenv(setting, value)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: BytesIO(answer))
    assert intercept(pdu(THREAT, 8)) == statuses


@pytest.mark.usefixtures("_jingyin")
def test_a_dry_run_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGYIN_DRY_RUN", "1")
    assert intercept(pdu(THREAT, 8)) == (None, None)
