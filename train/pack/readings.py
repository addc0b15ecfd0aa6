"""What prefilter and networks read in rows of the calibration split, and which of these rows stand for traffic."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jingyin.model.bundle import Network
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import Units, code_points, known_characters, prefilter_abstains, units_of, unknown_shares
from jingyin.model.tokenizer import PieceTokenizer, SmsTokenizer, default_lexicon
from jingyin.serve.networks import NetworkReader, tokenizers_of
from jingyin.train.corpus.public import MINED
from jingyin.train.data import LAWFUL, ORDINARY, Rows

FEWEST_REAL = 300
"""Real messages from which thresholds can be set on them alone."""


@dataclass(frozen=True)
class Readings:
    """Outputs of all networks for n rows as u units: (units, labels + signs) by network and row.

    `passes` has those of the passes of a row that a network has read: how many it reads is for the cascade to say.
    """

    rows: Rows
    units: Units
    abstains: NDArray[np.bool_]
    foreign: NDArray[np.bool_]
    networks: Sequence[NetworkReader]
    outputs: dict[tuple[int, int], NDArray[np.float32]] = field(default_factory=dict)
    passes: dict[tuple[int, int], dict[int, NDArray[np.float32]]] = field(default_factory=dict)

    def read(self, network: int, message: int, worth: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return a network's outputs for a row, as `cascade` asks for them; compute those that are missing."""
        ranges = self.units.ranges[int(self.units.starts[message]) : self.units.end(message)]
        found = self.passes.setdefault((network, message), {})
        return self.networks[network].read(self.rows.cleaned[message].text, ranges, worth, found)

    def read_all(self, messages: Sequence[int]) -> None:
        """Let every network read rows on all cores: a session runs outside the interpreter's lock."""

        def read(number: int, message: int) -> None:
            scores = self.units.scores[:, int(self.units.starts[message]) : self.units.end(message)].sum(0)
            self.outputs[number, message] = self.read(number, message, scores - scores.min())

        for number, reader in enumerate(self.networks):
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                all_read = pool.map(partial(read, number), messages)
                bar = tqdm(all_read, desc=reader.network.file, total=len(messages), unit=" texts", disable=None)
                deque(bar, maxlen=0)

    def logits(self, depth: int, units: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """Return the logits (n, labels) of the first `depth` networks for `units` (n,), NaN where unread."""
        found = [np.full((len(units), len(LABELS)), np.nan) for _ in range(depth)]
        owners = self.units.owners[units]
        for i, (message, place) in enumerate(np.stack([owners, units - self.units.starts[owners]], 1).tolist()):
            for number, rows in enumerate(found):
                if (outputs := self.outputs.get((number, message))) is not None:
                    rows[i] = outputs[place, : len(LABELS)]
        return found


def read_by_prefilter(
    folder: Path, networks: Sequence[Network], weights: NDArray[np.floating[Any]], rows: Rows
) -> Readings:
    """Return rows as the prefilter reads them, whole and in windows."""
    tokenizers = tokenizers_of(folder, networks)
    texts = [each.text for each in rows.cleaned]
    codes = code_points(texts)
    abstains, foreign = _exceptions(SmsTokenizer.from_file(folder / "tokenizer.json"), rows)
    readers = [NetworkReader(folder, *each) for each in zip(networks, tokenizers, strict=True)]
    return Readings(rows, units_of(weights.astype(np.float32), texts, codes), abstains, foreign, readers)


def _exceptions(words: SmsTokenizer, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark rows (n,) that the prefilter may not judge, by the characters of a lexicon, and those without Chinese."""
    codes = code_points([each.text for each in rows.cleaned])
    shares = unknown_shares(known_characters(words.backend.get_vocab()), codes)
    edits = [each.edits for each in rows.cleaned]
    foreign = np.array(["foreign" in each for each in edits], np.bool_)
    return np.array([*map(prefilter_abstains, shares, edits)], np.bool_) & ~foreign, foreign


def refuse_abstentions(tokenizer: SmsTokenizer | PieceTokenizer, rows: Rows, passed: float) -> None:
    """Raise InputError if the prefilter may not judge a larger share of ordinary `rows` than is `passed` on.

    Also if none of the `rows` stands for traffic. `tokenizer` is that of a network; where it reads pieces, the bundle
    has the default lexicon.
    """
    words = tokenizer if isinstance(tokenizer, SmsTokenizer) else SmsTokenizer.from_lexicon(default_lexicon())
    abstains, _ = _exceptions(words, rows)
    traffic = is_traffic(rows)
    if not traffic.any():
        benign = int(np.isin(rows.labels, (ORDINARY, LAWFUL)).sum())
        raise InputError(
            f"none of the {benign:,} ordinary and lawful calibration messages stands for traffic, because all were "
            "picked (your own, cases, mined ones); thresholds need others: give the calibration split authored rows "
            "or real traffic"
        )
    if (share := float(abstains[traffic].mean())) > passed:
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
    benign = np.isin(rows.labels, (ORDINARY, LAWFUL)) & ~picked
    real = benign & rows.real
    return real if real.sum() >= FEWEST_REAL else benign
