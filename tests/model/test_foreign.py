"""What is foreign, and what is Chinese in foreign letters."""

import pytest

from jingyin.model.foreign import is_foreign
from jingyin.model.text import clean

ENGLISH = [
    "Your code is 482913. Do not share it with anyone.",
    "Your parcel will be delivered today between 2 and 4 pm, please have your ID ready",
    "Congratulations! You have won a free ticket, reply YES to claim, T&C apply",
    "Dear customer, your payment of 300 dollars is overdue. Please pay now or call our office",
    "ok thanks, see you there",
    "Hi love, on my way home, do we need milk?",
    "URGENT! We are trying to contact you about your account. Call now",
]
OTHERS = [
    "미확인 택배가 있습니다",
    "Ваш код подтверждения",
    "བཀྲ་ཤིས་བདེ་ལེགས་ཁྱེད་རང་གི་ཨང་གྲངས",
    "Quý khách vui lòng thanh toán",
    "رسالة جديدة لك",
]
CHINESE = [
    "bu gei qian jiu da bao ni dian hua", "ni bu huan qian, wo call your jia ren", "bgq jdb ndh",
    "pay 500 or baoguang ni de zhao pian", "【Grab】您的 code is 1234", "ㄍㄟˇㄑㄧㄢˊ", "vx abc12345", "500", "?!",
    "",
]  # fmt: skip


@pytest.mark.parametrize("text", ENGLISH + OTHERS)
def test_what_holds_no_chinese_is_foreign_and_says_so(text: str) -> None:
    assert clean(text).edits["foreign"] == 1


@pytest.mark.parametrize("text", CHINESE)
def test_pinyin_initials_and_mixed_messages_are_judged(text: str) -> None:
    assert "foreign" not in clean(text).edits


def test_long_words_take_linear_time() -> None:
    assert not is_foreign("xianxian" * 250)
