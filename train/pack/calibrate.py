"""Fits the cascade on held-out rows: prefilter, fusion, how far networks read, thresholds, and threats missed.

Every number comes from the int8 networks and the cascade that are served (model/cascade.py, serve/networks.py), windows
included.
"""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from jingyin.model.bundle import (
    Bundle,
    Calibration,
    CascadeRules,
    Fusion,
    Network,
    Prefilter,
    PrefilterExit,
    SignScale,
    Threshold,
)
from jingyin.model.cascade import (
    FLAGGED_INDEX,
    Cascaded,
    cascade,
    ended,
    fuse,
    fused_logit,
    log_odds,
    prefiltered,
    reads_on,
    riskiest_windows,
    sign_confidence,
    softmax,
)
from jingyin.model.errors import InputError
from jingyin.model.labels import BENIGN, LABELS
from jingyin.model.prefilter import (
    BUCKETS,
    Units,
    code_points,
    features,
    known_characters,
    prefilter_abstains,
    units_of,
    unknown_shares,
)
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import CleanString
from jingyin.model.tokenizer import PieceTokenizer, SmsTokenizer, default_lexicon
from jingyin.serve.networks import NetworkReader, tokenizers_of
from jingyin.train.corpus.public import SOURCES
from jingyin.train.corpus.rows import is_annotated
from jingyin.train.data import Rows, read_split, signs_of_rows
from jingyin.train.pack.thresholds import (
    choose_threshold,
    expected_calibration_error,
    false_alarm_curve,
    fit_fusion,
    highest_allowed,
    missed_of,
    share_threshold,
)
from jingyin.train.recipes import Calibrate, Classify

# Trains the prefilter, or tunes an existing one.


def train_prefilter(texts: Sequence[str], flagged: NDArray[np.bool_], seed: int) -> NDArray[np.float16]:
    """Return weights (BUCKETS,) of one score that separate clean texts to let through, `flagged` (n,), from the rest.

    Trained on labels, not on a network's outputs: fusion uses the score as a second opinion. If all texts are on one
    side, all weights are 0.
    """
    weights = np.zeros(BUCKETS, np.float16)
    if flagged.all() or not flagged.any():
        return weights
    model = LogisticRegression(C=30.0, class_weight="balanced", max_iter=300, random_state=seed, solver="liblinear")
    model.fit(_matrix(texts), flagged)
    weights[:-1] = model.coef_[0].astype(np.float16)
    weights[-1] = np.float16(model.intercept_[0])
    return weights


_TUNING_PENALTY = 2e-5  # 2e-3 lost: it let no more threats of a new kind through than before (train/LOG.md)
_TUNING_STEPS = 100


def tune_prefilter(
    weights: NDArray[np.floating[Any]],
    texts: Sequence[str],
    flagged: NDArray[np.bool_],
    times: NDArray[np.floating[Any]],
) -> NDArray[np.float16]:
    """Return prefilter weights (BUCKETS,) changed to separate the `flagged` among clean `texts` too.

    Logistic regression with weights regularised towards `weights` instead of 0: features that `texts` lack keep theirs.
    Each text counts `times` (n,), which may be a fraction; both sides have equal weight.
    """
    matrix = _matrix(texts)
    initial = weights.astype(np.float64)
    signs = np.where(flagged, 1.0, -1.0)
    of_side = [max(1e-9, float(times[side].sum())) for side in (flagged, ~flagged)]
    share = 0.5 * times / np.where(flagged, *of_side)

    def loss(change: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (matrix @ (initial[:-1] + change[:-1]) + initial[-1] + change[-1])
        slope = -signs * share / (1 + np.exp(np.clip(margins, -700, 700)))
        value = float((share * np.logaddexp(0, -margins)).sum() + _TUNING_PENALTY * (change[:-1] ** 2).sum())
        return value, np.append(matrix.T @ slope, slope.sum()) + 2 * _TUNING_PENALTY * np.append(change[:-1], 0)

    change = minimize(loss, np.zeros(BUCKETS), jac=True, method="L-BFGS-B", options={"maxiter": _TUNING_STEPS}).x
    return np.asarray(initial + change, np.float16)


def _matrix(texts: Sequence[str]) -> csr_matrix:
    rows = [features(code_points([text])[0]) for text in texts]
    lengths = np.array([len(row) for row in rows])
    values = np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    matrix = csr_matrix((values, np.concatenate(rows), bounds), shape=(len(texts), BUCKETS - 1))
    matrix.sum_duplicates()
    return matrix


_ORDINARY, _LAWFUL = LABELS.index("ordinary"), LABELS.index("lawful_collection")
FEWEST_REAL = 300
"""Real messages from which thresholds can be set on them alone."""

SIGNED = "model.onnx"
"""The network that has signs."""

_THINNED = 10
DISCOUNTS = (0.5, 0.25, 0.75, 1.0)
"""Candidate discounts of a window against the whole, the usual first.

Below 0.25 they cost blocked innocents. 1.5 found .06% more of the calibration split's threats, and let up to 5 points
more pass in company (train/LOG.md).
"""

ENDINGS = ("。", "!")
"""Endings with which a doubted unit is read again, if the networks have learnt that they mean nothing."""


@dataclass(frozen=True)
class _Readings:
    """Outputs of all networks for n rows as u units, by unit; NaN (labels + signs,) where unread.

    Networks read the wholes, and the windows of each message that the prefilter finds riskiest.
    """

    rows: Rows
    units: Units
    abstains: NDArray[np.bool_]
    foreign: NDArray[np.bool_]
    networks: Sequence[NetworkReader]
    outputs: dict[tuple[int, int, str | None], tuple[NDArray[np.float32], int] | None]

    def read(
        self, network: int, unit: int, room: int, ending: str | None = None
    ) -> tuple[NDArray[np.float32], int] | None:
        """Look up a network's output for a unit, as `cascade` asks for it; compute it if missing."""
        key = (network, unit, ending)
        if key not in self.outputs:
            start, end = self.units.ranges[unit]
            text = ended(CleanString(self.rows.cleaned[self.units.owners[unit]].text[start:end]), ending)
            self.outputs[key] = self.networks[network].read(text, self.networks[network].network.max_tokens)
        output = self.outputs[key]
        return output if output is not None and output[1] <= room else None

    def read_all(self, units: Sequence[int]) -> None:
        """Let every network read units on all cores: a session runs outside the interpreter's lock."""
        for number, reader in enumerate(self.networks):
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                read = pool.map(lambda unit, number=number: self.read(number, unit, 1 << 30), units)
                deque(tqdm(read, desc=reader.network.file, total=len(units), unit=" texts", disable=None), maxlen=0)

    def logits(self, depth: int, units: Sequence[int]) -> list[NDArray[np.float64]]:
        """Return the logits (u, labels) of the first `depth` networks for units, NaN where unread."""
        unread = (np.full(len(LABELS), np.nan, np.float32), 0)
        outputs = [
            [(self.outputs.get((number, unit, None)) or unread)[0][: len(LABELS)] for unit in units]
            for number in range(depth)
        ]
        return [np.array(rows, np.float64).reshape(-1, len(LABELS)) for rows in outputs]


def _prefilter(folder: Path, networks: Sequence[Network], weights: NDArray[np.floating[Any]], rows: Rows) -> _Readings:
    """Return rows as the prefilter reads them, whole and in windows."""
    tokenizers = tokenizers_of(folder, networks)
    texts = [each.text for each in rows.cleaned]
    codes = code_points(texts)
    abstains, foreign = _exceptions(SmsTokenizer.from_file(folder / "tokenizer.json"), rows)
    readers = [NetworkReader(folder, *each) for each in zip(networks, tokenizers, strict=True)]
    return _Readings(rows, units_of(weights.astype(np.float32), texts, codes), abstains, foreign, readers, {})


def _exceptions(words: SmsTokenizer, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark rows (n,) that the prefilter may not judge, by the characters of a lexicon, and those without Chinese."""
    codes = code_points([each.text for each in rows.cleaned])
    shares = unknown_shares(known_characters(words.backend.get_vocab()), codes)
    edits = [each.edits for each in rows.cleaned]
    abstains = [prefilter_abstains(*each) for each in zip(shares, edits, strict=True)]
    return np.array(abstains, np.bool_), np.array(["foreign" in each for each in edits], np.bool_)


def refuse_abstentions(tokenizer: SmsTokenizer | PieceTokenizer, rows: Rows, passed: float) -> None:
    """Raise InputError if the prefilter may not judge a larger share of ordinary `rows` than is `passed` on.

    `tokenizer` is that of a network; where it reads pieces, the bundle has the default lexicon.
    """
    words = tokenizer if isinstance(tokenizer, SmsTokenizer) else SmsTokenizer.from_lexicon(default_lexicon())
    abstains, foreign = _exceptions(words, rows)
    traffic = is_traffic(rows)
    if (share := float((abstains & ~foreign)[traffic].mean())) > passed:
        raise InputError(
            f"the prefilter may not judge {share:.2%} of the {int(traffic.sum())} ordinary calibration messages, "
            f"which are disguised or in unknown characters; the first share in passed is {passed:.2%}: raise it above "
            f"{share:.2%}, or take such messages out of the corpus"
        )


def _plain(rows: Rows) -> NDArray[np.bool_]:
    """Mark the first row of each message: the message as it stands, before its copies in company."""
    is_first = np.zeros(len(rows), np.bool_)
    is_first[np.unique(rows.messages, return_index=True)[1]] = True
    return is_first


def is_traffic(rows: Rows) -> NDArray[np.bool_]:
    """Mark the rows that represent ordinary traffic: real messages where there are enough, else all benign rows."""
    benign = np.isin(rows.labels, [LABELS.index(label) for label in BENIGN])
    real = benign & np.array([source in SOURCES for source in rows.sources])
    return real if real.sum() >= FEWEST_REAL else benign


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
    readings = _prefilter(folder, networks, weights, rows)
    rules = _fit_rules(readings, networks, recipe)
    rules = rules.model_copy(update={"endings": _endings(rules, readings, recipe.review_rate)})
    rules = _settle_blocks(rules, readings, recipe, least)
    labels, traffic = rows.labels, is_traffic(rows)
    flagged = np.isin(labels, FLAGGED_INDEX) & _plain(rows)
    served = _served(rules, readings)
    risks = _risks(served)
    cases = np.array([bool(case) for case in rows.cases])
    unseen = flagged & cases if (flagged & cases).any() else flagged
    curve = false_alarm_curve(risks[traffic], _sources(rows, traffic), risks[unseen])
    review, block = _thresholds(recipe, rows, risks, least)
    full = _full(rules, readings)
    main = _main_depth(rules.networks)
    missed = (served.depth < main) & (risks < review.risk) & (full[:, FLAGGED_INDEX].sum(1) >= review.risk)
    caught = flagged & (full[:, FLAGGED_INDEX].sum(1) >= review.risk)
    missed_counts = {"in corpus": missed_of(missed, caught & ~cases)}
    if (caught & cases).any():
        missed_counts["on unseen situations"] = missed_of(missed, caught & cases)
    last = readings.logits(len(networks), readings.units.starts.tolist())[-1]
    has_last = ~np.isnan(last[:, 0])
    return {
        "review": review, "block": block, "curve": curve, "loss": missed_counts,
        "prefilter": rules.prefilter, "networks": rules.networks, "discount": rules.discount,
        "endings": rules.endings, "provisional": rules.provisional,
        "passed": tuple(float((served.depth[traffic] > i).mean()) for i in range(len(networks))),
        "signs": fit_signs(readings, read_split(corpus, "validation")),
        "calibration": Calibration(
            ece_before=expected_calibration_error(softmax(last[has_last]), labels[has_last]),
            ece_after=expected_calibration_error(served.probabilities, labels), rows=len(labels),
        ),
    }  # fmt: skip


def _fit_rules(readings: _Readings, networks: Sequence[Network], recipe: Classify | Calibrate) -> CascadeRules:
    """Fit the prefilter's thresholds, then all networks' fusions, the discount, and how far each network reads."""
    rows, units = readings.rows, readings.units
    flagged, traffic = np.isin(rows.labels, FLAGGED_INDEX), is_traffic(rows)
    first, second = _prefilter_thresholds(readings, recipe)
    uniform = (1 / len(LABELS),) * len(LABELS)
    wholes = units.starts
    provisional = fit_fusion(units.scores[:, wholes], [], flagged, traffic, np.ones(len(rows)))
    rules = CascadeRules(
        labels=LABELS, networks=tuple(networks), discount=DISCOUNTS[0], provisional=provisional,
        prefilter=Prefilter(
            ordinary=PrefilterExit(threshold=first, probabilities=uniform),
            lawful=PrefilterExit(threshold=second, probabilities=uniform),
        ),
    )  # fmt: skip
    continues, exits = prefiltered(rules, units, readings.abstains, readings.foreign)
    unstopped = np.flatnonzero(exits < 0).tolist()
    windows = [unit for queue in riskiest_windows(rules, units, continues, unstopped).values() for unit in queue]
    # Traffic that is stopped has no part in any threshold: a tenth of it stands for all.
    thin = traffic & (exits >= 0)
    drawn = ~thin | (np.cumsum(thin) % _THINNED == 0)
    readings.read_all([*wholes[drawn].tolist(), *windows])
    times = np.where(thin, float(_THINNED), 1.0)
    fusions = [_fusion(readings, depth, flagged, traffic, times) for depth in range(1, len(networks) + 1)]
    units_read = np.array([*wholes[continues[wholes]].tolist(), *windows])
    odds = [_odds(readings, fusion, units_read) for fusion in fusions]  # (u,) at each depth
    owners, is_window = units.owners[units_read], ~np.isin(units_read, wholes)
    discount = _discount(odds[-1], owners, is_window, traffic, flagged, recipe.review_rate)
    fitted: list[Network] = []
    reached = np.ones(len(units_read), np.bool_)
    for i, (network, fusion) in enumerate(zip(networks, fusions, strict=True)):
        risks = np.full(len(rows), -np.inf)
        np.maximum.at(risks, owners[reached], (odds[i] - discount * is_window)[reached])
        continue_from = None
        ordinary = traffic & np.isfinite(risks)
        if i + 1 < len(networks) and ordinary.any():
            share = min(1.0, recipe.passed[i + 1] * traffic.sum() / ordinary.sum())
            continue_from = share_threshold(risks[ordinary], share)
        fitted.append(network.model_copy(update={"fusion": fusion, "threshold": continue_from, "certain": None}))
        reached &= reads_on(continue_from, None, odds[i] - discount * is_window)
    rules = rules.model_copy(update={"networks": tuple(fitted), "discount": discount})
    full = _full(rules, readings)
    means = [_mean(full, exits, rows.labels, label) for label in (_ORDINARY, _LAWFUL)]
    ordinary_exit = rules.prefilter.ordinary.model_copy(update={"probabilities": means[0]})
    lawful_exit = rules.prefilter.lawful.model_copy(update={"probabilities": means[1]})
    return rules.model_copy(update={"prefilter": Prefilter(ordinary=ordinary_exit, lawful=lawful_exit)})


def _settle_blocks(
    rules: CascadeRules, readings: _Readings, recipe: Classify | Calibrate, least: tuple[float, float]
) -> CascadeRules:
    """Let the main network and those after it settle blocks without later networks.

    A network settles what lies above the log-odds of every ordinary and lawful row that is not blocked once all have
    read it: later ones would only confirm the block. That spares two thirds of the verifier's readings of threats.
    """
    rows = readings.rows
    risks = _risks(_served(rules, readings))
    _, block = _thresholds(recipe, rows, risks, least)
    not_blocked = (is_traffic(rows) | (rows.labels == _LAWFUL)) & (risks < block.risk)
    fitted = list(rules.networks)
    for i in range(_main_depth(fitted) - 1, len(fitted) - 1):
        odds = _served(rules.model_copy(update={"networks": rules.networks[: i + 1]}), readings).odds
        exit_above = max(log_odds(block.risk), float(np.nextafter(odds[not_blocked].max(initial=-np.inf), np.inf)))
        fitted[i] = fitted[i].model_copy(update={"certain": exit_above if np.isfinite(exit_above) else None})
    return rules.model_copy(update={"networks": tuple(fitted)})


def _prefilter_thresholds(readings: _Readings, recipe: Classify | Calibrate) -> tuple[float, float]:
    """Return the prefilter's thresholds: a share of ordinary messages continues, next to no threat stops as lawful.

    A message continues if any of its units does.
    """
    rows, units = readings.rows, readings.units
    flagged, traffic = np.isin(rows.labels, FLAGGED_INDEX), is_traffic(rows)
    abstains = readings.abstains & ~readings.foreign
    highest = np.maximum.reduceat(units.scores[0], units.starts)
    highest = np.where(readings.foreign, -np.inf, np.where(abstains, np.inf, highest))
    first = share_threshold(highest[traffic], recipe.passed[0])
    second = np.where(units.scores[0] >= first, units.scores[1], -np.inf)
    threats = np.maximum.reduceat(second, units.starts)[flagged & (highest >= first)]
    threats = threats[np.isfinite(threats)]
    # A text that the second score itself takes for a threat, above 0, is never stopped as lawful.
    low = share_threshold(threats, 1 - recipe.lawful_loss) if len(threats) else float(units.scores[1].min())
    return first, min(0.0, low)


def _fusion(
    readings: _Readings, depth: int, flagged: NDArray[np.bool_], traffic: NDArray[np.bool_], times: NDArray[np.float64]
) -> Fusion:
    """Fit the fusion of the first `depth` networks on the wholes that they read, each of which counts `times`."""
    wholes = readings.units.starts
    logits = readings.logits(depth, wholes.tolist())
    is_read = ~np.isnan(np.sum(logits, axis=(0, 2)))
    scores = readings.units.scores[:, wholes[is_read]]
    return fit_fusion(scores, [each[is_read] for each in logits], flagged[is_read], traffic[is_read], times[is_read])


def _odds(readings: _Readings, fusion: Fusion, units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-odds of the risk (u,) of units, -inf for units too long to read."""
    logits = readings.logits(len(fusion.weights), units.tolist())
    return np.nan_to_num(fused_logit(fusion, readings.units.scores[:, units], logits), nan=-np.inf)


def _discount(
    odds: NDArray[np.float64], owners: NDArray[np.int64], is_window: NDArray[np.bool_], traffic: NDArray[np.bool_],
    flagged: NDArray[np.bool_], rate: float,
) -> float:  # fmt: skip
    """Return the one of DISCOUNTS that finds most threats."""

    def found(discount: float) -> float:
        risks = np.full(len(traffic), -np.inf)
        np.maximum.at(risks, owners, odds - discount * is_window)
        return _threats_found(risks, traffic, flagged, rate)

    return max(DISCOUNTS, key=found)  # the first of equals


def _endings(rules: CascadeRules, readings: _Readings, rate: float) -> tuple[str, ...]:
    """Return ENDINGS if reading again with them finds more threats, else none.

    Networks that have not seen threats and innocents with the same marks take them for evidence.
    """
    flagged, traffic = np.isin(readings.rows.labels, FLAGGED_INDEX), is_traffic(readings.rows)

    def found(endings: tuple[str, ...]) -> float:
        served = _served(rules.model_copy(update={"endings": endings}), readings)
        return _threats_found(served.odds, traffic, flagged, rate)

    return max(((), ENDINGS), key=found)


def _threats_found(
    risks: NDArray[np.float64], traffic: NDArray[np.bool_], flagged: NDArray[np.bool_], rate: float
) -> float:
    """Return how many threats are found, on average over false-alarm rates from 0 to `rate`.

    That is the partial area under the ROC curve (McClish 1989). Recall at `rate` itself depends on one or two messages
    near it, and favours a discount of 0.25 or of 1 by chance.
    """
    alarms = np.sort(risks[traffic])[::-1][: int(rate * traffic.sum()) + 1]
    threats = np.sort(risks[flagged])
    return float((len(threats) - np.searchsorted(threats, alarms, side="right")).mean())


def _served(rules: CascadeRules, readings: _Readings) -> Cascaded:
    """Return the cascade's results on the rows, as served."""
    continues, exits = prefiltered(rules, readings.units, readings.abstains, readings.foreign)
    return cascade(rules, readings.units, continues, exits, readings.read)


def _risks(served: Cascaded) -> NDArray[np.float64]:
    return np.asarray(served.probabilities[:, FLAGGED_INDEX].sum(1))


def _full(rules: CascadeRules, readings: _Readings) -> NDArray[np.float64]:
    """Return the probabilities (n, labels) by which all networks together judge the wholes; NaN where one is unread."""
    wholes = readings.units.starts
    logits = readings.logits(len(rules.networks), wholes.tolist())
    return fuse(rules.networks[-1].fusion, readings.units.scores[:, wholes], logits)


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
    mean = rows.mean(0) if len(rows) else np.eye(len(LABELS))[label]
    return tuple(map(float, mean))


def _sources(rows: Rows, chosen: NDArray[np.bool_]) -> list[str]:
    return [source for source, keep in zip(rows.sources, chosen, strict=True) if keep]


def _thresholds(
    recipe: Classify | Calibrate, rows: Rows, risks: NDArray[np.float64], least: tuple[float, float]
) -> tuple[Threshold, Threshold]:
    """Return the thresholds of review and block; block is also bounded on lawful messages, each template once."""
    traffic = is_traffic(rows)
    sources = _sources(rows, traffic)
    lawful = np.full(int(rows.messages.max()) + 1, -1.0)
    chosen = (rows.labels == _LAWFUL) & _plain(rows)
    np.maximum.at(lawful, rows.messages[chosen], risks[chosen])
    review = choose_threshold(risks[traffic], sources, recipe.review_rate, least[0])
    lowest = max(review.risk, least[1], highest_allowed(lawful[lawful >= 0], recipe.lawful_rate))
    return review, choose_threshold(risks[traffic], sources, recipe.block_rate, lowest)


def read_shares(bundle: Bundle, rows: Rows, part: float = 1.0) -> tuple[float, ...]:
    """Return `part` of the share of `rows` that each network of a bundle reads.

    For the first network it is the share that the prefilter does not stop as ordinary, as in recipes: the network might
    also read messages that the prefilter stops as lawful. It is at least the share that a prefilter may not judge.
    """
    manifest = bundle.manifest
    readings = _prefilter(bundle.path, manifest.networks, bundle.prefilter_weights, rows)
    depth = _served(manifest, readings).depth
    highest = np.maximum.reduceat(readings.units.scores[0], readings.units.starts)
    abstains = readings.abstains & ~readings.foreign
    first = abstains | (~readings.foreign & (highest >= manifest.prefilter.ordinary.threshold))
    rest = (part * float((depth > i).mean()) for i in range(1, len(manifest.networks)))
    return max(part * float(first.mean()), float(abstains.mean())), *rest


_COPIES = 2
"""Copies of a message that the prefilter learns from besides it: more take hours and gigabytes, and add little."""


def prefilter_of(train: Rows, seed: int, initial: NDArray[np.floating[Any]] | None = None) -> NDArray[np.float16]:
    """Return weights (2, BUCKETS) trained on each message and two of its copies, starting from `initial` if given.

    The first separate the ordinary from all else, so that messages they stop are rightly called ordinary; the second,
    trained on that rest alone, separate the lawful from threats.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    order[np.unique(train.messages, return_index=True)[1]] = -1  # first in their message: as they stand
    ranked = np.lexsort((order, train.messages))
    starts = np.flatnonzero(np.diff(train.messages[ranked], prepend=-1))
    rank = np.arange(len(train)) - np.repeat(starts, np.diff(starts, append=len(train)))
    train = train.take(np.sort(ranked[rank <= _COPIES]))
    other = train.labels != _ORDINARY
    rest = train.take(np.flatnonzero(other))
    weights = []
    for i, (rows, flagged) in enumerate(((train, other), (rest, rest.labels != _LAWFUL))):
        texts = [each.text for each in rows.cleaned]
        if initial is None:
            weights.append(train_prefilter(texts, flagged, seed))
        else:
            weights.append(tune_prefilter(initial[i], texts, flagged, rows.weights))
    return np.stack(weights)


# Calibrates signs: how sure a sign's logit is (Platt 1999), and from which confidence verdicts give it as a reason.


PRECISION = 0.9
"""Target precision of a reason on held-out messages."""

_FEWEST = 5  # messages that show a sign, for it to have a scale and a threshold of its own
_CAREFUL = SignScale(slope=1.0, bias=0.0, threshold=0.9, precision=0.0, found=0)
"""Scale of a sign that too few held-out messages show."""


def fit_signs(readings: _Readings, validation: Rows) -> dict[str, SignScale]:
    """Return the scale of each sign of the network that has signs; empty if none has.

    Fitted on the annotated messages of the calibration split, which have been read, and of the `validation` split.
    """
    position = next((i for i, reader in enumerate(readings.networks) if reader.network.file == SIGNED), None)
    if position is None:
        return {}
    chosen = np.flatnonzero(annotated(readings.rows) & _plain(readings.rows))
    outputs = [readings.read(position, int(readings.units.starts[i]), 1 << 30) for i in chosen]
    logits = [output[0][len(LABELS) :] for output in outputs if output is not None]
    if not logits or not len(logits[0]):
        return {}
    was_read = [i for i, output in zip(chosen.tolist(), outputs, strict=True) if output is not None]
    held_out = validation.take(np.flatnonzero(annotated(validation)))
    reader = readings.networks[position]
    outputs = [reader.read(cleaned.text, reader.network.max_tokens) for cleaned in held_out.cleaned]
    logits += [output[0][len(LABELS) :] for output in outputs if output is not None]
    held_out_read = held_out.take(np.array([i for i, output in enumerate(outputs) if output is not None], np.int64))
    rows = readings.rows.take(np.array(was_read, np.int64))
    targets = np.concatenate([signs_of_rows(part) for part in (rows, held_out_read) if len(part)])
    table = np.array(logits, np.float64)
    return {sign: _scale(table[:, i], targets[:, i] > 0) for i, sign in enumerate(SIGN_IDS)}


def annotated(rows: Rows) -> NDArray[np.bool_]:
    """Return whether people annotated the signs of a row (n,)."""
    return np.array([is_annotated(signs) for signs in rows.signs], np.bool_)


def sign_logits(folder: Path, networks: Sequence[Network], rows: Rows) -> NDArray[np.float64] | None:
    """Return the logits (n, signs) of the network that has signs on wholes, None if none has.

    They are NaN for messages that it can't read.
    """
    for network, tokenizer in zip(networks, tokenizers_of(folder, networks), strict=True):
        if network.file == SIGNED:
            reader = NetworkReader(folder, network, tokenizer)
            outputs = [reader.read(cleaned.text, network.max_tokens) for cleaned in rows.cleaned]
            width = max((len(output[0]) for output in outputs if output), default=0) - len(LABELS)
            unread = np.full(max(0, width), np.nan)
            return np.array([output[0][-width:] if output else unread for output in outputs]) if width > 0 else None
    return None


def _scale(logits: NDArray[np.float64], has_sign: NDArray[np.bool_]) -> SignScale:
    """Fit the scale of one sign on its logits (n,) and whether messages show it (n,)."""
    if has_sign.sum() < _FEWEST or has_sign.all():
        return _CAREFUL
    model = LogisticRegression(C=1.0).fit(logits[:, None], has_sign)
    scale = _CAREFUL.model_copy(
        update={"slope": max(0.0, float(model.coef_[0, 0])), "bias": float(model.intercept_[0])}
    )
    confidence = sign_confidence(scale, logits)
    order = np.argsort(-confidence, kind="stable")
    precision = has_sign[order].cumsum() / np.arange(1, len(order) + 1)
    parted = np.diff(confidence[order], append=-1.0) < 0  # a threshold can't separate equal ones
    enough = np.flatnonzero((precision >= PRECISION) & parted)
    if not len(enough):
        return scale
    last = int(enough[-1])
    return scale.model_copy(
        update={
            "threshold": float(confidence[order[last]]),
            "precision": float(precision[last]),
            "found": int(has_sign[order[: last + 1]].sum()),
        }
    )
