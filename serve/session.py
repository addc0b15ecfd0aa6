"""The network of a bundle, run by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from jingyin.model.bundle import GOLDEN_TOLERANCE, Bundle
from jingyin.model.errors import BundleError
from jingyin.model.tokenizer import END, START

MAX_WINDOWS = 8
"""A longer message is read in this many windows at most: the first ones, and the last."""


class Network:
    """Token ids -> logits, one message at a time.

    Dynamic int8 takes its activation scales from the whole batch, so a batch would change a verdict with its
    neighbours; and on a CPU batching short messages buys nothing. Hence batches of one, without padding.
    """

    def __init__(self, model: Path, max_tokens: int, threads: int) -> None:
        self._session = open_session(model, threads)
        self._max_tokens = max_tokens

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits (windows, labels) of one message: one row, or one for each window of a long one."""
        rows = [self._run(window) for window in windows(ids, self._max_tokens)]
        return np.concatenate(rows)

    def _run(self, ids: Sequence[int]) -> NDArray[np.float32]:
        (logits,) = self._session.run(None, {"input_ids": np.array([ids], np.int64)})
        return np.asarray(logits, np.float32)

    def check(self, bundle: Bundle) -> None:
        """Raise BundleError unless the golden messages get their logits on this machine."""
        for number, golden in enumerate(bundle.golden):
            distance = float(np.abs(self.logits(golden.ids)[0] - np.array(golden.logits, np.float32)).max())
            if not distance <= GOLDEN_TOLERANCE:
                raise BundleError(
                    f"golden message {number} of bundle {bundle.manifest.id} is off by {distance:.3f} on this machine, "
                    f"at most {GOLDEN_TOLERANCE} was wanted: this CPU's int8 kernels give other answers; export the "
                    "bundle on such a CPU, or update onnxruntime"
                )


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
