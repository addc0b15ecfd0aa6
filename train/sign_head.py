"""Trains the outputs of signs on a trained encoder, which stays as it is: signs cost the labels nothing.

An encoder of four layers that was trained on signs named them no better than this head does (train/LOG.md).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from jingyin.model.errors import InputError
from jingyin.model.network import SignHead, SmsClassifier, all_states, new_sign_head, sign_states
from jingyin.train.batches import pad, token_batches
from jingyin.train.corpus.signs import is_annotated
from jingyin.train.data import Encode, Rows, signs_of_rows

_EPOCHS, _TOKENS, _RATE, _DECAY = 12, 4096, 3e-3, 0.02


def annotated_messages(rows: Rows) -> Rows:
    """Return the messages among `rows` whose signs people read, without copies of them; raises InputError for none."""
    plain = rows.take(np.unique(rows.messages, return_index=True)[1])
    read = np.flatnonzero([is_annotated(each) for each in plain.signs])
    if not len(read):
        raise InputError(
            f"none of {len(plain)} training messages has signs that people read, so that none can be learnt; "
            "leave signs out of the recipe, or add authored messages to the corpus"
        )
    return plain.take(read)


def fit_sign_head(model: SmsClassifier, read: Rows, encode: Encode, seed: int) -> SignHead:
    """Return a sign head trained on what annotated_messages gives; `model` is on the CPU, and so is the head."""
    inputs = _Inputs(model, encode(read.cleaned))
    targets = torch.tensor(signs_of_rows(read))
    torch.manual_seed(seed)
    head = new_sign_head(model.encoder, targets.shape[1])
    with torch.no_grad():
        head.value.bias.copy_(_log_odds(targets))
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
    plan = inputs.plan(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(plan)))
    for step in plan:
        logits = head(*inputs.batch(step))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets[step]) * targets.shape[1]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head.eval()


class _Inputs:
    """What a sign head reads of messages: computed once, since the encoder does not change."""

    def __init__(self, model: SmsClassifier, ids: Sequence[Sequence[int]]) -> None:
        self.ids = ids
        self.lengths = np.array([len(each) for each in ids])
        self.states: list[torch.Tensor] = [torch.empty(0)] * len(ids)
        model.eval()
        batches = token_batches(self.lengths, np.arange(len(ids)), _TOKENS, np.random.default_rng(0))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for rows in batches:
                padded, mask = pad([ids[i] for i in rows])
                states = sign_states(all_states(model.encoder, padded, mask)).to(torch.bfloat16)
                for row, found in zip(rows, states, strict=True):
                    self.states[row] = found[: self.lengths[row]].clone()

    def plan(self, seed: int) -> list[list[int]]:
        """Return the rows of every step of all epochs."""
        rng = np.random.default_rng(seed)
        return [
            rows
            for _ in range(_EPOCHS)
            for rows in token_batches(self.lengths, rng.permutation(len(self.ids)), _TOKENS, rng)
        ]

    def batch(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return states (batch, length, states), ids and mask (batch, length)."""
        padded, mask = pad([self.ids[i] for i in rows])
        states = torch.zeros(*padded.shape, self.states[rows[0]].shape[-1])
        for place, row in enumerate(rows):
            states[place, : self.lengths[row]] = self.states[row].float()
        return states, padded, mask


def _log_odds(targets: torch.Tensor) -> torch.Tensor:
    """Return for each sign the log-odds that a message shows it, counting one message more on either side."""
    return torch.log((targets.sum(0) + 1) / ((1 - targets).sum(0) + 1))
