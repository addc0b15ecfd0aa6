import torch

from jingyin.train.classify import mix_in


def test_a_share_of_the_weights_is_kept() -> None:
    model = torch.nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([[4.0, -2.0]]), "bias": torch.tensor([1.0])})
    mix_in(model, {"weight": torch.tensor([[0.0, 2.0]]), "bias": torch.tensor([5.0])}, 0.25)
    assert model.weight.tolist() == [[3.0, -1.0]]
    assert model.bias.tolist() == [2.0]
