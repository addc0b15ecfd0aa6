from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jingyin.model.text import clean
from jingyin.serve.archive.groups import LENGTH, VARIES, TemplatePiece, template, written

CASES = {
    "one text": (["再不还钱后果自负"], "再不还钱后果自负"),
    "names": (["王强再不还钱后果自负", "李雪梅再不还钱后果自负", "赵一再不还钱后果自负"], "‹…›再不还钱后果自负"),
    "something put in by most": (["还钱不然上门", "还钱马上不然上门", "还钱今天不然上门"], "还钱‹…›不然上门"),
    "put in by few": (["还钱不然上门", "还钱不然上门吧", "还钱不然上门", "还钱不然上门"], "还钱不然上门"),
    "at the end": (["还钱不然上门甲", "还钱不然上门乙丙", "还钱不然上门丁"], "还钱不然上门‹…›"),
    "one disguised copy of five": (["还钱不然上门"] * 4 + ["还米不然上门"], "还钱不然上门"),
    "a chance likeness in a slot": (["给王小明听着还钱", "给李小红听着还钱", "给赵小刚听着还钱"], "给‹…›听着还钱"),
    "nothing shared": (["甲乙丙", "丁戊己", "庚辛壬"], "‹…›"),
    "empty": (["", ""], ""),
}


@pytest.mark.parametrize("case", CASES)
def test_templates(case: str) -> None:
    texts, wanted = CASES[case]
    assert written(template(texts)) == wanted


def test_masks_are_slots_and_sums_stand_as_they_were_written() -> None:
    originals = [f"{name}欠1.2万，先付￥600，点http://t.cn/abc，联系13812345678" for name in ("王强", "李雪梅", "赵一")]
    pieces = template([clean(text).text for text in originals], originals[0])
    assert written(pieces) == "‹…›欠1.2万,先付￥600，点‹link›,联系‹phone›"
    assert [piece.text for piece in pieces if piece.slot] == ["‹…›", "1.2万", "￥600，", "‹link›", "‹phone›"]
    assert template([clean("付600元").text]) == [TemplatePiece("付", slot=False), TemplatePiece("‹amount›", slot=True)]


def test_a_typed_slot_is_text() -> None:
    assert template(["‹phone›还钱"]) == [TemplatePiece("‹phone›还钱", slot=False)]


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=15))
def test_any_texts_have_a_template_in_which_neither_text_nor_varying_slots_touch(texts: list[str]) -> None:
    pieces = template(texts)
    for one, two in pairwise(pieces):
        assert one.slot or two.slot
        assert not one == two == VARIES


def test_long_texts_are_cut() -> None:
    assert written(template(["啊" * 100_000, "啊" * 99_999])) == "啊" * LENGTH
