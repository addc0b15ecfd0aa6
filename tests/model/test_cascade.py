import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike

from jingyin.model.bundle import Calibration, Fusion, Loss, Manifest, Network, Prefilter, SignScale, Stop, Threshold
from jingyin.model.cascade import (
    FLAGGED_INDEX,
    decide,
    fuse,
    fused_logit,
    reads_on,
    reasons_of,
    risk_logit,
    sign_confidence,
    softmax,
    with_risk,
)
from jingyin.model.labels import FLAGGED, LABELS, Reason

LOGITS = arrays(np.float64, (3, 5), elements=st.floats(-30, 30))
ODDS = arrays(np.float64, (3,), elements=st.floats(-30, 30))


def threshold(risk: float) -> Threshold:
    return Threshold(risk=risk, target=0.01, bound=0.01, rows=400, false_positives=0)


STOP = Stop(threshold=0, probabilities=(1, 0, 0, 0, 0))
MANIFEST = Manifest(
    format_version=8, id="", labels=LABELS, review=threshold(0.5), block=threshold(0.9),
    calibration=Calibration(ece_before=0, ece_after=0, rows=1),
    prefilter=Prefilter(ordinary=STOP, lawful=STOP),
    networks=(
        Network(file="model.onnx", vocabulary="lexicon", max_tokens=64, fusion=Fusion(scores=(0, 0), weights=(1,), bias=0)),
    ),
    discount=1.0, provisional=Fusion(scores=(0.0, 0.5), weights=(), bias=-1.0),
    passed=(0.1,), loss={"in corpus": Loss(lost=0, flagged=1, bound=1)}, provenance={}, files={},
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
