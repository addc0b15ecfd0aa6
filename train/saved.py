"""Networks on disk: the folder in a run that transformers reads too, and the vocabulary next to the weights.

from transformers import AutoModelForSequenceClassification, AutoTokenizer
import jingyin.train.network  # registers the model
model = AutoModelForSequenceClassification.from_pretrained("run/network")
tokenizer = AutoTokenizer.from_pretrained("run/network")
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, normalizers, processors
from transformers import BertModel, PreTrainedTokenizerFast

from jingyin.model.bundle import PIECES
from jingyin.model.errors import ConfigError
from jingyin.model.tokenizer import END, MEANINGS, PAD, START, UNKNOWN, PieceTokenizer, SmsTokenizer
from jingyin.train.network import SmsClassifier

_LEXICON = "lexicon.txt"


@dataclass(frozen=True)
class Vocabulary:
    """A network's vocabulary: pieces, or the words of `lexicon`, the text of a file in jieba's userdict format."""

    tokenizer: SmsTokenizer | PieceTokenizer
    lexicon: str = ""

    @classmethod
    def of_lexicon(cls, lexicon: str) -> "Vocabulary":
        """Return the vocabulary of a lexicon."""
        return cls(SmsTokenizer.from_lexicon(lexicon), lexicon)

    @property
    def kind(self) -> Literal["lexicon", "pieces"]:
        """Which of the two it is, as bundles name it."""
        return "pieces" if isinstance(self.tokenizer, PieceTokenizer) else "lexicon"

    def save(self, folder: Path, *, compiled: bool = False) -> None:
        """Save the tokenizer of pieces, or the lexicon and, for bundles, its compiled form."""
        if self.kind == "lexicon":
            (folder / _LEXICON).write_text(self.lexicon, encoding="utf-8")
        if self.kind == "pieces" or compiled:
            name = PIECES if self.kind == "pieces" else "tokenizer.json"
            self.tokenizer.backend.save(str(folder / name), pretty=False)


def load_vocabulary(folder: Path, kind: str | None = None) -> Vocabulary:
    """Load a vocabulary that Vocabulary.save wrote, of `kind` if there are both; raises ConfigError without any."""
    if kind != "lexicon" and (folder / PIECES).is_file():
        return Vocabulary(PieceTokenizer.from_file(folder / PIECES))
    if not (folder / _LEXICON).is_file():
        raise ConfigError(f"{folder} holds neither {_LEXICON} nor {PIECES}; name the run folder of a training stage")
    return Vocabulary.of_lexicon((folder / _LEXICON).read_text(encoding="utf-8"))


def transformers_tokenizer(vocabulary: Vocabulary, positions: int) -> PreTrainedTokenizerFast:
    """Return the vocabulary as a tokenizer of transformers, for clean text of at most `positions` tokens.

    Clean text is lower case, so that nothing in it is the name of a special token. A vocabulary of pieces spells
    placeholders out by itself.
    """
    backend = Tokenizer.from_str(vocabulary.tokenizer.backend.to_str())
    if vocabulary.kind == "pieces":
        steps = [normalizers.Replace(placeholder, meaning) for placeholder, meaning in MEANINGS.items()]
        backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    pad, unknown, start, end = (backend.id_to_token(index) for index in (PAD, UNKNOWN, START, END))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, START), (end, END)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token=pad, unk_token=unknown, cls_token=start, sep_token=end,
        model_max_length=positions, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def save_encoder(encoder: BertModel, vocabulary: Vocabulary, out: Path) -> None:
    """Leave an encoder and its vocabulary in `out`/encoder."""
    encoder.save_pretrained(out / "encoder")
    vocabulary.save(out / "encoder")


def load_encoder(out: Path) -> tuple[BertModel, Vocabulary]:
    """Load the encoder that save_encoder wrote to the run folder `out`."""
    return BertModel.from_pretrained(out / "encoder", add_pooling_layer=False), load_vocabulary(out / "encoder")


def trained_weights(out: Path) -> Path | None:
    """Return the file of weights, a classifier's or an encoder's, in the run folder `out`, or None."""
    files = (out / name / "model.safetensors" for name in ("network", "encoder"))
    return next((file for file in files if file.is_file()), None)


def is_classifier(out: Path) -> bool:
    """Whether the run folder `out` holds a whole classifier."""
    return (out / "network" / "model.safetensors").is_file()


def save_classifier(model: SmsClassifier, vocabulary: Vocabulary, folder: Path) -> None:
    """Leave a classifier, its vocabulary and a tokenizer of transformers in `folder`."""
    model.save_pretrained(folder)
    vocabulary.save(folder)
    transformers_tokenizer(vocabulary, model.config.max_position_embeddings).save_pretrained(folder)


def load_classifier(out: Path) -> tuple[SmsClassifier, Vocabulary]:
    """Load the classifier in the run folder `out`; raises ConfigError for the run of another stage."""
    if not is_classifier(out):
        raise ConfigError(f"{out} holds no network; name the run folder of a classify stage, or a bundle")
    model: SmsClassifier = SmsClassifier.from_pretrained(out / "network")  # in evaluation mode
    return model, load_vocabulary(out / "network")
