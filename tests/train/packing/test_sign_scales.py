from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from jingyin.model.bundle import SignScale, read_bundle
from jingyin.model.decision import sign_confidence
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import clean
from jingyin.train.data import Rows, unlabelled
from jingyin.train.pack import calibrate as sign_scales
from jingyin.train.pack.calibrate import annotated, fit_signs, sign_logits

CAREFUL = SignScale(slope=1.0, bias=0.0, threshold=0.9, precision=0.0, found=0)


def rows(signs: list[str]) -> Rows:
    plain = unlabelled([clean(f"第{i}条") for i in range(len(signs))])
    return Rows(plain.cleaned, plain.labels, plain.weights, plain.messages, plain.families, plain.sources, plain.cases,
                signs)  # fmt: skip


def fitted(monkeypatch: pytest.MonkeyPatch, sign: str, logits: list[float], there: list[bool]) -> dict[str, SignScale]:
    """Fit on made-up logits of one sign, those of the others 0; a third of the rows is the validation split's."""
    given = ["-" if not each else sign for each in there] + ["?"]  # nobody read the last
    of_split = {"calibration": slice(0, 2 * len(logits) // 3), "validation": slice(2 * len(logits) // 3, None)}
    made: NDArray[np.float64] = np.zeros((len(logits), len(SIGN_IDS)))
    made[:, SIGN_IDS.index(sign)] = logits
    by_text = {f"第{i}条": row for i, row in enumerate(made)}
    all_rows = rows(given)
    monkeypatch.setattr(
        sign_scales, "read_split", lambda _, split: all_rows.take(np.arange(len(given))[of_split[split]])
    )
    monkeypatch.setattr(
        sign_scales, "sign_logits", lambda *args: np.array([by_text[each.original] for each in args[2].cleaned])
    )
    return fit_signs(Path(), (), Path())


def test_only_what_people_read_is_annotated():
    assert annotated(rows(["joke", "-", "joke,?", "?", "!joke,?"])).tolist() == [True, True, False, False, False]


def test_golden_scale(monkeypatch):
    # From the highest logit down: nine that show it, one that does not, one that does, and then none.
    there = [True] * 9 + [False, True] + [False] * 10
    logits = [5.0 - i / 2 for i in range(21)]
    found = fitted(monkeypatch, "joke", logits, there)
    assert list(found) == list(SIGN_IDS)
    assert {sign: scale for sign, scale in found.items() if scale != CAREFUL} == {"joke": found["joke"]}
    scale = found["joke"]
    assert (scale.slope, scale.bias) == pytest.approx((1.3393, -0.3353), abs=1e-3)
    # Where the likelihood with a penalty of half the squared slope is highest (C = 1).
    confidence = sign_confidence(scale, logits)
    assert np.sum(there - confidence) == pytest.approx(0, abs=1e-3)
    assert np.sum((there - confidence) * logits) == pytest.approx(scale.slope, abs=1e-2)
    # 10 of the first 11 show it, 10 of the first 12 would be below 0.9.
    assert (scale.found, scale.precision) == (10, 10 / 11)
    assert scale.threshold == confidence[10]


def test_equal_logits_are_not_parted_by_a_threshold(monkeypatch):
    there = [True] * 5 + [False, True, True] + [False] * 8
    scale = fitted(monkeypatch, "visit", [4.0] * 5 + [1.0] * 3 + [-4.0] * 8, there)["visit"]
    assert (scale.found, scale.precision) == (5, 1.0)
    assert scale.threshold == sign_confidence(scale, 4.0)


def test_logits_that_say_nothing_give_no_reason_below_the_careful_threshold(monkeypatch):
    scale = fitted(monkeypatch, "visit", [float(i) for i in range(20)], [True] * 6 + [False] * 14)["visit"]
    assert (scale.slope, scale.threshold, scale.precision, scale.found) == (0.0, 0.9, 0.0, 0)


@pytest.mark.parametrize("there", [[True] * 4 + [False] * 16, [True] * 20])
def test_too_few_of_either_kind_leave_the_careful_scale(monkeypatch, there):
    assert fitted(monkeypatch, "visit", [float(-i) for i in range(20)], there)["visit"] == CAREFUL


def test_logits_are_those_of_the_network_that_has_signs(signed_bundle, bundle):
    given = unlabelled([clean("明天曝光"), clean("轰炸全村"), clean("吃饭")])
    signs = ["exposure", "flooding", "demand_money", "false_police"]
    read = read_bundle(signed_bundle)
    assert list(read.manifest.signs) == signs
    found = sign_logits(signed_bundle, read.manifest.networks, given)
    assert found is not None
    assert found.tolist() == [
        [5, -4, -4, -4], [5, 5, -4, -4], [-4, -4, -4, -4],
    ]  # fmt: skip
    assert sign_logits(bundle, read_bundle(bundle).manifest.networks, given) is None


def test_a_network_without_signs_and_a_corpus_without_annotations_give_none(bundle, signed_bundle, monkeypatch):
    def split(given: list[str]) -> None:
        monkeypatch.setattr(sign_scales, "read_split", lambda *_: rows(given))

    split(["joke", "-"])
    assert fit_signs(bundle, read_bundle(bundle).manifest.networks, Path()) == {}
    split(["?", "joke,?"])
    assert fit_signs(signed_bundle, read_bundle(signed_bundle).manifest.networks, Path()) == {}
