import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jingyin.model.prefilter import (
    BUCKETS,
    code_points,
    features,
    is_opaque,
    known_characters,
    prefilter_scores,
    unknown_shares,
)
from jingyin.train.packing.prefilter import MAX_LOSS, _matrix, set_threshold, train_prefilter
from jingyin.train.packing.thresholds import upper_bound

BENIGN, FLAGGED = np.array([0.9, 0.1, 0, 0, 0]), np.array([0, 0, 0.2, 0.8, 0])


def scored(*scores: float) -> tuple[np.ndarray, list[str]]:
    """Return weights, and a text of one character for each wanted score."""
    weights = np.zeros(BUCKETS, np.float16)
    texts = {score: chr(0x4E00 + i) for i, score in enumerate(sorted(set(scores)))}
    for score, text in texts.items():
        weights[features(code_points([text])[0])[1]] = score * 2  # one of eight features: that of text and end
    return weights, [texts[score] for score in scores]


def drawn(rng: np.random.Generator, low: int, high: int, length: int) -> str:
    return "".join(map(chr, 0x4E00 + rng.integers(low, high, length)))


def threshold(scores: list[float], flagged: list[bool], opaque: list[bool] | None = None):
    probabilities = np.where(np.array(flagged)[:, None], FLAGGED, BENIGN)
    marks = np.array(opaque or [False] * len(scores))
    return set_threshold(np.array(scores, np.float32), marks, np.array(flagged), probabilities, np.ones_like(marks))


def test_the_prefilter_learns_what_is_flagged():
    rng = np.random.default_rng(0)
    plain = [drawn(rng, 10, 60, 8) for _ in range(150)]
    risky = [drawn(rng, 40, 90, 8) for _ in range(150)]
    weights = train_prefilter(plain + risky, np.arange(300) >= 150, seed=1)
    assert weights.dtype == np.float16
    assert weights.shape == (BUCKETS,)
    found = prefilter_scores(weights.astype(np.float32), code_points(plain + risky))
    assert (found[150:] > 0).mean() > 0.95
    assert (found[:150] < 0).mean() > 0.95
    assert np.array_equal(weights, train_prefilter(plain + risky, np.arange(300) >= 150, seed=1))


def test_what_sounds_alike_shares_the_features_of_its_sounds():
    def halves(text):
        return features(code_points([text]).points).reshape(2, 2, -1).swapaxes(0, 1)

    (written, heard), (other, heard_again) = halves("通讯录"), halves("同迅路")
    assert np.array_equal(heard, heard_again)
    assert not set(written.ravel()) & set(other.ravel())
    assert not np.array_equal(heard, halves("公安局")[1])


def test_training_and_serving_count_the_same_features():
    rng = np.random.default_rng(1)
    texts = ["", *(drawn(rng, 10, 5000, length) for length in (1, 2, 7, 30)), "😀"]
    weights = rng.normal(size=BUCKETS).astype(np.float32)
    together = prefilter_scores(weights, code_points(texts))
    np.testing.assert_allclose(_matrix(texts) @ weights[:-1] + weights[-1], together, rtol=0, atol=1e-4)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")).map(lambda text: text * 40),
        min_size=1,
    )
)
@settings(deadline=None)
def test_a_score_depends_on_no_neighbour(texts):
    weights = np.random.default_rng(2).normal(size=BUCKETS).astype(np.float16).astype(np.float32)
    alone = np.concatenate([prefilter_scores(weights, code_points([text])) for text in texts])
    assert np.array_equal(prefilter_scores(weights, code_points(texts)), alone)


def test_share_of_unknown_characters():
    known = known_characters(["你好", "再", "见"])
    assert unknown_shares(known, code_points(["你再", "", "你龘", "😀"])).tolist() == [0, 0, 1 / 3, 1 / 2]


def test_with_few_flagged_messages_none_may_be_lost():
    prefilter = threshold([-6, -4, -3, -2, 1, 3], [False, False, False, True, True, True])
    assert prefilter.threshold == -2  # the lowest flagged one
    assert (prefilter.lost, prefilter.flagged) == (0, 3)
    assert prefilter.loss_bound == pytest.approx(upper_bound(0, 3))
    assert prefilter.passed_share == 0
    assert prefilter.probabilities == pytest.approx(BENIGN)


def test_loss_stays_within_its_bound():
    scores, flagged = [-9.0, -8.0, *([4.0] * 4998)], [True] * 5000
    prefilter = threshold([*scores, -7.0], [*flagged, False])
    assert upper_bound(1, 5000) <= MAX_LOSS < upper_bound(2, 5000)
    assert prefilter.lost == 1
    assert prefilter.loss_bound == pytest.approx(upper_bound(1, 5000))
    assert prefilter.threshold == -8


def test_opaque_messages_run_the_network_whatever_their_score():
    scores, flagged = [-6.0, -5.0, -4.0, 1.0], [True, False, False, True]
    prefilter = threshold(scores, flagged, [True, True, False, False])
    assert prefilter.threshold == 1  # the opaque one at -6 does not pull it down
    assert prefilter.lost == 0
    assert prefilter.passed_share == 0.5  # of the ordinary two, the opaque one


def test_the_prefilter_speaks_of_plain_messages_for_those_that_it_stops():
    scores, flagged, marks = np.array([-4.0, -3.0, 2.0], np.float32), np.array([False, False, True]), np.zeros(3, bool)
    probabilities = np.array([BENIGN, [0, 0, 0.5, 0, 0.5], FLAGGED])
    prefilter = set_threshold(scores, marks, flagged, probabilities, np.array([True, False, True]))
    assert prefilter.probabilities == pytest.approx(BENIGN)


def test_nothing_flagged_stops_all():
    prefilter = threshold([-3.0, 2.0], [False, False])
    assert prefilter.threshold == 3
    assert (prefilter.flagged, prefilter.lost, prefilter.loss_bound) == (0, 0, 1)


@pytest.mark.parametrize(
    ("share", "hits", "opaque"),
    [
        (0, {}, False),
        (0, {"gaps": 1}, False),
        (0, {"gaps": 1, "invisible": 1}, True),
        (0, {"disguised": 2}, True),
        (0, {"phone": 9, "link": 9, "traditional": 9}, False),
        (0.1, {}, False),
        (0.11, {}, True),
    ],
)
def test_what_the_prefilter_must_not_judge(share, hits, opaque):
    assert is_opaque(share, hits) is opaque


def test_a_score_at_the_threshold_passes(monkeypatch):
    from jingyin import Scorer

    scorer = Scorer.load(cache_bytes=0)
    text = "明天下午三点老地方见，记得带伞"
    (score,) = prefilter_scores(scorer.bundle.prefilter_weights, code_points([text.replace("，", ",")]))
    scorer._prefilter_threshold = float(score)
    assert scorer.score(text.replace("，", ",")).stage == "model"
    scorer._prefilter_threshold = float(np.nextafter(score, np.float32(9)))
    assert scorer.score(text.replace("，", ",")).stage == "prefilter"


@pytest.mark.parametrize("length", [0, 60, 150, 240, 1000])
def test_length_drowns_no_threat(length: int) -> None:
    weights, (threat,) = scored(8.0)
    weights[features(code_points([threat * 2])[0])[1]] = 16  # the pair that it makes with itself
    polite = "您" * 1000
    alone, (hidden,) = (
        prefilter_scores(weights.astype(np.float32), code_points([t]))
        for t in (threat, polite[:length] + threat * 40 + polite)
    )
    assert hidden > alone[0]
