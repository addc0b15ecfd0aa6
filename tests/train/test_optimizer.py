import pytest
import torch
from torch import nn

from jingyin.train.optimizer import clip, optimizers, sparse_words

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(100, 4), nn.Linear(4, 2)


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def backward(model: Network, ids: list[int]) -> None:
    model.head(model.words(torch.tensor(ids)).mean(0)).square().sum().backward()


def test_only_a_vocabulary_larger_than_a_batch_has_sparse_gradients_and_only_meanwhile():
    model = Network()
    with sparse_words(model, 99, CPU) as words:
        assert words == [model.words.weight]
        backward(model, [3, 3])
        assert gradient(model.words.weight).is_sparse
    assert not model.words.sparse
    with sparse_words(model, 100, CPU) as words:
        assert words == []
    with sparse_words(model, 99, torch.device("cuda")) as words:
        assert words == []


def test_words_that_do_not_occur_stay_as_they_are():
    model, before = Network(), Network()
    with sparse_words(model, 10, CPU) as words:
        both = optimizers(model, words, 0.1, 1.0)
        for ids in ([3, 5, 3], [5]):
            backward(model, ids)
            for each in both:
                each.step()
                each.zero_grad()
    moved = (model.words.weight != before.words.weight).any(1)
    assert moved.nonzero().flatten().tolist() == [3, 5]
    assert not torch.equal(model.head.weight, before.head.weight)


def test_the_head_has_a_rate_of_its_own():
    model = Network()
    rates = [[group["base_lr"] for group in each.param_groups] for each in optimizers(model, [], 0.1, 3.0)]
    assert rates == [[0.1, pytest.approx(0.3)]]


@pytest.mark.parametrize("most", [0.01, 100.0])
def test_sparse_gradients_are_clipped_as_dense_ones_are(most: float):
    dense, sparse = Network(), Network()
    backward(dense, [3, 5, 3])
    norm = nn.utils.clip_grad_norm_(dense.parameters(), most)
    with sparse_words(sparse, 10, CPU):
        backward(sparse, [3, 5, 3])
        clip(sparse.parameters(), most)
    assert 0.01 < norm < 100
    for name, weights in dense.named_parameters():
        torch.testing.assert_close(gradient(sparse.get_parameter(name)).to_dense(), weights.grad)
