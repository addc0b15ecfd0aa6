"""Bundles as the start of a training: their folders, and their networks as classifiers that can be trained."""

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import BundleError, ConfigError
from jingyin.model.labels import LABELS
from jingyin.train.network import SignHead, SmsClassifier, SmsConfig
from jingyin.train.saved import Vocabulary, is_classifier, load_vocabulary


def is_bundle(name: str) -> bool:
    """Whether `name` is "bundle" or the folder of one."""
    return name == "bundle" or (Path(name) / "manifest.json").is_file()


def bundle_folder(name: str) -> Path:
    """Return the folder of the bundle that `name` means: "bundle", its folder, or that of the run that made it."""
    folder = default_path() if name == "bundle" else Path(name)
    return folder / "bundle" if (folder / "bundle").is_dir() else folder


def refuse_other_labels(name: str) -> None:
    """Raise ConfigError if `name` is a bundle, or a classifier's run folder, whose networks put out other labels."""
    if is_bundle(name):
        labels = read_bundle(bundle_folder(name)).manifest.labels
    elif is_classifier(Path(name)):
        labels = tuple((SmsConfig.from_pretrained(Path(name) / "network").id2label or {}).values())
    else:
        return
    if labels != LABELS:
        raise ConfigError(
            f"the networks of {name} put out {', '.join(labels)}; wanted {', '.join(LABELS)}, in this order: train new "
            "ones, starting from a pretrained encoder (configs/from_scratch/)"
        )


_LAYER_CONSTANTS = 12
"""Constants of a layer in the graph of pack/export.py; after all layers come those of the head and the sign head."""


def classifier_of_bundle(name: str, which: str = "model") -> tuple[SmsClassifier, Vocabulary]:
    """Return a network of a bundle as a classifier, with its vocabulary; raises BundleError if not exported here."""
    bundle = read_bundle(bundle_folder(name))
    network = next((each for each in bundle.manifest.networks if each.file == f"{which}.onnx"), None)
    if network is None:
        raise BundleError(f"bundle {bundle.manifest.id} has no {which}.onnx to start from; name another bundle")
    try:
        return dequantised(bundle.path / network.file), load_vocabulary(bundle.path, network.vocabulary)
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise BundleError(
            f"{network.file} of bundle {bundle.manifest.id} is not of the form that the exporter writes "
            f"({type(error).__name__}); start from a run folder, or from a bundle of this version"
        ) from None


def dequantised(file: Path) -> SmsClassifier:
    """Return the classifier whose graph, int8 or float32, is in `file`: int8 weights times their scales.

    The rounding to int8 can't be undone: of 1,000 messages the dequantised network gives the label of the int8 one
    on all but a few (train/LOG.md has the number), and a step of training moves further than the rounding did.
    """
    graph = onnx.load(str(file)).graph
    words, positions, scale, shift, *rest = _constants(graph)
    end = len(rest) - len(rest) % _LAYER_CONSTANTS
    layers = [rest[i : i + _LAYER_CONSTANTS] for i in range(0, end, _LAYER_CONSTANTS)]
    head, bias, *signs = rest[end:]
    config = SmsConfig(
        vocab_size=len(words), hidden_size=words.shape[1], num_hidden_layers=len(layers),
        num_attention_heads=int(_attribute(graph, "MultiHeadAttention", "num_heads")),
        intermediate_size=layers[0][6].shape[1], max_position_embeddings=len(positions),
        layer_norm_eps=_attribute(graph, "LayerNormalization", "epsilon"),
    )  # fmt: skip
    model = SmsClassifier(config).with_signs(_sign_head(signs) if signs else None)
    state = {"embeddings.word_embeddings.weight": words, "embeddings.position_embeddings.weight": positions}
    state |= {"embeddings.LayerNorm.weight": scale, "embeddings.LayerNorm.bias": shift}
    state |= {"embeddings.token_type_embeddings.weight": np.zeros((2, words.shape[1]), np.float32)}
    for i, values in enumerate(layers):
        state |= {f"encoder.layer.{i}.{name}": value for name, value in _weights_of_layer(values).items()}
    model.encoder.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor(head.T)[: len(LABELS)])
        model.head.bias.copy_(torch.tensor(bias)[: len(LABELS)])
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _sign_head(constants: list[NDArray[np.float32]]) -> SignHead:
    query, *_bounds, value, bias, words = (torch.tensor(each) for each in constants)
    head = SignHead(len(query), *words.shape)
    head.load_state_dict({"query.weight": query.T, "value.weight": value.T, "value.bias": bias, "words.weight": words})
    return head


def _weights_of_layer(values: list[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Name the twelve constants of a layer as BertModel does; weights of products are stored transposed."""
    qkv, qkv_bias, out, out_bias, norm, norm_bias, wide, wide_bias, narrow, narrow_bias, last, last_bias = values
    weights = {
        "attention.output.dense.weight": out.T, "attention.output.dense.bias": out_bias,
        "attention.output.LayerNorm.weight": norm, "attention.output.LayerNorm.bias": norm_bias,
        "intermediate.dense.weight": wide.T, "intermediate.dense.bias": wide_bias,
        "output.dense.weight": narrow.T, "output.dense.bias": narrow_bias,
        "output.LayerNorm.weight": last, "output.LayerNorm.bias": last_bias,
    }  # fmt: skip
    for part, weight, bias in zip(("query", "key", "value"), np.split(qkv.T, 3), np.split(qkv_bias, 3), strict=True):
        weights |= {f"attention.self.{part}.weight": weight, f"attention.self.{part}.bias": bias}
    return weights


def _attribute(graph: onnx.GraphProto, operator: str, name: str) -> float:
    """Return an attribute of the first node of a kind; raises ValueError without one."""
    for node in graph.node:
        if node.op_type == operator:
            return float(next(helper.get_attribute_value(each) for each in node.attribute if each.name == name))
    raise ValueError(f"no {operator}")


def _constants(graph: onnx.GraphProto) -> list[NDArray[np.float32]]:
    """Return the graph's float constants in the order of their numbers, but words first; int8 ones dequantised."""
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    constants: dict[int, NDArray[np.float32]] = {}
    for name, value in stored.items():
        stem = name.removesuffix("_quantized")
        number = int(stem.split("_")[1])
        if name != stem:
            zero, scale = stored[f"{stem}_zero_point"], stored[f"{stem}_scale"]
            constants[number] = ((value.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
        elif value.dtype == np.float32 and value.ndim and not name.endswith(("_scale", "_zero_point")):
            constants[number] = value
    ordered = [constants[number] for number in sorted(constants)]
    ordered[0], ordered[1] = ordered[1], ordered[0]  # the graph names the positions first
    return ordered
