import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.text import clean
from jingyin.serve.memory.senders import MOST, contacts, has_contact


@pytest.mark.parametrize(("text", "found"), [
    ("打13812345678", ["number 13812345678"]), ("打+86 138 1234 5678", ["number 13812345678"]),
    ("打１３８１２３４５６７８", ["number 13812345678"]), ("座机021-12345678", ["number 02112345678"]),
    ("热线95588", []), ("卡6222021234567890123", ["number 6222021234567890123"]), ("尾号6222****7890", []),
    ("手机138****5678", []), ("qq123456", ["number 123456"]), ("加wx1234567", ["number 1234567"]),
    ("vx888888x", ["handle vx888888x"]), ("号码12345", []), ("加wx: Abc_def-9", ["handle abc_def-9"]),
    ("微信号是laowang88", ["handle laowang88"]), ("wxid ab12345678", ["handle ab12345678"]), ("验证码123456", []),
    ("转3000元", []), ("2024年5月1日 12:30", []), ("https://a.b.evil.com/x", ["link evil.com"]),
    ("www.evil.com.cn", ["link evil.com.cn"]), ("http://user@evil.top:8080/", ["link evil.top"]),
    ("http://10.20.30.40/a", ["link 10.20.30.40"]), ("a.b@evil.com", ["email a.b@evil.com"]), ("", []),
])  # fmt: skip
def test_contacts(text: str, found: list[str]) -> None:
    assert contacts(text) == found
    assert has_contact(clean(text).text) or not found


def test_few_of_many_count() -> None:
    assert len(contacts(" ".join(f"1381234{n:04d}" for n in range(100)))) == MOST


@given(st.text())
def test_total(text: str) -> None:
    assert all(contacts(text))
    assert len(contacts(text)) <= MOST
