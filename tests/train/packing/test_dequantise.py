import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig, BertModel

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import BundleError
from jingyin.model.text import clean
from jingyin.serve.networks import open_session
from jingyin.train import bundles
from jingyin.train.bundles import bundle_folder, classifier_of_bundle, dequantised, is_bundle
from jingyin.train.network import SmsClassifier, new_sign_head
from jingyin.train.pack import export
from jingyin.train.saved import load_classifier

RNG = np.random.default_rng(0)
SAMPLES = [[2, *RNG.integers(4, 900, RNG.integers(1, 60)).tolist(), 3] for _ in range(120)]


def network(heads: int, signs: int = 0) -> SmsClassifier:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=900, hidden_size=48, num_hidden_layers=3, num_attention_heads=heads, intermediate_size=96,
        max_position_embeddings=64, layer_norm_eps=1e-7,
    )  # fmt: skip
    encoder = BertModel(config, add_pooling_layer=False)
    model = SmsClassifier.on(encoder).with_signs(new_sign_head(encoder, signs) if signs else None)
    torch.nn.init.normal_(model.head.weight)
    if model.sign_head:
        for weights in model.sign_head.parameters():
            torch.nn.init.normal_(weights, std=0.1)
    torch.nn.init.normal_(model.encoder.embeddings.token_type_embeddings.weight)
    return model.eval()


def logits(model: SmsClassifier, messages: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        each = [model(torch.tensor([ids])) for ids in messages]
    return torch.cat(
        [torch.cat([o.logits, *([] if o.sign_logits is None else [o.sign_logits])], 1) for o in each]
    ).numpy()


@pytest.mark.parametrize(("heads", "signs"), [(3, 0), (4, 0), (4, 7)])
def test_a_network_is_given_back_but_for_the_rounding_of_its_weights(heads, signs, tmp_path):
    model = network(heads, signs)
    export.export_fp32(model, tmp_path / "fp32.onnx", SAMPLES[:20])
    whole = dequantised(tmp_path / "fp32.onnx")
    config = whole.encoder.config
    assert (config.num_attention_heads, config.num_hidden_layers, config.intermediate_size) == (heads, 3, 96)
    assert config.layer_norm_eps == pytest.approx(1e-7)
    assert (whole.sign_head.signs if whole.sign_head else 0) == signs
    np.testing.assert_allclose(logits(whole, SAMPLES[:30]), logits(model, SAMPLES[:30]), atol=1e-4)


def test_the_head_of_signs_is_given_back_from_int8(tmp_path):
    model = network(4, signs=7)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export.export_fp32(model, fp32, SAMPLES[:20])
    export.quantize(fp32, int8, SAMPLES)
    whole = dequantised(int8)
    assert whole.sign_head is not None
    assert whole.sign_head.signs == 7
    found = logits(whole, SAMPLES[:30])
    assert np.abs(found - logits(model, SAMPLES[:30])).max() < 0.5
    assert np.abs(found - export.run(open_session(int8), SAMPLES[:30])).max() < 0.5


def test_the_dequantised_network_answers_as_the_int8_one(tiny_run):
    file = tiny_run / "bundle" / "model.onnx"
    session, model = open_session(file), dequantised(file)
    vocabulary = model.encoder.config.vocab_size
    samples = [[2, *(i % (vocabulary - 4) + 4 for i in ids[1:-1]), 3] for ids in SAMPLES]
    int8, float32 = export.run(session, samples), logits(model, samples)
    assert np.abs(int8 - float32).max() < 0.15  # int8 rounds activations too
    assert (int8.argmax(1) == float32.argmax(1)).mean() >= 0.98


def test_the_loss_by_rounding_is_small(tiny_run):
    trained, vocabulary = load_classifier(tiny_run)
    again, same = classifier_of_bundle(str(tiny_run / "bundle"))
    assert same.lexicon == vocabulary.lexicon
    ids = vocabulary.tokenizer.encode([clean(text).text for text in ("转三百到这个号,不转接着打", "周末,一起去爬山")])
    np.testing.assert_allclose(logits(again, ids), logits(trained, ids), atol=0.1)


def test_what_is_a_bundle(tiny_run, tmp_path):
    assert is_bundle("bundle")
    assert is_bundle(str(tiny_run / "bundle"))
    assert not is_bundle(str(tiny_run))
    assert bundle_folder("bundle").name == "default"
    assert bundle_folder(str(tmp_path)) == tmp_path


def test_a_network_that_the_bundle_does_not_have(tiny_run):
    folder = tiny_run / "bundle"
    bundle = read_bundle(folder)
    with pytest.raises(BundleError, match=rf"bundle {bundle.manifest.id} has no verifier\.onnx to start from"):
        classifier_of_bundle(str(folder), "verifier")


def test_a_graph_that_the_exporter_did_not_write(tiny_run, tmp_path, monkeypatch):
    folder: Path = tmp_path / "strange"
    shutil.copytree(tiny_run / "bundle", folder)
    bundle = read_bundle(folder)
    graph = onnx.load(str(folder / "model.onnx"))
    del graph.graph.node[:]
    onnx.save(graph, str(folder / "model.onnx"))
    monkeypatch.setattr(bundles, "read_bundle", lambda _: bundle)
    wanted = r"is not of the form that the exporter writes \(ValueError\); start from a run"
    with pytest.raises(BundleError, match=wanted):
        classifier_of_bundle(str(folder))
