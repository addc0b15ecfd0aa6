import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus.perturb import quoted_copy

PLAIN, SLOTTED = "再不还就让你单位知道", "{name}欠{amount}，{deadline}前不还就让你单位知道"
QUOTES = ("“”", "「」", '""', "『』", "‘’", "''")


def kinds(template: str) -> dict[str, set[str]]:
    """Quote a template with 400 seeds and sort the copies by kind."""
    found: dict[str, set[str]] = {"quoted": set(), "redacted": set()}
    for seed in range(400):
        text = quoted_copy(template, Random(seed))
        if any(text.startswith(a) and text.endswith(b) for a, b in QUOTES):
            found["quoted"].add(text)
        else:
            found["redacted"].add(text)
    return found


def test_a_message_without_slots_is_quoted() -> None:
    found = kinds(PLAIN)
    assert found["redacted"] == set()
    assert found["quoted"] == {f"{a}{PLAIN}{b}" for a, b in QUOTES}


def test_slots_are_redacted_too_and_none_is_left() -> None:
    found = kinds(SLOTTED)
    assert len(found["redacted"]) > 50
    assert any(re.fullmatch("(.+)欠\\1,?，?\\1前不还就让你单位知道", text) for text in found["redacted"])
    assert not [text for texts in found.values() for text in texts if "{" in text]


def test_the_same_seed_gives_the_same_copy() -> None:
    assert quoted_copy(SLOTTED, Random(7)) == quoted_copy(SLOTTED, Random(7))


@given(st.text("甲乙丙，。", min_size=1), st.integers())
def test_the_message_itself_is_kept(text: str, seed: int) -> None:
    assert text in quoted_copy(text, Random(seed))
