"""Exports a trained classifier: torch -> ONNX fp32 -> ONNX int8, each step checked against the one before."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer, BertOutput, BertSelfOutput

from jingyin.model.bundle import Golden, read_bundle
from jingyin.model.errors import BundleError, ConfigError
from jingyin.model.files import atomic_folder
from jingyin.model.labels import LABELS
from jingyin.serve.networks import open_session
from jingyin.train.bundles import classifier_of_bundle, refuse_other_labels
from jingyin.train.network import ExportedClassifier, SignHead, SmsClassifier, state_indices
from jingyin.train.saved import save_classifier

# Writes the classifier as an ONNX graph by hand.
#
# A traced BERT has 333 nodes, most of which compute shapes. This one has 68: query, key and value in one product,
# attention in one node, no mask, because a message is run alone and unpadded. It runs faster, and does not depend on
# transformers' code, which changes with its versions; export_fp32 compares it with torch.

_CONTRIB = "com.microsoft"  # onnxruntime's own operators, since 1.15
_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid(_CONTRIB, 1)]


def classifier_graph(classifier: ExportedClassifier) -> onnx.ModelProto:
    """Return the graph: input_ids (batch, length), spans (units, 2) int64 -> logits (batch * units, labels + signs).

    Raises ConfigError for an encoder other than a plain BERT with GELU.
    """
    config, embeddings = classifier.encoder.config, classifier.encoder.embeddings
    if config.hidden_act != "gelu" or config.is_decoder:
        raise ConfigError(
            f"the encoder has hidden_act={config.hidden_act!r} and is_decoder={config.is_decoder}; the exporter writes "
            "BERT encoders with 'gelu' only: choose another `encoder` in the recipe"
        )
    graph = _Graph()
    # Every token is of type 0: its embedding is added to the positions once, here.
    positions = graph.constant(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])
    length = graph.node("Shape", "input_ids", start=1, end=2)
    positions = graph.node("Slice", positions, graph.constant(np.array([0])), length)
    words = graph.node("Gather", graph.constant(embeddings.word_embeddings.weight), "input_ids")
    states = [graph.norm(graph.node("Add", words, positions), embeddings.LayerNorm)]
    for layer in cast(Iterable[BertLayer], classifier.encoder.encoder.layer):
        states.append(_graph_layer(graph, states[-1], layer, config.num_attention_heads))
    within = _within(graph, length, config.max_position_embeddings)
    sums = graph.node("MatMul", within, states[-1])
    pooled = graph.node("Div", sums, graph.node("ReduceSum", within, graph.constant(np.array([1])), keepdims=1))
    logits = graph.dense(pooled, classifier.head)
    if classifier.sign_head is None:
        return graph.model(logits, classifier.head.out_features)
    read = [states[i] for i in state_indices(config.num_hidden_layers)]
    signs = _signs(graph, graph.node("Concat", *read, axis=-1), within, classifier.sign_head)
    labels = classifier.head.out_features + classifier.sign_head.signs
    return graph.model(graph.node("Concat", logits, signs, axis=-1), labels)


def _within(graph: "_Graph", length: str, positions: int) -> str:
    """Add a matrix (units, length) of 1 for the tokens in a unit's span, and 0 for others."""
    places = graph.node("Slice", graph.constant(np.arange(positions)), graph.constant(np.array([0])), length)
    start, end = graph.nodes("Split", 2, "spans", axis=1, num_outputs=2)
    after, before = graph.node("GreaterOrEqual", places, start), graph.node("Less", places, end)
    return graph.node("Cast", graph.node("And", after, before), to=TensorProto.FLOAT)


def _signs(graph: "_Graph", states: str, within: str, head: SignHead) -> str:
    """Add a sign head, as ExportedClassifier computes it; returns its logits (batch, units, signs)."""
    query = graph.node("MatMul", states, graph.constant(head.query.weight.T))
    # Softmax within each span: exponentials of its tokens weigh their values. Trained queries stay within 20 of 0.
    bounds = (graph.constant(np.array(bound, np.float32)) for bound in (-60, 60))
    powers = graph.node("Exp", graph.node("Clip", query, *bounds))
    weighed = graph.node("MatMul", within, graph.node("Mul", powers, graph.dense(states, head.value)))
    found = graph.node("Div", weighed, graph.node("MatMul", within, powers))
    words = graph.node("Gather", graph.constant(head.words.weight), "input_ids")
    return graph.node("Add", found, graph.node("MatMul", within, words))


def _graph_layer(graph: "_Graph", hidden: str, layer: BertLayer, heads: int) -> str:
    attention = layer.attention.self
    parts = (attention.query, attention.key, attention.value)
    weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
    query, key, value = graph.nodes("Split", 3, graph.linear(hidden, weight, bias), axis=-1, num_outputs=3)
    mixed = graph.node("MultiHeadAttention", query, key, value, num_heads=heads, domain=_CONTRIB)
    hidden = _add_norm(graph, hidden, mixed, layer.attention.output)
    wide = graph.dense(hidden, layer.intermediate.dense)
    return _add_norm(graph, hidden, graph.node("Gelu", wide, domain=_CONTRIB), layer.output)


def _add_norm(graph: "_Graph", hidden: str, new: str, output: BertSelfOutput | BertOutput) -> str:
    return graph.norm(graph.node("Add", graph.dense(new, output.dense), hidden), output.LayerNorm)


class _Graph:
    """Nodes and constants under construction; its methods add some and return the name of their output."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, value: NDArray[Any] | Tensor) -> str:
        name = f"constant_{len(self._constants)}"
        array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def nodes(self, operator: str, outputs: int, *inputs: str, **attributes: int | float | str) -> list[str]:
        name = f"{operator}_{len(self._nodes)}"
        names = [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))  # type: ignore[arg-type]
        return names

    def node(self, operator: str, *inputs: str, **attributes: int | float | str) -> str:
        return self.nodes(operator, 1, *inputs, **attributes)[0]

    def linear(self, hidden: str, weight: Tensor, bias: Tensor) -> str:
        return self.node("Add", self.node("MatMul", hidden, self.constant(weight.T)), self.constant(bias))

    def dense(self, hidden: str, layer: nn.Linear) -> str:
        return self.linear(hidden, layer.weight, layer.bias)

    def norm(self, hidden: str, layer: nn.LayerNorm) -> str:
        scale, shift = self.constant(layer.weight), self.constant(layer.bias)
        return self.node("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=layer.eps)

    def model(self, logits: str, labels: int) -> onnx.ModelProto:
        rows = self.constant(np.array([-1, labels]))
        self._nodes.append(helper.make_node("Reshape", [logits, rows], ["logits"]))
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"]),
            helper.make_tensor_value_info("spans", TensorProto.INT64, ["units", 2]),
        ]
        wanted = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", labels])
        graph = helper.make_graph(self._nodes, "jingyin", inputs, [wanted], self._constants)
        model = helper.make_model(graph, opset_imports=_OPSETS, ir_version=9)
        # No shape is computed and no constant is left to fold; the quantiser warns otherwise.
        helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        return model


FP32_TOLERANCE = 1e-4
MIN_AGREEMENT = 0.9
"""Smallest share of messages on which int8 and fp32 must give the same label. Fusion and thresholds are fitted on int8,
so losses here do not go unseen; below this the graph is broken rather than rounded. 0.97 refused a sound network of two
epochs at the end of its fine-tuning (0.969)."""


def export_fp32(classifier: SmsClassifier, path: Path, samples: Sequence[list[int]]) -> None:
    """Write the classifier as ONNX; see `classifier_graph`.

    Raises BundleError if it differs from torch by more than FP32_TOLERANCE on `samples`, lists of token ids, and on
    their halves as units.
    """
    exported = ExportedClassifier(classifier).eval()
    onnx.save(classifier_graph(exported), str(path))
    session = open_session(path)
    distance = 0.0
    for ids in samples:
        middle, end = len(ids) // 2, len(ids)
        spans = np.array([(0, end), (0, middle), (middle, end)])
        with torch.no_grad():
            wanted = exported(torch.tensor([ids]), torch.tensor(spans)).numpy()
        (found,) = session.run(None, {"input_ids": np.array([ids], np.int64), "spans": spans})
        distance = float(np.maximum(distance, np.abs(np.asarray(found) - wanted).max()))
    if not distance <= FP32_TOLERANCE:
        raise BundleError(
            f"the exported network differs from torch by {distance:.2g}, wanted at most {FP32_TOLERANCE:g}; "
            "try another version of torch or onnxruntime"
        )


def quantize(fp32: Path, int8: Path, samples: Sequence[list[int]]) -> float:
    """Write the int8 network and return the share of `samples` on which its label is that of fp32.

    Raises BundleError below MIN_AGREEMENT. Weights take 7 bits (reduce_range), since CPUs without VNNI saturate on 8:
    this keeps verdicts alike between machines (onnxruntime issues 14642, 5849).
    """
    # Pooling has no weights, and the head's inputs are of several units, which would share a scale: both stay float32.
    graph = onnx.load(str(fp32)).graph
    weights = {each.name for each in graph.initializer}
    pooling = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
    head = [node for node in graph.node if node.op_type == "MatMul" and node.input[0].startswith("Div")]
    quantize_dynamic(
        fp32, int8, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
        nodes_to_exclude=[node.name for node in pooling + head],
        op_types_to_quantize=["MatMul", "Gather"],
        # Shape inference knows nothing of onnxruntime's own operators.
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
    )  # fmt: skip
    onnx.save(rounded_together(onnx.load(str(fp32)), onnx.load(str(int8)), samples[:_ROUNDING_SAMPLES]), str(int8))
    wanted, rounded = (run(open_session(path), samples)[:, : len(LABELS)] for path in (fp32, int8))
    agreement = float((wanted.argmax(1) == rounded.argmax(1)).mean())
    if agreement < MIN_AGREEMENT:
        raise BundleError(
            f"int8 and fp32 agree on {agreement:.1%} of {len(samples)} messages, wanted at least {MIN_AGREEMENT:.0%}; "
            "train longer, or with more layers"
        )
    return agreement


_ROUNDING_SAMPLES = 300
_BLOCK = 64  # rows of weights whose errors are passed on together
_ON_GRID = 0.01
_DAMPING = 0.01  # of the mean second moment: directions that no sample shows are rounded to the nearest step


def rounded_together(fp32: onnx.ModelProto, int8: onnx.ModelProto, samples: Sequence[list[int]]) -> onnx.ModelProto:
    """Return `int8` with the weights of its products rounded so that results on `samples` change little; in place.

    Weights that are rounded later make up for the errors of earlier ones (GPTQ, Frantar et al. 2023). A network trained
    further from a bundle has weights on int8's grid, and training moves most of them by less than half a step: rounding
    to the nearest step undoes it, and rounding by chance adds noise (train/LOG.md).
    """
    exact = {each.name: numpy_helper.to_array(each) for each in fp32.graph.initializer}
    stored = {each.name: each for each in int8.graph.initializer}
    inputs: dict[str, str] = {}  # of products whose weights are not on the grid already
    steps: dict[str, NDArray[np.float32]] = {}
    for node in fp32.graph.node:
        if node.op_type == "MatMul" and f"{node.input[1]}_quantized" in stored:
            name = node.input[1]
            scaled = exact[name] / numpy_helper.to_array(stored[f"{name}_scale"])
            if np.abs(scaled - np.round(scaled)).max() > _ON_GRID:
                steps[name], inputs[name] = scaled, node.input[0]
    moments = _second_moments(fp32, sorted(set(inputs.values())), samples)
    for name, scaled in steps.items():
        quantized = stored[f"{name}_quantized"]
        nearest = numpy_helper.to_array(quantized)
        bounded = np.clip(_compensated(scaled, moments[inputs[name]]), nearest.min(), nearest.max())
        quantized.CopyFrom(numpy_helper.from_array(bounded.astype(nearest.dtype), quantized.name))
    return int8


def _second_moments(
    model: onnx.ModelProto, names: Sequence[str], samples: Sequence[list[int]]
) -> dict[str, NDArray[np.float32]]:
    """Return the mean outer product (width, width) of the vectors of each named tensor of a graph over `samples`."""
    if not names:
        return {}
    extended = onnx.ModelProto.FromString(model.SerializeToString())
    extended.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(extended.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = [session.run(names, _whole(ids)) for ids in samples]
    vectors = (np.concatenate([each[0] for each in states]) for states in zip(*seen, strict=True))
    return {name: each.T @ each / len(each) for name, each in zip(names, vectors, strict=True)}


def _compensated(steps: NDArray[np.float32], moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `steps` (in, out) rounded, for inputs with second moments (in, in)."""
    order = np.argsort(-np.diag(moments), kind="stable")
    ordered = moments[np.ix_(order, order)].astype(np.float64)
    ordered[np.diag_indices_from(ordered)] += _DAMPING * max(1e-9, float(np.diag(ordered).mean()))
    factor = np.linalg.cholesky(np.linalg.inv(ordered)).T.astype(np.float32)
    left, rounded = steps[order].copy(), np.empty_like(steps)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for i in range(start, end):
            rounded[order[i]] = np.round(left[i])
            errors[i - start] = (left[i] - rounded[order[i]]) / factor[i, i]
            left[i + 1 : end] -= np.outer(factor[i, i + 1 : end], errors[i - start])
        left[end:] -= factor[start:end, end:].T @ errors
    return rounded


def run(session: ort.InferenceSession, messages: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the logits (n, labels + signs) of whole messages, one at a time as the scorer runs them."""
    rows: list[Any] = [session.run(None, _whole(ids))[0] for ids in messages]
    return np.concatenate(rows)


def _whole(ids: Sequence[int]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": np.array([ids], np.int64), "spans": np.array([(0, len(ids))], np.int64)}


def golden(file: Path, messages: Sequence[Sequence[int]]) -> list[Golden]:
    """Return the token ids of `messages` and the logits that the network in `file` gives them on this machine."""
    return [
        Golden(file=file.name, ids=list(ids), logits=[round(float(x), 5) for x in logits])
        for ids, logits in zip(messages, run(open_session(file), messages), strict=True)
    ]


def export_transformers(bundle: Path, out: Path) -> None:
    """Write a bundle's main network, its tokenizer and a README to the new folder `out`, for transformers.

    Raises ConfigError when `out` exists, BundleError for a bundle without a main network.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder, or remove it first")
    folder_of_bundle = str(bundle.resolve())  # "bundle" alone would mean the package's
    refuse_other_labels(folder_of_bundle)
    manifest = read_bundle(bundle).manifest
    classifier, vocabulary = classifier_of_bundle(folder_of_bundle)
    card = files("jingyin.train").joinpath("templates/transformers.md").read_text(encoding="utf-8")
    with atomic_folder(out) as folder:
        save_classifier(classifier, vocabulary, folder)
        filled = card.format(id=manifest.id, review=manifest.review.risk, block=manifest.block.risk)
        (folder / "README.md").write_text(filled, encoding="utf-8")
