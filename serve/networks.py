"""The networks of a bundle, run by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from jingyin.model.bundle import GOLDEN_TOLERANCE, PIECES, Bundle, Network
from jingyin.model.errors import BundleError
from jingyin.model.text import CleanString
from jingyin.model.tokenizer import PieceTokenizer, SmsTokenizer

Tokenizer = SmsTokenizer | PieceTokenizer


class NetworkReader:
    """One network of a bundle with its tokenizer: clean text -> outputs, one text at a time.

    Dynamic int8 takes its activation scales from the whole batch, so a verdict would depend on the other messages of
    its batch; and on a CPU batching short messages gains nothing. Hence batches of one, without padding.
    """

    def __init__(self, path: Path, network: Network, tokenizer: Tokenizer, threads: int = 1) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self._session = open_session(path / network.file, threads)

    def read(self, text: CleanString, room: int) -> tuple[NDArray[np.float32], int] | None:
        """Return the outputs (labels + signs,) for a clean text, and the number of its tokens.

        None for one of more tokens than `room`, or than the network reads at once.
        """
        (ids,) = self.tokenizer.encode([text])
        if len(ids) > min(room, self.network.max_tokens):
            return None
        return self.run(ids)[0], len(ids)

    def run(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the outputs (1, labels + signs) for the ids of one window."""
        (outputs,) = self._session.run(None, {"input_ids": np.array([ids], np.int64)})
        return np.asarray(outputs, np.float32)

    def check(self, bundle: Bundle) -> None:
        """Raise BundleError unless this machine reproduces the logits of the golden messages."""
        for number, golden in enumerate(bundle.golden):
            if golden.file != self.network.file:
                continue
            outputs = self.run(golden.ids)[0]
            widths = (len(bundle.manifest.labels), len(bundle.manifest.labels) + len(bundle.manifest.signs))
            if len(outputs) not in widths:
                raise BundleError(
                    f"{self.network.file} of bundle {bundle.manifest.id} has {len(outputs)} outputs; wanted "
                    f"{widths[0]}, one for each label, or {widths[1]}, with signs; export it anew"
                )
            distance = float(np.abs(outputs - np.array(golden.logits, np.float32)).max())
            if not distance <= GOLDEN_TOLERANCE:
                raise BundleError(
                    f"golden message {number} of bundle {bundle.manifest.id} is off by {distance:.3f} on this machine, "
                    f"at most {GOLDEN_TOLERANCE} was wanted: this CPU's int8 kernels give other answers; export the "
                    "bundle on such a CPU, or update onnxruntime"
                )


def open_networks(bundle: Bundle, threads: int = 1) -> list[NetworkReader]:
    """Open and check the networks of a bundle, in the order of its cascade; raises BundleError."""
    networks = bundle.manifest.networks
    tokenizers = tokenizers_of(bundle.path, networks)
    readers = [NetworkReader(bundle.path, *each, threads) for each in zip(networks, tokenizers, strict=True)]
    for reader in readers:
        reader.check(bundle)
    return readers


def tokenizers_of(folder: Path, networks: Sequence[Network]) -> list[Tokenizer]:
    """Return the tokenizer of each network, that of each vocabulary loaded once."""
    by_vocabulary: dict[str, Tokenizer] = {}
    for network in networks:
        if network.vocabulary not in by_vocabulary:
            pieces = network.vocabulary == "pieces"
            kind, file = (PieceTokenizer, PIECES) if pieces else (SmsTokenizer, "tokenizer.json")
            by_vocabulary[network.vocabulary] = kind.from_file(folder / file)
    return [by_vocabulary[network.vocabulary] for network in networks]


def open_session(model: Path, threads: int = 1) -> ort.InferenceSession:
    """Open a network as it is served; raises BundleError if onnxruntime can't load it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while waiting would burn a core while idle.
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
