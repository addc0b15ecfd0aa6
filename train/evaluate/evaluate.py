"""`jingyin evaluate`: judges a bundle beside baselines, under evasion and attack; writes report and figures."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from jingyin.model.bundle import Bundle, read_bundle
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.serve.scorer import Scorer
from jingyin.train.evaluate import judge as judging
from jingyin.train.evaluate.attacks import attack, disturb
from jingyin.train.evaluate.judge import RATES, Judged, judge, sign_results, situations, why_left_out
from jingyin.train.evaluate.report import write_report
from jingyin.train.evaluate.results import Evaluation, SignsResult
from jingyin.train.evaluate.samples import Messages, read_messages
from jingyin.train.evaluate.statistics import refuse_few
from jingyin.train.evaluate.systems import (
    Latency,
    System,
    bare_scorer,
    hugging_face,
    keywords,
    latencies,
    ngrams,
    served,
    size,
    timed_sample,
)

ATTACKED = 100
"""Flagged messages that are attacked in an evaluation; bench/attack.py takes more."""

_UNTRAINED = (
    "no n-gram baseline, and unseen cases are not shown apart: there is no {name} beside the data; "
    "name one with --train"
)
_CONSOLE = Console(stderr=True)


def evaluate(
    bundle: Path, data: Sequence[Path], out: Path, training: Path | None, baselines: Sequence[str]
) -> Evaluation:
    """Judge `bundle` on `data` and write evaluation.json and report.html to the folder `out`.

    The n-gram baseline learns from `training`, by default the train.parquet beside the first data file, and unseen
    cases are those that none of its rows has; without either file both are left out. `baselines` are paths of Hugging
    Face models. Raises InputError and BundleError.
    """
    messages = read_messages(data)
    refuse_few(int(messages.benign.sum()), RATES)
    scorer = open_bundle(bundle)
    training = training or data[0].parent / "train.parquet"
    trained = read_messages([training]) if training.is_file() else None
    with _CONSOLE.status("training and loading baselines"):
        systems = [keywords(), *([ngrams(trained)] if trained else []), *map(hugging_face, baselines)]
    with _CONSOLE.status(f"scoring {len(messages)} messages"):
        judged = _judge_all([served(scorer), *systems], messages)
    wrong = judging.errors(judged[0], messages)
    evaluation = _evaluation(scorer.bundle, judged, wrong, messages, trained)
    if not trained:
        evaluation = replace(evaluation, notes=[_UNTRAINED.format(name=training.name), *evaluation.notes])
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=1) + "\n", encoding="utf-8")
    write_report(out / "report.html", evaluation, judged, messages, wrong, scorer.bundle.manifest)
    return evaluation


def _evaluation(
    bundle: Bundle,
    judged: Sequence[Judged],
    wrong: Mapping[str, Sequence[int]],
    messages: Messages,
    trained: Messages | None,
) -> Evaluation:
    """Return all figures of what was `judged`, the bundle first; `wrong` gives the rows of each error list."""
    model, block = judged[0], bundle.manifest.block.risk
    with _CONSOLE.status("timing"):
        network, prefilter_stops, latency = _latencies(bundle.path, [each.system for each in judged[1:]], messages)
    with _CONSOLE.status("evasion"):
        evasion = judging.evasion_results(judged, disturb(messages), messages)
    with _CONSOLE.status("attack"):
        attacked = attack(model.system, model.flags, messages, ATTACKED)
    with _CONSOLE.status("intervals"):
        results = judging.system_results(judged, latency, messages)
        differences = [judging.difference(model, baseline, messages) for baseline in judged[1:]]
    with _CONSOLE.status("signs"):
        signs, notes = _signs(bundle, model, messages)
    families, slices = judging.slice_results(model, block, messages)
    return Evaluation(
        bundle=bundle.manifest.id,
        files=messages.files,
        counts=dict(Counter(LABELS[i] for i in messages.labels)),
        left_out=messages.left_out,
        bytes=size(bundle.path),
        network_latency=network,
        prefilter_stops=prefilter_stops,
        systems=results,
        differences=differences,
        families=families,
        slices=slices,
        situations=situations(model, block, messages, trained) if trained else [],
        signs=signs,
        evasion=evasion,
        attack=attacked,
        errors={kind: [judging.error_row(model, block, messages, row) for row in rows] for kind, rows in wrong.items()},
        notes=notes,
    )


def _signs(bundle: Bundle, model: Judged, messages: Messages) -> tuple[SignsResult | None, list[str]]:
    """Return what is said of signs, and notes: why nothing is."""
    reason = why_left_out(bundle, messages)
    return (None, [reason]) if reason else (sign_results(bundle, model, messages), [])


def open_bundle(path: Path) -> Scorer:
    """Load a bundle to be judged; raises InputError when its labels are not those that messages are labelled with."""
    labels = read_bundle(path).manifest.labels
    if set(labels) != set(LABELS):
        raise InputError(
            f"bundle {path} has labels {', '.join(labels)}; wanted {', '.join(LABELS)}: bundles of different label "
            "sets can't be compared, train one on the same labels"
        )
    return Scorer.load(path)


def _judge_all(systems: Sequence[System], messages: Messages) -> list[Judged]:
    """Let all systems judge; the keyword list keeps its threshold, others flag as many benign rows as the bundle."""
    judged = [judge(system, messages) for system in systems]
    return judged[:2] + [judging.matched(baseline, judged[0], messages) for baseline in judged[2:]]


def _latencies(bundle: Path, baselines: Sequence[System], messages: Messages) -> tuple[Latency, float, list[Latency]]:
    """Return the networks' latency, the share that the prefilter stops, and the latency of the bundle and baselines."""
    sample = timed_sample(messages.texts)
    prefiltered = bare_scorer(bundle, prefilter=True)
    alone: list[Callable[[str], object]] = [bare_scorer(bundle, prefilter=False).score, prefiltered.score]
    network, *rest = latencies(
        [*alone, *(lambda text, baseline=baseline: baseline.judge([text]) for baseline in baselines)], sample
    )
    return network, sum(prefiltered.score(text).stage == "prefilter" for text in sample) / len(sample), rest
