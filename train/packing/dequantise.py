"""A bundle's network as one that can be trained: its int8 weights times their scales.

What int8 rounded away is gone: of 1,000 messages the dequantised network gives the label of the int8 one on all but a
few (train/LOG.md has the number), and a step of training moves further than the rounding did.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from transformers import BertConfig, BertModel

from jingyin.model.bundle import PIECES, Bundle, Network, default_path, read_bundle
from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS
from jingyin.model.network import SignHead, SmsClassifier
from jingyin.model.pieces import PieceTokenizer
from jingyin.train.saved import Vocabulary

MODEL = "model.onnx"
"""The main network: the one that training goes on with."""

_HEAD_CONSTANTS, _SIGN_CONSTANTS = 2, 4
"""Of the graph that packing/graph.py writes, behind the twelve of each layer."""


def is_bundle(name: str) -> bool:
    """Whether `name` is "bundle" or the folder of one."""
    return name == "bundle" or (Path(name) / "manifest.json").is_file()


def bundle_folder(name: str) -> Path:
    """Return the folder of the bundle that `name` means."""
    return default_path() if name == "bundle" else Path(name)


def classifier_of_bundle(name: str, which: str = "model") -> tuple[SmsClassifier, Vocabulary]:
    """Return a network of a bundle as a classifier, with its vocabulary; raises BundleError if of another make."""
    bundle = read_bundle(bundle_folder(name))
    network = next((each for each in bundle.manifest.networks if each.file == f"{which}.onnx"), None)
    if network is None:
        raise BundleError(f"bundle {bundle.manifest.id} has no {which}.onnx to go on with; name another bundle")
    try:
        return dequantised(bundle.path / network.file), _vocabulary(bundle, network)
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise BundleError(
            f"{network.file} of bundle {bundle.manifest.id} is not of the form that the exporter writes "
            f"({type(error).__name__}); start from a run folder, or from a bundle of this version"
        ) from None


def _vocabulary(bundle: Bundle, network: Network) -> Vocabulary:
    if network.vocabulary == "pieces":
        return Vocabulary(pieces=PieceTokenizer.from_file(bundle.path / PIECES))
    return Vocabulary.of_lexicon((bundle.path / "lexicon.txt").read_text(encoding="utf-8"))


def dequantised(file: Path) -> SmsClassifier:
    """Return the classifier whose graph, int8 or float32 (packing/graph.py, packing/export.py), is in `file`."""
    graph = onnx.load(str(file)).graph
    constants = _constants(graph)
    words, positions = constants.pop(0), constants.pop(0)
    norms = [constants.pop(0), constants.pop(0)]
    signs = [constants.pop() for _ in range(_SIGN_CONSTANTS)][::-1] if len(constants) % 12 > _HEAD_CONSTANTS else []
    head = [constants.pop() for _ in range(_HEAD_CONSTANTS)][::-1]
    layers = [constants[i : i + 12] for i in range(0, len(constants), 12)]
    config = BertConfig(
        vocab_size=len(words), hidden_size=words.shape[1], num_hidden_layers=len(layers),
        num_attention_heads=int(_attribute(graph, "MultiHeadAttention", "num_heads")),
        intermediate_size=layers[0][6].shape[1], max_position_embeddings=len(positions),
        layer_norm_eps=_attribute(graph, "LayerNormalization", "epsilon"),
    )  # fmt: skip
    model = SmsClassifier(BertModel(config, add_pooling_layer=False), len(LABELS), _sign_head(signs))
    state = {"embeddings.word_embeddings.weight": words, "embeddings.position_embeddings.weight": positions}
    state |= {"embeddings.LayerNorm.weight": norms[0], "embeddings.LayerNorm.bias": norms[1]}
    state |= {"embeddings.token_type_embeddings.weight": np.zeros((2, words.shape[1]), np.float32)}
    for i, values in enumerate(layers):
        state |= {f"encoder.layer.{i}.{name}": value for name, value in _layer(values).items()}
    model.encoder.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    with torch.no_grad():
        # The quantiser turns the head's Gemm into a product, whose weights are stored the other way round.
        model.head.weight.copy_(torch.tensor(head[0] if len(head[0]) == len(head[1]) else head[0].T)[: len(LABELS)])
        model.head.bias.copy_(torch.tensor(head[1])[: len(LABELS)])
    return model.eval()


def _sign_head(constants: list[NDArray[np.float32]]) -> SignHead | None:
    """Return the sign head of these constants, None for none."""
    if not constants:
        return None
    query, value, bias, words = (torch.tensor(each) for each in constants)
    head = SignHead(len(query), *words.shape)
    head.load_state_dict({"query.weight": query.T, "value.weight": value.T, "value.bias": bias, "words.weight": words})
    return head


def _layer(values: list[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Name the twelve constants of a layer as BertModel does; products are stored the other way round."""
    qkv, qkv_bias, out, out_bias, norm, norm_bias, wide, wide_bias, narrow, narrow_bias, last, last_bias = values
    named = {
        "attention.output.dense.weight": out.T, "attention.output.dense.bias": out_bias,
        "attention.output.LayerNorm.weight": norm, "attention.output.LayerNorm.bias": norm_bias,
        "intermediate.dense.weight": wide.T, "intermediate.dense.bias": wide_bias,
        "output.dense.weight": narrow.T, "output.dense.bias": narrow_bias,
        "output.LayerNorm.weight": last, "output.LayerNorm.bias": last_bias,
    }  # fmt: skip
    for part, weight, bias in zip(("query", "key", "value"), np.split(qkv.T, 3), np.split(qkv_bias, 3), strict=True):
        named |= {f"attention.self.{part}.weight": weight, f"attention.self.{part}.bias": bias}
    return named


def _attribute(graph: onnx.GraphProto, operator: str, name: str) -> float:
    """Return an attribute of the first node of a kind; raises ValueError without one."""
    for node in graph.node:
        if node.op_type == operator:
            return float(next(helper.get_attribute_value(each) for each in node.attribute if each.name == name))
    raise ValueError(f"no {operator}")


def _constants(graph: onnx.GraphProto) -> list[NDArray[np.float32]]:
    """Return the graph's float constants in packing/graph.py's order, words first, int8 ones dequantised."""
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    found: dict[int, NDArray[np.float32]] = {}
    for name, value in stored.items():
        stem = name.removesuffix("_quantized")
        number = int(stem.split("_")[1])
        if name != stem:
            zero, scale = stored[f"{stem}_zero_point"], stored[f"{stem}_scale"]
            found[number] = ((value.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
        elif value.dtype == np.float32 and not name.endswith(("_scale", "_zero_point")):
            found[number] = value
    ordered = [found[number] for number in sorted(found)]
    ordered[0], ordered[1] = ordered[1], ordered[0]  # the graph names the positions first
    return ordered
