"""What a network gives for the units of a message; a toy's logits are the sums over a unit's tokens, and START."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jingyin import Scorer
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.serve import networks

THREAT = LABELS.index("debt_threat")


def test_units_come_out_of_one_reading(signed: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    (reader,) = signed._networks
    runs, run = list[int](), networks.NetworkReader.run

    def counted(self: networks.NetworkReader, ids: Sequence[int], *spans: Any) -> Any:
        runs.append(len(ids))
        return run(self, ids, *spans)

    monkeypatch.setattr(networks.NetworkReader, "run", counted)
    text = clean("今天回家。曝光全村。").text
    found = reader.read(text, [(0, 10), (0, 5), (5, 10)], np.zeros(3, np.float32))
    assert found[:, THREAT].tolist() == [18, 0, 18]
    assert len(runs) == 1


def test_a_long_message_is_read_in_passes_the_riskiest_first(signed: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    (reader,) = signed._networks  # it reads 64 tokens at once: START, 62 words and END
    text = clean("今" * 100 + "曝光" + "天" * 100).text
    ranges, scores = [(0, 202), (0, 40), (95, 105), (190, 202)], np.array([0, 1, 2, 3], np.float32)
    found = reader.read(text, ranges, scores)
    assert found[1:, THREAT].tolist() == [0, 9, 0]
    assert 0 < found[0, THREAT] <= 9  # the mean over passes
    assert np.isnan(reader.read(text, ranges, scores - 3)[:, THREAT]).tolist() == [False, True, True, False]
    assert reader.read(text, ranges, scores - 9)[3, THREAT] == 0  # one is read, whatever it is worth
    monkeypatch.setitem(networks.TOKENS, "model.onnx", 2 * 64)
    assert np.isnan(reader.read(text, ranges, scores)[:, THREAT]).tolist() == [False, True, False, False]
    monkeypatch.setitem(networks.TOKENS, "model.onnx", 1)
    assert np.isnan(reader.read(text, ranges, scores)[:, THREAT]).tolist() == [False, True, True, False]


def test_a_single_sentence_has_the_outputs_of_its_tokens(signed: Scorer) -> None:
    (reader,) = signed._networks
    text = clean("今天曝光你").text
    ((ids, _),) = reader.tokenizer.encode_with_offsets([text])
    assert np.array_equal(reader.read(text, [(0, len(text))], np.zeros(1, np.float32)), reader.run(ids))
