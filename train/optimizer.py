"""The optimizers of a training run: AdamW, and for the words of a large vocabulary Adam on those that occur in a batch.

A batch holds a few hundred of twenty thousand words. Gradients, norms and moments of all of them would take as long as a layer of
the network. A word that does not occur keeps its moments and its embedding as they are: lazy Adam, and no weight decay.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.01


@contextmanager
def sparse_words(model: nn.Module, tokens: int, device: torch.device) -> Iterator[list[nn.Parameter]]:
    """Give the embeddings of `model` that have more rows than a batch has `tokens`, with sparse gradients meanwhile.

    On a GPU there are none: its memory is fast, and NCCL adds up no sparse gradients.
    """
    large = [each for each in model.modules() if isinstance(each, nn.Embedding) and each.num_embeddings > tokens]
    large = large if device.type == "cpu" else []
    for each in large:
        each.sparse = True
    try:
        weights = [each.weight for each in large]
        yield [weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad]
    finally:
        for each in large:
            each.sparse = False


def optimizers(
    model: nn.Module, words: Sequence[nn.Parameter], rate: float, head_rate: float
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all that is trained; `words` have sparse gradients, the head `head_rate` times the rate."""
    sparse = {id(each) for each in words}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in sparse]
    head = [p for name, p in trained if name.startswith("head.")]
    rest = [p for name, p in trained if not name.startswith("head.")]
    groups = [{"params": rest, "base_lr": rate}, {"params": head, "base_lr": rate * head_rate}]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
    ]
    if words:
        found.append(torch.optim.SparseAdam([{"params": list(words), "base_lr": rate}], lr=rate))
    return found


def clip(parameters: Iterator[nn.Parameter], most: float) -> None:
    """Scale gradients, sparse ones too, so that their norm is `most` at most."""
    gradients = [_values(each) for each in parameters if each.grad is not None]
    scale = (most / (nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for each in gradients:
        each.mul_(scale)


def _values(parameter: nn.Parameter) -> Tensor:
    """Return what is to be scaled of a parameter's gradient; of a sparse one, rows that occur twice are added up first."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad.values()
