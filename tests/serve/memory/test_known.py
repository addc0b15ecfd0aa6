import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.memory.gateway import KEY, MemoryUser
from tests.serve.memory.test_state import Clock

from jingyin.model.errors import InputError
from jingyin.model.near_copies import hashes
from jingyin.model.text import clean
from jingyin.serve.memory.known import Index, Known, NewWording, Wording
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Local, Op

THREAT = "王强你在我公司借款3,482元已逾期7天，今晚6点前不处理将逐一通知你通讯录所有联系人及村委会"
COPY = "李小红你在我公司借款900元已逾期31天，明晚8点前不处理将逐一通知你通讯录所有联系人及村委会"
LAWFUL = "王强你在我公司借款3,482元已逾期7天，今晚6点前不处理将按合同计收罚息并上报征信，如已还请忽略"
NOTICE = "【城市供水】您本期水费128.50元，户号1234567，请于5月20日前缴纳，逾期将产生违约金。详询96116"
NOTICE_COPY = "【城市供水】您本期水费33.10元，户号7654321，请于6月20日前缴纳，逾期将产生违约金。详询96116"
SALT = Secret(KEY, encrypts=False).salt


async def judge(gateway: MemoryUser, text: str, action: str, risk: float, **more: Any) -> str:
    field = "template" if "‹" in text else "text"
    return await gateway.memory.known.add(NewWording(action=action, **{field: text}, **more), "admin", risk)


async def knowing(text: str, action: str, risk: float) -> MemoryUser:
    """Return a gateway whose analyst has judged one wording."""
    gateway = MemoryUser()
    await judge(gateway, text, action, risk)
    return gateway


def test_what_differs_within_500_characters_differs_and_what_comes_later_does_not() -> None:
    beginning, rest = "今晚六点前不处理就通知你家里人" * 4, ["明天去公园看书" * 60, "后天回学校吃饭" * 60]
    first, second = (set(hashes(beginning + each, SALT)) for each in rest)
    assert first != second
    assert hashes("好" * 500 + "坏", SALT) == hashes("好" * 500 + "了", SALT)


async def test_one_answer_settles_the_near_copies_of_a_threat() -> None:
    gateway = MemoryUser()
    number = await judge(gateway, THREAT, "block", 0.4)
    answer = await gateway.send(COPY, 0.5)
    assert (answer.action, answer.reason, answer.more["known"]) == ("block", "known", number)
    assert await gateway.reason(f"{COPY}收到请回", 0.5) == "block known"
    assert await gateway.reason(COPY.replace("通知", "通 知").replace("联系", "聯係"), 0.5) == "block known"
    assert await gateway.reason(COPY, 0.9) == "block known"
    assert await gateway.reason("周末聚餐定在老地方", 0.4) == "pass scored"


async def test_a_lawful_notice_of_the_same_words_is_none() -> None:
    gateway = await knowing(THREAT, "block", 0.97)
    assert await gateway.reason(LAWFUL, 0.02) == "pass scored"
    assert await gateway.reason(LAWFUL, 0.4) == "pass scored"  # its log-odds are far below the threat's
    assert await gateway.reason(THREAT, 0.02) == "block known"  # word for word
    assert await gateway.reason(f"有人收到“{THREAT}”吗", 0.02) == "pass scored"  # nor is who quotes it


ESTATE = "【小区物业】您家本期物业费还没有交，请在25日前到服务中心交清，否则派人上门堵锁眼"


@pytest.mark.parametrize(("change", "reason"), [
    (("25日", "28日"), "known"), (("25日", "二十八日"), "known"), (("25日", "5日"), "known"),
    (("25日", "三号"), "known"), (("锁眼", "锁眼，谢谢配合"), "known"), (("锁眼", "锁眼，谢谢您配合"), "scored"),
    (("请在", "请务必在"), "known"), (("请在", "请您务必在"), "known"), (("请在", "请您务必要在"), "scored"),
    (("【小", "收到【小"), "known"), (("【小", "有人收到【小"), "scored"),
    (("派人上门堵锁眼", "将按合同计收滞纳金"), "scored"),
])  # fmt: skip
@pytest.mark.parametrize(("action", "other"), [("block", "pass"), ("review", "pass"), ("pass", "block")])
async def test_an_analysts_word_beats_the_risk(change: tuple[str, str], reason: str, action: str, other: str) -> None:
    gateway = await knowing(ESTATE, action, 0.5)
    copy = ESTATE.replace(*change)
    assert copy != ESTATE
    if action == "pass" and "谢谢配合" in copy:  # five characters behind a notice may be a threat
        reason = "scored"
    found = await gateway.reason(copy, 0.95 if other == "block" else 0.02)
    assert found == f"{action if reason == 'known' else other} {reason}"


async def test_numerals_within_words_are_no_numbers() -> None:
    first, second = ("".join(["今晚六点", word, "通知你全家"]) for word in ("逐一", "逐二"))
    assert set(hashes(first, SALT)) != set(hashes(second, SALT))
    assert hashes("欠款三千二百元今晚8点前", SALT) == hashes("欠款1元今晚十点前", SALT)


async def test_a_part_behind_numbers_is_cut_where_it_lies() -> None:
    gateway = await knowing(THREAT, "block", 0.97)
    company = "😀二十八日上午三点聚餐定在老地方，大家记得准时，别忘了带伞12把。"
    (match,) = gateway.memory.known.index.find(clean(company + COPY + company).text)
    assert match.part == clean(COPY).text[clean(COPY).text.index("你在") :]


@pytest.mark.parametrize(
    ("word", "garbled"),
    [("处理", "触理"), ("联系人", "lxr"), ("逐一", "逐*一"), ("逐一通知", "竹以筒支"), ("逐一", "逐|一")],
)
async def test_a_garbled_copy_is_known_at_any_risk(word: str, garbled: str) -> None:
    gateway = await knowing(THREAT, "block", 0.97)
    copy = COPY.replace(word, garbled)
    assert copy != COPY
    assert await gateway.reason(COPY, 0.02) == "pass scored"
    assert await gateway.reason(copy, 0.02) == "block known"
    assert await gateway.reason(f"有人收到“{copy}”吗", 0.02) == "pass scored"


async def test_a_rare_character_stands_for_one_of_the_wording() -> None:
    gateway = await knowing("明天上门泼油漆等着瞧", "block", 0.97)
    assert await gateway.reason("明天上门泼油桼等着瞧", 0.02) == "block known"
    assert await gateway.reason("明天上门泼油彩等着瞧", 0.02) == "pass scored"  # 彩 is in GB2312
    assert await gateway.reason("明龘上门泼油桼等着桼", 0.02) == "block known"  # two triples of eight are left
    assert await gateway.reason("明天去公园看花桼等着瞧", 0.02) == "pass scored"


async def test_a_copy_with_rare_characters_may_have_15_others_around() -> None:
    gateway = await knowing(THREAT, "block", 0.97)
    around = "周末聚餐定在老地方大家记得准时"
    assert await gateway.reason(f"{around}{THREAT.replace('逐一', '逐龘')}", 0.02) == "block known"
    assert await gateway.reason(f"{around}到{THREAT.replace('逐一', '逐龘')}", 0.02) == "pass scored"
    assert await gateway.reason(f"{around}{THREAT.replace('逐一', '逐*一')}", 0.02) == "pass scored"


@pytest.mark.parametrize(
    "text",
    [
        LAWFUL.replace("上报征信", "在APP公示"),
        LAWFUL.replace("征信", "zx"),
        f"{LAWFUL}~~",
        LAWFUL.replace("公司", "公司…"),
        LAWFUL.replace("公司", "公司·~/😀"),
        LAWFUL.replace("6点前不处理", "在苏GD9WT6的车里"),
    ],
)
async def test_letters_and_marks_beside_other_words_are_not_garbling(text: str) -> None:
    gateway = await knowing(THREAT, "block", 0.97)
    assert await gateway.reason(text, 0.02) == "pass scored"


async def test_a_known_notice_that_was_garbled_does_not_pass() -> None:
    gateway = await knowing(NOTICE, "pass", 0.95)
    assert await gateway.reason(NOTICE_COPY.replace("产生违约金", "铲龘违·约巾"), 0.95) == "block scored"


async def test_company_that_lowers_the_risk_does_not_help() -> None:
    gateway = await knowing(THREAT, "block", 0.97)
    gateway.risks = {"^王强|^李小红|^你在": 0.95}
    company = "周末聚餐定在老地方，大家记得准时，别忘了带伞。"
    assert await gateway.reason(company + COPY + company, 0.05) == "block known"
    assert await gateway.reason(company, 0.05) == "pass scored"


async def test_a_lawful_notice_is_passed_and_nothing_behind_it() -> None:
    gateway = await knowing(NOTICE, "pass", 0.95)
    assert await gateway.reason(NOTICE_COPY, 0.95) == "pass known"
    for threat in ("不给两百爆你通讯录", "不交就上你家"):
        assert await gateway.reason(NOTICE_COPY + threat, 0.95) == "block scored"
        assert await gateway.reason(threat + NOTICE_COPY, 0.95) == "block scored"
    assert await gateway.reason(NOTICE_COPY.replace("产生违约金", "砸你家玻璃"), 0.95) == "block scored"


async def test_what_stands_behind_the_500th_character_is_not_explained() -> None:
    notice = "".join(chr(0x4E00 + 7 * i) for i in range(600))
    gateway = await knowing(notice[:500], "pass", 0.95)
    assert await gateway.reason(notice[:500], 0.95) == "pass known"
    assert await gateway.reason(notice[:500] + "不交就上你家", 0.95) == "block scored"


async def test_a_template_leaves_room_in_its_slots() -> None:
    gateway = await knowing("【百货】‹…›您好，您的订单‹number›已发货，预计‹datetime›送达，请保持电话畅通", "pass", 0.6)
    text = "【百货】王某您好，您的订单88123456已发货，预计5月3日送达，请保持电话畅通"
    assert await gateway.reason(text, 0.6) == "pass known"
    assert await gateway.reason(text.replace("王某", "不还钱就爆你通讯录"), 0.95) == "block scored"


async def test_the_list_has_hits_and_forgets() -> None:
    clock = Clock()
    gateway = MemoryUser(Local(clock=clock))
    known = gateway.memory.known
    first = await judge(gateway, THREAT, "block", 0.97, note="案 7", seconds=60.0)
    second = await judge(gateway, NOTICE, "pass", 0.6, seconds=120.0)
    for _ in range(3):
        await gateway.send(COPY, 0.95)
    listed = {each["id"]: each for each in await known.list()}
    assert listed[first] == {
        "id": first, "action": "block", "note": "案 7", "by": "admin", "since": 600_000_000, "until": 600_000_060,
        "hits": 3,
    }  # fmt: skip
    clock.now += 60
    assert [each["id"] for each in await known.list()] == [second]
    assert await gateway.reason(COPY, 0.4) == "pass scored"
    assert [await known.remove(number) for number in (first, second)] == [False, True]
    assert await known.list() == []


async def test_a_clock_that_was_ahead_brings_wordings_back() -> None:
    clock = Clock()
    gateway = MemoryUser(Local(clock=clock))
    await judge(gateway, THREAT, "block", 0.97, seconds=60.0)
    reasons = []
    for step in (29 * 86_400, -29 * 86_400, 31 * 86_400, -31 * 86_400):
        clock.now += step
        await gateway.memory.known.refresh()
        reasons.append(await gateway.reason(COPY, 0.96))
    assert reasons == ["block scored", "block known", "block scored", "block scored"]
    assert await gateway.state.run([Op("fields", "known")]) == [[]]


async def test_every_worker_and_machine_learns_of_it() -> None:
    here, there = MemoryUser(), MemoryUser()
    there.memory.known = Known(here.state, here.secret)
    number = await judge(here, THREAT, "block", 0.4)
    assert await there.reason(COPY, 0.4) == "pass scored"
    await there.memory.known.refresh()
    assert await there.reason(COPY, 0.5) == "block known"
    await there.memory.known.remove(number)
    await here.memory.known.refresh()
    assert await here.reason(COPY, 0.4) == "pass scored"


async def test_wordings_survive_a_restart_without_their_text(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    await judge(MemoryUser(Local(file=file)), THREAT, "block", 0.4)
    assert "\\u" not in file.read_text(encoding="ascii")
    again = MemoryUser(Local(file=file))
    await again.memory.known.refresh()
    assert await again.reason(COPY, 0.5) == "block known"
    assert await again.reason(COPY.replace("处理", "触理"), 0.02) == "block known"


async def test_wordings_of_earlier_versions_have_no_sounds() -> None:
    gateway = MemoryUser()
    content = json.dumps(["block", "", "admin", 0, 10**10, 0.4, hashes(clean(THREAT).text, gateway.secret.salt)])
    await gateway.state.run([Op("put", "known", (b"a", gateway.secret.seal(content)))])
    await gateway.memory.known.refresh()
    assert await gateway.reason(COPY, 0.5) == "block known"
    assert await gateway.reason(COPY.replace("处理", "触理"), 0.02) == "pass scored"
    assert await gateway.reason(COPY.replace("逐一", "逐*一"), 0.02) == "block known"


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "one of text and template"), ({"text": "a", "template": "b"}, "one of"), ({"text": "还钱 13812345678"}, "8")],
)
async def test_what_is_no_wording(given: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        await MemoryUser().memory.known.add(NewWording(action="block", **given), "admin", 0.5)


def test_of_equal_wordings_eight_are_looked_up_by_one_triple() -> None:
    triples = frozenset(hashes(clean(THREAT).text, SALT))
    wordings = [Wording(str(i), "block", "", "", 0, 1, 0.0, triples, frozenset()) for i in range(100)]
    index = Index(wordings, SALT)
    assert [each.share for each in index.find(clean(THREAT).text)] == [1.0] * 3


@given(st.text(max_size=700), st.text(max_size=700))
def test_a_message_holds_itself_and_what_it_is_part_of(text: str, more: str) -> None:
    cleaned = clean(text).text[:200]
    triples = frozenset(hashes(cleaned, SALT))
    if len(triples) >= 6:
        index = Index([Wording("a", "pass", "", "", 0, 1, 0.0, triples, frozenset())], SALT)
        (match,) = index.find(cleaned)
        assert (match.share, match.part, match.explains) == (1.0, cleaned, True)
        (match,) = index.find(cleaned + clean(more).text)
        assert match.share == 1.0


async def test_a_slow_index_does_not_replace_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    secret, state = Secret(KEY, encrypts=False), Local()
    ours, theirs = Known(state, secret), Known(state, secret)
    await theirs.add(NewWording(action="block", text=THREAT), "admin", 0.9)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(make: Callable[..., Index], *given: Any) -> Index:
        monkeypatch.undo()  # the next is quick
        index = make(*given)
        begun.set()
        await go_on.wait()
        return index

    monkeypatch.setattr(asyncio, "to_thread", slowly)
    refreshing = asyncio.create_task(ours.refresh())
    await begun.wait()
    await ours.add(NewWording(action="pass", text=NOTICE), "admin", 0.1)
    go_on.set()
    await refreshing
    await ours.refresh()
    assert {each.action for each in ours.index.wordings} == {"block", "pass"}
