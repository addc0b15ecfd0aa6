"""The network that is trained: encoder, mean pool, standardised features, linear head. The only module with torch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import BertModel


class SignHead(nn.Module):
    """Logits of signs (model/signs.py): by what the encoder's states say where a sign's attention looks, and by words.

    "Wide and deep" (Cheng et al. 2016): states find what a sign means, a weight a word what it is usually said with. It
    reads lower states beside the words themselves, because the last one keeps little but the label.
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
        """How many signs there are."""
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


class SmsClassifier(nn.Module):
    """Token ids -> logits of the labels and, with a `sign_head`, those of signs behind them.

    The head sees standardised features, (pooled - mean) / sd, which lets it learn ten times faster than the encoder
    from the first step on; `mean` and `sd` are set once, from training messages, and folded into the head on export.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self, encoder: BertModel, labels: int, sign_head: SignHead | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        hidden: int = encoder.config.hidden_size
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.labels = labels
        self.sign_head = sign_head
        self.head = nn.Linear(hidden, labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("sd", torch.ones(hidden))

    def pool(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of last hidden states (batch, hidden) over what `attention_mask` (batch, length) keeps."""
        return mean_pool(self.encoder, input_ids, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (batch, labels + signs) of ids (batch, length); the mask is 1 for tokens, 0 for padding."""
        if self.sign_head is None:
            return self._label_logits(self.pool(input_ids, attention_mask))
        states = all_states(self.encoder, input_ids, attention_mask)
        logits = self._label_logits(mean_of(states[-1], attention_mask))
        return torch.cat([logits, self.sign_head(sign_states(states), input_ids, attention_mask)], 1)

    def _label_logits(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout((pooled - self.mean) / self.sd))
        return logits


class ExportedClassifier(nn.Module):
    """The same network for inference on one unpadded message: the standardisation is part of the head."""

    def __init__(self, classifier: SmsClassifier) -> None:
        super().__init__()
        self.encoder, self.labels, self.sign_head = classifier.encoder, classifier.labels, classifier.sign_head
        head = classifier.head
        self.head = nn.Linear(head.in_features, head.out_features)
        with torch.no_grad():
            self.head.weight.copy_(head.weight / classifier.sd)
            self.head.bias.copy_(head.bias - head.weight @ (classifier.mean / classifier.sd))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits (batch, labels + signs) of ids (batch, length), all of one length."""
        mask = torch.ones_like(input_ids)
        states = all_states(self.encoder, input_ids, mask)
        logits: Tensor = self.head(states[-1].mean(1))
        return (
            logits
            if self.sign_head is None
            else torch.cat([logits, self.sign_head(sign_states(states), input_ids, mask)], 1)
        )


def new_sign_head(encoder: BertModel, signs: int) -> SignHead:
    """Return an untrained sign head for an encoder."""
    config = encoder.config
    return SignHead(len(state_indices(config.num_hidden_layers)) * config.hidden_size, config.vocab_size, signs)


def state_indices(layers: int) -> list[int]:
    """Return which states a sign head reads, 0 for the embeddings: these, the middle layer's, the last but one's."""
    return sorted({0, layers // 2, layers - 1})


def sign_states(states: Sequence[Tensor]) -> Tensor:
    """Return what a sign head reads (batch, length, states) of all states (batch, length, hidden), embeddings first."""
    return torch.cat([states[i] for i in state_indices(len(states) - 1)], -1)


def all_states(encoder: BertModel, input_ids: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
    """Return the embeddings and each layer's hidden states, (batch, length, hidden) each."""
    found = encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    states: Sequence[Tensor] = found.hidden_states
    return states


def mean_pool(encoder: BertModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of an encoder's last hidden states over the tokens that `attention_mask` keeps."""
    return mean_of(encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask)


def mean_of(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean (batch, hidden) of states (batch, length, hidden) over what the mask (batch, length) keeps."""
    weights = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)
