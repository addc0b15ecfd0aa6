"""`jingyin finetune`: trains a bundle on the user's own messages, and reports the changes.

It writes a corpus recipe (the user's own messages, and a sample of the default bundle's training data as a replay) and
a recipe for each stage of the default bundle, starting from the incumbent's networks; the stages do the rest.

own.jsonl, cases.jsonl, mined.jsonl, traffic.jsonl   messages that could be used, by origin
rejected.jsonl             why the others could not
corpus.yaml, corpus/       the recipe, and the data for training, calibration and test
recipes/                   those of the stages; their outputs are in verifier/, model/, tiny/ and cascade/
bundle/                    the result
report.md                  counts before and after
disobeyed.json             Label Studio tasks: labelled messages that the new bundle still judges differently
known.jsonl                the same as known wordings: `jingyin known add --file` makes a service obey them at once
promotion.json             whether it may replace the incumbent
finetune.json              all of it for machines; written last
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from jingyin.model.bundle import Bundle, default_path, read_bundle
from jingyin.model.cascade import FLAGGED_INDEX
from jingyin.model.errors import InputError
from jingyin.model.files import Run, file_sha256
from jingyin.model.labels import FLAGGED, LABELS, Verdict
from jingyin.model.text import clean
from jingyin.serve.archive.readers import find
from jingyin.serve.scorer import Scorer
from jingyin.train import finetune_data
from jingyin.train.bundles import refuse_other_labels
from jingyin.train.corpus import store
from jingyin.train.corpus.build import build
from jingyin.train.corpus.public import MINED, USERS
from jingyin.train.data import SIDES, read_split
from jingyin.train.evaluate.systems import verdicts
from jingyin.train.finetune_data import Columns, Labelled, UnusableRow, is_flagged
from jingyin.train.finetune_report import TRAFFIC, Count, FinetuneResult, judge, write_rows
from jingyin.train.pack.calibrate import read_shares
from jingyin.train.pack.readings import is_traffic
from jingyin.train.pack.thresholds import rate_at
from jingyin.train.pipeline import train

MOST_AUTHORED = {"train": 2_000, "validation": 300, "calibration": 1_000, "test": 1_000}
MOST_PUBLIC = {"train": 2_000, "validation": 300, "calibration": 30_000, "test": 3_000}
"""Most other messages of each split. For training as many of each kind as own ones, if those are more: 50,000 own
messages next to 4,000 others would make a network forget. For thresholds more of those that are real: 7,488 show the
default rate of 1 in 2,500 only if none is flagged, so that with fewer the threshold lies above them all (train/LOG.md).
"""

MOST_SHOWN = 30_000
"""With more messages than this in the training split, epochs shrink: it is the most that one shows."""

COMPANY = 1.0
"""Copies of an authored message in company: longer than all other rows, they take most of the time."""

GENERATED = {"everyday": 400, "nonsense": 200}
"""Generated innocents among them, in the proportion of the default bundle's corpus."""

OWN_SHARE, MOST_WEIGHT = 0.25, 8.0
"""Own messages get this share of the training weight, but each at most this multiple of another message's."""

TRAINED = {
    "verifier": {"epochs": 1, "learning_rate": 2e-4, "frozen": 6},
    "model": {"epochs": 2, "learning_rate": 1e-4},
    "tiny": {"epochs": 4, "learning_rate": 5e-4},
}
"""At three times the rate, with authored messages alone as the replay, ordinary traffic is forgotten (train/LOG.md)."""

_DONE = "finetune.json"
_PACE = {"corpus": 0.05, "verifier": 0.25, "model": 0.2, "tiny": 0.05, "cascade": 0.15, "judging": 0.3}
"""Share of the time that a step takes."""


def finetune(
    data: Sequence[str], out: Path, columns: Columns, *, benign: Sequence[str] = (),
    benign_columns: Columns | None = None, bundle: Path | None = None, corpus: Path | None = None, seed: int = 1,
    strict: bool = False, fresh: bool = False, tell: Callable[[str], object] = print,
) -> FinetuneResult:  # fmt: skip
    """Fine-tune `bundle` (by default the package's) on labelled `data`, and leave bundle, report and decision in `out`.

    `benign` are files of the user's own unlabelled traffic, which is ordinary; `corpus` is a corpus recipe whose
    messages are replayed, by default that of the default bundle; `tell` gets lines for people. Rows that can't be used
    are left out, with `strict` refused. The same call resumes; a finished run is kept, and with `fresh` replaced.
    Raises InputError for too few rows or a run begun with other inputs, ConfigError for a folder that isn't a run or a
    bundle of other labels, BundleError for a bundle that can't be trained further.
    """
    incumbent = read_bundle(bundle or default_path())
    refuse_other_labels(str(incumbent.path.resolve()))
    labelled, rejects = finetune_data.read_labelled(data, columns, out)
    rows = finetune_data.count_once(labelled)
    if copies := len(labelled) - len(rows):
        tell(f"{copies:,} near-copies of cases count once")
    threats = {clean(row.text).text for row in rows if is_flagged(row.label)}
    traffic, more = finetune_data.read_unlabelled(benign, benign_columns or columns, out, threats)
    rejects += more
    _refuse(rows, traffic, rejects, strict)
    replay = corpus or default_replay()
    begun = {
        "data": {path: file_sha256(Path(path)) for path in _files([*data, *benign], out)},
        "benign": _files(benign, out),
        "columns": [asdict(columns), asdict(benign_columns or columns)], "bundle": incumbent.manifest.id, "seed": seed,
        "replay": file_sha256(replay),
    }  # fmt: skip
    with Run.open(out, begun, done=_DONE, fresh=fresh) as run:
        if run.result is None:
            run.finish(asdict(_run(rows, traffic, rejects, incumbent, replay, seed, out, tell)))
        else:
            tell(f"{out}: finished before, kept; --fresh replaces it")
        result = {name: run.result[name] for name in FinetuneResult.__dataclass_fields__}
        return FinetuneResult(**{**result, "counts": [Count(**each) for each in result["counts"]]})


def default_replay() -> Path:
    """Return the corpus recipe of the default bundle."""
    return Path(str(files("jingyin").joinpath("configs/default/corpus.yaml")))


def _refuse(rows: Sequence[Labelled], traffic: Sequence[str], rejects: Sequence[UnusableRow], strict: bool) -> None:
    faults, usable, fewest = "\n".join(finetune_data.summary(rejects)), len(rows) + len(traffic), finetune_data.FEWEST
    if rejects and strict:
        raise InputError(f"{len(rejects):,} row(s) can't be used:\n{faults}")
    if usable < fewest:
        raise InputError(
            f"{usable} different message(s) can be used; wanted at least {fewest}, and some hundred to learn much: "
            "label more, say the tasks of `jingyin relabel --label-studio`" + (faults and f"\n{faults}")
        )


def _files(names: Sequence[str], out: Path) -> list[str]:
    folders = [name for name in names if finetune_data.is_dataset(Path(name))]
    tables = find([name for name in names if name not in folders], out) if len(folders) < len(names) else []
    arrows = [file for name in folders for file in sorted(Path(name).rglob("*.arrow"))]
    return [str(path) for path in [*tables, *arrows]]


def _run(
    rows: Sequence[Labelled], traffic: Sequence[str], rejects: Sequence[UnusableRow], incumbent: Bundle, replay: Path,
    seed: int, out: Path, tell: Callable[[str], object],
) -> FinetuneResult:  # fmt: skip
    old_scorer, started = Scorer.load(incumbent.path), time.monotonic()
    decided = [row for row in rows if row.source != MINED]
    judged = verdicts(old_scorer, [row.text for row in decided])
    flags = [verdict.action != "pass" for verdict in judged]
    agreed = sum(flag == is_flagged(row.label) for flag, row in zip(flags, decided, strict=True))
    tell(
        f"{len(decided):,} labelled messages, of which the bundle judges {agreed:,} as they are labelled; "
        f"{len(rows) - len(decided):,} mined ordinary ones; {len(traffic):,} messages of traffic"
    )
    for line in finetune_data.summary(rejects):
        tell(f"left out: {line}")

    def begin(step: str) -> None:
        spent, steps = (time.monotonic() - started) / 60, list(_PACE)
        done = sum(_PACE[earlier] for earlier in steps[: steps.index(step)])
        left = f", about {max(1, round(spent * (1 - done) / done))} left" if done else ""
        tell(f"{step}: {spent:.0f} minute(s) so far{left}")

    begin("corpus")
    folder = out / "corpus"
    if not store.is_built(folder):
        write_rows(out / "rejected.jsonl", (reject._asdict() for reject in rejects))
        build(_corpus_recipe(rows, traffic, incumbent, replay, out), folder)
    tell(_placed(folder))
    shared = {"corpus": str(folder.resolve()), "seed": seed}
    for network in incumbent.manifest.networks[::-1]:
        name = Path(network.file).stem
        begin(name)
        train([_recipe(out, name, {**shared, **_classify(incumbent, name, network.max_tokens, folder)})], out)
    begin("cascade")
    train([_recipe(out, "cascade", {**shared, **_calibrate(incumbent, old_scorer, folder)})], out)
    shutil.copytree(out / "cascade" / "bundle", out / "bundle", dirs_exist_ok=True)
    begin("judging")
    return judge(old_scorer, folder, len(rejects), out)


def _corpus_recipe(
    rows: Sequence[Labelled], traffic: Sequence[str], incumbent: Bundle, replay: Path, out: Path
) -> Path:
    """Write own messages, and the recipe of a corpus of these and a replay of the default bundle's training data.

    Missing public files are left out. A row labelled only as flagged or not gets the label of that side that the
    incumbent finds most probable.
    """
    half_labelled = [row.text for row in rows if row.label in SIDES]
    scorer = Scorer.load(incumbent.path, prefilter=False, cache_bytes=0)
    guessed = dict(zip(half_labelled, verdicts(scorer, half_labelled), strict=True))
    content = yaml.safe_load(replay.read_text(encoding="utf-8"))
    public = [each for each in content.get("public", []) if Path(each["path"]).exists()]
    mine: list[dict[str, Any]] = []
    decided = sum(row.source in USERS for row in rows)
    learnt = math.ceil(0.7 * decided)
    replayed = [max(learnt, most["train"]) for most in (MOST_AUTHORED, MOST_PUBLIC)]
    if decided:
        wanted = OWN_SHARE / (1 - OWN_SHARE) * sum(replayed) / learnt
        splits = {"train": 0.7, "validation": 0.06, "calibration": 0.06, "test": 0.18}
        weight = min(MOST_WEIGHT, max(1.0, round(wanted, 2)))
        of_kind = {"weight": weight, "splits": splits}
        mine += [{"kind": kind, **of_kind} for kind in USERS if any(row.source == kind for row in rows)]
    if traffic:
        ordinary = ({"text": text, "label": LABELS[0], "family": "traffic"} for text in traffic)
        write_rows(out / "traffic.jsonl", ordinary)
        splits = {"train": 0.5, "validation": 0.02, "calibration": 0.24, "test": 0.24}
        mine.append({"kind": TRAFFIC, "path": str(out / "traffic.jsonl"), "splits": splits})
    if decided < len(rows):  # after the traffic, of which near-copies of theirs must stay
        mine.append({"kind": MINED, "limit": finetune_data.MOST_TRAFFIC, "splits": {"train": 1.0}})
    for source in (source for source in mine if source["kind"] != TRAFFIC):
        source["path"] = str(out / f"{source['kind']}.jsonl")
        write_rows(out / f"{source['kind']}.jsonl", (
            {"text": row.text, "family": row.label, "label": _full_label(row.label, guessed.get(row.text))}
            for row in rows if row.source == source["kind"]
        ))  # fmt: skip
    content |= {name: min(count, content.get(name, 0)) for name, count in GENERATED.items()}
    content |= {
        "most_authored": {**MOST_AUTHORED, "train": replayed[0]}, "most_public": {**MOST_PUBLIC, "train": replayed[1]},
        "company": COMPANY, "public": [*mine, *public],
    }  # fmt: skip
    path = out / "corpus.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _placed(corpus: Path) -> str:
    """Return a sentence on how many of the user's labelled messages are trained on, and how many are the test."""
    splits = store.read(corpus)
    own = ([row for row in splits[at] if row.source in USERS and not row.evasion] for at in ("train", "test"))
    sides = [[row.label in FLAGGED for row in rows] for rows in own]
    learnt, test = (f"{len(side):,} of your messages ({sum(side):,} threats)" for side in sides)
    return f"{learnt} are trained on, {test} are the test; near-copies of one message stay together"


def _full_label(label: str, verdict: Verdict | None) -> str:
    if verdict is None:
        return label
    side = [each for i, each in enumerate(LABELS) if (i in FLAGGED_INDEX) == is_flagged(label)]
    return max(side, key=lambda each: verdict.probabilities[each])


def _recipe(out: Path, name: str, content: Mapping[str, object]) -> Path:
    path = out / "recipes" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


def _classify(incumbent: Bundle, name: str, max_tokens: int, corpus: Path) -> dict[str, object]:
    """Return the recipe that trains a network of the incumbent further, on own labels and the incumbent's outputs."""
    bundle = str(incumbent.path.resolve())
    epochs = TRAINED[name]["epochs"] * min(1.0, MOST_SHOWN / (int(read_split(corpus, "train").messages.max()) + 1))
    return {
        "stage": "classify", "encoder": bundle, "network": name, "teachers": [bundle], "traffic": bundle,
        "max_tokens": max_tokens, **TRAINED[name], "epochs": epochs, "head_rate": 3.0, "label_smoothing": 0.005,
        "distillation_weight": 0.7, "sure": 0.5, "margin": 0.02, "way_back": "chosen", "bundle": False,
    }  # fmt: skip


def _calibrate(incumbent: Bundle, old_scorer: Scorer, corpus: Path) -> dict[str, object]:
    """Return the recipe that makes the bundle, with at least the incumbent's rates and shares that networks read.

    A quarter of the rates and half of the shares measured on real messages here replace them if higher. Rates are as
    observed: their bounds exceed any low target where messages are few, and the next bundles would inherit them. If
    authored messages, which are harder, must stand in for traffic, the full values measured on these do, with bounds:
    otherwise a threshold above them all would be set. Own messages don't count then: many are false alarms of the
    incumbent, which the new bundle is not to repeat.
    """
    manifest, calibration = incumbent.manifest, read_split(corpus, "calibration")
    ordinary = calibration.take(np.flatnonzero(is_traffic(calibration)))
    real = "authored" not in ordinary.sources
    if not real:
        ordinary = ordinary.take(np.flatnonzero(np.array(ordinary.sources) == "authored"))
    judged = verdicts(old_scorer, [message.original for message in ordinary.cleaned])
    risks = np.array([verdict.risk for verdict in judged])
    rates = []
    for threshold in (manifest.review, manifest.block):
        measured = rate_at(risks, ordinary.sources, threshold.risk, bounded=not real)
        rates.append(min(0.999, max(threshold.target, measured / 4 if real else measured)))
    shares = read_shares(incumbent, ordinary, 0.5 if real else 1)
    provenance = cast(dict[str, Any], manifest.provenance)
    recipe = provenance.get("calibrated", provenance).get("recipe", {})
    lawful = {name: recipe[name] for name in ("lawful_rate", "lawful_loss") if name in recipe}
    return {
        "stage": "calibrate", "bundle": str(incumbent.path.resolve()),
        "networks": {name: f"stage:{name}" for name in (Path(network.file).stem for network in manifest.networks)},
        "review_rate": rates[0], "block_rate": rates[1],
        "passed": [*map(max, manifest.passed, shares)], **lawful,
    }  # fmt: skip
