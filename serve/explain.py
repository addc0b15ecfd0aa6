"""Evidence: the words behind the risk of a message, and those behind each of its reasons.

Word occlusion (Zeiler & Fergus 2014): a network rereads the message without each word of the deciding unit, and its own
odds of risk and of each sign for this unit are compared with those before. If the words are redundant, so that none is
missed, whole clauses are left out, and finally the unit itself.
"""

import math
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import Manifest
from jingyin.model.cascade import Decision, risk_logit
from jingyin.model.labels import Span
from jingyin.model.spans import passes_of, spans_of
from jingyin.model.text import CleanText, range_of
from jingyin.model.tokenizer import END, START, SmsTokenizer
from jingyin.serve.networks import NetworkReader

LEAST_RISK = 0.05
"""A message with a lower risk has no evidence."""

_LEAST_WEIGHT = 0.1  # share of the odds that a word must contribute to be shown
_CLAUSE = re.compile("[^,。!?; ]+[,。!?; ]*|[,。!?; ]+")

Range = tuple[int, int]


class Explanation(NamedTuple):
    """Words or clauses that carry the risk, and those that carry each reason, by sign; in order of position."""

    risk: list[Span]
    reasons: dict[str, list[Span]]


def explain(
    reader: NetworkReader, tokenizer: SmsTokenizer, cleaned: CleanText, decision: Decision, manifest: Manifest
) -> Explanation:
    """Explain a decision with a network that reads the message once for each word and clause of the deciding unit.

    `tokenizer` is the network's.
    """
    first, last = unit = decision.window or (0, len(cleaned.text))
    ((ids, offsets),) = tokenizer.encode_with_offsets([cleaned.text])
    tokens = list(zip(ids, offsets, strict=True))[1:-1]
    if len(ids) > (most := reader.network.max_tokens):
        unit_span = spans_of([unit], offsets)
        nearest = next((each for each in passes_of(unit_span, len(ids), most) if len(each.units)), None)
        tokens = tokens[nearest.start - 1 : nearest.end - 1] if nearest else tokens[: most - 2]
    words = [place for _, place in tokens if place[0] < last and place[1] > first]
    clauses = [(first + a, first + b) for a, b in (m.span() for m in _CLAUSE.finditer(cleaned.text[first:last]))]
    steps = [words, clauses if len(clauses) > 1 else [], [unit]]

    def outputs(without: Range) -> NDArray[np.float64]:
        kept = [each for each in tokens if each[1][1] <= without[0] or each[1][0] >= without[1]]
        others = [START, *(token for token, _ in kept), END]
        spans = spans_of([unit], [(0, 0), *(place for _, place in kept), (0, 0)])
        return np.asarray(reader.run(others, spans)[0], np.float64)

    def span(start: int, end: int, weight: float) -> Span:
        begin, stop = range_of(cleaned.offsets, start, end)
        place = cleaned.start
        return Span(place + begin, place + stop, cleaned.original[begin:stop], round(weight, 4))

    whole = outputs((0, 0))
    outputs_without: dict[Range, NDArray[np.float64]] = {}
    width = len(manifest.labels)

    def evidence(place: int | None, slope: float) -> list[Span]:
        """Return the spans behind the log-odds of the sign `place`, or of the risk if None; `slope` multiplies them."""

        def odds(logits: NDArray[np.float64]) -> float:
            return float(risk_logit(logits[:width], manifest.flagged) if place is None else logits[width + place])

        for parts in steps:
            for part in parts:
                if part not in outputs_without:
                    outputs_without[part] = outputs(part)
            weights = [1 - math.exp(min(0.0, slope * (odds(outputs_without[part]) - odds(whole)))) for part in parts]
            if heavy := [each for each in zip(parts, weights, strict=True) if each[1] >= _LEAST_WEIGHT]:
                return [span(*part, weight) for part, weight in heavy]
        return []

    # Only model.onnx outputs signs.
    reasons = decision.reasons if reader.network.file == "model.onnx" else ()
    places = list(manifest.signs)
    return Explanation(
        evidence(None, sum(reader.network.fusion.weights)),
        {each.sign: evidence(places.index(each.sign), manifest.signs[each.sign].slope) for each in reasons},
    )
