"""A bundle's main network for transformers: a folder that AutoModelForSequenceClassification and AutoTokenizer load.

No class of transformers pools BERT's hidden states by their mean. BART's says the same, without code of its own: its
encoder is a BERT, and a decoder layer whose cross-attention weighs all tokens alike is the mean over what the mask
keeps. What the decoder adds of its own is arranged to be constant:

    scale       encoder states are SCALE times ours, so that BART's larger epsilon of LayerNorm counts for nothing; a
                power of two
    ANCHOR      a constant in most decoder dimensions, so large that a LayerNorm divides by the same number always
    pairs       each logit lies in two dimensions, once with either sign: their difference holds no mean that a
                LayerNorm took off
    SMALL       the head's tanh sees SMALL times the logits, where it is a straight line
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import cast

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from transformers import BartConfig, BartForSequenceClassification, PreTrainedTokenizerFast
from transformers.models.bert.modeling_bert import BertLayer

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import BundleError, ConfigError
from jingyin.model.labels import LABELS
from jingyin.model.text import CleanString, clean
from jingyin.model.tokenizer import END, PAD, START, UNKNOWN
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.slots import expand
from jingyin.train.network import ExportedClassifier, SmsClassifier
from jingyin.train.pack.export import classifier_of_bundle
from jingyin.train.saved import Vocabulary

# The model card of an exported network.


CARD = """---
language: zh
license: apache-2.0
library_name: transformers
pipeline_tag: text-classification
tags: [sms, extortion, debt-collection, spam-filter]
---
# jingyin, main network of bundle {id}

Flags pay-to-stop extortion and debt-collection threats in Chinese SMS. Labels: ordinary, lawful_collection,
debt_threat, pay_to_stop, other_threat.

```python
from jingyin.model.text import clean
from transformers import pipeline

classify = pipeline("text-classification", model="THIS FOLDER", top_k=None)
classify(str(clean("...").text), truncation=True)
```

The architecture is BART's because no class of transformers takes the mean of BERT's hidden states: the encoder is the
BERT, and the one decoder layer takes the mean. Float32 only: in float16 or bfloat16 the mean is lost. On 1,000 clean
texts its logits differ by at most {distance:.1e} from those of jingyin's float32 network.

## What this folder can't carry

- **Cleaning.** The network reads clean text: folded, simplified, disguises undone, numbers and links masked by
  private-use characters (`jingyin.model.text.clean`). Raw text gives worse answers without a warning.
- **Fusion.** What jingyin serves is this network's risk fused with that of a prefilter and, where the bundle has them,
  of other networks; the probabilities here are those of one network, not calibrated.
- **Thresholds.** The bundle reviews from a fused risk of {review:.4f} and blocks from {block:.4f}. For the
  probabilities here they mean nothing: set your own on your own traffic.
- **Long messages.** jingyin reads them in windows; here they are cut.

Weights are the bundle's, dequantised from int8.
"""


FORMAT = "transformers"
TOLERANCE = 1e-4
"""Largest allowed distance of a logit from our float32 network."""

MESSAGES = 1000
_SCALE = 64.0
_ANCHOR = 2.0**13
_SMALL = 2.0**-17
_OFFSET = 2  # BART's positions begin there


def export_transformers(bundle: Path, out: Path) -> float:
    """Write a bundle's main network, its tokenizer and a card to folder `out`; returns the largest distance of a logit.

    Raises ConfigError when `out` is there, BundleError when a logit of MESSAGES clean texts is off by over TOLERANCE.
    """
    if out.exists():
        raise ConfigError(f"{out} is there; name a new folder, or remove it first")
    manifest = read_bundle(bundle).manifest
    classifier, vocabulary = classifier_of_bundle(str(bundle))
    classifier.sign_head = None  # transformers' pipeline takes one kind of output
    model = as_bart(classifier)
    tokenizer = as_tokenizer(vocabulary, classifier.encoder.config.max_position_embeddings)
    distance = _distance(classifier, vocabulary, model, tokenizer)
    if not distance <= TOLERANCE:
        raise BundleError(
            f"the exported logits of bundle {manifest.id} differ by {distance:.2g} from ours, "
            f"wanted at most {TOLERANCE:g}; try another version of torch or transformers"
        )
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        card = CARD.format(id=manifest.id, review=manifest.review.risk, block=manifest.block.risk, distance=distance)
        (out / "README.md").write_text(card, encoding="utf-8")
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return distance


def as_bart(classifier: SmsClassifier) -> BartForSequenceClassification:
    """Return a BART that gives the classifier's logits, of batches padded to any length, in float32."""
    ours = classifier.encoder.config
    if ours.hidden_act != "gelu" or ours.hidden_size < 4 * len(LABELS):
        raise ConfigError(
            f"the network has hidden_act={ours.hidden_act!r} and hidden_size={ours.hidden_size}; wanted 'gelu' and at "
            f"least {4 * len(LABELS)}"
        )
    config = BartConfig(
        vocab_size=ours.vocab_size, d_model=ours.hidden_size, max_position_embeddings=ours.max_position_embeddings,
        encoder_layers=ours.num_hidden_layers, encoder_attention_heads=ours.num_attention_heads,
        encoder_ffn_dim=ours.intermediate_size, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=1,
        activation_function="gelu", dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, classifier_dropout=0.0,
        pad_token_id=PAD, bos_token_id=START, eos_token_id=END, decoder_start_token_id=END, forced_eos_token_id=None,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}, use_cache=False,
    )  # fmt: skip
    model = BartForSequenceClassification(config)
    model.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _fill_encoder(model, classifier)
        _fill_decoder(model, ExportedClassifier(classifier).head)
    model.tie_weights()
    return model


def _fill_encoder(model: BartForSequenceClassification, classifier: SmsClassifier) -> None:
    embeddings, encoder = classifier.encoder.embeddings, model.model.encoder
    model.model.shared.weight.copy_(embeddings.word_embeddings.weight * _SCALE)
    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    encoder.embed_positions.weight[_OFFSET:].copy_(positions * _SCALE)
    _copy(encoder.layernorm_embedding, embeddings.LayerNorm, _SCALE)
    layers = cast(Iterable[BertLayer], classifier.encoder.encoder.layer)
    for theirs, ours in zip(encoder.layers, layers, strict=True):
        attention = ours.attention.self
        parts = ((theirs.self_attn.q_proj, attention.query), (theirs.self_attn.k_proj, attention.key),
                 (theirs.self_attn.v_proj, attention.value), (theirs.fc1, ours.intermediate.dense))  # fmt: skip
        for new, old in parts:
            new.weight.copy_(old.weight / _SCALE)
            new.bias.copy_(old.bias)
        _copy(theirs.self_attn.out_proj, ours.attention.output.dense, _SCALE)
        _copy(theirs.fc2, ours.output.dense, _SCALE)
        _copy(theirs.self_attn_layer_norm, ours.attention.output.LayerNorm, _SCALE)
        _copy(theirs.final_layer_norm, ours.output.LayerNorm, _SCALE)


def _copy(new: nn.Module, old: nn.Module, scale: float) -> None:
    for name, parameter in new.named_parameters():
        parameter.copy_(old.get_parameter(name) * scale)


def _fill_decoder(model: BartForSequenceClassification, head: nn.Linear) -> None:
    """Make the one decoder layer pool, and the head read logits off it."""
    size, labels = head.in_features, len(LABELS)
    (layer,) = model.model.decoder.layers
    anchor = torch.zeros(size)
    rest = torch.arange(2 * labels, size - size % 2)
    anchor[rest] = _ANCHOR * (1 - 2 * (rest % 2)).float()  # as many of either sign: no mean
    deviation = float(anchor.square().mean().sqrt())
    layer.self_attn_layer_norm.bias.copy_(anchor)  # whatever comes in, this goes out
    attention = layer.encoder_attn
    for sign, rows in ((1.0, slice(0, labels)), (-1.0, slice(labels, 2 * labels))):
        attention.v_proj.weight[rows].copy_(sign * head.weight / _SCALE)
        attention.v_proj.bias[rows].copy_(sign * head.bias)
    attention.out_proj.weight.copy_(torch.eye(size))
    for norm in (layer.encoder_attn_layer_norm, layer.final_layer_norm):
        norm.weight[: 2 * labels] = deviation
        norm.bias.copy_(anchor)
    dense, out = model.classification_head.dense, model.classification_head.out_proj
    for i in range(labels):
        dense.weight[i, i], dense.weight[i, labels + i] = _SMALL / 2, -_SMALL / 2
        out.weight[i, i] = 1 / _SMALL


def as_tokenizer(vocabulary: Vocabulary, max_tokens: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of clean texts; names of special tokens in a text stay text."""
    backend = Tokenizer.from_str(vocabulary.tokenizer.backend.to_str())  # ours adds the special tokens itself
    names = [backend.id_to_token(index) for index in (PAD, UNKNOWN, START, END)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{names[2]} $A {names[3]}", special_tokens=[(names[2], START), (names[3], END)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token=names[0], unk_token=names[1], cls_token=names[2], sep_token=names[3],
        model_max_length=max_tokens, model_input_names=["input_ids", "attention_mask"], split_special_tokens=True,
        clean_up_tokenization_spaces=False, padding_side="right",
    )  # fmt: skip


def clean_texts(count: int) -> list[CleanString]:
    """Return `count` clean authored messages of the package, drawn from all by a seed that is always the same."""
    records = [record for folder in default_folders() for record in load(folder)]
    rng = Random(0)
    return [clean(expand(record.text, rng)).text for record in rng.sample(records, count)]


def _distance(
    classifier: SmsClassifier, vocabulary: Vocabulary, model: BartForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
) -> float:  # fmt: skip
    """Return the largest distance of a logit of MESSAGES clean texts, ours alone and theirs in padded batches."""
    size = classifier.encoder.config.max_position_embeddings
    texts = clean_texts(MESSAGES)
    farthest = 0.0
    for start in range(0, len(texts), 50):
        some = texts[start : start + 50]
        batch = tokenizer(list(map(str, some)), return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            theirs = model(**batch).logits
            ours = torch.cat([_alone(classifier, ids, size) for ids in vocabulary.tokenizer.encode(some)])
        farthest = max(farthest, float((theirs - ours).abs().max()))
    return farthest


def _alone(classifier: SmsClassifier, ids: list[int], size: int) -> Tensor:
    cut = ids if len(ids) <= size else [*ids[: size - 1], END]
    logits: Tensor = classifier(torch.tensor([cut]), torch.ones(1, len(cut), dtype=torch.long))
    return logits
