from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jingyin.model.bundle import SignScale, read_bundle
from jingyin.model.cascade import sign_confidence
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import Units
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import clean
from jingyin.train.data import Rows, unlabelled
from jingyin.train.pack.readings import Readings
from jingyin.train.pack.signs import fit_signs, sign_logits

CAREFUL = SignScale(slope=1.0, bias=0.0, threshold=0.9, precision=0.0, found=0)


def rows(signs: list[str]) -> Rows:
    plain = unlabelled([clean(f"第{chr(0x4E00 + i)}条") for i in range(len(signs))])
    return replace(plain, signs=signs)


def reader(by_text: dict[str, NDArray[np.float64]]) -> Any:
    """Return a stand-in for a network that gives clean texts these logits of signs."""
    outputs = {text: np.concatenate([np.zeros(len(LABELS)), logits]) for text, logits in by_text.items()}
    network = SimpleNamespace(file="model.onnx", max_tokens=64)
    return SimpleNamespace(network=network, read=lambda text, *_: outputs[text][None])


def readings(given: Rows, network: Any) -> Readings:
    whole = [(0, len(each.text)) for each in given.cleaned]
    index, nothing = np.arange(len(given)), np.zeros(len(given), np.bool_)
    units = Units(index, index, whole, np.zeros((2, len(given)), np.float32))
    found = Readings(given, units, nothing, nothing, [network])
    found.read_all(range(len(given)))
    return found


def fitted(sign: str, logits: list[float], there: list[bool]) -> dict[str, SignScale]:
    """Fit on made-up logits of one sign, those of the others 0; a third of the rows is the validation split's."""
    given = rows(["-" if not each else sign for each in there] + ["?"])  # nobody read the last
    made: NDArray[np.float64] = np.zeros((len(given), len(SIGN_IDS)))
    made[: len(logits), SIGN_IDS.index(sign)] = logits
    network = reader({each.text: row for each, row in zip(given.cleaned, made, strict=True)})
    cut = 2 * len(logits) // 3
    return fit_signs(readings(given.take(np.arange(cut)), network), given.take(np.arange(cut, len(given))))


def test_only_what_people_read_is_annotated():
    assert rows(["joke", "-", "joke,?", "?", "!joke,?"]).annotated.tolist() == [True, True, False, False, False]


def test_golden_scale():
    # From the highest logit down: nine that show it, one that does not, one that does, and then none.
    there = [True] * 9 + [False, True] + [False] * 10
    logits = [5.0 - i / 2 for i in range(21)]
    found = fitted("joke", logits, there)
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


def test_equal_logits_are_not_parted_by_a_threshold():
    there = [True] * 5 + [False, True, True] + [False] * 8
    scale = fitted("visit", [4.0] * 5 + [1.0] * 3 + [-4.0] * 8, there)["visit"]
    assert (scale.found, scale.precision) == (5, 1.0)
    assert scale.threshold == sign_confidence(scale, 4.0)


def test_logits_that_say_nothing_give_no_reason_below_the_careful_threshold():
    scale = fitted("visit", [float(i) for i in range(20)], [True] * 6 + [False] * 14)["visit"]
    assert (scale.slope, scale.threshold, scale.precision, scale.found) == (0.0, 0.9, 0.0, 0)
    assert sign_confidence(scale, [-9.0, 0.0, 9.0]) == pytest.approx(0.3)  # 6 of 20 show it


@pytest.mark.parametrize("there", [[True] * 4 + [False] * 16, [True] * 20])
def test_too_few_of_either_kind_leave_the_careful_scale(there):
    assert fitted("visit", [float(-i) for i in range(20)], there)["visit"] == CAREFUL


def test_logits_are_those_of_the_network_that_has_signs(signed_bundle, bundle):
    given = [clean("明天曝光"), clean("轰炸全村"), clean("吃饭")]
    signs = ["exposure", "flooding", "demand_money", "false_police"]
    read = read_bundle(signed_bundle)
    assert list(read.manifest.signs) == signs
    found = sign_logits(signed_bundle, read.manifest.networks, given)
    assert found is not None
    assert found.tolist() == [
        [5, -4, -4, -4], [5, 5, -4, -4], [-4, -4, -4, -4],
    ]  # fmt: skip
    assert sign_logits(bundle, read_bundle(bundle).manifest.networks, given) is None


def test_a_network_without_signs_gives_none():
    given = rows(["joke", "-"])
    assert fit_signs(readings(given, reader({each.text: np.zeros(0) for each in given.cleaned})), given) == {}


def test_without_annotated_calibration_rows_those_of_the_validation_split_fit_the_scales():
    given = rows(["?"] + ["joke"] * 10 + ["-"] * 10)
    made: NDArray[np.float64] = np.zeros((len(given), len(SIGN_IDS)))
    made[:, SIGN_IDS.index("joke")] = 5 - np.arange(len(given)) / 2
    network = reader({each.text: row for each, row in zip(given.cleaned, made, strict=True)})
    alone = fit_signs(readings(given.take(np.arange(1)), network), given.take(np.arange(1, len(given))))
    assert list(alone) == list(SIGN_IDS)
    assert (alone["joke"].found, alone["joke"].precision) == (10, 10 / 11)
    unread = given.take(np.arange(1))
    assert fit_signs(readings(unread, network), unread) == dict.fromkeys(SIGN_IDS, CAREFUL)
