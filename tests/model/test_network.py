"""Needs torch, which only jingyin[train] has."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'jingyin[train]'")

from jingyin.model.network import ExportedClassifier, SmsClassifier, with_sign_head  # noqa: E402
from jingyin.train.encoder import random_encoder  # noqa: E402

IDS = torch.tensor([[2, 17, 33, 5, 3]])
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def trained() -> SmsClassifier:
    """A classifier of five labels and two signs whose head and standardisation are not those of a new one."""
    torch.manual_seed(0)
    model = SmsClassifier(random_encoder().model, 5, 2, dropout=0.3)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    model.mean.copy_(torch.randn(64))
    model.sd.copy_(torch.rand(64) + 0.5)
    return model.eval()


def test_the_outputs_of_signs_stand_behind_those_of_the_labels(trained):
    assert (trained.labels, trained.head.out_features) == (5, 7)
    assert trained(IDS, MASK).shape == (1, 7)


@pytest.mark.parametrize("signs", [0, 4])
def test_another_number_of_signs_leaves_the_labels_as_they_are(trained, signs):
    other = with_sign_head(trained, signs).eval()
    assert (other.labels, other.head.out_features, other.dropout.p) == (5, 5 + signs, 0.3)
    assert other.encoder is trained.encoder
    torch.testing.assert_close(other(IDS, MASK)[:, :5], trained(IDS, MASK)[:, :5])
    assert (other(IDS, MASK)[:, 5:] == 0).all()  # untrained: every sign as likely as not


def test_the_same_number_of_signs_leaves_the_classifier_as_it_is(trained):
    assert with_sign_head(trained, 2) is trained


def test_what_is_exported_has_the_standardisation_in_its_head(trained):
    exported = ExportedClassifier(trained).eval()
    assert exported.labels == 5
    torch.testing.assert_close(exported(IDS), trained(IDS, MASK), rtol=1e-4, atol=1e-4)
