"""The networks of a bundle, run by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from jingyin.model.bundle import GOLDEN_TOLERANCE, PIECES, Bundle, Network
from jingyin.model.errors import BundleError
from jingyin.model.spans import passes_of, spans_of
from jingyin.model.text import CleanString
from jingyin.model.tokenizer import END, START, PieceTokenizer, SmsTokenizer

Tokenizer = SmsTokenizer | PieceTokenizer

TOKENS = {"tiny.onnx": 1536, "model.onnx": 384, "verifier.onnx": 192}
"""Most tokens of a message that each network reads, in passes of at most its `max_tokens`."""


class NetworkReader:
    """One network of a bundle with its tokenizer: clean text -> outputs of its units, one text at a time.

    Dynamic int8 takes its activation scales from the whole batch, so a verdict would depend on the other messages of
    its batch; and on a CPU batching short messages gains nothing. Hence batches of one, without padding.
    """

    def __init__(self, path: Path, network: Network, tokenizer: Tokenizer) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self._session = open_session(path / network.file)

    def read(
        self, text: CleanString, ranges: Sequence[tuple[int, int]], worth: NDArray[np.floating[Any]],
        found: dict[int, NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:  # fmt: skip
        """Return the outputs (units, labels + signs) for the units `ranges` of a clean text, the whole first.

        A text of more tokens than the network reads at once is read in passes: those with a unit whose `worth` (units,)
        is 0 or more, the highest first, as far as TOKENS allows, or else the highest (all, if none has a unit). The
        whole's outputs are the mean over passes, those of units beyond are NaN. `found`, outputs by pass of an earlier
        reading, is added to.
        """
        found = {} if found is None else found
        most = self.network.max_tokens
        ((ids, offsets),) = self.tokenizer.encode_with_offsets([text])
        spans = spans_of(ranges, offsets)
        if len(ids) <= most:
            if 0 not in found:
                found[0] = self.run(ids, spans)
            return found[0]
        passes = passes_of(spans, len(ids), most)
        highest = np.array([worth[each.units].max(initial=-np.inf) for each in passes])
        bound = min(0.0, float(highest.max()))
        chosen = [i for i in np.argsort(-highest, kind="stable").tolist() if highest[i] >= bound]
        chosen = chosen[: max(1, TOKENS[self.network.file] // most)]
        for i in chosen:
            if i not in found:
                each = passes[i]
                inside = np.concatenate([[(0, most)], each.spans])
                found[i] = self.run([START, *ids[each.start : each.end], END], inside)
        whole = np.mean([found[i][0] for i in chosen], 0)
        outputs = np.full((len(spans), len(whole)), np.nan, np.float32)
        outputs[spans[:, 0] == 0] = whole
        for i in chosen:
            outputs[passes[i].units] = found[i][1:]
        return outputs

    def run(self, ids: Sequence[int], spans: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the outputs (units, labels + signs) for token ids and `spans` (units, 2), by default of the whole."""
        spans = np.array([(0, len(ids))], np.int64) if spans is None else spans
        (outputs,) = self._session.run(None, {"input_ids": np.array([ids], np.int64), "spans": spans})
        return np.asarray(outputs, np.float32)

    def check(self, bundle: Bundle) -> None:
        """Raise BundleError unless this machine reproduces the logits of its golden messages; it needs some."""
        own = [(number, golden) for number, golden in enumerate(bundle.golden) if golden.file == self.network.file]
        if not own:
            raise BundleError(
                f"bundle {bundle.manifest.id} has no golden message for {self.network.file}, so that nothing shows "
                "whether this machine runs it right; export it anew"
            )
        for number, golden in own:
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


def open_networks(bundle: Bundle) -> list[NetworkReader]:
    """Open and check the networks of a bundle, in the order of its cascade; raises BundleError."""
    networks = bundle.manifest.networks
    tokenizers = tokenizers_of(bundle.path, networks)
    readers = [NetworkReader(bundle.path, *each) for each in zip(networks, tokenizers, strict=True)]
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


def open_session(model: Path) -> ort.InferenceSession:
    """Open a network as it is served; raises BundleError if onnxruntime can't load it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
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
