from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from jingyin.model.errors import ConfigError
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.model.tokenizer import END, START
from jingyin.train.bundles import classifier_of_bundle
from jingyin.train.encoder import random_encoder, with_own_pieces
from jingyin.train.loop import logits_of
from jingyin.train.network import SmsClassifier
from jingyin.train.pack.export import export_transformers
from jingyin.train.saved import Vocabulary, transformers_tokenizer

TEXTS = ("想让手机安静，转三百到这个号，不转接着打", "周末，一起去爬山")


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "folder"
    export_transformers(tiny_run / "bundle", out)
    return out


def test_transformers_loads_the_folder_and_gives_the_bundles_logits(exported, tiny_run):
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(exported),
        AutoTokenizer.from_pretrained(exported),
    )
    assert isinstance(model, SmsClassifier)
    assert [model.config.id2label[i] for i in range(5)] == list(LABELS)
    ours, vocabulary = classifier_of_bundle(str(tiny_run / "bundle"))
    for text in TEXTS:
        cleaned = str(clean(text).text)
        (ids,) = vocabulary.tokenizer.encode([cleaned])
        batch = tokenizer([cleaned], return_tensors="pt")
        assert batch["input_ids"].tolist() == [ids]
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(**batch).logits, logits_of(ours(torch.tensor([ids]))))


def test_a_pipeline_takes_padded_batches(exported):
    classify = pipeline("text-classification", model=str(exported))
    found = classify([str(clean(text).text) for text in TEXTS], batch_size=2)
    assert [each["label"] for each in found] == ["pay_to_stop", "ordinary"]


def test_typed_names_of_special_tokens_stay_text(exported):
    ids = AutoTokenizer.from_pretrained(exported)([str(clean("[CLS]你好[SEP]").text)])["input_ids"][0]
    assert (ids.count(START), ids.count(END)) == (1, 1)


def test_a_vocabulary_of_pieces_spells_placeholders_out():
    text = clean("转500到13800138000").text
    _, pieces = with_own_pieces(random_encoder(), [text], 64)
    (ids,) = pieces.encode([text])
    assert transformers_tokenizer(Vocabulary(pieces), 64)([str(text)])["input_ids"] == [ids]


def test_a_loss_comes_with_labels(exported):
    model = AutoModelForSequenceClassification.from_pretrained(exported)
    assert model(torch.tensor([[2, 5, 3]]), labels=torch.tensor([0])).loss > 0


def test_the_card_says_to_clean_first(exported):
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: zh\n")
    assert "clean first" in card


def test_a_folder_named_bundle_is_not_taken_for_the_packages(exported, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_run)
    export_transformers(Path("bundle"), tmp_path / "out")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (exported / name).read_bytes()


def test_an_existing_folder_is_left_alone(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="exists; name a new folder, or remove it first"):
        export_transformers(tiny_run / "bundle", tmp_path)
