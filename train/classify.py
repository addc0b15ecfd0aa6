"""The classifier stage: fine-tunes an encoder, on a teacher's soft labels if there is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import BertConfig, BertModel

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import ConfigError
from jingyin.model.labels import LABELS
from jingyin.model.network import SmsClassifier
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.train.calibrate import softmax
from jingyin.train.cuts import cuts
from jingyin.train.data import Encode, Rows, one_hot, read_split, unlabelled
from jingyin.train.encoder import load_pretrained
from jingyin.train.export import open_session, run
from jingyin.train.fit import fit, predict
from jingyin.train.recipe import Classify, read_recipe
from jingyin.train.vocabularies import Start, lexicon_encode, pieces_encode, start_from

STANDARD_MESSAGES = 512
"""Training messages from which the head's standardisation is measured."""


def run_classify(
    recipe: Classify, encoder: str, teacher: Path | None, corpus: Path, out: Path, resume: bool
) -> dict[str, float]:
    """Train a classifier and leave it in `out`; returns validation metrics."""
    torch.manual_seed(recipe.seed)
    train = read_split(corpus, "train").drawn(recipe.rows, recipe.seed)
    validation = read_split(corpus, "validation")
    model, start = _begin(recipe, encoder)
    train, target = _taught(recipe, teacher, train, out / "soft.npy", resume)
    train_set = _dataset(train, start.encode, target)
    if not _is_classifier(encoder):
        standardise(model, train_set["ids"], recipe.seed)
    validation_set = _dataset(validation, start.encode, one_hot(validation.labels, 0))
    metrics = fit(
        model, train_set, validation_set, out, epochs=recipe.epochs,
        batch_size=recipe.batch_size, learning_rate=recipe.learning_rate, warmup=recipe.warmup,
        precision=recipe.precision, seed=recipe.seed, resume=resume, head_rate=recipe.head_rate,
    )  # fmt: skip
    if PartialState().is_main_process:
        save_classifier(model, start.lexicon, out)
    return metrics


def _begin(recipe: Classify, encoder: str) -> tuple[SmsClassifier, Start]:
    """Return a new classifier on `encoder`, or the one that an earlier stage left, head and all, to go on with."""
    if not _is_classifier(encoder):
        start = start_from(recipe, encoder)
        return SmsClassifier(start.encoder, len(LABELS)), start
    model, encode, lexicon = load_classifier(Path(encoder).parent)
    return model, Start(model.encoder, encode, lexicon)


def _taught(
    recipe: Classify, teacher: Path | None, rows: Rows, soft_file: Path, resume: bool
) -> tuple[Rows, NDArray[np.float32]]:
    """Return what to train on, and its targets: labels, mixed with the teacher's probabilities if there is one.

    A teacher labels pieces of messages too; these have its probabilities alone. What it said is kept in `soft_file`.
    """
    target = one_hot(rows.labels, recipe.label_smoothing)
    if teacher is None:
        return rows, target
    authored = [text.original for text, source in zip(rows.cleaned, rows.sources, strict=True) if source == "authored"]
    pieces = unlabelled([clean(text) for text in cuts(authored, recipe.cuts, recipe.seed)])
    if not (resume and soft_file.is_file()):
        soft = soft_labels(teacher, [*rows.cleaned, *pieces.cleaned])
        if PartialState().is_main_process:
            np.save(soft_file, soft)
        PartialState().wait_for_everyone()
    soft = np.load(soft_file)
    mixed = (1 - recipe.soft_share) * target + recipe.soft_share * soft[: len(rows)]
    return rows.and_(pieces), np.concatenate([mixed, soft[len(rows) :]]).astype(np.float32)


def _is_classifier(encoder: str) -> bool:
    return (Path(encoder).parent / "classifier.safetensors").is_file()


def standardise(model: SmsClassifier, ids: list[list[int]], seed: int) -> None:
    """Set the head's mean and sd from pooled outputs of STANDARD_MESSAGES messages, in place."""
    chosen = np.random.default_rng(seed).permutation(len(ids))[:STANDARD_MESSAGES]
    pooled = torch.tensor(predict(_Pool(model), [ids[i] for i in chosen]))
    model.mean.copy_(pooled.mean(0))
    model.sd.copy_(pooled.std(0).clamp_min(1e-4) if len(pooled) > 1 else torch.ones_like(model.sd))


class _Pool(torch.nn.Module):
    def __init__(self, classifier: SmsClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.classifier.pool(input_ids, attention_mask)


def save_classifier(model: SmsClassifier, lexicon: str, out: Path) -> None:
    """Leave the weights, the encoder's configuration and the lexicon ("" for pieces) in `out`."""
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / "classifier.safetensors"
    )
    model.encoder.config.save_pretrained(out / "encoder")
    (out / "encoder" / "lexicon.txt").write_text(lexicon, encoding="utf-8")


def load_classifier(out: Path) -> tuple[SmsClassifier, Encode, str]:
    """Load what save_classifier left: the network, how it reads text, and its lexicon.

    Raises ConfigError for the run folder of another stage.
    """
    recipe = read_recipe(out / "recipe.yaml")
    if not isinstance(recipe, Classify):
        raise ConfigError(f"{out} is the run of a stage {recipe.stage}; name that of a classify stage, or a bundle")
    model = SmsClassifier(BertModel(BertConfig.from_pretrained(out / "encoder"), add_pooling_layer=False), len(LABELS))
    model.load_state_dict(load_file(out / "classifier.safetensors"))
    lexicon = (out / "encoder" / "lexicon.txt").read_text(encoding="utf-8")
    if lexicon:
        return model.eval(), lexicon_encode(SmsTokenizer.from_lexicon(lexicon), recipe.max_tokens), lexicon
    return model.eval(), pieces_encode(load_pretrained(recipe.encoder), recipe.max_tokens), lexicon


def soft_labels(teacher: Path, texts: Sequence[CleanText]) -> NDArray[np.float32]:
    """Return the probabilities (n, labels) that the classifier in folder `teacher`, or a bundle's network, gives to clean texts.

    Processes share the work, each taking every n-th text.
    """
    processes = PartialState()
    own_texts = texts[processes.process_index :: processes.num_processes]
    if (teacher / "manifest.json").is_file():
        own = _bundle_probabilities(teacher, own_texts)
    else:
        model, encode, _ = load_classifier(teacher)
        own = softmax(predict(model, encode(own_texts)))
    soft = np.empty((len(texts), len(LABELS)), np.float32)
    for index, part in enumerate(gather_object([own])):
        soft[index :: processes.num_processes] = part
    return soft


def _bundle_probabilities(bundle: Path, texts: Sequence[CleanText]) -> NDArray[np.floating[Any]]:
    read = read_bundle(bundle)
    encode = lexicon_encode(SmsTokenizer.from_file(read.path / "tokenizer.json"), read.manifest.max_tokens)
    session = open_session(read.path / "model.onnx")
    logits = [run(session, [ids]) for ids in tqdm(encode(texts), desc="teacher", unit=" texts", disable=None)]
    return softmax(np.concatenate(logits) / read.manifest.calibration.temperature)


def _dataset(rows: Rows, encode: Encode, target: NDArray[np.float32]) -> Dataset:
    ids = encode(rows.cleaned)
    return Dataset.from_dict(
        {"ids": ids, "target": list(target), "weight": rows.weights, "length": list(map(len, ids))}
    )
