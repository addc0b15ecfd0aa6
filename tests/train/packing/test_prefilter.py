from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.toy_bundle import set_exits

from jingyin import Scorer
from jingyin.model.errors import InputError
from jingyin.model.prefilter import (
    BUCKETS,
    code_points,
    features,
    known_characters,
    prefilter_abstains,
    prefilter_scores,
    units_of,
    unknown_shares,
    windows,
)
from jingyin.model.text import clean
from jingyin.train.data import unlabelled
from jingyin.train.pack.prefilter import _matrix, prefilter_of, train_prefilter, tune_prefilter


def scored(*scores: float) -> tuple[np.ndarray, list[str]]:
    """Return weights, and a text of one character for each wanted score."""
    weights = np.zeros((1, BUCKETS), np.float16)
    texts = {score: chr(0x4E00 + i) for i, score in enumerate(sorted(set(scores)))}
    for score, text in texts.items():
        weights[0, features(code_points([text])[0])[1]] = score * 2  # one of eight features: that of text and end
    return weights, [texts[score] for score in scores]


def drawn(rng: np.random.Generator, low: int, high: int, length: int) -> str:
    return "".join(map(chr, 0x4E00 + rng.integers(low, high, length)))


def test_the_prefilter_learns_what_is_flagged():
    rng = np.random.default_rng(0)
    plain = [drawn(rng, 10, 60, 8) for _ in range(150)]
    risky = [drawn(rng, 40, 90, 8) for _ in range(150)]
    weights = train_prefilter(plain + risky, np.arange(300) >= 150, seed=1)
    assert weights.dtype == np.float16
    assert weights.shape == (BUCKETS,)
    (found,) = prefilter_scores(weights.astype(np.float32)[None], code_points(plain + risky))
    assert (found[150:] > 0).mean() > 0.95
    assert (found[:150] < 0).mean() > 0.95
    assert np.array_equal(weights, train_prefilter(plain + risky, np.arange(300) >= 150, seed=1))


@pytest.mark.parametrize("flagged", [True, False])
def test_texts_of_one_side_alone_teach_nothing(flagged):
    texts, side = ["明天见", "后天见"], np.array([flagged, flagged])
    assert not train_prefilter(texts, side, seed=1).any()
    known = np.random.default_rng(0).normal(size=BUCKETS).astype(np.float16)
    assert np.array_equal(tune_prefilter(known, texts, side, np.ones(2)), known)


def test_a_prefilter_is_not_tuned_on_ordinary_messages_alone():
    rows = replace(unlabelled([clean("明天见"), clean("后天见")]), labels=np.zeros(2, np.int64))
    with pytest.raises(InputError, match=r"all 2 training messages are ordinary; .* add some to the training split"):
        prefilter_of(rows, 1, np.zeros((2, BUCKETS)))


def test_what_is_tuned_keeps_what_was_known():
    rng = np.random.default_rng(0)
    plain, risky = ([drawn(rng, low, low + 50, 8) for _ in range(150)] for low in (10, 40))
    new = [drawn(rng, 200, 230, 8) for _ in range(60)]
    weights = train_prefilter(plain + risky, np.arange(300) >= 150, seed=1)
    times = np.where(np.arange(180) < 150, 1, 3)
    tuned = tune_prefilter(weights, [*plain[:75], *risky[:75], *new[:30]], np.arange(180) >= 75, times)
    assert tuned.dtype == np.float16
    before, after = (
        prefilter_scores(each.astype(np.float32)[None], code_points(plain + risky + new))[0]
        for each in (weights, tuned)
    )
    assert (after[-30:] > before[-30:]).all()  # unseen ones of the new kind
    held = np.r_[75:150, 225:300]
    assert np.corrcoef(before[held], after[held])[0, 1] > 0.95
    assert ((after[held] > 0) == (before[held] > 0)).mean() > 0.95


def test_what_sounds_alike_shares_the_features_of_its_sounds():
    def halves(text):
        return features(code_points([text]).points).reshape(2, 2, -1).swapaxes(0, 1)

    (written, heard), (other, heard_again) = halves("通讯录"), halves("同迅路")
    assert np.array_equal(heard, heard_again)
    assert not set(written.ravel()) & set(other.ravel())
    assert not np.array_equal(heard, halves("公安局")[1])


def test_training_and_serving_count_the_same_features():
    rng = np.random.default_rng(1)
    texts = ["", *(drawn(rng, 10, 5000, length) for length in (1, 2, 7, 30, 300)), "😀"]
    weights = rng.normal(size=(2, BUCKETS)).astype(np.float32)
    together = prefilter_scores(weights, code_points(texts))
    assert together.shape == (2, len(texts))
    for each, found in zip(weights, together, strict=True):
        np.testing.assert_allclose(_matrix(texts) @ each[:-1] + each[-1], found, rtol=0, atol=1e-4)


WEIGHTS = np.random.default_rng(2).normal(size=(2, BUCKETS)).astype(np.float16).astype(np.float32)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")).map(lambda text: text * 40),
        min_size=1,
    )
)
@settings(deadline=None)
def test_a_score_depends_on_no_neighbour(texts):
    alone = np.concatenate([prefilter_scores(WEIGHTS, code_points([text])) for text in texts], axis=1)
    assert np.array_equal(prefilter_scores(WEIGHTS, code_points(texts)), alone)


def test_share_of_unknown_characters():
    known = known_characters(["你好", "再", "见"])
    assert unknown_shares(known, code_points(["你再", "", "你龘", "😀"])).tolist() == [0, 0, 1 / 3, 1 / 2]


@pytest.mark.parametrize(("share", "edits", "opaque"), [
    (0, {}, False), (0, {"gaps": 1}, False), (0, {"gaps": 1, "invisible": 1}, True), (0, {"disguised": 2}, True),
    (0, {"phone": 9, "link": 9, "traditional": 9}, False), (0.1, {}, False), (0.11, {}, True),
])  # fmt: skip
def test_what_the_prefilter_must_not_judge(share, edits, opaque):
    assert prefilter_abstains(share, edits) is opaque


@pytest.mark.parametrize("which", [0, 1])
def test_a_score_at_the_threshold_passes(tiny_run, which):
    scorer = Scorer.load(tiny_run / "bundle", cache_bytes=0)
    text = "明天下午三点老地方见,记得带伞"
    score = prefilter_scores(scorer.bundle.prefilter_weights, code_points([text]))[which, 0]
    for threshold, stage in ((float(score), "network"), (float(np.nextafter(score, np.float32(99))), "prefilter")):
        set_exits(scorer, *(threshold if i == which else -np.inf for i in range(2)))
        assert scorer.score(text).stage == stage


def test_what_both_scores_stop_is_ordinary(tiny_run):
    scorer = Scorer.load(tiny_run / "bundle", cache_bytes=0)
    exits = scorer.bundle.manifest.prefilter
    for ordinary, wanted in ((np.inf, exits.ordinary), (-np.inf, exits.lawful)):
        set_exits(scorer, ordinary, np.inf)
        assert tuple(scorer.score("明天见").probabilities.values()) == pytest.approx(wanted.probabilities, abs=1e-12)


def test_windows_are_sentences_and_pairs_of_them():
    def parts(text):
        return [text[start:end] for start, end in windows(text)]

    assert parts("还钱。不然去你单位!明天") == ["不然去你单位!", "还钱。不然去你单位!", "不然去你单位!明天"]
    assert parts("今天天气好。明天也很好。") == ["今天天气好。", "明天也很好。"]  # the pair is the whole
    assert parts("今天天气好") == parts("") == parts("?!。") == []
    assert parts("一" * 30 + "," + "二" * 30) == ["一" * 30 + ",", "二" * 30]
    assert parts("一" * 50) == ["一" * 40, "一" * 10]


@given(st.text(st.sampled_from("一二三,。! "), max_size=200))
def test_windows_leave_nothing_out_but_short_sentences(text):
    found = windows(text)
    assert all(4 <= end - start <= 200 for start, end in found)
    heard = {i for start, end in found for i in range(start, end)}
    assert len(found) < 2 or len(set(range(len(text))) - heard) <= 3


@given(st.lists(st.text(st.sampled_from("一二三,。! "), max_size=90), min_size=1, max_size=5))
def test_windows_are_scored_in_their_place_whatever_the_neighbours(texts):
    together = units_of(WEIGHTS, texts, code_points(texts))
    alone = [units_of(WEIGHTS, [text], code_points([text])) for text in texts]
    assert np.array_equal(together.scores, np.concatenate([each.scores for each in alone], axis=1))
    assert np.array_equal(together.scores[:, together.starts], prefilter_scores(WEIGHTS, code_points(texts)))


@pytest.mark.parametrize(("characters", "times"), [(1, 1), (4, 2), (120, 120**0.5), (1200, 120**0.5)])
def test_a_sentence_repeated_for_ever_gets_no_riskier(characters: int, times: float) -> None:
    weights = np.full((2, BUCKETS), 0.5, np.float32)
    weights[:, -1] = 0.0
    found = prefilter_scores(weights, code_points(["您" * (characters - 1)]))  # a line feed counts too
    assert found[0, 0] == pytest.approx(times)


@pytest.mark.parametrize("length", [0, 60, 150, 240, 1000])
def test_length_drowns_no_threat(length: int) -> None:
    weights, (threat,) = scored(8.0)
    weights[0, features(code_points([threat * 2])[0])[1]] = 16  # the pair that it makes with itself
    text = "您" * length + "。" + threat * 40 + "。" + "您" * 1000
    found = units_of(weights.astype(np.float32), [text], code_points([text])).scores[0]
    assert found[1:].max() > max(8, found[0])
