"""What a training stage starts from: an encoder, or a whole classifier, and the vocabulary that it reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import BertConfig, BertModel

from jingyin.model.errors import ConfigError
from jingyin.model.labels import LABELS
from jingyin.model.network import SmsClassifier
from jingyin.model.text import CleanText
from jingyin.model.tokenizer import SmsTokenizer, default_lexicon
from jingyin.train.data import Encode
from jingyin.train.encoder import keep_layers, load_pretrained, principal_words, with_lexicon, with_own_pieces
from jingyin.train.packing.dequantise import classifier_of_bundle, is_bundle
from jingyin.train.recipes import Align, Classify
from jingyin.train.saved import Vocabulary, is_classifier, load_classifier, load_encoder

_HEAD = 32  # width of an attention head of a new small network


@dataclass(frozen=True)
class Start:
    """An encoder and the vocabulary that it reads; `classifier` is the whole network where one is gone on with."""

    encoder: BertModel
    vocabulary: Vocabulary
    classifier: SmsClassifier | None = None


def start_from(recipe: Align | Classify, encoder: str, texts: Sequence[CleanText]) -> Start:
    """Load `encoder`, and give it the recipe's layers and vocabulary; `texts` say which of its own pieces are kept.

    A bundle's network, and what an earlier stage left, keep the vocabulary that they have. Raises ConfigError when the
    encoder has fewer layers, or reads fewer tokens, than the recipe wants, and for a `hidden` that no network of its
    words can have.
    """
    start = _load(recipe, encoder, texts)
    if isinstance(recipe, Classify) and recipe.hidden is not None:
        return Start(_smaller(start.encoder, encoder, recipe.hidden, recipe), start.vocabulary)
    if (positions := start.encoder.config.max_position_embeddings) < recipe.max_tokens:
        raise ConfigError(
            f"max_tokens is {recipe.max_tokens}, but encoder {encoder!r} has positions for {positions}; write at most "
            f"max_tokens: {positions} in the recipe, or name an encoder that reads longer messages"
        )
    return start


def _load(recipe: Align | Classify, encoder: str, texts: Sequence[CleanText]) -> Start:
    folder = Path(encoder)
    if is_bundle(encoder):
        return _going_on(recipe, *classifier_of_bundle(encoder, recipe.network))
    if is_classifier(folder):
        return _going_on(recipe, *load_classifier(folder))
    if (folder / "encoder").is_dir():
        model, vocabulary = load_encoder(folder)
        return Start(keep_layers(model, recipe.layers), vocabulary)
    pretrained = load_pretrained(encoder)
    keep_layers(pretrained.model, recipe.layers)
    if recipe.vocabulary == "pieces":
        model, pieces = with_own_pieces(pretrained, [each.text for each in texts], recipe.max_tokens)
        return Start(model, Vocabulary(pieces=pieces))
    lexicon = default_lexicon()
    words = SmsTokenizer.from_lexicon(lexicon)
    return Start(with_lexicon(pretrained, words, recipe.max_tokens), Vocabulary(words=words, lexicon=lexicon))


def _going_on(recipe: Align | Classify, classifier: SmsClassifier, vocabulary: Vocabulary) -> Start:
    keep_layers(classifier.encoder, recipe.layers)
    return Start(classifier.encoder, vocabulary, classifier)


def _smaller(encoder: BertModel, name: str, hidden: int, recipe: Classify) -> BertModel:
    """Return a new encoder of the recipe's layers and `hidden` width with the words of `encoder`, called `name`."""
    if hidden > (width := encoder.config.hidden_size):
        raise ConfigError(
            f"hidden is {hidden}, but encoder {name!r} is {width} wide; write at most hidden: {width} in the recipe, "
            "or leave it out to train the encoder itself"
        )
    heads = max(1, hidden // _HEAD)
    if hidden % heads:
        raise ConfigError(f"hidden is {hidden}, which {heads} attention heads can't share; write a multiple of {_HEAD}")
    config = BertConfig(
        vocab_size=encoder.config.vocab_size, hidden_size=hidden, num_hidden_layers=recipe.layers,
        num_attention_heads=heads, intermediate_size=4 * hidden,
        max_position_embeddings=recipe.max_tokens,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    model.embeddings.word_embeddings.weight.data.copy_(principal_words(encoder, hidden))
    return model


def new_classifier(start: Start) -> SmsClassifier:
    """Return the classifier to train: the one that is gone on with, or a new head on the encoder."""
    return start.classifier or SmsClassifier(start.encoder, len(LABELS))


def encoder_of(vocabulary: Vocabulary, max_tokens: int) -> Encode:
    """Return a function that encodes clean texts by a vocabulary, cut to `max_tokens` with the end token kept."""

    def encode(cleaned: Sequence[CleanText]) -> list[list[int]]:
        return [_cut(ids, max_tokens) for ids in vocabulary.tokenizer.encode([each.text for each in cleaned])]

    return encode


def _cut(ids: list[int], size: int) -> list[int]:
    return ids if len(ids) <= size else [*ids[: size - 1], ids[-1]]
