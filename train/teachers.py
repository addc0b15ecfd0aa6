"""What teachers say of texts: soft labels (Hinton et al. 2015), on disk, since a teacher takes longer than an epoch."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray

from jingyin.model.bundle import read_bundle
from jingyin.model.decision import softmax
from jingyin.model.network import SmsClassifier
from jingyin.model.text import CleanText
from jingyin.serve.scorer import Scorer
from jingyin.train.loop import predict
from jingyin.train.packing.dequantise import bundle_folder, is_bundle
from jingyin.train.provenance import file_sha256
from jingyin.train.saved import load_classifier, weights_of
from jingyin.train.start import encoder_of


def soft_labels(teachers: Sequence[str], texts: Sequence[CleanText], kept: Path) -> NDArray[np.float32]:
    """Return the probabilities (n, labels) of the mean of the teachers' logits on clean texts.

    A teacher is the run folder of a classifier, or a bundle, whose networks all read every text. Processes share the
    work, each taking every n-th text. What a teacher said is kept in the folder `kept`, for stages with the same
    teacher.
    """
    return np.asarray(softmax(np.mean([_logits(name, texts, kept) for name in teachers], axis=0)), np.float32)


def label_logits(model: SmsClassifier, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the logits (n, labels) of token ids, without those of signs."""
    return predict(model, ids)[:, : model.labels]


def _logits(name: str, texts: Sequence[CleanText], kept: Path) -> NDArray[np.float32]:
    processes = PartialState()
    file = kept / f"{_key(name, texts)}.npy"
    if not file.is_file():
        own = texts[processes.process_index :: processes.num_processes]
        parts = gather_object([_of_bundle(name, own) if is_bundle(name) else _of_run(Path(name), own)])
        if processes.is_main_process:
            found = np.empty((len(texts), parts[0].shape[1]), np.float32)
            for index, part in enumerate(parts):
                found[index :: processes.num_processes] = part
            kept.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(".part.npy")
            np.save(aside, found)
            aside.rename(file)
        processes.wait_for_everyone()
    return np.asarray(np.load(file), np.float32)


def _key(name: str, texts: Sequence[CleanText]) -> str:
    """Return a hash of a teacher and of the texts that it is asked about."""
    who = read_bundle(bundle_folder(name)).manifest.id if is_bundle(name) else file_sha256(weights_of(Path(name)))
    return hashlib.sha256("\n".join([who, *(each.text for each in texts)]).encode()).hexdigest()[:16]


def _of_run(run: Path, texts: Sequence[CleanText]) -> NDArray[np.float32]:
    model, vocabulary = load_classifier(run)
    encode = encoder_of(vocabulary, model.encoder.config.max_position_embeddings)
    return label_logits(model, encode(texts))


def _of_bundle(name: str, texts: Sequence[CleanText]) -> NDArray[np.float32]:
    scorer = Scorer.load(bundle_folder(name), prefilter=False, cache_bytes=0)
    verdicts = scorer.score_many((text.text for text in texts), processes=_cores_each())
    found = [list(verdict.probabilities.values()) for verdict in verdicts]
    return np.asarray(np.log(np.maximum(np.array(found), 1e-6)), np.float32)


def _cores_each() -> int:
    """Return how many cores each of the training processes on this machine has."""
    return max(1, len(os.sched_getaffinity(0)) // int(PartialState().num_processes))
