import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.fold import FOLD, fold_edits


@pytest.mark.parametrize(("raw", "wanted"), [
    ("ＡＢｃ１", "abc1"), ("①⑳㈠", "120(一)"), ("🅐🅰🇦", "aaa"), ("𝐀𝟗", "a9"), ("é́", "e"), ("妳錢還", "你钱还"),
    ("⺒⽤", "巳用"), ("аеο", "aeo"), ("\u200b\u00ad\ufe0f\ue000\ud800", ""), ("\u3000\t\n\u2800", "    "),
    ("轰\ufffd炸", "轰炸"), ("かガ한", "かガ한"), ("٣๓", "33"), ("", ""),
])  # fmt: skip
def test_folds(raw: str, wanted: str) -> None:
    assert raw.translate(FOLD) == wanted


@pytest.mark.exhaustive
@given(st.text(max_size=30))
def test_folding_again_changes_nothing(raw: str) -> None:
    once = raw.translate(FOLD)
    assert once.translate(FOLD) == once


@given(st.characters())
def test_nothing_private_or_invisible_is_left(character: str) -> None:
    folded = character.translate(FOLD)
    assert not {unicodedata.category(c) for c in folded} & {"Cc", "Cf", "Cs", "Co", "Mn", "Me"}


def test_what_is_met_is_not_kept() -> None:
    size = len(FOLD)
    assert "".join(map(chr, range(0x1D400, 0x1D500))).translate(FOLD)
    assert len(FOLD) == size


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("您好,Hello!１２", {"disguised": 2}),
        ("【银行】您好，￥600请查收！", {}),
        ("妳錢", {"traditional": 2}),
        ("呼\u200b死", {"invisible": 1}),
        ("轰\ufffd炸\ufffd", {"invisible": 2}),
        ("ⓐ妳\u200b", {"disguised": 1, "traditional": 1, "invisible": 1}),
        ("A\r\nB\tC", {}),
    ],
)
def test_edits_are_counted_by_kind(raw: str, wanted: dict[str, int]) -> None:
    assert fold_edits(raw) == wanted


@pytest.mark.exhaustive
def test_no_character_becomes_more_than_four() -> None:
    assert max(len(chr(code).translate(FOLD)) for code in range(sys.maxunicode + 1)) == 4
