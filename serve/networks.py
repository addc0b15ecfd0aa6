"""The networks of a bundle, run by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from jingyin.model.bundle import GOLDEN_TOLERANCE, PIECES, Bundle, Network
from jingyin.model.decision import risk_logit
from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS
from jingyin.model.text import CleanString
from jingyin.model.tokenizer import END, START, PieceTokenizer, SmsTokenizer

Tokenizer = SmsTokenizer | PieceTokenizer

MAX_WINDOWS = 8
"""A longer message is read in this many windows at most: the first ones, and the last."""


class Reading(NamedTuple):
    """What a network says of a message: logits (labels,), and those of signs, () for a network without."""

    logits: NDArray[np.float64]
    signs: NDArray[np.float64]


class NetworkReader:
    """One network of a bundle with the tokenizer that it reads by: clean text -> Reading, one message at a time.

    Dynamic int8 takes its activation scales from the whole batch, so a batch would change a verdict with its
    neighbours; and on a CPU batching short messages buys nothing. Hence batches of one, without padding.
    """

    def __init__(self, path: Path, network: Network, tokenizer: Tokenizer, threads: int = 1) -> None:
        self.network = network
        self._tokenizer = tokenizer
        self._session = open_session(path / network.file, threads)

    def encode(self, text: CleanString) -> list[int]:
        """Return the token ids of a clean text."""
        (ids,) = self._tokenizer.encode([text])
        return ids

    def read(self, text: CleanString) -> Reading:
        """Return what the network says of a clean text: of its riskiest window, where it takes several."""
        return self.read_ids(self.encode(text))

    def read_ids(self, ids: Sequence[int]) -> Reading:
        """Return what the network says of token ids of any length."""
        each = np.concatenate([self.run(window) for window in windows(ids, self.network.max_tokens)])
        best = each[risk_logit(each[:, : len(LABELS)]).argmax()] if len(each) > 1 else each[0]
        return Reading(np.asarray(best[: len(LABELS)], np.float64), np.asarray(best[len(LABELS) :], np.float64))

    def run(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the outputs (1, labels + signs) for the ids of one window."""
        (outputs,) = self._session.run(None, {"input_ids": np.array([ids], np.int64)})
        return np.asarray(outputs, np.float32)

    def check(self, bundle: Bundle) -> None:
        """Raise BundleError unless the golden messages get their logits on this machine."""
        for number, golden in enumerate(bundle.golden):
            if golden.file != self.network.file:
                continue
            distance = float(np.abs(self.run(golden.ids)[0] - np.array(golden.logits, np.float32)).max())
            if not distance <= GOLDEN_TOLERANCE:
                raise BundleError(
                    f"golden message {number} of bundle {bundle.manifest.id} is off by {distance:.3f} on this machine, "
                    f"at most {GOLDEN_TOLERANCE} was wanted: this CPU's int8 kernels give other answers; export the "
                    "bundle on such a CPU, or update onnxruntime"
                )


def open_networks(bundle: Bundle, threads: int = 1) -> list[NetworkReader]:
    """Open and check the networks of a bundle, in the order of its cascade; raises BundleError."""
    networks = bundle.manifest.networks
    if bundle.manifest.labels != LABELS:
        raise BundleError(
            f"bundle {bundle.manifest.id} has labels {', '.join(bundle.manifest.labels)}; wanted {', '.join(LABELS)}, "
            "in this order: train one on these labels, or install the jingyin that wrote it"
        )
    tokenizers = tokenizers_of(bundle.path, networks)
    readers = [NetworkReader(bundle.path, *each, threads) for each in zip(networks, tokenizers, strict=True)]
    for reader in readers:
        reader.check(bundle)
    return readers


def tokenizers_of(folder: Path, networks: Sequence[Network]) -> list[Tokenizer]:
    """Return the tokenizer that each network reads by, those of one vocabulary loaded once."""
    found: dict[str, Tokenizer] = {}
    for network in networks:
        if network.vocabulary not in found:
            pieces = network.vocabulary == "pieces"
            found[network.vocabulary] = (
                PieceTokenizer.from_file(folder / PIECES)
                if pieces
                else SmsTokenizer.from_file(folder / "tokenizer.json")
            )
    return [found[network.vocabulary] for network in networks]


def open_session(model: Path, threads: int = 1) -> ort.InferenceSession:
    """Open a network as it is served; raises BundleError if onnxruntime can't load it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while waiting take a core from whoever else lives on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"],
            # On a CPU the fused kernel takes six times as long as the two that it replaces (onnxruntime 1.32).
            disabled_optimizers=["SkipLayerNormFusion"],
        )  # fmt: skip
    except Exception as error:  # onnxruntime raises many kinds
        raise BundleError(
            f"onnxruntime can't load {model.name} ({type(error).__name__}); export the bundle again, or install "
            "the onnxruntime named in its manifest"
        ) from None


def windows(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut ids (START first, END last) into windows of at most `size`, each with START and END of its own.

    Windows overlap by a quarter, so that no sentence falls between two. Past MAX_WINDOWS the middle is left out:
    the bound keeps a message of 100,000 characters from holding a gateway up.
    """
    if len(ids) <= size:
        return [ids]
    body, room = ids[1:-1], size - 2
    starts = list(range(0, len(body) - room // 4, room - room // 4))
    if len(starts) > MAX_WINDOWS:
        starts = [*starts[: MAX_WINDOWS - 1], len(body) - room]
    return [[START, *body[start : start + room], END] for start in starts]
