"""Networks on disk: what a stage leaves in its run folder for the next one, and for a bundle."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from jingyin.model.errors import ConfigError
from jingyin.model.labels import LABELS
from jingyin.model.tokenizer import PieceTokenizer, SmsTokenizer
from jingyin.train.network import SmsClassifier, new_sign_head

_WEIGHTS = "classifier.safetensors"
_LEXICON = "lexicon.txt"
_PIECES = "pieces.json"


@dataclass(frozen=True)
class Vocabulary:
    """What a network reads: the words of a lexicon, or pieces; one of the two is there."""

    words: SmsTokenizer | None = None
    lexicon: str = ""
    pieces: PieceTokenizer | None = None

    @classmethod
    def of_lexicon(cls, lexicon: str) -> "Vocabulary":
        """Return the vocabulary of a lexicon, the text of a file in jieba's userdict format."""
        return cls(words=SmsTokenizer.from_lexicon(lexicon), lexicon=lexicon)

    @property
    def tokenizer(self) -> SmsTokenizer | PieceTokenizer:
        """The tokenizer that is there; raises ConfigError without one."""
        found = self.words or self.pieces
        if found is None:
            raise ConfigError("a network without a vocabulary; train it again")
        return found

    def save_compiled(self, folder: Path) -> None:
        """Leave the lexicon and what it compiles to in the folder of a bundle."""
        (folder / _LEXICON).write_text(self.lexicon, encoding="utf-8")
        self.tokenizer.backend.save(str(folder / "tokenizer.json"), pretty=False)

    def save(self, folder: Path) -> None:
        """Leave the lexicon, or the pieces' tokenizer, in `folder`."""
        if self.pieces:
            self.pieces.backend.save(str(folder / _PIECES), pretty=False)
        else:
            (folder / _LEXICON).write_text(self.lexicon, encoding="utf-8")


def load_vocabulary(folder: Path) -> Vocabulary:
    """Load what Vocabulary.save left; raises ConfigError when nothing is there."""
    if (folder / _PIECES).is_file():
        return Vocabulary(pieces=PieceTokenizer(Tokenizer.from_file(str(folder / _PIECES))))
    if not (folder / _LEXICON).is_file():
        raise ConfigError(f"{folder} holds neither {_LEXICON} nor {_PIECES}; name the run folder of a training stage")
    lexicon = (folder / _LEXICON).read_text(encoding="utf-8")
    return Vocabulary.of_lexicon(lexicon)


def save_encoder(encoder: BertModel, vocabulary: Vocabulary, out: Path) -> None:
    """Leave an encoder and its vocabulary in `out`/encoder."""
    encoder.save_pretrained(out / "encoder")
    vocabulary.save(out / "encoder")


def load_encoder(out: Path) -> tuple[BertModel, Vocabulary]:
    """Load what save_encoder left in the run folder `out`."""
    return BertModel.from_pretrained(out / "encoder", add_pooling_layer=False), load_vocabulary(out / "encoder")


def is_classifier(out: Path) -> bool:
    """Whether the run folder `out` holds a whole classifier."""
    return weights_of(out).is_file()


def weights_of(out: Path) -> Path:
    """Return the file of a classifier's weights in the run folder `out`."""
    return out / _WEIGHTS


def trained_weights(out: Path) -> Path | None:
    """Return the file of weights, a classifier's or an encoder's, in the run folder `out`; None where there is none."""
    files = (weights_of(out), out / "encoder" / "model.safetensors")
    return next((file for file in files if file.is_file()), None)


def save_classifier(model: SmsClassifier, vocabulary: Vocabulary, out: Path) -> None:
    """Leave the weights in `out`, and the encoder's configuration and vocabulary in `out`/encoder."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / _WEIGHTS)
    model.encoder.config.save_pretrained(out / "encoder")
    vocabulary.save(out / "encoder")


def load_classifier(out: Path) -> tuple[SmsClassifier, Vocabulary]:
    """Load what save_classifier left in the run folder `out`; raises ConfigError for the run of another stage."""
    if not is_classifier(out):
        raise ConfigError(f"{out} holds no {_WEIGHTS}; name the run folder of a classify stage, or a bundle")
    config = BertConfig.from_pretrained(out / "encoder")
    weights = load_file(out / _WEIGHTS)
    encoder = BertModel(config, add_pooling_layer=False)
    signs = weights.get("sign_head.value.bias")
    model = SmsClassifier(encoder, len(LABELS), None if signs is None else new_sign_head(encoder, len(signs)))
    model.load_state_dict(weights)
    return model.eval(), load_vocabulary(out / "encoder")
