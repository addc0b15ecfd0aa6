"""The network that is trained: encoder, mean pool, standardised features, linear head. The only module with torch."""

import torch
from torch import Tensor, nn
from transformers import BertModel


class SmsClassifier(nn.Module):
    """Token ids -> logits of the labels and, with `signs`, of so many signs (model/signs.py) behind them.

    The head sees standardised features, (pooled - mean) / sd, which lets it learn ten times faster than the encoder
    from the first step on; `mean` and `sd` are set once, from training messages, and folded into the head on export.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, encoder: BertModel, labels: int, signs: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        hidden: int = encoder.config.hidden_size
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.labels = labels
        self.head = nn.Linear(hidden, labels + signs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("sd", torch.ones(hidden))

    def pool(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of the last hidden states (batch, hidden) over what `attention_mask` (batch, length) keeps."""
        return mean_pool(self.encoder, input_ids, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (batch, labels + signs) of ids (batch, length); the mask is 1 for tokens, 0 for padding."""
        features = (self.pool(input_ids, attention_mask) - self.mean) / self.sd
        logits: Tensor = self.head(self.dropout(features))
        return logits


class ExportedClassifier(nn.Module):
    """The same network for inference on one unpadded message: the standardisation is part of the head."""

    def __init__(self, classifier: SmsClassifier) -> None:
        super().__init__()
        self.encoder, self.labels = classifier.encoder, classifier.labels
        head = classifier.head
        self.head = nn.Linear(head.in_features, head.out_features)
        with torch.no_grad():
            self.head.weight.copy_(head.weight / classifier.sd)
            self.head.bias.copy_(head.bias - head.weight @ (classifier.mean / classifier.sd))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits (batch, labels + signs) of ids (batch, length), all of one length."""
        hidden = self.encoder(input_ids=input_ids).last_hidden_state
        logits: Tensor = self.head(hidden.mean(1))
        return logits


def with_sign_head(classifier: SmsClassifier, signs: int) -> SmsClassifier:
    """Return `classifier` with `signs` outputs behind those of the labels, untrained ones where it has another number."""
    old = classifier.head
    if old.out_features == classifier.labels + signs:
        return classifier
    new = SmsClassifier(classifier.encoder, classifier.labels, signs, classifier.dropout.p)
    new.mean.copy_(classifier.mean)
    new.sd.copy_(classifier.sd)
    with torch.no_grad():
        new.head.weight[: classifier.labels] = old.weight[: classifier.labels]
        new.head.bias[: classifier.labels] = old.bias[: classifier.labels]
    return new


def mean_pool(encoder: BertModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of an encoder's last hidden states over the tokens that `attention_mask` keeps."""
    hidden: Tensor = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)
