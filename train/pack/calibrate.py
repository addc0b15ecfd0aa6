"""Fits the cascade on held-out rows: prefilter, fusion, how far networks read, thresholds, and threats missed.

Thresholds and rates come from the int8 networks and the cascade that are served (model/cascade.py, serve/networks.py),
windows included; fusions, discount and bounds from readings in which every network chooses the passes of a long message
by the prefilter.
"""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jingyin.model import cascade
from jingyin.model.bundle import Bundle, Calibration, CascadeRules, Fusion, Network, Prefilter, PrefilterExit, Threshold
from jingyin.model.labels import LABELS
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.train.data import LAWFUL, ORDINARY, Rows, read_split
from jingyin.train.pack import thresholds
from jingyin.train.pack.readings import Readings, is_traffic, read_by_prefilter, refuse_abstentions
from jingyin.train.pack.signs import fit_signs
from jingyin.train.recipes import Calibrate, Classify

_THINNED = 10
OTHER = "other_threat"
WEIGHTS = tuple(np.exp(np.arange(0, 2.1, 0.25)).round(2).tolist())
"""Candidate weights of OTHER when a label is chosen, none first."""
DISCOUNTS = (0.5, 0.0, 0.25, 0.75, 1.0)
"""Candidate discounts of a window, or of a long whole, against a short whole; the usual first."""


def fit_cascade(
    folder: Path, networks: Sequence[Network], weights: NDArray[np.float16], recipe: Classify | Calibrate, corpus: Path,
    least: tuple[float, float] = (0.0, 0.0),
) -> dict[str, object]:  # fmt: skip
    """Fit the cascade of the networks in `folder` by a recipe's rates and shares, on the calibration split of `corpus`.

    `weights` (2, BUCKETS) are the prefilter's, `least` the lowest risks from which a message may be reviewed and
    blocked. Returns the fitted parts of the manifest. Signs are fitted on annotated rows, including those of the
    validation split.
    """
    rows = read_split(corpus, "calibration")
    refuse_abstentions(SmsTokenizer.from_file(folder / "tokenizer.json"), rows, recipe.passed[0])
    readings = read_by_prefilter(folder, networks, weights, rows)
    rules = _settle_blocks(_fit_rules(readings, networks, recipe), readings, recipe, least)
    labels, traffic = rows.labels, is_traffic(rows)
    flagged = rows.flagged & rows.first
    served = _served(rules, readings)
    risks = _risks(served)
    cases = np.array([bool(case) for case in rows.cases])
    unseen = flagged & cases if (flagged & cases).any() else flagged
    curve = thresholds.false_alarm_curve(risks[traffic], list(compress(rows.sources, traffic)), risks[unseen])
    review, block = _thresholds(recipe, rows, risks, least)
    by_all = _full(rules, readings)[:, cascade.FLAGGED_INDEX].sum(1) >= review.risk
    missed = (served.depth < _main_depth(rules.networks)) & (risks < review.risk) & by_all
    caught = flagged & by_all
    missed_counts = {"in corpus": thresholds.missed_of(missed, caught & ~cases)}
    if (caught & cases).any():
        missed_counts["on unseen situations"] = thresholds.missed_of(missed, caught & cases)
    last = readings.logits(len(networks), readings.units.starts)[-1]
    has_last = ~np.isnan(last[:, 0])
    return {
        "review": review, "block": block, "curve": curve, "loss": missed_counts,
        "prefilter": rules.prefilter, "networks": rules.networks, "discount": rules.discount,
        "provisional": rules.provisional,
        "passed": tuple(float((served.depth[traffic] > i).mean()) for i in range(len(networks))),
        "signs": fit_signs(readings, read_split(corpus, "validation")),
        "label_weights": _label_weights(rows, served.probabilities),
        "calibration": Calibration(
            # Both on the rows that the last network has read: of traffic that is stopped, that is a tenth.
            ece_before=thresholds.expected_calibration_error(cascade.softmax(last[has_last]), labels[has_last]),
            ece_after=thresholds.expected_calibration_error(served.probabilities[has_last], labels[has_last]),
            rows=int(has_last.sum()),
        ),
    }  # fmt: skip


def _fit_rules(readings: Readings, networks: Sequence[Network], recipe: Classify | Calibrate) -> CascadeRules:
    """Fit the prefilter's thresholds, then all networks' fusions, the discount, and how far each network reads."""
    rows, units = readings.rows, readings.units
    flagged, traffic = rows.flagged, is_traffic(rows)
    first, second = _prefilter_thresholds(readings, recipe)
    uniform = (1 / len(LABELS),) * len(LABELS)
    wholes = units.starts
    provisional = thresholds.fit_fusion(units.scores[:, wholes], [], flagged, traffic, np.ones(len(rows)))
    rules = CascadeRules(
        labels=LABELS, networks=tuple(networks), discount=DISCOUNTS[0], provisional=provisional,
        prefilter=Prefilter(
            ordinary=PrefilterExit(threshold=first, probabilities=uniform),
            lawful=PrefilterExit(threshold=second, probabilities=uniform),
        ),
    )  # fmt: skip
    exits = cascade.prefiltered(rules, units, readings.abstains, readings.foreign)
    # Traffic that is stopped has no part in any threshold: a tenth of it stands for all. Signs need annotated rows.
    thin = traffic & (exits >= 0) & ~(rows.annotated & rows.first)
    readings.read_all(np.flatnonzero(~thin | (np.cumsum(thin) % _THINNED == 0)).tolist())
    times = np.where(thin, float(_THINNED), 1.0)
    fusions = [_fusion(readings, depth, times) for depth in range(1, len(networks) + 1)]
    read = np.flatnonzero((exits < 0)[units.owners])  # units
    odds = [_odds(readings, fusion, read) for fusion in fusions]  # (read,) at each depth
    owners, diluted = units.owners[read], units.diluted[read]

    def riskiest(depth: int, discount: float) -> NDArray[np.float64]:
        risks = np.full(len(rows), -np.inf)
        np.maximum.at(risks, owners, odds[depth] - discount * diluted)
        return risks

    # The first of equals.
    discount = max(DISCOUNTS, key=lambda each: _threats_found(rows, riskiest(-1, each), recipe.review_rate))
    fitted: list[Network] = []
    reached = exits < 0
    for i, (network, fusion) in enumerate(zip(networks, fusions, strict=True)):
        risks = riskiest(i, discount)
        continue_from = None
        ordinary = traffic & reached
        if i + 1 < len(networks) and ordinary.any():
            share = min(1.0, recipe.passed[i + 1] * traffic.sum() / ordinary.sum())
            continue_from = thresholds.share_threshold(risks[ordinary], share)
        fitted.append(network.model_copy(update={"fusion": fusion, "threshold": continue_from, "certain": None}))
        reached &= cascade.reads_on(continue_from, None, risks)
    rules = rules.model_copy(update={"networks": tuple(fitted), "discount": discount})
    full = _full(rules, readings)
    ordinary_exit, lawful_exit = (
        PrefilterExit(threshold=threshold, probabilities=_mean(full, exits, rows.labels, label))
        for threshold, label in ((first, ORDINARY), (second, LAWFUL))
    )
    return rules.model_copy(update={"prefilter": Prefilter(ordinary=ordinary_exit, lawful=lawful_exit)})


def _settle_blocks(
    rules: CascadeRules, readings: Readings, recipe: Classify | Calibrate, least: tuple[float, float]
) -> CascadeRules:
    """Let the main network and those after it settle blocks without later networks.

    A network settles what lies above the log-odds of every ordinary and lawful row that is not blocked once all have
    read it: later ones would only confirm the block. That spares two thirds of the verifier's readings of threats.
    """
    rows = readings.rows
    risks = _risks(_served(rules, readings))
    _, block = _thresholds(recipe, rows, risks, least)
    not_blocked = (is_traffic(rows) | (rows.labels == LAWFUL)) & (risks < block.risk)
    fitted = list(rules.networks)
    for i in range(_main_depth(fitted) - 1, len(fitted) - 1):
        odds = _served(rules.model_copy(update={"networks": rules.networks[: i + 1]}), readings).odds
        above_all = float(np.nextafter(odds[not_blocked].max(initial=-np.inf), np.inf))
        exit_above = max(cascade.log_odds(block.risk), above_all)
        fitted[i] = fitted[i].model_copy(update={"certain": exit_above if np.isfinite(exit_above) else None})
    return rules.model_copy(update={"networks": tuple(fitted)})


def _prefilter_thresholds(readings: Readings, recipe: Classify | Calibrate) -> tuple[float, float]:
    """Return the prefilter's thresholds: a share of ordinary messages continues, next to no threat stops as lawful.

    A message continues if any of its units does.
    """
    rows, units = readings.rows, readings.units
    highest = np.maximum.reduceat(units.scores[0], units.starts)
    highest = np.where(readings.foreign, -np.inf, np.where(readings.abstains, np.inf, highest))
    first = thresholds.share_threshold(highest[is_traffic(rows)], recipe.passed[0])
    second = np.where(units.scores[0] >= first, units.scores[1], -np.inf)
    threats = np.maximum.reduceat(second, units.starts)[rows.flagged & (highest >= first)]
    threats = threats[np.isfinite(threats)]
    # A text that the second score itself takes for a threat, above 0, is never stopped as lawful.
    share = 1 - recipe.lawful_loss
    low = thresholds.share_threshold(threats, share) if len(threats) else float(units.scores[1].min())
    return first, min(0.0, low)


def _fusion(readings: Readings, depth: int, times: NDArray[np.float64]) -> Fusion:
    """Fit the fusion of the first `depth` networks on the wholes that they read, each of which counts `times`."""
    wholes = readings.units.starts
    logits = readings.logits(depth, wholes)
    is_read = ~np.isnan(np.sum(logits, axis=(0, 2)))
    scores = readings.units.scores[:, wholes[is_read]]
    flagged, traffic = readings.rows.flagged[is_read], is_traffic(readings.rows)[is_read]
    return thresholds.fit_fusion(scores, [each[is_read] for each in logits], flagged, traffic, times[is_read])


def _odds(readings: Readings, fusion: Fusion, units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-odds of the risk (u,) of units, -inf for those that a network does not read."""
    logits = readings.logits(len(fusion.weights), units)
    return np.nan_to_num(cascade.fused_logit(fusion, readings.units.scores[:, units], logits), nan=-np.inf)


def _threats_found(rows: Rows, risks: NDArray[np.float64], rate: float) -> float:
    """Return how many threats are found, on average over false-alarm rates from 0 to `rate`.

    That is the partial area under the ROC curve (McClish 1989). Recall at `rate` itself depends on one or two messages
    near it, and favours a discount of 0.25 or of 1 by chance.
    """
    traffic, threats = risks[is_traffic(rows)], np.sort(risks[rows.flagged])
    alarms = np.sort(traffic)[::-1][: int(rate * len(traffic)) + 1]
    return float((len(threats) - np.searchsorted(threats, alarms, side="right")).mean())


def _served(rules: CascadeRules, readings: Readings) -> cascade.Cascaded:
    """Return the cascade's results on the rows, as served."""
    exits = cascade.prefiltered(rules, readings.units, readings.abstains, readings.foreign)
    return cascade.cascade(rules, readings.units, exits, readings.read)


def _risks(served: cascade.Cascaded) -> NDArray[np.float64]:
    return np.asarray(served.probabilities[:, cascade.FLAGGED_INDEX].sum(1))


def _label_weights(rows: Rows, probabilities: NDArray[np.float64]) -> dict[str, float]:
    """Return the weight of OTHER in the choice of a label, given the rows' `probabilities` (n, labels).

    The best by mean recall over labels, without real traffic, which holds next to none of OTHER. It is one in fifty of
    authored rows, so the networks expect it seldom, though not where it is meant.
    """
    counted = ~(is_traffic(rows) & rows.real)  # authored rows count even where they stand for traffic
    probabilities, labels = probabilities[counted], rows.labels[counted]
    if not (labels == LABELS.index(OTHER)).any():
        return {}

    def mean_recall(weight: float) -> float:
        right = cascade.likeliest(probabilities, {OTHER: weight}) == labels
        return float(np.mean([right[labels == each].mean() for each in np.unique(labels)]))

    return {OTHER: max(WEIGHTS, key=mean_recall)}  # the first of equals


def _full(rules: CascadeRules, readings: Readings) -> NDArray[np.float64]:
    """Return the probabilities (n, labels) by which all networks together judge the wholes; NaN where one is unread."""
    wholes = readings.units.starts
    logits = readings.logits(len(rules.networks), wholes)
    return cascade.fuse(rules.networks[-1].fusion, readings.units.scores[:, wholes], logits)


def _main_depth(networks: Sequence[Network]) -> int:
    """Return the number of networks up to and including model.onnx; losses before it count as the prefilter's."""
    names = [network.file for network in networks]
    return names.index("model.onnx") + 1 if "model.onnx" in names else 1


def _mean(
    full: NDArray[np.float64], exits: NDArray[np.int64], labels: NDArray[np.int64], label: int
) -> tuple[float, ...]:
    """Return the networks' mean verdict on rows of a label that the prefilter stops, or on all of that label."""
    own = (labels == label) & ~np.isnan(full).any(1)
    stopped = own & (exits >= 0)
    rows = full[stopped] if stopped.any() else full[own]
    return tuple(map(float, rows.mean(0) if len(rows) else np.eye(len(LABELS))[label]))


def _thresholds(
    recipe: Classify | Calibrate, rows: Rows, risks: NDArray[np.float64], least: tuple[float, float]
) -> tuple[Threshold, Threshold]:
    """Return the thresholds of review and block; block is also bounded on lawful messages, each template once.

    The user's own labelled messages have no say: they were picked because a bundle judges them wrong.
    """
    traffic = is_traffic(rows)
    sources = list(compress(rows.sources, traffic))
    lawful = risks[(rows.labels == LAWFUL) & rows.first & ~rows.own]
    review = thresholds.choose_threshold(risks[traffic], sources, recipe.review_rate, least[0])
    lowest = max(review.risk, least[1], thresholds.highest_allowed(lawful, recipe.lawful_rate))
    return review, thresholds.choose_threshold(risks[traffic], sources, recipe.block_rate, lowest)


def read_shares(bundle: Bundle, rows: Rows, part: float = 1.0) -> tuple[float, ...]:
    """Return `part` of the share of `rows` that each network of a bundle reads.

    For the first network it is the share that the prefilter does not stop as ordinary, as in recipes: the network might
    also read messages that the prefilter stops as lawful. It is at least the share that a prefilter may not judge.
    """
    manifest = bundle.manifest
    readings = read_by_prefilter(bundle.path, manifest.networks, bundle.prefilter_weights, rows)
    depth = _served(manifest, readings).depth
    highest = np.maximum.reduceat(readings.units.scores[0], readings.units.starts)
    first = readings.abstains | (~readings.foreign & (highest >= manifest.prefilter.ordinary.threshold))
    rest = (part * float((depth > i).mean()) for i in range(1, len(manifest.networks)))
    return max(part * float(first.mean()), float(readings.abstains.mean())), *rest
