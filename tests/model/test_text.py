import re
import sys
import time
import unicodedata
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model import text as text_module
from jingyin.model.errors import InputError
from jingyin.model.fold import FOLD
from jingyin.model.masks import PLACEHOLDERS, amount_value, bucket, readable
from jingyin.model.prefilter import is_disguised
from jingyin.model.text import MAX_CHARACTERS, READ_CHARACTERS, CleanString, CleanText, clean

# Everything a message may hold, with the characters that the steps care about drawn often.
MESSAGES = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("呼死你转钱块口乎亻尔钅戋百千万一 .-_*xX×1389０①ⓐ𝐀🅰妳錢⽤\u200b\ufe0f\ue002\ud800\n，。:/@"),
    ),
    max_size=60,
)
READABLE = st.one_of(
    MESSAGES,
    st.text(
        st.sampled_from("车专贝长账手木几月友力口我扌戈土不v加q打转bao光cuitxl冇唔睇哋址点解嚟听日系而家蚊三 ．.1"),
        max_size=40,
    ),
)
"""Messages with more of what is read a second time."""


def seen(text: str) -> str:
    return readable(clean(text).text)


READ = {
    "folded and joined": [
        ("ｈｅＬＬＯ　１２", "hello 12"), ("①②Ⓐ🅱𝐂𝟗❸㈠", "12abc93(一)"), ("⽤⼾ ⺠", "用户民"),
        ("ﬁne é Ａ̶", "fine e a"), ("妳的錢還沒還，後果自負", "你的钱还没还,后果自负"),
        ("呼\u200b死\ufeff你\ufe0f\ue000", "呼死你"), ("呼.死.你", "呼死你"), ("呼 死 你", "呼死你"),
        ("快呼.死.你了", "快呼死你了"), ("涉 嫌诈骗 司 法机 关", "涉嫌诈骗司法机关"), ("口乎死亻尔", "呼死你"),
        ("亻 言用 讠正明", "信用证明"), ("水票门口支个摊", "水票门口支个摊"), ("女子户口下面", "女子户口下面"),
        ("a  b\n\tc ", "a b c"), ("аbс", "abc"), ("\ud800死\udc00", "死"), ("", ""),
    ],
    "closed, for nobody writes so": [
        ("(群)(发)(遗)(照)", "(群发遗照)"), ("群*发/遗.照-给|你", "群发遗照给你"),
        ("1.今2.晚3.到4.你5.家6.门7.口8.等9.你10.出11.来", "1.今晚到你家门口等你出来"),
        ("“今”“晚”“到”“你”，“等”“你”", "“今晚到你等你”"), ("今晚..到你..家门，..等..着..收", "今晚到你家门等着收"),
        ("【今晚】【到你】【家门】【口等】【你出】【来】", "【今晚到你家门口等你出来】"),
        ("〖今〗〖晚〗〖到〗〖你〗〖家〗", "〖今晚到你家〗"),
    ],
    "parts put together where a word says so": [
        ("扌戈你", "找你"), ("⺘戈你 ⺡欠 ⻈正 ⻌寸", "找你次证过"), ("车专贝长", "转账"),
        ("扌+戈你 车.专贝-长", "找你转账"), ("小木-目的", "小木-目的"), ("車專給我", "转给我"), ("手木几号", "手机号"),
        ("手木几石马", "手机石马"), ("扫石马力口我", "扫码加我"), ("月月友圈君羊发", "朋友圈群发"),
        ("再打氵欠", "再打次"), ("报敬言", "报警"), ("麻火页", "麻烦"), ("汽车专业", "汽车专业"),
        ("努力口才", "努力口才"), ("月月好", "月月好"), ("女子开车", "女子开车"),
    ],
    "spellings written out": [
        ("bao光你", "曝光你"), ("今晚CUI收", "今晚催收"), ("爆ＴＸＬ", "爆通讯录"), ("爆 txl 了", "爆通讯录了"),
        ("txl", "txl"), ("v我50", "转我50"), ("加v我", "加微信我"), ("加v信", "加微信"), ("转q v我", "转钱转我"),
        ("看txl.com", "看‹link›"), ("发txl@qq.com", "发‹email›"), ("zhuan钱", "zhuan钱"),
        ("我chi饭，ok吗", "我chi饭,ok吗"),
    ],
    "dialect put in Mandarin": [
        ("佢哋聽日嚟搵你", "他们明天来找你"), ("點解冇錢", "为什么没有钱"), ("唔該畀返", "麻烦给返"),
        ("得唔得", "行不行"), ("唔好报警", "别报警"), ("唔，好的", "唔,好的"), ("听日语", "听日语"),
        ("几点解决，而家里没人", "几点解决,而家里没人"), ("联系我哋", "联系我们"),
        ("三百蚊", "‹amount_round_below_1k›"), ("三蚊鱼", "三蚊鱼"),
    ],
    "masked": [
        ("电13812345678找我", "电‹phone›找我"), ("138 1234 5678", "‹phone›"), ("138-1234-5678", "‹phone›"),
        ("+86 13812345678", "‹phone›"), ("138****5678", "‹phone›"), ("1xxxxxxxxxx", "‹phone›"),
        ("拨400-820-8820", "拨‹phone›"), ("0755-26881234转8", "‹phone›转8"), ("95588", "‹phone›"),
        ("看https://t.cn/A6x?p=1，快", "看‹link›,快"), ("上 t.cn/A6x 看", "上 ‹link› 看"), ("a.b@qq.com", "‹email›"),
        ("身份证110101199001011234", "身份证‹id_card›"), ("4403**********123x", "‹id_card›"),
        ("6222021234567890123", "‹bank_card›"), ("转300块", "转‹amount_round_below_1k›"),
        ("欠1,783.52元", "欠‹amount_exact_below_10k›"), ("￥12000", "‹amount_round_below_100k›"),
        ("两百", "‹amount_round_below_1k›"), ("八万块钱", "‹amount_round_below_100k›"), ("三百人", "三百人"),
        ("万一不来", "万一不来"), ("转2000来", "转‹number_round›来"), ("验证码：482913", "验证码:‹code›"),
        ("3月15日18:00前", "‹datetime›前"), ("2024-03-15 18:00", "‹datetime›"), ("打110报警", "打110报警"),
        ("订单20240315998877", "订单‹number›"), ("欠款xxx元，王**", "欠款‹redacted›元,王‹redacted›"),
        ("一个W，6.5个w，两个半k，五W",
         "‹amount_round_below_100k›,‹amount_round_below_100k›,‹amount_round_below_10k›,‹amount_round_below_100k›"),
        ("立减5万58648888", "立减‹amount_round_below_100k›‹number›"),
        ("1000万163平，3万5", "‹amount_round_more›‹number_exact›平,‹amount_round_below_100k›"),
        ("3万5千块，1千8百", "‹amount_round_below_100k›,‹amount_round_below_10k›"),
        ("2百万，3千万元，1百万人", "‹amount_round_more›,‹amount_round_more›,1百万人"),
        ("HK$22,300及NT$3,450", "‹amount_exact_below_100k›及‹amount_exact_below_10k›"),
        ("三个k歌房连着3个wifi，五个kg，三k党", "三个k歌房连着3个wifi,五个kg,三k党"),
    ],
    "what looks like an ordinary word": [
        ("房号12345", "房号‹number›"), ("拨打12345", "拨打‹phone›"), ("拿10000来", "拿‹number›来"),
        ("详询10000", "详询‹phone›"), ("客服电话:10000", "客服电话:‹phone›"), ("转960000赎人", "转‹number›赎人"),
        ("比例1:10000", "比例1:‹number›"), ("两百刀", "‹amount_round_below_1k›"), ("20刀", "‹amount_round_below_1k›"),
        ("一块钱", "‹amount_exact_below_1k›"), ("三百五十", "‹amount_round_below_1k›"),
        ("二十万", "‹amount_round_more›"), ("看著你", "看着你"), ("等你回家呢", "等你回家"),
        ("小李口乎他", "小李呼他"),
    ],
}  # fmt: skip
"""Messages, and what is read of them, by the step concerned."""


@pytest.mark.parametrize(("raw", "wanted"), [pair for pairs in READ.values() for pair in pairs])
def test_what_is_read(raw: str, wanted: str) -> None:
    assert seen(raw) == wanted


@pytest.mark.parametrize("mark", ["--", "...", "…", "——", " . ", ")(", "】【", "》《", "*/", "x", "7", "k9"])
def test_no_mark_between_all_characters_hides_them(mark: str) -> None:
    plain = "今晚到你家门口等你"
    hidden = clean(mark.join(plain))
    assert hidden.text == plain
    assert [hidden.original[start:end] for start, end in hidden.offsets] == list(plain)


@pytest.mark.parametrize(
    "text",
    ["嗯...嗯...此", "好!行,走", "买1送1,买2送2", "a股b股h股", "【红包】【卡券】【积分】【优惠】", "3室2厅1卫1厨1阳台"],
)
def test_lists_stay_as_they_are(text: str) -> None:
    assert clean(text).text == text


def test_a_date_is_no_hidden_word() -> None:
    assert seen("至14年9月3日14时52分29秒止") == "至14年‹datetime›14时52分29秒止"


@pytest.mark.parametrize(
    ("raw", "offsets"),
    [
        ("今晚bao光你", [(0, 1), (1, 2), (2, 6), (2, 6), (6, 7)]),
        ("转q v我", [(0, 2), (0, 2), (3, 5), (3, 5)]),
        ("车专贝长", [(0, 2), (2, 4)]),
        ("冇嚟", [(0, 1), (0, 1), (1, 2)]),
    ],
)
def test_offsets_of_readings(raw: str, offsets: list[tuple[int, int]]) -> None:
    assert clean(raw).offsets == offsets


def test_readings_are_counted_by_kind() -> None:
    assert clean("车专贝长 bao光 佢哋").edits == {"reassembled": 2, "spelled": 1, "dialect": 2}


def test_a_spelling_is_a_disguise_and_a_dialect_is_none() -> None:
    assert is_disguised(clean("bao光你txl").edits)
    assert not is_disguised(clean("佢哋听日嚟").edits)


@pytest.mark.parametrize(
    ("written", "value"),
    [("1,783.52元", 1783.52), ("3.5万", 35000), ("两百块", 200), ("一千二", 1200), ("八万", 80000), ("2万8", 28000),
     ("一个w", 10000), ("十四个w", 140000), ("6.5个w", 65000), ("两个半k", 2500), ("二十k", 20000), ("三w", 30000),
     ("3万5千", 35000), ("2万3千5百元", 23500), ("3万2百", 30200), ("2百万", 2e6),
     ("十二块", 12), ("三万五", 35000), ("一百零五元", 105),
     ("一亿三千万元", 1.3e8), ("两亿零五百万", 2.05e8), ("1亿3千万元", 1.3e8), ("一万亿", 1e12), ("三千万亿元", 3e15),
     ("三万五千亿", 3.5e12), ("一亿万", 1e12), ("半千元", 500), ("半百块", 50), ("一千半", 1500), ("三万半", 35000)],
)  # fmt: skip
def test_amount_value(written: str, value: float) -> None:
    assert amount_value(written) == value


def test_a_price_and_a_debt_are_different_buckets() -> None:
    assert bucket(300) == bucket(1200 / 4) == "round_below_1k"
    assert bucket(1783.52) == "exact_below_10k"
    assert bucket(80000) == "round_below_100k"


def test_hits_count_what_was_undone() -> None:
    edits = clean("呼.死.你 妳ａ\u200b 13812345678 两百 钅戋").edits
    assert edits == {
        "gaps": 1,
        "reassembled": 1,
        "traditional": 1,
        "disguised": 1,
        "invisible": 1,
        "phone": 1,
        "amount": 1,
    }
    assert clean("【银行】您好，请查收！").edits == {}


@pytest.mark.parametrize(
    ("raw", "shown", "characters"),
    [
        ("\u202e们你了死弄\u202c。", "弄死了你们。", 6),
        ("今晚\u202e！你死弄就\n明天见", "今晚就弄死你! 明天见", 4),
        ("\u202e你\u202d就弄\u202c死\u202c", "死就弄你", 4),
        ("\u202a你好\u202c吗", "你好吗", 0),
    ],
)  # fmt: skip
def test_text_from_right_to_left_is_read_as_phones_show_it(raw: str, shown: str, characters: int) -> None:
    cleaned = clean(raw)
    assert (cleaned.text, cleaned.edits.get("reversed", 0)) == (shown, characters)
    assert len(cleaned.offsets) == len(cleaned.text)
    assert all(0 <= start < end <= len(raw) for start, end in cleaned.offsets)


def test_offsets_of_text_from_right_to_left() -> None:
    cleaned = clean("还\u202e元0005\u202c吧")
    assert [cleaned.original[start:end] for start, end in cleaned.offsets] == ["还", "元0005", "吧"]
    deep = clean("\u202e" * 10_000 + "你死弄" + "\u202c" * 10_000)
    assert deep.text == "弄死你"  # a level within another is turned round once; Unicode allows 125


def test_a_typed_placeholder_is_no_placeholder() -> None:
    typed = "".join(PLACEHOLDERS.values())
    assert clean(f"还{typed}钱").text == "还钱"
    made = clean("转300块").text
    assert clean(made).text is made
    assert clean(str(made)).text == "转"  # the same characters, from outside


def test_refuses_bytes() -> None:
    with pytest.raises(InputError, match=r"must be str, not bytes.*sms\.decode"):
        clean(b"abc")  # type: ignore[arg-type]


def test_of_a_hundred_thousand_characters_both_ends_are_kept() -> None:
    cleaned = clean("头" + "呼 死-1" * 20_000 + "尾")
    assert len(cleaned.text) <= MAX_CHARACTERS
    assert (cleaned.text[0], cleaned.text[-1]) == ("头", "尾")
    assert cleaned.edits["cut"] == 100_002 - MAX_CHARACTERS
    assert cleaned.offsets[-1] == (100_001, 100_002)
    assert len(cleaned.offsets) == len(cleaned.text)
    assert cleaned.edits["unread"] == 100_002 - READ_CHARACTERS


@given(st.text("今天ﷺ㍿\u200b a。", min_size=1, max_size=40), st.integers(0, 1_500))
def test_pieces_cover_a_long_message_and_none_is_cut(part: str, times: int) -> None:
    cleaned = clean(part * times)
    if "cut" not in cleaned.edits:
        assert cleaned.pieces == [cleaned]
        return
    assert all("cut" not in each.edits for each in cleaned.pieces)
    read = set[int]()
    for each in cleaned.pieces:
        assert cleaned.original.startswith(each.original, each.start)
        read |= set(range(each.start, each.start + len(each.original)))
    unread = sum(len(character.translate(FOLD)) for i, character in enumerate(cleaned.original) if i not in read)
    assert 0 <= cleaned.edits.get("unread", 0) - unread <= 40  # a character that folds to many is read whole


@pytest.mark.parametrize("character", "呼口哈呢[(^:~ 乎一百万元1a@.x*#+¥/著佢冇花呗ﷺ㍿㎯呗😊?,。")
def test_no_character_over_and_over_takes_long(character: str) -> None:
    began = time.process_time()
    clean(character * 1_600)
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize(
    "text",
    ["捅你三刀", "砍你两刀", "捅你3刀", "一块吃饭", "三百五十人", "一百多人", "第二百七十四条", "65w充电器", "4k电视",
     "18k金", "娃哈哈", "钱呢", "我的钱呢?", "还花呗", "你在干嘛", "他被人拿捏", "著名", "李口乎", "十万火急"],
)  # fmt: skip
def test_ordinary_words_stay_as_they_are(text: str) -> None:
    assert clean(text) == CleanText(CleanString(text), text, {})


@given(READABLE)
def test_placeholders_come_only_from_masks(raw: str) -> None:
    cleaned = clean(raw)
    private = sum(unicodedata.category(c) in ("Co", "Cs") for c in cleaned.text)
    assert private <= sum(cleaned.edits.values())
    assert private == sum(c in PLACEHOLDERS.values() for c in cleaned.text)


@given(READABLE)
def test_cleaning_is_idempotent(raw: str) -> None:
    once = clean(raw)
    assert clean(once.text).text == once.text
    if not any(c in PLACEHOLDERS.values() for c in once.text):
        assert clean(str(once.text)).text == once.text


@given(READABLE)
def test_offsets_cover_in_order(raw: str) -> None:
    cleaned = clean(raw)
    assert len(cleaned.offsets) == len(cleaned.text)
    assert all(0 <= start < end <= len(raw) for start, end in cleaned.offsets)
    starts = [start for start, _ in cleaned.offsets]
    assert starts == sorted(starts)


@given(MESSAGES)
def test_offsets_point_at_what_became_the_character(raw: str) -> None:
    cleaned = clean(raw)
    for character, (start, end) in zip(cleaned.text, cleaned.offsets, strict=True):
        if "\u4e00" <= character <= "\u9fff":
            assert character in clean(raw[start:end]).text


@given(READABLE)
def test_clean_text_is_settled_by_every_step(raw: str) -> None:
    text = clean(raw).text
    assert isinstance(text, CleanString)
    assert text == text.lower().strip(" ")
    assert "  " not in text


@pytest.mark.exhaustive
def test_nothing_in_unicode_takes_long() -> None:
    for first in range(0, sys.maxunicode + 1, 1_600):
        text = "".join(map(chr, range(first, min(first + 1_600, sys.maxunicode + 1))))
        began = time.process_time()
        clean(text)
        assert time.process_time() - began < 0.05, hex(first)
    assert len(clean("ﷺ" * 70).text) <= 4 * 70


DIGITS_BETWEEN = st.lists(
    st.one_of(
        MESSAGES,
        st.sampled_from(("[666]", "[[微笑]666]", "666", "50%", "10个", "13812345678", "①", "０", "²", "١", "爆txl2")),
    ),
    max_size=6,
)


@given(DIGITS_BETWEEN, st.randoms(use_true_random=False))
def test_messages_that_differ_in_digits_share_work_and_nothing_else(parts, random):
    text = "".join(parts)
    other = "".join(random.choice("0123456789") if each in "0123456789" else each for each in text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_REMEMBERED_CHARACTERS", -1)
        alone = clean(text), clean(other)
    assert (clean(text), clean(other)) == alone
    clean(text).edits["phone"] = 99  # what a caller does to one message's edits is not the next one's
    assert clean(text) == alone[0]


def test_no_table_that_is_read_before_masks_holds_a_digit_but_one_face():
    for name in ("parts", "spellings", "dialect", "faces", "simplified"):
        table = files("jingyin.model").joinpath(f"tables/{name}.txt").read_text(encoding="utf-8")
        assert re.findall("[0-9]+", table) == ["666"] * (name == "faces")
