"""Evidence: the words that bear the risk of a message, and those that bear each of its reasons.

Word occlusion (Zeiler & Fergus 2014): a network reads the message again without each word, and its own odds of risk and
of each sign are compared with those of the whole message.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jingyin.model.bundle import SignScale
from jingyin.model.decision import risk_logit
from jingyin.model.labels import Reason, Span
from jingyin.model.text import clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.serve.networks import NetworkReader

LEAST_RISK = 0.05
"""A message of less risk has no evidence."""

_WORDS = 256  # words that are tried, at most
_LEAST_WEIGHT = 0.1  # share of the odds that a word must bear to be shown


class Explanation(NamedTuple):
    """The words that bear the risk, and those that bear each reason of the verdict, by sign; in order of position.

    A reason that no single word bears has an empty list.
    """

    risk: list[Span]
    reasons: dict[str, list[Span]]


def explain(
    reader: NetworkReader,
    tokenizer: SmsTokenizer,
    text: str,
    signs: Mapping[str, SignScale],
    reasons: Sequence[Reason],
) -> Explanation:
    """Explain the risk of `text` and `reasons` of its verdict by a network that reads it once for each of 256 words.

    `tokenizer` is the network's; `signs` are those of its outputs, in their order.
    """
    cleaned = clean(text)
    (ids,) = tokenizer.encode([cleaned.text])
    words = tokenizer.words(cleaned)[:_WORDS]
    whole = reader.read_ids(ids)
    without = [reader.read_ids([*ids[:i], *ids[i + 1 :]]) for i in range(1, len(words) + 1)]
    slope = sum(reader.network.fusion.weights)
    odds = [float(risk_logit(each.logits)) for each in (whole, *without)]
    found = Explanation(_spans(text, words, slope, odds), {})
    places = list(signs)
    for reason in reasons:
        place = places.index(reason.sign)
        odds = [float(each.signs[place]) for each in (whole, *without)]
        found.reasons[reason.sign] = _spans(text, words, signs[reason.sign].slope, odds)
    return found


def _spans(text: str, words: Sequence[tuple[int, int]], slope: float, odds: Sequence[float]) -> list[Span]:
    """Return the words that bear enough of `odds`: log-odds, before `slope`, of the message and without each word."""
    spans = []
    for (start, end), without in zip(words, odds[1:], strict=True):
        weight = 1 - math.exp(min(0.0, slope * (without - odds[0])))
        if weight >= _LEAST_WEIGHT:
            spans.append(Span(start, end, text[start:end], round(weight, 4)))
    return spans
