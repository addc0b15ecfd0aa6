import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike

from jingyin.model.bundle import (
    Calibration,
    Fusion,
    Manifest,
    Missed,
    Network,
    Prefilter,
    PrefilterExit,
    SignScale,
    Threshold,
)
from jingyin.model.cascade import (
    DOUBTED,
    FLAGGED_INDEX,
    TOKENS,
    WINDOWS,
    Cascaded,
    cascade,
    decide,
    ended,
    fuse,
    fused_logit,
    prefiltered,
    provisional_odds,
    reads_on,
    reasons_of,
    risk_logit,
    sign_confidence,
    softmax,
    with_risk,
)
from jingyin.model.labels import FLAGGED, LABELS, Reason
from jingyin.model.prefilter import Units
from jingyin.model.text import CleanString

LOGITS = arrays(np.float64, (3, 5), elements=st.floats(-30, 30))
ODDS = arrays(np.float64, (3,), elements=st.floats(-30, 30))


def threshold(risk: float) -> Threshold:
    return Threshold(risk=risk, target=0.01, bound=0.01, rows=400, false_positives=0)


EXIT = PrefilterExit(threshold=0, probabilities=(1, 0, 0, 0, 0))
MANIFEST = Manifest(
    format_version=9, id="", labels=LABELS, review=threshold(0.5), block=threshold(0.9),
    calibration=Calibration(ece_before=0, ece_after=0, rows=1),
    prefilter=Prefilter(ordinary=EXIT, lawful=EXIT),
    networks=(
        Network(
            file="model.onnx", vocabulary="lexicon", max_tokens=64, fusion=Fusion(scores=(0, 0), weights=(1,), bias=0),
        ),
    ),
    discount=1.0, provisional=Fusion(scores=(0.0, 0.5), weights=(), bias=-1.0),
    passed=(0.1,), loss={"in corpus": Missed(lost=0, flagged=1, bound=1)}, provenance={}, files={},
)  # fmt: skip


def test_the_risk_is_that_of_the_flagged_labels():
    assert [LABELS[i] for i in FLAGGED_INDEX] == list(FLAGGED)
    logits = np.log([0.2, 0.1, 0.3, 0.35, 0.05])
    assert risk_logit(logits) == pytest.approx(np.log(0.65 / 0.35))


@given(LOGITS)
def test_log_odds_are_those_of_the_probabilities(logits: np.ndarray):
    risks = softmax(logits)[:, FLAGGED_INDEX].sum(1)
    np.testing.assert_allclose(1 / (1 + np.exp(-risk_logit(logits))), risks, atol=1e-9)


@given(LOGITS, ODDS)
def test_probabilities_have_the_wanted_risk_in_the_old_proportions(logits: np.ndarray, odds: np.ndarray):
    found = with_risk(logits, odds)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found[:, FLAGGED_INDEX].sum(1), 1 / (1 + np.exp(-odds)), atol=1e-12)
    first, second = FLAGGED_INDEX
    ratio = np.exp(logits[:, first] - logits[:, second])
    np.testing.assert_allclose(found[:, first], found[:, second] * ratio, rtol=1e-6, atol=1e-300)


def test_risks_beyond_what_floats_hold():
    assert with_risk(np.zeros((2, 5)), np.array([1e9, -1e9]))[:, FLAGGED_INDEX].sum(1).tolist() == pytest.approx([1, 0])


def test_what_has_been_read_adds_up():
    fusion = Fusion(scores=(0.5, 0.25), weights=(1.0, 2.0), bias=-1.0)
    logits = [np.log([[0.2, 0.1, 0.3, 0.35, 0.05]]), np.zeros((1, 5))]
    wanted = -1 + 0.5 * 4 + 0.25 * 2 + np.log(0.65 / 0.35) + 2 * np.log(2 / 3)
    assert fused_logit(fusion, [[4.0], [2.0]], logits) == pytest.approx(wanted)
    assert fuse(fusion, [[4.0], [2.0]], logits)[:, FLAGGED_INDEX].sum(1) == pytest.approx(1 / (1 + np.exp(-wanted)))


def test_labels_stand_in_the_weighted_proportions_of_the_networks():
    ordinary, lawful = np.log([[0.8, 0.1, 0.04, 0.03, 0.03]]), np.log([[0.2, 0.7, 0.04, 0.03, 0.03]])
    found = fuse(Fusion(scores=(0, 0), weights=(0.25, 0.5), bias=0), [[0.0], [0.0]], [ordinary, lawful])[0]
    assert found[0] / found[1] == pytest.approx(8**0.25 * (2 / 7) ** 0.5)


def test_a_fusion_has_a_weight_for_each_network_that_read():
    with pytest.raises(ValueError, match="zip"):
        fused_logit(Fusion(scores=(0, 0), weights=(1.0,), bias=0), [[0.0], [0.0]], [np.zeros((1, 5))] * 2)


@given(LOGITS)
def test_one_network_of_weight_1_is_fused_to_itself(logits: np.ndarray):
    found = fuse(Fusion(scores=(0, 0), weights=(1.0,), bias=0), np.zeros((2, 3)), [logits])
    np.testing.assert_allclose(found, softmax(logits), atol=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (None, None, [True, True, True]),
        (0.0, None, [False, True, True]),
        (None, 1.0, [True, True, False]),
        (0.0, 1.0, [False, True, False]),
    ],
)
def test_the_next_network_reads_what_is_not_certain(low: float | None, high: float | None, wanted: list[bool]):
    assert reads_on(low, high, np.array([-1.0, 0.0, 1.0])).tolist() == wanted


@pytest.mark.parametrize(
    ("risk", "action"),
    [(0.0, "pass"), (0.499, "pass"), (0.5, "review"), (0.899, "review"), (0.9, "block"), (1.0, "block")],
)
def test_actions_begin_at_their_thresholds(risk: float, action: str):
    decision = decide(MANIFEST, np.array([1 - risk, 0, 0, risk, 0]), "network")
    assert (decision.action, decision.risk, decision.stage) == (action, risk, "network")
    assert decision.label == ("pay_to_stop" if risk >= 0.5 and risk > 1 - risk else "ordinary")
    assert list(decision.probabilities) == list(LABELS)


def scale(threshold: float, slope: float = 1.0, bias: float = 0.0) -> SignScale:
    return SignScale(slope=slope, bias=bias, threshold=threshold, precision=0.9, found=10)


SIGNED = MANIFEST.model_copy(
    update={"signs": {"flooding": scale(0.5), "exposure": scale(0.9), "visit": scale(0.5, slope=2.0, bias=-1.0)}}
)


def test_reasons_reach_their_threshold_surest_first():
    half = np.log(3)  # of odds 3: confidence 0.75
    found = reasons_of(SIGNED, [half, half, half])
    assert [reason.sign for reason in found] == ["visit", "flooding"]
    assert [reason.confidence for reason in found] == pytest.approx([1 / (1 + np.exp(1) / 9), 0.75])
    assert reasons_of(SIGNED, [0.0, -9.0, -9.0]) == (Reason("flooding", 0.5),)
    assert [reason.sign for reason in reasons_of(SIGNED, [2.0, 2.0, 1.5])] == ["flooding", "visit"]  # equals by place


@pytest.mark.parametrize("signs", [(), np.zeros(0)])
def test_no_reasons_without_signs(signs: ArrayLike):
    assert reasons_of(SIGNED, signs) == ()
    assert reasons_of(MANIFEST, np.zeros(3)) == ()


@given(arrays(np.float64, (4,), elements=st.floats(-1e6, 1e6)))
def test_confidences_are_from_0_to_1_and_rise_with_the_logit(logits: np.ndarray):
    found = sign_confidence(scale(0.5, slope=3.0, bias=-2.0), np.sort(logits))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize(("risk", "wanted"), [(0.499, ()), (0.5, (Reason("flooding", 0.5),))])
def test_only_what_does_not_pass_has_reasons(risk: float, wanted: tuple[Reason, ...]):
    assert decide(SIGNED, np.array([1 - risk, 0, 0, risk, 0]), "network", [0.0, -9.0, -9.0]).reasons == wanted
    assert decide(SIGNED, np.array([1 - risk, 0, 0, risk, 0]), "prefilter").reasons == ()


# ---- who reads a message

ENDINGS = ("", "。", "!")
RULES = MANIFEST.model_copy(
    update={
        "endings": ENDINGS,
        "networks": tuple(
            Network(
                file=file, vocabulary="lexicon", max_tokens=64, threshold=low, certain=high,
                fusion=Fusion(scores=(0, 0), weights=(0.0,) * place + (1.0,), bias=0),
            )
            for place, (file, low, high) in enumerate(
                [("tiny.onnx", -2.0, None), ("model.onnx", -1.0, 6.0), ("verifier.onnx", None, 6.0)]
            )
        )
    }
)  # fmt: skip


class FakeReader:
    """Gives each unit log-odds of risk, the same in each network, and remembers who read what."""

    def __init__(
        self, odds: dict[int, float], tokens: dict[int, int] | None = None, ended: dict[int, float] | None = None
    ) -> None:
        self.odds = odds
        self.tokens = tokens or {}
        self.ended = odds if ended is None else ended
        self.calls: list[tuple[int, int]] = []
        self.again: list[tuple[int, int, str]] = []

    def __call__(self, network: int, unit: int, room: int, ending: str | None = None) -> tuple[np.ndarray, int] | None:
        took = self.tokens.get(unit, 10)
        if took > room:
            return None
        if ending is None:
            self.calls.append((network, unit))
        else:
            self.again.append((network, unit, ending))
        outputs = np.log([0.2, 0.1, 0.3, 0.35, 0.05])
        outputs[FLAGGED_INDEX] += (self.odds if ending is None else self.ended).get(unit, -5.0) - np.log(0.65 / 0.35)
        return np.append(outputs, unit).astype(np.float32), took


def units(scores: list[float], windows: int) -> Units:
    """Return one message of a whole and of windows, whose second scores are `scores`."""
    each = np.array(scores, np.float32)
    ranges = [(0, 100), *((i, i + 1) for i in range(windows))]
    return Units(np.array([0]), np.zeros(windows + 1, np.int64), ranges, np.stack([np.ones_like(each), each]))


def judged(reader: FakeReader, given: Units, **options: Any) -> Cascaded:
    no = np.zeros(1, np.bool_)
    continues, exits = prefiltered(RULES, given, no, no)
    return cascade(RULES, given, continues, exits, reader, **options)


def test_the_riskiest_unit_decides_and_windows_count_less():
    found = judged(FakeReader({0: 1.0, 1: 1.5, 2: 3.0}), units([1, 1, 1], 2))
    assert (found.units[0], found.odds[0], found.depth[0]) == (2, pytest.approx(2.0, abs=1e-5), 3)
    assert found.signs[0].tolist() == [2]
    found = judged(FakeReader({0: 1.0, 1: 1.5, 2: 1.9}), units([1, 1, 1], 2))
    assert (found.units[0], found.odds[0]) == (0, pytest.approx(1.0, abs=1e-5))
    assert found.probabilities[0, FLAGGED_INDEX].sum() == pytest.approx(1 / (1 + np.exp(-1)))


def test_networks_disagree_by_the_risks_that_they_give_to_the_deciding_unit():
    class Quarrel(FakeReader):
        def __call__(self, network: int, unit: int, room: int, ending: str | None = None) -> tuple[np.ndarray, int]:
            self.odds = {0: 1.0, 1: -8.0} if network else {0: -1.0, 1: -8.0}
            outputs = super().__call__(network, unit, room, ending)
            assert outputs is not None
            return outputs

    found = judged(Quarrel({}), units([1, 1], 1))
    assert found.disagreement[0] == pytest.approx(1 / (1 + np.exp(-1)) - 1 / (1 + np.exp(1)), abs=1e-6)
    assert judged(FakeReader({0: 1.0}), units([1], 0)).disagreement[0] == pytest.approx(0, abs=1e-6)


def test_the_riskiest_windows_by_the_prefilter_are_read_six_at_most():
    reader = FakeReader(dict.fromkeys(range(10), -1.5))
    judged(reader, units([1, *range(1, 10)], 9))
    assert [unit for network, unit in reader.calls if network == 0] == [0, 9, 8, 7, 6, 5, 4]
    assert WINDOWS == 6


def test_windows_that_the_prefilter_stops_are_not_read():
    reader = FakeReader({})
    judged(reader, units([1, 1, -1, -1], 3))
    assert {unit for _, unit in reader.calls} == {0, 1}


def test_a_whole_that_is_stopped_leaves_its_windows_to_the_networks():
    found = judged(FakeReader({2: 4.0}), units([-1, -1, 1], 2))
    assert (found.units[0], found.odds[0]) == (2, pytest.approx(3.0, abs=1e-5))
    found = judged(FakeReader({2: -40.0}), units([-1, -1, 1], 2))
    assert found.units[0] == 0
    assert found.probabilities[0] == pytest.approx([1, 0, 0, 0, 0], abs=1e-6)  # as the prefilter's stop says


def test_each_network_reads_what_the_one_before_is_not_certain_of():
    for odds, wanted in ((-3.0, [0]), (-1.5, [0, 1]), (0.0, [0, 1, 2]), (7.0, [0, 1])):
        reader = FakeReader({0: odds})
        judged(reader, units([1], 0))
        assert [network for network, _ in reader.calls] == wanted


def test_what_is_certain_spares_the_windows():
    reader = FakeReader({0: 7.0})
    judged(reader, units([1, 1, 1], 2))
    assert reader.calls == [(0, 0), (1, 0)]


def test_a_whole_that_does_not_fit_is_read_in_its_windows():
    reader = FakeReader({2: 4.0}, tokens={0: 10_000})
    found = judged(reader, units([1, -1, -1], 2))  # stopped by themselves
    assert {unit for _, unit in reader.calls} == {1, 2}
    assert found.units[0] == 2


def test_no_network_reads_more_tokens_of_a_message_than_it_may():
    reader = FakeReader(dict.fromkeys(range(7), 0.0), tokens=dict.fromkeys(range(7), 60))
    judged(reader, units([1] * 7, 6))
    counts = [sum(network == place for network, _ in reader.calls) for place in range(3)]
    assert counts == [7, TOKENS["model.onnx"] // 60, TOKENS["verifier.onnx"] // 60]


def test_when_time_is_up_nothing_more_is_read():
    found = judged(FakeReader({0: 4.0}), units([1], 0), until=time.monotonic())
    assert (found.depth[0], found.final[0]) == (0, False)
    assert found.odds[0] == provisional_odds(RULES, units([1], 0), 0) == pytest.approx(-0.5)
    assert judged(FakeReader({0: 4.0}), units([1], 0), until=time.monotonic() + 60).final[0]


def test_everyone_reads_every_whole_and_no_window():
    reader = FakeReader({0: -9.0})
    judged(reader, units([1, 1, 1], 2), everyone=True)
    assert reader.calls == [(0, 0), (1, 0), (2, 0)]


# ---- doubted units are read again


def test_a_doubted_unit_is_read_again_with_other_endings_and_the_mean_decides():
    reader = FakeReader({0: 0.0}, ended={0: 2.0})
    found = judged(reader, units([1], 0))
    assert reader.again == [(network, 0, ending) for ending in ENDINGS for network in range(3)]
    assert found.odds[0] == pytest.approx(2.0 * len(ENDINGS) / (1 + len(ENDINGS)), abs=1e-5)
    assert found.probabilities[0, FLAGGED_INDEX].sum() == pytest.approx(1 / (1 + np.exp(-found.odds[0])))
    assert found.signs[0].tolist() == [0]


@pytest.mark.parametrize("odds", [DOUBTED[0] - 0.1, DOUBTED[1] + 0.1, 7.0])
def test_what_is_not_doubted_is_read_once(odds: float):
    reader = FakeReader({0: odds}, ended={0: 0.0})
    found = judged(reader, units([1], 0))
    assert not reader.again
    assert found.odds[0] == pytest.approx(odds, abs=1e-5)


def test_what_the_last_network_has_not_read_is_not_read_again():
    reader = FakeReader({0: -1.5})  # stops before the verifier
    judged(reader, units([1], 0))
    assert (reader.calls, reader.again) == ([(0, 0), (1, 0)], [])


def test_the_next_riskiest_unit_is_read_again_when_the_mean_of_the_first_falls_below_it():
    reader = FakeReader({0: -9.0, 1: 2.9, 2: 2.5}, ended={1: -5.0, 2: 2.5})
    found = judged(reader, units([1, 1, 1], 2))
    assert {unit for _, unit, _ in reader.again} == {1, 2}
    assert (found.units[0], found.odds[0]) == (2, pytest.approx(1.5, abs=1e-5))
    reader = FakeReader({0: -9.0, 1: 2.9, 2: 2.5}, ended={1: 2.9, 2: -5.0})
    assert judged(reader, units([1, 1, 1], 2)).units[0] == 1
    assert {unit for _, unit, _ in reader.again} == {1}


def test_a_unit_is_read_again_while_the_message_has_room():
    reader = FakeReader({0: 0.0}, tokens={0: 50}, ended={0: 2.0})
    found = judged(reader, units([1], 0))
    assert TOKENS["verifier.onnx"] // 50 == 3
    assert [ending for network, _, ending in reader.again if network == 2] == list(ENDINGS[:2])
    assert found.odds[0] == pytest.approx(2.0 * 2 / 3, abs=1e-5)


def test_when_time_is_up_nothing_is_read_again():
    reader = FakeReader({0: 0.0}, ended={0: 2.0})
    reads = reader.__call__

    def slow(network: int, unit: int, room: int, ending: str | None = None) -> tuple[np.ndarray, int] | None:
        if network == 2:
            time.sleep(0.05)
        return reads(network, unit, room, ending)

    found = cascade(RULES, units([1], 0), np.ones(1, np.bool_), np.full(1, -1), slow, until=time.monotonic() + 0.04)
    assert (found.final[0], found.odds[0], reader.again) == (False, pytest.approx(0.0, abs=1e-5), [])


@pytest.mark.parametrize(
    ("text", "none", "exclaimed"),
    [("还", "还", "还!"), ("还。", "还", "还!"), ("还!!! ", "还", "还!"), ("还?...", "还?", "还?!"), ("。", "", "!")],
)
def test_an_ending_takes_the_place_of_the_last_marks(text: str, none: str, exclaimed: str):
    assert ended(CleanString(text), None) == text
    assert ended(CleanString(text), "") == none
    assert ended(CleanString(text), "!") == exclaimed


def test_what_is_foreign_stops_and_what_is_opaque_goes_on():
    yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
    assert prefiltered(RULES, units([1, 1], 1), no, yes)[1].tolist() == [0]
    assert prefiltered(RULES, units([-1, -1], 1), yes, no)[1].tolist() == [-1]
    assert prefiltered(RULES, units([-1, -1], 1), no, no)[1].tolist() == [1]
    assert prefiltered(RULES, units([-1, -1], 1), yes, yes)[1].tolist() == [0]


def test_six_labels_keep_the_risk_where_the_manifest_names_it():
    labels = ("spam", *LABELS)
    rules = RULES.model_copy(update={"labels": labels})
    assert rules.flagged == [3, 4]
    found = with_risk(np.zeros((1, 6)), [0.0], rules.flagged)[0]
    assert found.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 8])
    assert risk_logit(np.zeros(6), rules.flagged) == pytest.approx(np.log(2 / 4))
