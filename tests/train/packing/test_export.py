import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig, BertModel

from jingyin.model.errors import BundleError, ConfigError
from jingyin.serve.networks import open_session
from jingyin.train.loop import pad
from jingyin.train.network import ExportedClassifier, SmsClassifier, new_sign_head
from jingyin.train.pack import export
from jingyin.train.saved import load_classifier

SAMPLES = [[2, *np.random.default_rng(length).integers(4, 90, length).tolist(), 3] for length in range(1, 51)]


def network(seed: int, **changes: object) -> SmsClassifier:
    """A small random network with a head and a standardisation that do something."""
    torch.manual_seed(seed)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **changes}
    config = BertConfig(vocab_size=90, max_position_embeddings=64, **settings)
    encoder = BertModel(config, add_pooling_layer=False)
    model = SmsClassifier.on(encoder).with_signs(new_sign_head(encoder, 3))
    for weights in (parameter for name, parameter in model.named_parameters() if "head" in name):
        torch.nn.init.normal_(weights)
    model.mean.normal_()
    model.sd.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def fp32(tmp_path: Path) -> Path:
    export.export_fp32(network(0), tmp_path / "fp32.onnx", SAMPLES)
    return tmp_path / "fp32.onnx"


def logits_of(model: SmsClassifier, messages: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        found = model(*pad(messages))
        return torch.cat([found.logits, found.sign_logits], 1).numpy()


def test_onnx_is_torch(fp32):
    found = export.run(open_session(fp32), SAMPLES)
    assert found.shape == (50, 8)
    assert found.dtype == np.float32
    # Torch sees a padded batch with its standardisation apart, ONNX one message at a time with it folded in.
    np.testing.assert_allclose(found, logits_of(network(0), SAMPLES), atol=1e-4)


def test_units_are_pooled_from_one_reading(fp32):
    session, ids = open_session(fp32), SAMPLES[20]
    assert [node.name for node in session.get_inputs()] == ["input_ids", "spans"]
    spans = np.array([(0, len(ids)), (1, 5), (4, 9), (9, 10)])
    (found,) = session.run(None, {"input_ids": np.array([ids], np.int64), "spans": spans})
    exported = ExportedClassifier(network(0)).eval()
    with torch.no_grad():
        wanted = exported(torch.tensor([ids]), torch.tensor(spans)).numpy()
        states = exported.encoder(torch.tensor([ids])).last_hidden_state[0]
        window = exported.head(states[4:9].mean(0)).numpy()
    assert np.asarray(found).shape == (4, 8)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(np.asarray(found)[2, :5], window, atol=1e-4)
    np.testing.assert_allclose(np.asarray(found)[:1], export.run(session, [ids]), atol=1e-5)


def test_folding_the_standardisation_changes_nothing():
    model = network(3)
    folded = ExportedClassifier(model).eval()
    with torch.no_grad():
        whole = [folded(torch.tensor([ids]), torch.tensor([[0, len(ids)]])).numpy() for ids in SAMPLES]
    np.testing.assert_allclose(np.concatenate(whole), logits_of(model, SAMPLES), atol=1e-5)


def test_a_graph_that_differs_from_torch_is_refused(tmp_path, monkeypatch):
    write = export.classifier_graph
    monkeypatch.setattr(export, "classifier_graph", lambda _: write(ExportedClassifier(network(1))))
    wanted = r"the exported network differs from torch by \d\S*, wanted at most 0\.0001; try"
    with pytest.raises(BundleError, match=wanted):
        export.export_fp32(network(0), tmp_path / "fp32.onnx", SAMPLES)


def test_an_encoder_that_the_graph_cannot_say(tmp_path):
    with pytest.raises(ConfigError, match=r"the encoder has hidden_act='relu'.*choose another `encoder` in the recipe"):
        export.export_fp32(network(0, hidden_act="relu"), tmp_path / "fp32.onnx", SAMPLES)


def test_int8_keeps_the_labels_of_a_trained_network(tiny_run, tmp_path):
    golden = json.loads((tiny_run / "bundle" / "golden.json").read_text(encoding="utf-8"))
    samples = [row["ids"] for row in golden]
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export.export_fp32(load_classifier(tiny_run)[0], fp32, samples)
    assert export.quantize(fp32, int8, samples) == 1
    assert int8.stat().st_size < 0.4 * fp32.stat().st_size
    distance = np.abs(export.run(open_session(int8), samples) - export.run(open_session(fp32), samples))
    assert 0 < distance.max() < 0.5


def test_int8_rounds_neither_pooling_nor_the_head(tmp_path, fp32):
    export.quantize(fp32, tmp_path / "int8.onnx", SAMPLES)
    session, ids = open_session(tmp_path / "int8.onnx"), SAMPLES[20]
    whole = (0, len(ids))
    alone = export.run(session, [ids])
    for others in ([(1, 3)], [(5, 9), (3, 20)]):
        (found,) = session.run(None, {"input_ids": np.array([ids], np.int64), "spans": np.array([whole, *others])})
        np.testing.assert_allclose(np.asarray(found)[:1], alone, atol=1e-5)  # whatever other units there are


def test_int8_that_answers_otherwise_is_refused(fp32, tmp_path, monkeypatch):
    def other(_: Path, int8: Path, **__: object) -> None:
        export.export_fp32(network(1), int8, SAMPLES)

    monkeypatch.setattr(export, "quantize_dynamic", other)
    wanted = r"int8 and fp32 agree on \d+\.\d% of 50 messages, wanted at least 90%; train longer, or with more layers"
    with pytest.raises(BundleError, match=wanted):
        export.quantize(fp32, tmp_path / "int8.onnx", SAMPLES)


def test_golden_messages_hold_what_this_machine_gives(fp32):
    rows = export.golden(fp32, SAMPLES[:3])
    assert [row.file for row in rows] == ["fp32.onnx"] * 3
    assert [row.ids for row in rows] == SAMPLES[:3]
    np.testing.assert_allclose([row.logits for row in rows], export.run(open_session(fp32), SAMPLES[:3]), atol=1e-5)


def test_rounding_together_keeps_products_that_rounding_to_the_nearest_step_changes():
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(2_000, 4)) @ rng.normal(size=(4, 32)) + 0.1 * rng.normal(size=(2_000, 32))).astype("f4")
    steps = rng.normal(scale=3, size=(32, 8)).astype("f4")
    rounded = export._compensated(steps, inputs.T @ inputs / len(inputs))
    assert np.array_equal(rounded, np.round(rounded))
    errors = [np.square(inputs @ (each - steps)).mean() for each in (rounded, np.round(steps))]
    assert errors[0] < 0.3 * errors[1]


def test_weights_on_the_grid_stay(tmp_path, fp32):
    export.quantize(fp32, tmp_path / "int8.onnx", SAMPLES)
    first = onnx.load(str(tmp_path / "int8.onnx"))
    whole, stored = (
        onnx.load(str(fp32)),
        {each.name: onnx.numpy_helper.to_array(each) for each in first.graph.initializer},
    )
    for each in whole.graph.initializer:
        if f"{each.name}_quantized" in stored:
            weights = (stored[f"{each.name}_quantized"] * stored[f"{each.name}_scale"]).astype("f4")
            each.CopyFrom(onnx.numpy_helper.from_array(weights, each.name))
    again = export.rounded_together(whole, onnx.ModelProto.FromString(first.SerializeToString()), SAMPLES)
    assert again == first
