import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, pipeline

from jingyin.model.errors import BundleError, ConfigError
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.model.tokenizer import END, START
from jingyin.train.loop import pad
from jingyin.train.network import SmsClassifier
from jingyin.train.pack import to_transformers
from jingyin.train.pack.to_transformers import TOLERANCE, as_bart, export_transformers

pytestmark = pytest.mark.train


def network(scale: float) -> SmsClassifier:
    """A random network whose logits are of about the size `scale`."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=90, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=64, layer_norm_eps=1e-12,
    )  # fmt: skip
    model = SmsClassifier(BertModel(config, add_pooling_layer=False), 5)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "LayerNorm.weight" in name else 0.0, 0.2)
    torch.nn.init.normal_(model.head.weight, 0, scale / 7)
    model.mean.normal_()
    model.sd.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_bart_gives_the_logits_of_the_mean_pool_in_padded_batches(scale):
    model, rng = network(scale), np.random.default_rng(0)
    rows = [[START, *rng.integers(4, 90, length).tolist(), END] for length in (0, 1, 5, 20, 61)]
    ids, mask = pad(rows)
    with torch.no_grad():
        theirs = as_bart(model)(input_ids=ids, attention_mask=mask).logits
        ours = torch.cat([model(*pad([row])) for row in rows])
    assert ours.abs().max() > scale / 2
    torch.testing.assert_close(theirs, ours, atol=TOLERANCE, rtol=0)


def test_the_folder_is_loaded_by_transformers_alone(tiny_run, tmp_path):
    out = tmp_path / "exported"
    assert export_transformers(tiny_run / "bundle", out) <= TOLERANCE
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert [model.config.id2label[i] for i in range(5)] == list(LABELS)
    typed = tokenizer([str(clean("[CLS]你好").text)])["input_ids"][0]
    assert typed.count(START) == 1  # a typed name of a special token stays text
    texts = [str(clean(text).text) for text in ("想让手机安静，转三百到这个号，不转接着打", "周末，一起去爬山")]
    classify = pipeline("text-classification", model=str(out))
    assert [each["label"] for each in classify(texts, batch_size=2)] == ["pay_to_stop", "ordinary"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: zh\n")
    assert "pipeline_tag: text-classification" in card
    assert "thresholds" in card.lower()


def test_a_folder_that_is_there_is_left_alone(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="is there; name a new folder, or remove it first"):
        export_transformers(tiny_run / "bundle", tmp_path)


def test_other_logits_are_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(to_transformers, "_SMALL", 2.0**-3)  # where tanh is no straight line
    with pytest.raises(
        BundleError, match=r"the exported logits of bundle \w+ differ by \d\S* from ours, wanted at most 0\.0001"
    ):
        export_transformers(tiny_run / "bundle", tmp_path / "out")
    assert not (tmp_path / "out").exists()
