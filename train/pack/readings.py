"""What prefilter and networks read in rows of the calibration split, and which of these rows stand for traffic."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jingyin.model.bundle import Network
from jingyin.model.cascade import ended
from jingyin.model.errors import InputError
from jingyin.model.labels import BENIGN, LABELS
from jingyin.model.prefilter import Units, code_points, known_characters, prefilter_abstains, units_of, unknown_shares
from jingyin.model.text import CleanString
from jingyin.model.tokenizer import PieceTokenizer, SmsTokenizer, default_lexicon
from jingyin.serve.networks import NetworkReader, tokenizers_of
from jingyin.train.corpus.public import MINED
from jingyin.train.data import Rows

FEWEST_REAL = 300
"""Real messages from which thresholds can be set on them alone."""


@dataclass(frozen=True)
class Readings:
    """Outputs of all networks for n rows as u units, by unit; NaN (labels + signs,) where unread.

    Networks read the wholes, and the windows of each message that the prefilter finds riskiest.
    """

    rows: Rows
    units: Units
    abstains: NDArray[np.bool_]
    foreign: NDArray[np.bool_]
    networks: Sequence[NetworkReader]
    outputs: dict[tuple[int, int, str | None], tuple[NDArray[np.float32], int] | None]

    def read(
        self, network: int, unit: int, room: int, ending: str | None = None
    ) -> tuple[NDArray[np.float32], int] | None:
        """Look up a network's output for a unit, as `cascade` asks for it; compute it if missing."""
        key = (network, unit, ending)
        if key not in self.outputs:
            start, end = self.units.ranges[unit]
            text = ended(CleanString(self.rows.cleaned[self.units.owners[unit]].text[start:end]), ending)
            self.outputs[key] = self.networks[network].read(text, self.networks[network].network.max_tokens)
        output = self.outputs[key]
        return output if output is not None and output[1] <= room else None

    def read_all(self, units: Sequence[int]) -> None:
        """Let every network read units on all cores: a session runs outside the interpreter's lock."""
        for number, reader in enumerate(self.networks):
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                read = pool.map(lambda unit, number=number: self.read(number, unit, 1 << 30), units)
                deque(tqdm(read, desc=reader.network.file, total=len(units), unit=" texts", disable=None), maxlen=0)

    def logits(self, depth: int, units: Sequence[int]) -> list[NDArray[np.float64]]:
        """Return the logits (u, labels) of the first `depth` networks for units, NaN where unread."""
        unread = (np.full(len(LABELS), np.nan, np.float32), 0)
        outputs = [
            [(self.outputs.get((number, unit, None)) or unread)[0][: len(LABELS)] for unit in units]
            for number in range(depth)
        ]
        return [np.array(rows, np.float64).reshape(-1, len(LABELS)) for rows in outputs]


def read_by_prefilter(
    folder: Path, networks: Sequence[Network], weights: NDArray[np.floating[Any]], rows: Rows
) -> Readings:
    """Return rows as the prefilter reads them, whole and in windows."""
    tokenizers = tokenizers_of(folder, networks)
    texts = [each.text for each in rows.cleaned]
    codes = code_points(texts)
    abstains, foreign = _exceptions(SmsTokenizer.from_file(folder / "tokenizer.json"), rows)
    readers = [NetworkReader(folder, *each) for each in zip(networks, tokenizers, strict=True)]
    return Readings(rows, units_of(weights.astype(np.float32), texts, codes), abstains, foreign, readers, {})


def _exceptions(words: SmsTokenizer, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark rows (n,) that the prefilter may not judge, by the characters of a lexicon, and those without Chinese."""
    codes = code_points([each.text for each in rows.cleaned])
    shares = unknown_shares(known_characters(words.backend.get_vocab()), codes)
    edits = [each.edits for each in rows.cleaned]
    abstains = [prefilter_abstains(*each) for each in zip(shares, edits, strict=True)]
    return np.array(abstains, np.bool_), np.array(["foreign" in each for each in edits], np.bool_)


def refuse_abstentions(tokenizer: SmsTokenizer | PieceTokenizer, rows: Rows, passed: float) -> None:
    """Raise InputError if the prefilter may not judge a larger share of ordinary `rows` than is `passed` on.

    `tokenizer` is that of a network; where it reads pieces, the bundle has the default lexicon.
    """
    words = tokenizer if isinstance(tokenizer, SmsTokenizer) else SmsTokenizer.from_lexicon(default_lexicon())
    abstains, foreign = _exceptions(words, rows)
    traffic = is_traffic(rows)
    if (share := float((abstains & ~foreign)[traffic].mean())) > passed:
        raise InputError(
            f"the prefilter may not judge {share:.2%} of the {int(traffic.sum())} ordinary calibration messages, "
            f"which are disguised or in unknown characters; the first share in passed is {passed:.2%}: raise it above "
            f"{share:.2%}, or take such messages out of the corpus"
        )


def is_traffic(rows: Rows) -> NDArray[np.bool_]:
    """Mark the rows that represent ordinary traffic: real messages where there are enough, else all benign rows.

    Messages that were picked represent none: false alarms of an earlier bundle, or what it finds harmless.
    """
    picked = rows.own | np.array([source == MINED for source in rows.sources], np.bool_)
    benign = np.isin(rows.labels, [LABELS.index(label) for label in BENIGN]) & ~picked
    real = benign & rows.real
    return real if real.sum() >= FEWEST_REAL else benign
