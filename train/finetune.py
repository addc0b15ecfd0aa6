"""`jingyin finetune`: the steps, one after another, and the run folder that holds what they leave.

begun.json      what the run was begun with
authored/       authored messages in the splits of the default corpus
corpus/         what was trained, calibrated and tested on
events/         TensorBoard's events
bundle/         the result
report.md       counts before and after
promotion.json  may it replace the incumbent?
finetune.json   all of it for machines; written last
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from numpy.typing import NDArray

from jingyin.model.bundle import Bundle, Manifest, Threshold, default_path, read_bundle
from jingyin.model.cascade import FLAGGED_INDEX, with_risk
from jingyin.model.errors import ConfigError
from jingyin.model.labels import BENIGN, LABELS, Verdict
from jingyin.model.text import clean
from jingyin.serve.archive.readers import find
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus import store
from jingyin.train.corpus.store import SPLITS, Row
from jingyin.train.data import Encode, Rows, examples, one_hot, read_split
from jingyin.train.encoder import encoder_of
from jingyin.train.evaluate.systems import verdicts
from jingyin.train.finetune_data import (
    HELD_OUT,
    MOST_TRAFFIC,
    SIDES,
    TRAFFIC,
    Columns,
    Labelled,
    authored_corpus,
    deduplicate,
    is_dataset,
    is_flagged,
    read_labelled,
    read_unlabelled,
    replayed,
    write_corpus,
)
from jingyin.train.loop import Schedule, cross_entropy, fit, pad, without_dropout
from jingyin.train.network import SmsClassifier
from jingyin.train.pack.bundle import pack_finetuned
from jingyin.train.pack.calibrate import is_traffic, read_shares, tune_prefilter
from jingyin.train.pack.export import classifier_of_bundle
from jingyin.train.pack.thresholds import upper_bound
from jingyin.train.promote import Promotion, default_config, promote
from jingyin.train.recipes import Calibrate
from jingyin.train.runs import command, file_sha256, versions
from jingyin.train.saved import is_classifier, save_classifier
from jingyin.train.stages import TEACHERS, soft_labels

# What a fine-tuned network learns: labels of one's own, and on authored messages what the earlier bundle says too.


SMOOTHING = 0.02
DISTILLATION_WEIGHT = 0.5
"""Share of the incumbent's probabilities in the target of an authored message; the rest is its label."""

OWN_SHARE = 0.25
"""Own messages are repeated until they are this share of an epoch, but at most MOST_REPEATS times."""

MOST_REPEATS = 8
SCHEDULE = Schedule(
    epochs=4, tokens=2560, learning_rate=3e-4, warmup=0.1, head_rate=3.0, precision="bf16", seed=1
)  # fmt: skip

_SURE = float(np.log((1 - SMOOTHING) / SMOOTHING))


def targets(rows: Rows, soft: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return target distributions (n, labels) of rows, of which the incumbent says `soft` (n, labels).

    An own message has its label; one with a side alone that side's risk, and within it what the incumbent says.
    """
    hard = one_hot(rows.labels, SMOOTHING)
    out = (1 - DISTILLATION_WEIGHT) * hard + DISTILLATION_WEIGHT * soft
    own = np.array([source == "own" for source in rows.sources])
    out[own] = hard[own]
    half = np.array([family in SIDES for family in rows.families]) & own
    sides = np.array([_SURE if is_flagged(family) else -_SURE for family in rows.families])
    out[half] = with_risk(np.log(np.maximum(soft[half], 1e-6)), sides[half])
    return out.astype(np.float32)


def incumbent_says(bundle: Path, rows: Rows, run: Path) -> NDArray[np.float32]:
    """Return the incumbent's probabilities (n, labels); of a disguised copy those of the message it was made from."""
    _, plain, message = np.unique(rows.messages, return_index=True, return_inverse=True)
    return soft_labels([str(bundle)], [rows.cleaned[i] for i in plain], run / TEACHERS)[message]


def repeated(rows: Rows) -> NDArray[np.int64]:
    """Return how often each row (n,) is repeated, so that few own messages are not lost among authored ones."""
    own = np.array([source == "own" for source in rows.sources])
    messages, others = (len(np.unique(rows.messages[some])) for some in (own, ~own))
    wanted = round(OWN_SHARE / (1 - OWN_SHARE) * others / max(1, messages))
    return np.where(own, min(MOST_REPEATS, max(1, wanted)), 1)


def training_rows(rows: Rows, target: NDArray[np.float32], encode: Encode) -> Dataset:
    """Return what the loop reads; a repetition is a message of its own, so that other copies of it come."""
    times = repeated(rows)
    index = np.repeat(np.arange(len(rows)), times)
    nth = np.concatenate([np.arange(count) for count in times])
    repeats = rows.take(index)
    numbered = examples(repeats, encode, target[index])
    messages = repeats.messages + nth * (rows.messages.max() + 1)
    return numbered.remove_columns("message").add_column("message", messages)


def train_network(model: SmsClassifier, rows: Dataset, schedule: Schedule, run: Path) -> float:
    """Train a classifier in place, going on from a checkpoint in `run`; returns the mean loss of the last epoch.

    A sign head stays as it is: its encoder moves little, and own messages say nothing of signs.
    """
    signs, model.sign_head = model.sign_head, None
    loss = fit(without_dropout(model), rows, run, schedule, cross_entropy)
    model.sign_head = signs
    return loss


# How long a fine-tuning will take here, measured on a few messages before it begins; and how long its steps took.


_MESSAGES = 40
_CORPUS = 40.0  # seconds to build the authored corpus, on one core of 2026
_DISGUISED = 8400  # messages that `promote` scores beside those of the test split
_SERVED = 0.3  # share of the networks' time that a message takes when the cascade may stop


class Stopwatch:
    """Seconds of each step of a run, by the step's name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


def seconds(
    scorer: Scorer, model: SmsClassifier, ids: Sequence[list[int]], texts: Sequence[str], traffic: int
) -> float:
    """Return the seconds that fine-tuning on `texts` of token ids `ids` takes beside `traffic` messages of traffic.

    `scorer` lets all networks read; a batch of `model` is timed on a copy.
    """
    replay = replayed(len(texts))
    some = texts[:_MESSAGES]
    a_message = _timed(lambda: list(scorer.scored(some))) / len(some)
    length = mean(map(len, ids))
    messages = max(replay / (1 - OWN_SHARE), replay + len(texts))
    steps = messages * length * SCHEDULE.epochs / SCHEDULE.tokens
    copy = deepcopy(model).train()
    batch = pad([ids[i % len(ids)] for i in range(max(1, int(SCHEDULE.tokens / length)))])
    with torch.autocast("cpu", torch.bfloat16):
        _timed(lambda: copy(*batch).sum().backward())  # the first run pays for memory
        a_step = _timed(lambda: copy(*batch).sum().backward())
    read = (replay + len(texts) + HELD_OUT["calibration"] + min(traffic, MOST_TRAFFIC)) / len(os.sched_getaffinity(0))
    judged = 2 * _SERVED * (_DISGUISED + 2 * HELD_OUT["test"])
    return _CORPUS + (read + judged) * a_message + steps * a_step


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# The run folder of a fine-tuning: what it was begun with, and whether it is finished.


_BEGUN = "begun.json"  # its presence says that a folder is such a run


def begun_with(
    data: Sequence[str], benign: Sequence[str], columns: Columns, incumbent: Path, out: Path
) -> dict[str, object]:
    """Return what makes a run the same one: hashes of its data, its columns, and the bundle that it starts from."""
    given = [*data, *benign]
    folders = [each for each in given if is_dataset(Path(each))]
    files = [each for each in given if each not in folders]
    paths = [
        *(find(files, out) if files else ()),
        *(file for each in folders for file in sorted(Path(each).rglob("*.arrow"))),
    ]
    return {
        "own_sha256": {str(path): file_sha256(path) for path in paths},
        "columns": asdict(columns),
        "bundles": {"incumbent": read_bundle(incumbent).manifest.id},
    }


def open_run(out: Path, begun: dict[str, object], *, fresh: bool) -> None:
    """Begin or go on with a run folder; never touches a folder that holds anything else.

    Raises ConfigError for such a folder, and for a run that was begun with something else.
    """
    file = out / _BEGUN
    if out.exists() and not file.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and holds no fine-tuning; name another --out, or remove it yourself")
    if fresh and file.is_file():
        shutil.rmtree(out)
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != begun:
        raise ConfigError(
            f"{out} was begun with other data, columns, bundle, seed or replay (see its {_BEGUN}); replace it with "
            "--fresh, or name another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(begun, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# Whether the new bundle may replace the one that serves: `jingyin promote` on the run's own test split.


def decide(run: Path, incumbent: Path, sources: list[str]) -> Promotion:
    """Judge `run`/bundle on `run`/corpus, whose test rows have `sources`; leaves promote.yaml, promotion.json in `run`.

    The configuration is the package's, but that of few messages of traffic one may reach each action: a rate of 1 in
    10,000 can't be asked of a thousand.
    """
    config = yaml.safe_load(default_config().read_text(encoding="utf-8"))
    rows = sources.count(TRAFFIC)
    config["data"] = [str(run / "corpus" / "test.parquet")]
    config["traffic"] = {action: max(rate, 1 / rows) if rows else rate for action, rate in config["traffic"].items()}
    file = run / "promote.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return promote(run / "bundle", incumbent, file, run / "promotion.json")


# What fine-tuning changed: counts on messages that neither network was trained on, before and after.


SOURCES = {"own": "own messages", "authored": "authored messages", TRAFFIC: "own traffic"}

_REPORT = """# Fine-tuning report

Bundle `{after}` against `{before}`, on messages that were not trained on. Flagged: reviewed or blocked.

| messages | | rows | before | after |
|---|---|---|---|---|
{counts}

| action | risk at least | ordinary rows | false positives | 95% upper bound |
|---|---|---|---|---|
{thresholds}

The decision is in promotion.json, metrics by family in what `jingyin evaluate bundle corpus/test.parquet` writes.
"""


@dataclass(frozen=True)
class Count:
    """Of `rows` messages of a source, how many `before` and `after` were flagged, or given their label."""

    source: str
    what: str
    rows: int
    before: int
    after: int


def compare(before: Scorer, after: Scorer, rows: Sequence[Row]) -> list[Count]:
    """Let both bundles decide on held-out rows, and count by source."""
    texts = [row.text for row in rows]
    decided = verdicts(before, texts), verdicts(after, texts)
    flags = [np.array([each.action != "pass" for each in side]) for side in decided]
    right = [_right(rows, side) for side in decided]
    counts = []
    for source in SOURCES:
        here = np.array([row.source == source for row in rows])
        threats = here & np.array([row.label in _flagged() for row in rows])
        benign = here & np.array([row.label in BENIGN for row in rows])
        named = here & np.array([row.family not in SIDES for row in rows])
        kinds = (
            ("threats flagged", threats, flags),
            ("ordinary and lawful flagged", benign, flags),
            ("label right", named, right),
        )
        for what, some, found in kinds[: 2 if source == TRAFFIC else 3]:
            if some.any():
                counts.append(Count(source, what, int(some.sum()), *(int(each[some].sum()) for each in found)))
    return counts


def _flagged() -> list[str]:
    return [LABELS[i] for i in FLAGGED_INDEX]


def _right(rows: Sequence[Row], decided: Sequence[Verdict]) -> NDArray[np.bool_]:
    return np.array([each.label == row.label for row, each in zip(rows, decided, strict=True)])


def write_report(
    path: Path, ids: Mapping[str, str], counts: Sequence[Count], thresholds: Mapping[str, Threshold]
) -> None:
    """Write report.md: `ids` of the bundles before and after, counts, and the thresholds by action."""
    lines = [
        f"| {SOURCES[each.source]} | {each.what} | {each.rows} | {each.before} | {each.after} |" for each in counts
    ]
    bounds = [
        f"| {action} | {each.risk:.4f} | {each.rows} | {each.false_positives} | {each.bound:.6f} |"
        for action, each in thresholds.items()
    ]
    path.write_text(_REPORT.format(**ids, counts="\n".join(lines), thresholds="\n".join(bounds)), encoding="utf-8")


_DONE = "finetune.json"
_ORDINARY = LABELS.index("ordinary")
_MOST_RATE = 0.999
_MEASURED = 1500  # messages on which it is measured how far they go in the incumbent


@dataclass(frozen=True)
class Outcome:
    """What a fine-tuning gave: counts before and after, the decision, and why not, if not."""

    counts: list[Count]
    promote: bool
    failed: list[str]


def finetune(
    data: Sequence[str], out: Path, columns: Columns, *, benign: Sequence[str] = (), bundle: Path | None = None,
    replay: Path | None = None, seed: int = SCHEDULE.seed, fresh: bool = False, tell: Callable[[str], object] = print,
) -> Outcome:  # fmt: skip
    """Fine-tune `bundle` (by default the package's) on labelled `data`, and leave bundle, report and decision in `out`.

    `benign` are files of unlabelled traffic of one's own, for thresholds; `replay` is a corpus folder in place of the
    package's authored messages; `tell` is given lines for people. The same call goes on after a kill; a finished run is
    kept, and with `fresh` replaced. Raises InputError for rows that can't be used, ConfigError for a folder of another
    kind or begun otherwise, BundleError for a bundle that can't be gone on with.
    """
    PartialState(cpu=not torch.cuda.is_available())
    incumbent, schedule, watch = bundle or default_path(), replace(SCHEDULE, seed=seed), Stopwatch()
    rows = deduplicate(read_labelled(data, columns, out))
    traffic = read_unlabelled(benign, columns, out)
    begun = {**begun_with(data, benign, columns, incumbent, out), "seed": seed}
    if replay:
        begun["replay"] = store.fingerprint_of(replay)
    open_run(out, begun, fresh=fresh)
    if (out / _DONE).is_file():
        tell(f"{out}: finished before, kept; --fresh replaces it")
        return _finished(out)
    _tell_plan(rows, traffic, incumbent, tell)
    with watch.step("corpus"):
        corpus = _corpus(rows, traffic, incumbent, replay, seed, out)
    with watch.step("incumbent"):
        target = _targets(incumbent, corpus, out)
    with watch.step("training"):
        loss = _train(incumbent, corpus, target, schedule, out)
    facts = {**begun, **_facts(corpus, schedule), "metrics": {"loss": loss}}
    with watch.step("packing"):
        manifest = _pack(incumbent, corpus, out, facts)
    with watch.step("judging"):
        outcome = _judge(incumbent, manifest, corpus, out)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    content = {**facts, "bundle": manifest.id, "seconds": watch.seconds, **asdict(outcome)}
    (out / _DONE).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return outcome


def _finished(out: Path) -> Outcome:
    content = json.loads((out / _DONE).read_text(encoding="utf-8"))
    return Outcome([Count(**each) for each in content["counts"]], content["promote"], content["failed"])


def _tell_plan(
    rows: Sequence[Labelled], traffic: Sequence[str], incumbent: Path, tell: Callable[[str], object]
) -> None:
    """Say what there is to learn from, and how long it will take here."""
    flagged = sum(is_flagged(row.label) for row in rows)
    texts = [row.text for row in rows]
    model, vocabulary = classifier_of_bundle(str(incumbent))
    ids = encoder_of(vocabulary, model.encoder.config.max_position_embeddings)([clean(text) for text in texts])
    minutes = seconds(_all_networks(incumbent), model, ids, texts, len(traffic)) / 60
    beside = f", {len(traffic):,} messages of traffic" if traffic else ""
    tell(f"{len(rows):,} messages, {flagged:,} of them flagged{beside}; about {max(1, round(minutes))} minute(s)")


def _all_networks(bundle: Path) -> Scorer:
    return Scorer.load(bundle, prefilter=False, cache_bytes=0)


def _corpus(
    rows: Sequence[Labelled], traffic: Sequence[str], incumbent: Path, replay: Path | None, seed: int, out: Path
) -> Path:
    folder = out / "corpus"
    if not store.is_built(folder):
        authored = store.read(replay) if replay else authored_corpus(out / "authored")
        write_corpus(rows, traffic, authored, _all_networks(incumbent), folder, seed)
    return folder


def _facts(corpus: Path, schedule: Schedule) -> dict[str, object]:
    return {
        "command": command(),
        "schedule": asdict(schedule),
        "data_sha256": {split: file_sha256(corpus / f"{split}.parquet") for split in SPLITS},
        "training_rows": dict(Counter(read_split(corpus, "train").sources).most_common()),
        "versions": versions(),
    }


def _targets(incumbent: Path, corpus: Path, out: Path) -> NDArray[np.float32]:
    """Return what each training row is to give: a distribution over the labels."""
    rows = read_split(corpus, "train")
    return targets(rows, incumbent_says(incumbent, rows, out))


def _train(incumbent: Path, corpus: Path, target: NDArray[np.float32], schedule: Schedule, out: Path) -> float:
    """Leave the fine-tuned classifier in `out`, unless it is there; returns the loss of its last epoch."""
    file = out / "loss.json"
    if not (is_classifier(out) and file.is_file()):
        model, vocabulary = classifier_of_bundle(str(incumbent))
        encode = encoder_of(vocabulary, model.encoder.config.max_position_embeddings)
        loss = train_network(model, training_rows(read_split(corpus, "train"), target, encode), schedule, out)
        save_classifier(model, vocabulary, out / "network")
        file.write_text(json.dumps(loss), encoding="utf-8")
    return float(json.loads(file.read_text(encoding="utf-8")))


def _pack(incumbent: Path, corpus: Path, out: Path, facts: dict[str, object]) -> Manifest:
    """Write the bundle: networks, a prefilter that knows the own messages too, fusion, and thresholds."""
    bundle = read_bundle(incumbent)
    train = read_split(corpus, "train")
    ordinary, lawful = bundle.prefilter_weights
    texts = [each.text for each in train.cleaned]
    tuned = tune_prefilter(ordinary, texts, train.labels != _ORDINARY, repeated(train))
    weights = np.stack([tuned, lawful.astype(np.float16)])
    calibration = read_split(corpus, "calibration")
    review, block = _rates(Scorer.load(incumbent, cache_bytes=0), calibration)
    rates = {"review_rate": review, "block_rate": block, "passed": _passed(bundle, calibration)}
    recipe = Calibrate.model_validate({"stage": "calibrate", "corpus": corpus.name, **rates, **_kept(bundle.manifest)})
    return pack_finetuned(out, incumbent, weights, recipe, corpus, {**facts, "recipe": recipe.model_dump(mode="json")})


def _kept(incumbent: Manifest) -> dict[str, float]:
    """Return the shares of lawful messages in the recipe that the incumbent was last calibrated by, as far as it tells of one."""
    told = cast(dict[str, Any], incumbent.provenance)
    recipe = told.get("calibrated", told).get("recipe", {})
    return {name: recipe[name] for name in ("lawful_rate", "lawful_loss") if name in recipe}


def _rates(incumbent: Scorer, calibration: Rows) -> tuple[float, float]:
    """Return the false-positive rates to set the thresholds for.

    Those of the incumbent, or, where there are too few ordinary messages to show them on, the bound it keeps on these.
    """
    ordinary = calibration.take(np.flatnonzero(is_traffic(calibration)))
    risks = np.array([each.risk for each in verdicts(incumbent, [each.original for each in ordinary.cleaned])])
    manifest = incumbent.bundle.manifest
    rates = [
        max(each.target, upper_bound(int((risks >= each.risk).sum()), len(risks)))
        for each in (manifest.review, manifest.block)
    ]
    return min(rates[0], _MOST_RATE), min(rates[1], _MOST_RATE)


def _passed(incumbent: Bundle, calibration: Rows) -> tuple[float, ...]:
    """Return the share of ordinary messages that each network is to read.

    Those of the incumbent, or what the incumbent's networks read of these, which may be harder than traffic: to stop
    more would be to stop threats too.
    """
    ordinary = calibration.take(np.flatnonzero(is_traffic(calibration)))
    here = read_shares(incumbent, ordinary.drawn(_MEASURED, SCHEDULE.seed))
    return tuple(map(max, incumbent.manifest.passed, here))


def _judge(incumbent: Path, manifest: Manifest, corpus: Path, out: Path) -> Outcome:
    """Write the report and the decision."""
    rows = store.read(corpus)["test"]
    before, after = (Scorer.load(path, cache_bytes=0) for path in (incumbent, out / "bundle"))
    counts = compare(before, after, rows)
    ids = {"before": before.bundle.manifest.id, "after": manifest.id}
    write_report(out / "report.md", ids, counts, {"review": manifest.review, "block": manifest.block})
    decision = decide(out, incumbent, [row.source for row in rows])
    failed = [f"{check.name}: {check.reason}" for check in decision.checks if not check.passed]
    return Outcome(counts, decision.promote, failed)
