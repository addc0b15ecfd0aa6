import re
from math import exp

import pytest

from jingyin import Scorer, Verdict
from jingyin.model.errors import ConfigError
from jingyin.model.labels import LABELS, Reason, Span
from jingyin.model.signs import Language
from jingyin.serve.explain import Explanation
from jingyin.serve.terminal import language_of, render

REASONS = (Reason("exposure", 0.987), Reason("deadline", 0.5))


def unstyle(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)


def verdict(*reasons: Reason) -> Verdict:
    probabilities = dict.fromkeys(LABELS, 0.0) | {"debt_threat": 1.0}
    return Verdict("debt_threat", probabilities, 1.0, "block", "network", {}, "b", reasons)


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "ZH_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_GB.UTF-8"}, "en"),
        ({"LANG": "en_GB.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LC_MESSAGES": "zh_CN", "LANG": "zh_CN"}, "en"),
        ({"LC_ALL": "zh_SG", "LC_MESSAGES": "C", "LANG": "C"}, "zh"),
        ({"LC_ALL": "", "LC_MESSAGES": "", "LANG": "zh"}, "zh"),  # POSIX: an empty one counts as unset
    ],
)
def test_the_language_is_that_of_the_locale(environment: dict[str, str], language: str) -> None:
    assert language_of(None, environment) == language


def test_a_language_that_is_asked_for_comes_first() -> None:
    assert language_of("en", {"LC_ALL": "zh_CN"}) == "en"
    assert language_of("zh", {"LC_ALL": "C"}) == "zh"
    with pytest.raises(ConfigError, match=r"^language 'fr' is unknown; known are zh, en$"):
        language_of("fr", {})


def test_reasons_in_words_below_the_message() -> None:
    first = "block  100.0%  debt_threat       还钱"
    wanted_in: dict[Language, str] = {
        "zh": "原因：告知他人 99%，限时升级 50%",
        "en": "reasons: tells others 99%, sets a deadline 50%",
    }
    for language, wanted in wanted_in.items():
        found = unstyle(render("还钱", verdict(*REASONS), None, language=language))
        assert found.splitlines() == [first, f"{'':14}{wanted}"]
    assert unstyle(render("还钱", verdict(), None, language="zh")) == first


def test_a_reason_with_the_words_that_bear_most_of_it() -> None:
    text = "告诉\x1b村里"
    spans = [Span(0, 1, "告", 0.1), Span(1, 2, "诉", 0.2), Span(2, 4, "\x1b村", 0.5), Span(4, 5, "里", 0.4)]
    found = render(text, verdict(*REASONS), Explanation([], {"exposure": spans, "deadline": []}), language="zh")
    assert found.splitlines()[1].strip() == "原因：告知他人 99% ( 村、里、诉)，限时升级 50%"


def test_the_words_that_bear_most_of_the_risk() -> None:
    spans = [Span(0, 2, "告诉", 0.1), Span(2, 4, "村里", 0.6), Span(4, 5, "人", 0.3), Span(5, 6, "钱", 0.2)]
    found = unstyle(render("告诉村里人钱", verdict(), Explanation(spans, {}), language="en"))
    assert found.splitlines()[1:] == [f"{'':14}words: 村里, 人, 钱"]


def test_a_sign_that_this_version_does_not_know_is_shown_by_its_id() -> None:
    assert render("x", verdict(Reason("new_sign", 1.0)), None, language="zh").endswith("原因：new_sign 100%")


def test_a_scored_message(signed: Scorer) -> None:
    text = "今天曝光你"
    found = render(text, signed.score(text), signed.explanation(text), language="en")
    assert found.splitlines()[2] == f"{'':14}reasons: tells others {1 / (1 + exp(-5)):.0%} (曝光)"
