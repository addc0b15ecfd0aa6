"""Needs torch, which only jingyin[train] has."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'jingyin[train]'")

from jingyin.train.encoder import random_encoder  # noqa: E402
from jingyin.train.network import ExportedClassifier, SignHead, SmsClassifier, new_sign_head, state_indices  # noqa: E402

IDS = torch.tensor([[2, 17, 33, 5, 3]])
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def trained() -> SmsClassifier:
    """A classifier of five labels and two signs whose heads and standardisation are not those of a new one."""
    torch.manual_seed(0)
    encoder = random_encoder().model
    model = SmsClassifier.on(encoder).with_signs(new_sign_head(encoder, 2))
    for weights in (parameter for name, parameter in model.named_parameters() if "head" in name):
        torch.nn.init.normal_(weights)
    model.mean.copy_(torch.randn(64))
    model.sd.copy_(torch.rand(64) + 0.5)
    return model.eval()


def test_signs_have_outputs_of_their_own_and_change_no_label(trained):
    whole = trained(IDS, MASK)
    assert (whole.logits.shape, whole.sign_logits.shape) == ((1, 5), (1, 2))
    head, trained.sign_head = trained.sign_head, None
    try:
        torch.testing.assert_close(trained(IDS, MASK).logits, whole.logits)
    finally:
        trained.sign_head = head


def test_an_untrained_sign_head_finds_each_sign_as_likely_as_not(trained):
    head = new_sign_head(trained.encoder, 3)
    torch.nn.init.zeros_(head.value.bias)
    assert head(torch.randn(1, 5, 3 * 64), IDS, MASK).tolist() == [[0.0, 0.0, 0.0]]


def test_a_sign_head_adds_what_attention_finds_and_the_weights_of_words():
    head = SignHead(states=1, words=4, signs=1)
    with torch.no_grad():
        head.query.weight.fill_(1.0)
        head.value.weight.fill_(2.0)
        head.value.bias.fill_(0.5)
        head.words.weight.copy_(torch.tensor([[0.0], [1.0], [10.0], [100.0]]))
    states, ids = torch.tensor([[[0.0], [1.0], [9.0]]]), torch.tensor([[1, 2, 3]])
    found = head(states, ids, torch.tensor([[1, 1, 0]]))  # the third is padding
    e = torch.e
    assert found.item() == pytest.approx(2 * e / (1 + e) + 0.5 + 11)


@pytest.mark.parametrize(("layers", "indices"), [(1, [0]), (2, [0, 1]), (4, [0, 2, 3]), (12, [0, 6, 11])])
def test_a_sign_head_reads_the_words_the_middle_and_the_last_layer_but_one(layers, indices):
    assert state_indices(layers) == indices


def test_what_is_exported_has_the_standardisation_in_its_head(trained):
    exported = ExportedClassifier(trained).eval()
    found = trained(IDS, MASK)
    wanted = torch.cat([found.logits, found.sign_logits], 1)
    torch.testing.assert_close(exported(IDS, torch.tensor([[0, 5]])), wanted, rtol=1e-4, atol=1e-4)
