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
    FLAGGED_INDEX,
    Cascaded,
    cascade,
    decide,
    fuse,
    fused_logit,
    likeliest,
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
from jingyin.model.prefilter import LONG, Units

LOGITS = arrays(np.float64, (3, 5), elements=st.floats(-30, 30))
ODDS = arrays(np.float64, (3,), elements=st.floats(-30, 30))


def threshold(risk: float) -> Threshold:
    return Threshold(risk=risk, target=0.01, bound=0.01, rows=400, false_positives=0)


EXIT = PrefilterExit(threshold=0, probabilities=(1, 0, 0, 0, 0))
MANIFEST = Manifest(
    format_version=11, id="", labels=LABELS, review=threshold(0.5), block=threshold(0.9),
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


def test_weights_choose_among_unflagged_labels_alone():
    of = {label: i for i, label in enumerate(LABELS)}
    shares = np.zeros((3, len(LABELS)))
    shares[:, of["ordinary"]], shares[:, of["other_threat"]] = (0.5, 0.3, 0.6), (0.3, 0.3, 0.1)
    shares[:, of["debt_threat"]] = (0.2, 0.4, 0.3)
    assert [LABELS[i] for i in likeliest(shares, {})] == ["ordinary", "debt_threat", "ordinary"]
    weighted = [LABELS[i] for i in likeliest(shares, {"other_threat": 2.0})]
    assert weighted == ["other_threat", "debt_threat", "ordinary"]
    assert likeliest(shares[0, ::-1], {"other_threat": 2.0}, LABELS[::-1]) == len(LABELS) - 1 - of["other_threat"]
    weighing = MANIFEST.model_copy(update={"label_weights": {"other_threat": 2.0}})
    decisions = [decide(each, shares[0], "network") for each in (MANIFEST, weighing)]
    assert [each.label for each in decisions] == ["ordinary", "other_threat"]
    assert decisions[0].probabilities == decisions[1].probabilities


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

RULES = MANIFEST.model_copy(
    update={
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
    """Gives each unit log-odds of risk, the same in each network, NaN beyond `most`, and remembers who read what."""

    def __init__(self, odds: dict[int, float], count: int, most: dict[int, int] | None = None) -> None:
        self.odds, self.count, self.most = odds, count, most or {}
        self.calls: list[int] = []
        self.worth: list[list[float]] = []

    def __call__(self, network: int, message: int, worth: np.ndarray) -> np.ndarray:
        self.calls.append(network)
        self.worth.append(worth.tolist())
        outputs = np.tile(np.log([0.2, 0.1, 0.3, 0.35, 0.05]), (self.count, 1))
        odds = np.array([[self.odds.get(i, -5.0)] for i in range(self.count)])
        outputs[:, FLAGGED_INDEX] += odds - np.log(0.65 / 0.35)
        outputs = np.column_stack([outputs, np.arange(self.count)]).astype(np.float32)
        outputs[self.most.get(network, self.count) :] = np.nan
        return outputs


def units(scores: list[float], windows: int, length: int = LONG) -> Units:
    """Return one message of a whole and of windows, whose second scores are `scores`."""
    each = np.array(scores, np.float32)
    ranges = [(0, length), *((i, i + 1) for i in range(windows))]
    return Units(np.array([0]), np.zeros(windows + 1, np.int64), ranges, np.stack([np.ones_like(each), each]))


def judged(reader: FakeReader, scores: list[float] | None = None, **options: Any) -> Cascaded:
    given, no = units(scores or [1.0] * reader.count, reader.count - 1), np.zeros(1, np.bool_)
    return cascade(RULES, given, prefiltered(RULES, given, no, no), reader, **options)


def test_the_riskiest_unit_decides_and_windows_count_less():
    found = judged(FakeReader({0: 1.0, 1: 1.5, 2: 3.0}, 3))
    assert (found.units[0], found.odds[0], found.depth[0]) == (2, pytest.approx(2.0, abs=1e-5), 3)
    assert found.signs[0].tolist() == [2]
    found = judged(FakeReader({0: 1.0, 1: 1.5, 2: 1.9}, 3))
    assert (found.units[0], found.odds[0]) == (0, pytest.approx(1.0, abs=1e-5))
    assert found.probabilities[0, FLAGGED_INDEX].sum() == pytest.approx(1 / (1 + np.exp(-1)))


def test_the_whole_of_a_long_message_counts_no_more_than_a_window():
    no = np.zeros(1, np.bool_)
    for length, wanted in ((LONG, 1.0), (LONG + 1, 0.5)):
        given = units([1.0, 1.0], 1, length)
        reader = FakeReader({0: 1.0, 1: 1.5}, 2)
        found = cascade(RULES, given, prefiltered(RULES, given, no, no), reader)
        assert (found.units[0], found.odds[0]) == (int(length > LONG), pytest.approx(wanted, abs=1e-5))
        assert provisional_odds(RULES, given, 0) == pytest.approx(-0.5 - (length > LONG) * RULES.discount)


def test_networks_disagree_by_the_risks_that_they_give_to_the_deciding_unit():
    class Quarrel(FakeReader):
        def __call__(self, network: int, message: int, worth: np.ndarray) -> np.ndarray:
            self.odds = {0: 1.0} if network else {0: -1.0}
            return super().__call__(network, message, worth)

    found = judged(Quarrel({}, 2))
    assert found.disagreement[0] == pytest.approx(1 / (1 + np.exp(-1)) - 1 / (1 + np.exp(1)), abs=1e-6)
    assert judged(FakeReader({0: 1.0}, 1)).disagreement[0] == pytest.approx(0, abs=1e-6)


def test_each_network_reads_a_message_once_whatever_its_windows():
    reader = FakeReader(dict.fromkeys(range(10), 3.0), 10)
    judged(reader)
    assert reader.calls == [0, 1, 2]


def test_a_unit_is_worth_its_log_odds_above_the_bound_of_the_network_before():
    reader = FakeReader({0: -1.5, 1: 3.0}, 3)
    judged(reader, [1.0, 2.0, 3.0])
    first, second, third = reader.worth
    assert first == [2.0, 3.0, 4.0]  # the prefilter's scores, of which none is below 0
    assert second == pytest.approx([0.5, 4.0, -4.0], abs=1e-5)  # tiny's bound is -2, the discount 1
    assert third == pytest.approx([-0.5, 3.0, -5.0], abs=1e-5)
    everyone = FakeReader({0: -1.5, 1: 3.0}, 3)
    judged(everyone, everyone=True)
    assert min(map(min, everyone.worth)) == 0.0  # all of it is read


@pytest.mark.parametrize("unit", [0, 2])
def test_each_network_reads_what_the_one_before_is_not_certain_of(unit: int):
    discount = RULES.discount * (unit > 0)
    for odds, wanted in ((-3.0, [0]), (-1.5, [0, 1]), (0.0, [0, 1, 2]), (7.0, [0, 1])):
        reader = FakeReader({unit: odds + discount}, 3)
        judged(reader)
        assert reader.calls == wanted


def test_a_message_is_read_if_any_of_its_units_continues():
    found = judged(FakeReader({2: 4.0}, 3), [-1, -1, 1])
    assert (found.units[0], found.odds[0]) == (2, pytest.approx(3.0, abs=1e-5))
    reader = FakeReader({2: 4.0}, 3)
    found = judged(reader, [-1, -1, -1])
    assert (reader.calls, found.depth[0], found.units[0]) == ([], 0, 0)
    assert found.probabilities[0] == pytest.approx([1, 0, 0, 0, 0], abs=1e-6)  # as the prefilter's stop says


def test_units_beyond_what_a_network_reads_keep_the_readings_before():
    found = judged(FakeReader({0: -0.5, 2: 4.0}, 3, most={1: 2, 2: 1}))
    assert (found.depth[0], found.units[0], found.odds[0]) == (3, 2, pytest.approx(3.0, abs=1e-5))
    assert found.signs[0].tolist() == [2]


def test_messages_are_read_side_by_side_as_alone():
    odds = [{0: -3.0}, {0: 1.0, 1: 5.0}, {0: -1.5}, {2: 7.5}]
    each = [units([1.0] * 3, 2) for _ in odds]
    ranges = [span for one in each for span in one.ranges]
    scores = np.concatenate([one.scores for one in each], axis=1)
    together = Units(3 * np.arange(4), np.repeat(np.arange(4), 3), ranges, scores)
    readers = [FakeReader(one, 3) for one in odds]
    found = cascade(
        RULES, together, np.full(4, -1), lambda network, message, worth: readers[message](network, 0, worth)
    )
    for i, one in enumerate(odds):
        alone = judged(FakeReader(one, 3))
        assert (found.depth[i], found.units[i] - 3 * i, found.odds[i]) == (
            alone.depth[0],
            alone.units[0],
            alone.odds[0],
        )
        assert found.probabilities[i].tolist() == pytest.approx(alone.probabilities[0].tolist())


def test_when_time_is_up_nothing_more_is_read():
    found = judged(FakeReader({0: 4.0}, 1), until=time.monotonic())
    assert (found.depth[0], found.final[0]) == (0, False)
    assert found.odds[0] == provisional_odds(RULES, units([1], 0), 0) == pytest.approx(-0.5)
    assert judged(FakeReader({0: 4.0}, 1), until=time.monotonic() + 60).final[0]


def test_everyone_reads_every_message():
    reader = FakeReader({0: -9.0}, 3)
    judged(reader, everyone=True)
    assert reader.calls == [0, 1, 2]


def test_what_is_foreign_stops_and_what_is_opaque_goes_on():
    yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
    assert prefiltered(RULES, units([1, 1], 1), no, yes).tolist() == [0]
    assert prefiltered(RULES, units([-1, -1], 1), yes, no).tolist() == [-1]
    assert prefiltered(RULES, units([-1, -1], 1), no, no).tolist() == [1]
    assert prefiltered(RULES, units([-1, -1], 1), yes, yes).tolist() == [0]


def test_six_labels_keep_the_risk_where_the_manifest_names_it():
    labels = ("spam", *LABELS)
    rules = RULES.model_copy(update={"labels": labels})
    assert rules.flagged == [3, 4]
    found = with_risk(np.zeros((1, 6)), [0.0], rules.flagged)[0]
    assert found.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 8])
    assert risk_logit(np.zeros(6), rules.flagged) == pytest.approx(np.log(2 / 4))
