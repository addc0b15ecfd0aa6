from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jingyin.model.bundle import Fusion, Network
from jingyin.model.cascade import cascade, prefiltered
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import Units
from jingyin.model.text import clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.train.data import unlabelled
from jingyin.train.pack.calibrate import (
    _fit_rules,
    _label_weights,
    _prefilter_thresholds,
    _risks,
    _served,
    _settle_blocks,
    _thresholds,
)
from jingyin.train.pack.readings import Readings, refuse_abstentions
from jingyin.train.recipes import Classify

ORDINARY, THREATS, OPAQUE = 400, 100, 40
COUNT = ORDINARY + THREATS
NETWORK = Network(
    file="model.onnx", vocabulary="lexicon", max_tokens=64, fusion=Fusion(scores=(0, 0), weights=(), bias=0)
)
VERIFIER = NETWORK.model_copy(update={"file": "verifier.onnx"})


def readings() -> Readings:
    """Return readings of real ordinary messages, of which a tenth are opaque, and of threats, each with a window."""
    labels = np.array([LABELS.index("ordinary")] * ORDINARY + [LABELS.index("debt_threat")] * THREATS)
    rows = replace(unlabelled([clean("好")] * COUNT), labels=labels, sources=["nus"] * COUNT)
    scores = np.concatenate([np.arange(ORDINARY) / ORDINARY - 2, np.ones(THREATS)]).astype(np.float32)
    each = np.stack([scores - 1, scores], axis=1).ravel()  # the window is what the prefilter fears
    units = Units(
        2 * np.arange(COUNT), np.repeat(np.arange(COUNT), 2), [(0, 1)] * 2 * COUNT, np.stack([each, 0 * each])
    )
    logits = np.zeros((2 * COUNT, len(LABELS)), np.float32)
    logits[:, LABELS.index("debt_threat")] = 4 * each + np.random.default_rng(0).normal(0, 1, 2 * COUNT)
    network = SimpleNamespace(network=NETWORK, read=lambda text, ranges, worth, found: found[0])
    outputs = {(0, message): row for message, row in enumerate(logits.reshape(COUNT, 2, -1))}
    passes = {key: {0: row} for key, row in outputs.items()}
    return Readings(rows, units, np.arange(COUNT) < OPAQUE, np.zeros(COUNT, np.bool_), [network], outputs, passes)  # type: ignore[list-item]


def recipe(passed: float) -> Classify:
    return Classify(stage="classify", corpus="c", layers=1, epochs=1, passed=(passed,))


def test_a_share_that_opaque_messages_fill_stops_all_but_the_highest_score():
    given = readings()
    assert _prefilter_thresholds(given, recipe(OPAQUE / ORDINARY)) == (given.units.scores[0, : 2 * ORDINARY].max(), 0.0)


def test_more_opaque_messages_than_the_first_network_is_to_read():
    rows, words = readings().rows, SmsTokenizer.from_lexicon("好 1")
    rows.cleaned[:OPAQUE] = [clean("龘靐齉爩")] * OPAQUE
    wanted = r"may not judge 10\.00% of the 400 ordinary .* first share in passed is 9\.00%: raise it above 10\.00%"
    with pytest.raises(InputError, match=wanted):
        refuse_abstentions(words, rows, 0.09)
    refuse_abstentions(words, rows, 0.1)
    rows.cleaned[:OPAQUE] = [clean("hello")] * OPAQUE  # foreign messages are judged: they pass
    refuse_abstentions(words, rows, 0.0)


@pytest.mark.parametrize("source", ["own", "cases", "mined"])
def test_a_calibration_split_of_picked_messages_alone_has_no_traffic(source):
    rows = replace(readings().rows, sources=[source] * COUNT)
    wanted = r"none of the 400 ordinary and lawful calibration messages stands for traffic, .*; thresholds need others"
    with pytest.raises(InputError, match=wanted):
        refuse_abstentions(SmsTokenizer.from_lexicon("好 1"), rows, 0.1)


def test_foreign_messages_are_not_opaque():
    given = readings()
    given.foreign[:OPAQUE] = True
    assert _prefilter_thresholds(given, recipe(0.09))[0] < given.units.scores[0, : 2 * ORDINARY].max()


def test_the_share_that_goes_on_is_of_messages_with_their_windows():
    given = readings()
    rules = _fit_rules(given, [NETWORK], recipe(0.25))
    served = _served(rules, given)
    exits = prefiltered(rules, given.units, given.abstains, given.foreign)
    assert (exits[:ORDINARY] < 0).mean() == pytest.approx(0.25, abs=0.01)
    assert ((served.depth > 0) == (exits < 0)).all()
    assert (exits[ORDINARY:] < 0).all()


def test_rules_are_fitted_on_the_cascade_that_serves():
    given = readings()
    rules = _fit_rules(given, [NETWORK], recipe(0.25))
    exits = prefiltered(rules, given.units, given.abstains, given.foreign)
    again = cascade(rules, given.units, exits, given.read)
    assert np.array_equal(again.probabilities, _served(rules, given).probabilities)
    stopped = exits >= 0
    assert np.allclose(again.probabilities[stopped], rules.prefilter.ordinary.probabilities)


def test_networks_read_every_annotated_row_though_it_stands_for_traffic_that_is_stopped():
    given = readings()
    annotated = replace(given, rows=replace(given.rows, signs=["-"] * COUNT), outputs={})
    _fit_rules(annotated, [NETWORK], recipe(0.2))
    assert {message for _, message in annotated.outputs} == set(np.flatnonzero(annotated.rows.first))
    unsigned = replace(given, outputs={})
    _fit_rules(unsigned, [NETWORK], recipe(0.2))
    assert len(unsigned.outputs) < COUNT


def test_the_main_network_settles_what_only_blocked_messages_reach():
    given = readings()
    given.networks.append(SimpleNamespace(network=VERIFIER, read=given.networks[0].read))  # type: ignore[attr-defined]
    given.outputs.update({(1, message): output for (_, message), output in given.outputs.items()})
    given.passes.update({(1, message): {0: output} for (_, message), output in given.outputs.items()})
    chosen = recipe(0.25).model_copy(update={"passed": (0.25, 0.25), "review_rate": 0.05, "block_rate": 0.03})
    before = _fit_rules(given, [NETWORK, VERIFIER], chosen)
    assert [each.certain for each in before.networks] == [None, None]
    rules = _settle_blocks(before, given, chosen, (0.0, 0.0))
    certain, last = (each.certain for each in rules.networks)
    assert (certain is not None, last) == (True, None)
    whole, early = _served(before, given), _served(rules, given)
    _, block = _thresholds(chosen, given.rows, _risks(whole), (0.0, 0.0))
    settled = (early.depth < whole.depth) & (_risks(early) >= block.risk)
    assert settled[ORDINARY:].sum() > THREATS / 2
    assert (_risks(whole)[:ORDINARY][settled[:ORDINARY]] >= block.risk).all()


@pytest.fixture
def weighed(monkeypatch):
    """Return rows whose other threats are found from a weight of 3.25 on; 4.48 costs an ordinary one."""
    monkeypatch.setattr("jingyin.train.pack.readings.FEWEST_REAL", 2)
    labels = np.array([LABELS.index(label) for label in ("ordinary", "ordinary", "other_threat", "other_threat")])
    shares = np.zeros((4, len(LABELS)))
    shares[:, LABELS.index("ordinary")], shares[:, LABELS.index("other_threat")] = (0.9, 0.8, 0.6, 0.65), 0.2
    return replace(unlabelled([clean("好")] * 4), labels=labels, sources=["authored"] * 4), shares


def test_the_weight_of_other_threat_is_that_of_highest_mean_recall(weighed):
    rows, shares = weighed
    assert _label_weights(rows, shares) == {"other_threat": 3.49}
    shares[2:, LABELS.index("ordinary")] = 0.1
    assert _label_weights(rows, shares) == {"other_threat": 1.0}
    assert _label_weights(replace(rows, labels=np.zeros(4, np.int64)), shares) == {}


def test_real_traffic_alone_has_no_say_in_the_weight_of_other_threat(weighed):
    rows, shares = weighed
    shares[:2, LABELS.index("ordinary")] = 0.3  # any weight above 1.5 costs both innocents, 3.49 finds both threats
    assert _label_weights(rows, shares) == {"other_threat": 1.0}
    assert _label_weights(replace(rows, sources=["nus", "nus", "authored", "authored"]), shares) == {
        "other_threat": 3.49
    }
