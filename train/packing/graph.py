"""Writes the classifier as an ONNX graph by hand.

A traced BERT has 333 nodes, most of which compute shapes. This one has 68: query, key and value in one product,
attention in one node, no mask, because a message comes alone and unpadded. It runs faster, and needs no exporter that
follows transformers' code through its versions; export.py compares it with torch.
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer, BertOutput, BertSelfOutput

from jingyin.model.errors import ConfigError
from jingyin.model.network import ExportedClassifier, SignHead, state_indices

_CONTRIB = "com.microsoft"  # onnxruntime's own operators, since 1.15
_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid(_CONTRIB, 1)]


def classifier_graph(classifier: ExportedClassifier) -> onnx.ModelProto:
    """Return the graph: input_ids (batch, length) int64 -> logits (batch, labels + signs) float32.

    Raises ConfigError for an encoder that is no plain BERT with GELU.
    """
    config, embeddings = classifier.encoder.config, classifier.encoder.embeddings
    if config.hidden_act != "gelu" or config.is_decoder:
        raise ConfigError(
            f"the encoder has hidden_act={config.hidden_act!r} and is_decoder={config.is_decoder}; the exporter writes "
            "BERT encoders with 'gelu' only: choose another `encoder` in the recipe"
        )
    graph = _Graph()
    # Every token is of type 0: its embedding is added to the positions once, here.
    positions = graph.constant(
        _array(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])
    )
    length = graph.node("Shape", "input_ids", start=1, end=2)
    positions = graph.node("Slice", positions, graph.constant(np.array([0])), length)
    words = graph.node("Gather", graph.constant(_array(embeddings.word_embeddings.weight)), "input_ids")
    states = [graph.norm(graph.node("Add", words, positions), embeddings.LayerNorm)]
    for layer in cast(Iterable[BertLayer], classifier.encoder.encoder.layer):
        states.append(_layer(graph, states[-1], layer, config.num_attention_heads))
    pooled = graph.node("ReduceMean", states[-1], graph.constant(np.array([1])), keepdims=0)
    head = classifier.head
    logits = graph.node(
        "Gemm", pooled, graph.constant(_array(head.weight)), graph.constant(_array(head.bias)), transB=1
    )
    if classifier.sign_head is None:
        return graph.model(logits, head.out_features)
    read = [states[i] for i in state_indices(config.num_hidden_layers)]
    signs = _signs(graph, graph.node("Concat", *read, axis=-1), classifier.sign_head)
    return graph.model(graph.node("Concat", logits, signs, axis=-1), head.out_features + classifier.sign_head.signs)


def _signs(graph: "_Graph", states: str, head: SignHead) -> str:
    """Add a sign head, as SignHead.forward computes it without a mask; returns its logits (batch, signs)."""
    query = graph.node("MatMul", states, graph.constant(_array(head.query.weight).T))
    attention = graph.node("Softmax", query, axis=1)
    found = graph.node("Mul", attention, graph.dense(states, head.value))
    words = graph.node("Gather", graph.constant(_array(head.words.weight)), "input_ids")
    return graph.node("ReduceSum", graph.node("Add", found, words), graph.constant(np.array([1])), keepdims=0)


def _layer(graph: "_Graph", hidden: str, layer: BertLayer, heads: int) -> str:
    attention = layer.attention.self
    parts = (attention.query, attention.key, attention.value)
    weight, bias = (np.concatenate([_array(getattr(part, name)) for part in parts]) for name in ("weight", "bias"))
    query, key, value = graph.nodes("Split", 3, graph.linear(hidden, weight, bias), axis=-1, num_outputs=3)
    mixed = graph.node("MultiHeadAttention", query, key, value, num_heads=heads, domain=_CONTRIB)
    hidden = _add_norm(graph, hidden, mixed, layer.attention.output)
    wide = graph.dense(hidden, layer.intermediate.dense)
    return _add_norm(graph, hidden, graph.node("Gelu", wide, domain=_CONTRIB), layer.output)


def _add_norm(graph: "_Graph", hidden: str, new: str, output: BertSelfOutput | BertOutput) -> str:
    return graph.norm(graph.node("Add", graph.dense(new, output.dense), hidden), output.LayerNorm)


class _Graph:
    """Nodes and constants under construction; its methods add some and return the name of what they give."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def nodes(self, operator: str, outputs: int, *inputs: str, **attributes: int | float | str) -> list[str]:
        name = f"{operator}_{len(self._nodes)}"
        names = [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))  # type: ignore[arg-type]
        return names

    def node(self, operator: str, *inputs: str, **attributes: int | float | str) -> str:
        return self.nodes(operator, 1, *inputs, **attributes)[0]

    def linear(self, hidden: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        return self.node("Add", self.node("MatMul", hidden, self.constant(weight.T)), self.constant(bias))

    def dense(self, hidden: str, layer: nn.Linear) -> str:
        return self.linear(hidden, _array(layer.weight), _array(layer.bias))

    def norm(self, hidden: str, layer: nn.LayerNorm) -> str:
        scale, shift = self.constant(_array(layer.weight)), self.constant(_array(layer.bias))
        return self.node("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=layer.eps)

    def model(self, logits: str, labels: int) -> onnx.ModelProto:
        self._nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        given = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
        wanted = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])
        graph = helper.make_graph(self._nodes, "jingyin", [given], [wanted], self._constants)
        return helper.make_model(graph, opset_imports=_OPSETS, ir_version=9)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().float().cpu().numpy())
