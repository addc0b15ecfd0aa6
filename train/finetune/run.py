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
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from jingyin.model.bundle import Bundle, Manifest, default_path, read_bundle
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus import store
from jingyin.train.corpus.store import SPLITS
from jingyin.train.data import Rows, read_split
from jingyin.train.evaluate.verdicts import verdicts
from jingyin.train.finetune.corpus import authored_corpus, write_corpus
from jingyin.train.finetune.deduplicate import deduplicate, is_flagged
from jingyin.train.finetune.estimate import Stopwatch, seconds
from jingyin.train.finetune.folder import begun_with, open_run
from jingyin.train.finetune.judge import decide
from jingyin.train.finetune.read import Columns, Labelled, read_labelled, read_unlabelled
from jingyin.train.finetune.report import Count, compare, write_report
from jingyin.train.finetune.teach import SCHEDULE, incumbent_says, repeated, targets, train_network, training_rows
from jingyin.train.loop import Schedule
from jingyin.train.packing.cascade import is_traffic, read_shares
from jingyin.train.packing.dequantise import classifier_of_bundle
from jingyin.train.packing.pack import pack_finetuned
from jingyin.train.packing.prefilter import tune_prefilter
from jingyin.train.packing.thresholds import upper_bound
from jingyin.train.provenance import command, file_sha256, versions
from jingyin.train.recipes import Calibrate
from jingyin.train.saved import is_classifier, save_classifier
from jingyin.train.start import encoder_of

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
        save_classifier(model, vocabulary, out)
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
    """Return floors and loss of the recipe that the incumbent was last calibrated by, as far as it tells of one."""
    told = cast(dict[str, Any], incumbent.provenance)
    recipe = told.get("calibrated", told).get("recipe", {})
    return {name: recipe[name] for name in ("review_floor", "block_floor", "lawful_loss") if name in recipe}


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
