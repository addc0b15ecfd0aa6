"""Evidence of toy bundles: what each word bears is known exactly."""

from collections.abc import Callable
from copy import copy
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jingyin import Scorer, Span
from jingyin.model.labels import Reason
from jingyin.serve.networks import NetworkReader

SURE = 1 / (1 + exp(-5.0))  # a sign with one of its words: -4 + 9


def test_reasons_have_the_words_that_show_them(signed: Scorer) -> None:
    text = "今天曝光你，赎金"
    assert signed.score(text).reasons == (Reason("exposure", SURE), Reason("demand_money", SURE))
    exposure, money = Span(2, 4, "曝光", 0.9999), Span(6, 8, "赎金", 0.9999)
    assert signed.explain_reasons(text) == {"exposure": [exposure], "demand_money": [money]}


def test_a_reason_with_two_words_is_borne_by_each_and_the_surest_comes_first(signed: Scorer) -> None:
    text = "赎金，曝光到全村"
    surest, other = signed.score(text).reasons
    assert (surest.sign, other.sign) == ("exposure", "demand_money")
    assert surest.confidence == pytest.approx(1 / (1 + exp(-14.0)))
    assert [span.text for span in signed.explain_reasons(text)["exposure"]] == ["曝光", "全村"]


def test_spans_are_of_the_original_message(signed: Scorer) -> None:
    text = "曝\u200b光 一下，轰\u200b炸"
    found = signed.explain_reasons(text)
    assert {sign: [span.text for span in spans] for sign, spans in found.items()} == {
        "exposure": ["曝\u200b光"], "flooding": ["轰\u200b炸"],
    }  # fmt: skip
    assert all(text[span.start : span.end] == span.text for spans in found.values() for span in spans)


def test_both_ways_are_one_explanation(signed: Scorer) -> None:
    text = "今天曝光你，赎金"
    explanation = signed.explanation(text)
    assert signed.explain(text) == explanation.risk
    assert signed.explain_reasons(text) == explanation.reasons
    assert [span.text for span in explanation.risk] == ["曝光", "赎金"]


def test_each_word_is_taken_out_once_for_all_reasons(signed: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    run = NetworkReader.run

    def counted(reader: NetworkReader, *given: Any) -> object:
        nonlocal runs
        runs += 1
        return run(reader, *given)

    text = "曝光赎金轰炸" + "今" * 20
    signed.score(text)
    monkeypatch.setattr(NetworkReader, "run", counted)
    assert len(signed.explanation(text).reasons) == 3
    assert runs == 1 + 23


def test_evidence_comes_from_the_window_that_decided(signed: Scorer) -> None:
    text = "今" * 100 + "轰炸"  # longer than what the network reads at once
    assert [reason.sign for reason in signed.score(text).reasons] == ["flooding"]
    (span,) = signed.explain_reasons(text)["flooding"]
    assert (span.start, span.text) == (100, "轰炸")
    assert [(each.start, each.text) for each in signed.explain(text)] == [(100, "轰炸")]


def test_where_words_are_redundant_a_clause_is_evidence(signed: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    run = NetworkReader.run
    monkeypatch.setattr(NetworkReader, "run", lambda reader, *given: np.minimum(run(reader, *given), 9))
    spans = signed.explain("明天看书，曝光全村")  # either word alone says as much
    assert [span.text for span in spans] == ["曝光全村"]
    assert spans[0].weight > 0.9
    assert [span.text for span in signed.explain("单位坐牢")] == ["单位坐牢"]


@pytest.mark.parametrize("text", ["今天回家吃饭", "", "账单，征信"])
def test_what_passes_has_neither_reasons_nor_evidence(signed: Scorer, text: str) -> None:
    assert signed.score(text).reasons == ()
    assert signed.explanation(text) == ([], {})


def test_a_sign_below_its_threshold_is_no_reason(signed: Scorer) -> None:
    assert signed.score("单位").action == "block"
    assert signed.score("单位").reasons == ()
    assert [span.text for span in signed.explanation("单位").risk] == ["单位"]
    assert signed.explain_reasons("单位") == {}


def test_a_bundle_without_signs_gives_evidence_and_no_reasons(make_bundle: Callable[..., Path]) -> None:
    scorer = Scorer.load(make_bundle())
    assert scorer.score("曝光").reasons == ()
    assert scorer.explanation("曝光") == ([Span(0, 2, "曝光", scorer.explain("曝光")[0].weight)], {})


def test_signs_change_nothing_else_of_a_verdict(signed: Scorer, make_bundle: Callable[..., Path]) -> None:
    plain = Scorer.load(make_bundle())
    for text in ("今天曝光你，赎金", "回家吃饭", "账单"):
        one, other = signed.score(text).as_dict(), plain.score(text).as_dict()
        assert other["reasons"] == []
        assert one | {"bundle": "", "stage": "", "reasons": []} == other | {"bundle": "", "stage": ""}


def test_reasons_are_plain_json_types_in_a_dict(signed: Scorer) -> None:
    assert signed.score("曝光").as_dict()["reasons"] == [{"sign": "exposure", "confidence": SURE}]


def reading(scorer: Scorer, vocabulary: str, file: str = "model.onnx") -> NetworkReader:
    """Return a reader like the scorer's only one that calls itself so."""
    reader = copy(scorer._networks[0])
    reader.network = reader.network.model_copy(update={"vocabulary": vocabulary, "file": file})
    return reader


def test_networks_of_pieces_alone_give_no_evidence(signed: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed, "_networks", [reading(signed, "pieces")])
    assert signed.score("曝光").action == "block"
    assert signed.explanation("曝光") == ([], {})


@pytest.mark.parametrize(
    ("networks", "wanted"),
    [
        ([("lexicon", "tiny.onnx"), ("lexicon", "model.onnx"), ("pieces", "verifier.onnx")], "model.onnx"),
        ([("pieces", "model.onnx"), ("lexicon", "verifier.onnx")], "verifier.onnx"),
        ([("lexicon", "tiny.onnx"), ("pieces", "verifier.onnx")], "tiny.onnx"),
    ],
)
def test_evidence_comes_from_a_network_that_reads_words(
    signed: Scorer, networks: list[tuple[str, str]], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def explain(reader: NetworkReader, *rest: object) -> None:
        asked.append(reader.network.file)

    monkeypatch.setattr("jingyin.serve.scorer.explain", explain)
    signed.score("曝光")  # from now on the cache knows it
    monkeypatch.setattr(signed, "_networks", [reading(signed, *each) for each in networks])
    signed.explanation("曝光")
    assert asked == [wanted]


def test_a_network_without_signs_bears_the_risk_only(signed: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = signed.explanation("曝光")
    assert list(whole.reasons) == ["exposure"]
    monkeypatch.setattr(signed, "_networks", [reading(signed, "lexicon", "tiny.onnx")])
    assert signed.explanation("曝光") == (whole.risk, {})
