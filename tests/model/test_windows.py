"""How bundles of format 9 are read: which units of a message networks read, and which of them decides."""

import numpy as np
import pytest

from jingyin.model.bundle import CascadeRules, Fusion, Network, Prefilter, PrefilterExit
from jingyin.model.cascade import prefiltered
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import Units
from jingyin.model.windows import cascade_apart, continuing, riskiest_windows, windows_apart

UNIFORM = (0.2,) * 5


def rules(discount: float = 1.0, threshold: float = 0.0) -> CascadeRules:
    """Return the rules of one network, whose log-odds of risk stand as they are."""
    fusion = Fusion(scores=(0.0, 0.0), weights=(1.0,), bias=0.0)
    exit_ = PrefilterExit(threshold=threshold, probabilities=UNIFORM)
    return CascadeRules(
        labels=LABELS, discount=discount, prefilter=Prefilter(ordinary=exit_, lawful=exit_),
        networks=(Network(file="model.onnx", vocabulary="lexicon", max_tokens=320, fusion=fusion),),
        provisional=Fusion(scores=(0.0, 1.0), weights=(), bias=0.0),
    )  # fmt: skip


def message(*scores: float) -> Units:
    """Return a message as its whole and its windows, by their second scores; the first lets all go on."""
    count = len(scores)
    both = np.array([[9.0] * count, scores], np.float32)
    return Units(np.zeros(1, np.int64), np.zeros(count, np.int64), [(i, i + 1) for i in range(count)], both)


class WindowReader:
    """Gives each unit a log-odds of risk, and says which it has read."""

    def __init__(self, odds: list[float], tokens: int = 10) -> None:
        self.odds, self.tokens, self.read = odds, tokens, []

    def __call__(self, network: int, unit: int, room: int) -> tuple[np.ndarray, int] | None:
        if self.tokens > room:
            return None
        self.read.append(unit)
        # One label of either kind: their difference is the log-odds.
        return np.array([0.0, -99, self.odds[unit], -99, -99], np.float32), self.tokens


def decided(units: Units, reader: WindowReader, by: CascadeRules) -> tuple[int, float]:
    """Return the unit that decides, and the log-odds of the risk."""
    no = np.zeros(1, np.bool_)
    found = cascade_apart(by, units, continuing(by, units, no, no), prefiltered(by, units, no, no), reader)
    return int(found.units[0]), float(found.odds[0])


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("他收到“你还不还。今晚见。”就报警了。你别怕。", ["他收到“你还不还。今晚见。”就报警了。", "你别怕。"]),
        ("他收到「你还不还。今晚见。」了。你别怕。", ["他收到「你还不还。今晚见。」了。", "你别怕。"]),
        ('原话:"你还不还。今晚见。"。你别怕。', ['原话:"你还不还。今晚见。"。', "你别怕。"]),
        ("“你还不还。今晚见。”你别怕。", ["“你还不还。", "今晚见。", "”你别怕。"]),  # nobody quotes it
        ("天气好。“你还不还。今晚见。”", ["天气好。", "“你还不还。", "今晚见。"]),
        ("他说“你还不还。今晚见。你别怕。", ["他说“你还不还。", "今晚见。", "你别怕。"]),  # never closed
        ("他说“" + "还不还。" * 41 + "”吗", ["他说“还不还。", *["还不还。"] * 40]),  # too long
    ],
)
def test_a_window_holds_a_quotation_with_the_words_before_it(text: str, cut: list[str]):
    sentences = [text[start:end] for start, end in windows_apart(text)][: len(cut)]
    assert sentences == cut


@pytest.mark.parametrize("place", [1, 3, 6])
def test_the_riskiest_unit_decides_wherever_it_stands(place):
    odds = [-5.0] * 7
    odds[place] = 4.0
    unit, risk = decided(message(*[1.0] * 7), WindowReader(odds), rules(discount=1.0))
    assert (unit, risk) == (place, pytest.approx(3.0, abs=1e-6))  # a window counts one less


def test_the_whole_decides_where_no_window_is_riskier_by_more_than_the_discount():
    assert decided(message(1.0, 1.0, 1.0), WindowReader([2.0, 2.9, -5.0]), rules(discount=1.0)) == (
        0,
        pytest.approx(2.0),
    )
    assert decided(message(1.0, 1.0, 1.0), WindowReader([2.0, 3.1, -5.0]), rules(discount=1.0)) == (
        1,
        pytest.approx(2.1),
    )


def test_networks_read_the_whole_and_the_six_riskiest_windows_by_the_prefilter():
    reader = WindowReader([-5.0] * 10)
    decided(message(1.0, *[1, 2, 3, 4, 5, 6, 7, 8, 9]), reader, rules())
    assert reader.read == [0, 9, 8, 7, 6, 5, 4]
    units = message(1.0, 3.0, 1.0, 2.0)
    assert riskiest_windows(rules(), units, np.ones(4, np.bool_), [0]) == {0: [1, 3, 2]}


def test_a_message_goes_on_with_any_of_its_windows():
    """What is mostly lawful, and stopped as lawful, is read where one window is not."""
    units = message(-1.0, -1.0, 1.0)
    no = np.zeros(1, np.bool_)
    assert continuing(rules(), units, no, no).tolist() == [False, False, True]
    assert prefiltered(rules(), units, no, no).tolist() == [-1]
    assert decided(units, WindowReader([9.0, 9.0, 4.0]), rules(discount=1.0)) == (2, pytest.approx(3.0, abs=1e-6))
    assert prefiltered(rules(), message(-1.0, -1.0), no, no).tolist() == [1]


def test_the_main_network_reads_320_tokens_of_a_message():
    reader = WindowReader([-5.0] * 6, tokens=100)
    decided(message(*[1.0] * 6), reader, rules())
    assert len(reader.read) == 3
