"""The network that is trained: encoder, mean pool, standardised features, linear head.

A model of transformers like any other: `save_pretrained`, `from_pretrained`, and, once this module is imported,
`AutoModelForSequenceClassification`. It reads clean text (jingyin.model.text.clean).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.data import Encode, Rows, signs_of_rows
from jingyin.train.loop import pad, token_batches


class SignHead(nn.Module):
    """Logits of signs (model/signs.py), from the encoder's states under a sign's attention, and from words.

    "Wide and deep" (Cheng et al. 2016): states find a sign's meaning, one weight per word its usual wording. It reads
    lower states and the words themselves, because the last state keeps little but the label.
    """

    def __init__(self, states: int, words: int, signs: int) -> None:
        super().__init__()
        self.query = nn.Linear(states, signs, bias=False)
        self.value = nn.Linear(states, signs)
        self.words = nn.Embedding(words, signs)
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.words.weight)

    @property
    def signs(self) -> int:
        """Number of signs."""
        return self.value.out_features

    def forward(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (batch, signs) of states (batch, length, states) and ids.

        The mask (batch, length) is 1 for tokens.
        """
        kept = attention_mask.unsqueeze(-1).bool()
        attention = self.query(states).masked_fill(~kept, -torch.inf).softmax(1)
        words = self.words(input_ids).masked_fill(~kept, 0.0)
        logits: Tensor = (attention * self.value(states) + words).sum(1)
        return logits


class SmsConfig(BertConfig):  # type: ignore[no-untyped-call]
    """Configuration of an SmsClassifier: a BERT's, and how many `signs` its sign head has, 0 for none."""

    model_type = "jingyin-sms"

    def __init__(self, signs: int = 0, **kwargs: Any) -> None:  # noqa: ANN401  as in transformers
        kwargs.setdefault("id2label", dict(enumerate(LABELS)))
        kwargs.setdefault("label2id", {label: number for number, label in kwargs["id2label"].items()})
        super().__init__(**kwargs)
        self.signs = signs


@dataclass
class SmsOutput(SequenceClassifierOutput):
    """Logits of the labels (batch, labels) and, with a sign head, those of signs (batch, signs)."""

    sign_logits: Tensor | None = None


class SmsClassifier(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Token ids -> logits of the labels, and of signs where there is a sign head.

    The head sees standardised features, (pooled - mean) / sd, which lets it learn ten times faster than the encoder
    from the first step on; `mean` and `sd` are set once, from training messages, and folded into the head on export.
    """

    config_class = SmsConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True
    mean: Tensor
    sd: Tensor

    def __init__(self, config: SmsConfig) -> None:
        super().__init__(config)
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.sign_head = new_sign_head(self.encoder, config.signs) if config.signs else None
        self.head = nn.Linear(config.hidden_size, int(config.num_labels or 0))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("sd", torch.ones(config.hidden_size))
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def on(cls, encoder: BertModel) -> "SmsClassifier":
        """Return a classifier with a new head on `encoder`."""
        known = {key: value for key, value in encoder.config.to_dict().items() if key not in _OWN_KEYS}
        model = cls(SmsConfig(**known))
        model.encoder = encoder
        return model

    def with_signs(self, head: SignHead | None) -> "SmsClassifier":
        """Give the classifier a sign head, or none, in place."""
        self.sign_head = head
        self.config.signs = head.signs if head else 0
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the encoder begins as BertModel makes it, and the head at zero."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        spans: Tensor | None = None,
        **_: object,
    ) -> SmsOutput:
        """Return logits (batch, labels) for ids (batch, length), with `labels` (batch,) also a loss.

        The mask is 1 for tokens. With `spans` (batch, units, 2), the first token of each unit and the one after its
        last, the logits are (batch, units, labels): the head reads the mean of a unit's states, which have seen the
        whole message ("late chunking", Günther et al. 2024, arXiv 2409.04701).
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = all_states(self.encoder, input_ids, mask)
        pooled = mean_of(states[-1], mask) if spans is None else means_of_spans(states[-1], spans)
        logits = self.head(self.dropout((pooled - self.mean) / self.sd))
        signs = None if self.sign_head is None else self.sign_head(sign_states(states), input_ids, mask)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SmsOutput(loss=loss, logits=logits, sign_logits=signs)


_OWN_KEYS = {"model_type", "architectures", "id2label", "label2id", "transformers_version", "dtype", "_name_or_path"}

AutoConfig.register(SmsConfig.model_type, SmsConfig)
AutoModelForSequenceClassification.register(SmsConfig, SmsClassifier)


class ExportedClassifier(nn.Module):
    """The same network for inference on the units of one message: the standardisation is part of the head."""

    def __init__(self, classifier: SmsClassifier) -> None:
        super().__init__()
        self.encoder, self.sign_head = classifier.encoder, classifier.sign_head
        head = classifier.head
        self.head = nn.Linear(head.in_features, head.out_features)
        with torch.no_grad():
            self.head.weight.copy_(head.weight / classifier.sd)
            self.head.bias.copy_(head.bias - head.weight @ (classifier.mean / classifier.sd))

    def forward(self, input_ids: Tensor, spans: Tensor) -> Tensor:
        """Return logits (units, labels + signs) of ids (1, length) for `spans` (units, 2), first token and one past."""
        states = all_states(self.encoder, input_ids, torch.ones_like(input_ids))
        places = torch.arange(input_ids.shape[1])
        within = (places >= spans[:, :1]) & (places < spans[:, 1:])  # (units, length)
        logits: Tensor = self.head(within.float() @ states[-1][0] / within.sum(1, keepdim=True))
        if (head := self.sign_head) is None:
            return logits
        read = sign_states(states)[0]
        attention = head.query(read).masked_fill(~within.unsqueeze(-1), -torch.inf).softmax(1)
        signs = (attention * head.value(read)).sum(1) + within.float() @ head.words(input_ids[0])
        return torch.cat([logits, signs], 1)


def new_sign_head(encoder: BertModel, signs: int) -> SignHead:
    """Return an untrained sign head for an encoder."""
    config = encoder.config
    return SignHead(len(state_indices(config.num_hidden_layers)) * config.hidden_size, config.vocab_size, signs)


def state_indices(layers: int) -> list[int]:
    """Return which states a sign head reads: the embeddings (0), the middle layer's and the last but one's."""
    return sorted({0, layers // 2, layers - 1})


def sign_states(states: Sequence[Tensor]) -> Tensor:
    """Return a sign head's input (batch, length, states) from all states (batch, length, hidden), embeddings first."""
    return torch.cat([states[i] for i in state_indices(len(states) - 1)], -1)


def all_states(encoder: BertModel, input_ids: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
    """Return the embeddings and each layer's hidden states, (batch, length, hidden) each."""
    found = encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    states: Sequence[Tensor] = found.hidden_states
    return states


def mean_pool(encoder: BertModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of an encoder's last hidden states over the tokens that `attention_mask` keeps."""
    return mean_of(encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask)


def means_of_spans(states: Tensor, spans: Tensor) -> Tensor:
    """Return the means (batch, units, hidden) of states (batch, length, hidden) over spans (batch, units, 2)."""
    positions = torch.arange(states.shape[1], device=states.device)
    inside = (positions >= spans[..., :1]) & (positions < spans[..., 1:])
    weights = inside / inside.sum(-1, keepdim=True).clamp_min(1)
    return weights.to(states.dtype) @ states


def mean_of(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean (batch, hidden) of states (batch, length, hidden) where the mask (batch, length) is set."""
    weights = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


_EPOCHS, _TOKENS, _RATE, _DECAY = 12, 4096, 3e-3, 0.02


def annotated_messages(rows: Rows) -> Rows:
    """Return the messages among `rows` with annotated signs, without copies of them; raises InputError for none."""
    annotated = rows.take(np.flatnonzero(rows.first & rows.annotated))
    if not len(annotated):
        raise InputError(
            f"none of {int(rows.first.sum())} training messages has signs that people read, so that none can be "
            "learnt; leave signs out of the recipe, or add authored messages to the corpus"
        )
    return annotated


def fit_sign_head(model: SmsClassifier, annotated: Rows, encode: Encode, seed: int) -> SignHead:
    """Return a sign head trained on the output of annotated_messages; `model` is on the CPU, and so is the head.

    The encoder stays as it is: signs cost the labels nothing. One of four layers that was trained on signs named them
    no better (train/LOG.md).
    """
    ids = encode(annotated.cleaned)
    states, targets = _states_read(model, ids), torch.tensor(signs_of_rows(annotated))
    torch.manual_seed(seed)
    head = new_sign_head(model.encoder, targets.shape[1])
    with torch.no_grad():  # starts from each sign's log-odds, with one message added on either side
        head.value.bias.copy_(torch.log((targets.sum(0) + 1) / ((1 - targets).sum(0) + 1)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
    rng, lengths = np.random.default_rng(seed), np.array([len(each) for each in ids])
    orders = (rng.permutation(len(ids)) for _ in range(_EPOCHS))
    plan = [rows for order in orders for rows in token_batches(lengths, order, _TOKENS, rng)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(plan)))
    for rows in plan:
        inputs = nn.utils.rnn.pad_sequence([states[row] for row in rows], batch_first=True).float()
        logits = head(inputs, *pad([ids[row] for row in rows]))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets[rows]) * targets.shape[1]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head.eval()


def _states_read(model: SmsClassifier, ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return a sign head's inputs, (length, states) a message, computed once because the encoder does not change."""
    lengths = np.array([len(row) for row in ids])
    out = [torch.empty(0)] * len(ids)
    model.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for rows in token_batches(lengths, np.arange(len(ids)), _TOKENS, np.random.default_rng(0)):
            padded, mask = pad([ids[row] for row in rows])
            states = sign_states(all_states(model.encoder, padded, mask)).to(torch.bfloat16)
            for row, states_of_row in zip(rows, states, strict=True):
                out[row] = states_of_row[: lengths[row]].clone()
    return out
