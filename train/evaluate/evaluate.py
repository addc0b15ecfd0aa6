"""`jingyin evaluate`: judges a bundle, a second one, and baselines on the same rows; writes the report."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from rich.console import Console

from jingyin.model.bundle import rows_needed
from jingyin.model.errors import InputError
from jingyin.model.labels import FLAGGED, LABELS
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus.everyday import everyday, nonsense
from jingyin.train.evaluate import attacks, measures, samples, systems
from jingyin.train.evaluate.measures import RATES, Evaluation, Figures, Tables
from jingyin.train.evaluate.report import write_report
from jingyin.train.evaluate.samples import Samples, Seen
from jingyin.train.evaluate.statistics import Bools, refuse_few
from jingyin.train.evaluate.systems import Judged, System

CHANGED = 300
"""Most threats, and most innocents, that are disguised and attacked; 0.9 of 300 is known to within 4 points."""

NONSENSE, EVERYDAY = 12_000, 5_000
"""Lines of nonsense, and innocents made from everyday frames that no training row is made from."""

_SEED = 2018  # no corpus recipe has it, so no line of nonsense was trained on

_CONSOLE = Console(stderr=True)


def evaluate(
    bundle: Path, data: Sequence[Path], out: Path, *, against: Path | None = None, traffic: Sequence[Path] = (),
    training: Path | None = None, changed: int = CHANGED,
) -> Evaluation:  # fmt: skip
    """Judge `bundle` on `data`, next to the bundle `against`; write the report to the folder `out`.

    `training`, by default the train.parquet next to the first data file, says which cases, writers and sources are
    unseen, and the n-gram baseline learns from it. `traffic` are files of ordinary messages, each a source that
    training has not seen; rows of `training` in them are left out. Up to `changed` threats and as many innocents are
    disguised and attacked. Raises InputError and BundleError.
    """
    messages = samples.read_messages(data)
    refuse_few(int(messages.benign.sum()), RATES)
    out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    paths = {"jingyin": bundle} | ({"before": against} if against else {})
    scorers = {name: systems.open_bundle(path) for name, path in paths.items()}
    if training and not training.is_file():
        raise InputError(f"{training} is not a file; name a training split, or leave --train out")
    training = training or data[0].parent / "train.parquet"
    seen = samples.seen_in(training)
    linear = [systems.ngrams(training)] if seen else []
    seen_texts = samples.texts_in(training) if seen and traffic else set()
    traffic_texts = samples.read_traffic(traffic, seen_texts, set(messages.sources))
    with _CONSOLE.status(f"scoring {len(messages)} messages"):
        bundles = [systems.served(scorer, name).judge(messages.texts) for name, scorer in scorers.items()]
        model = bundles[0]
        baselines = [each.judge(messages.texts).matched(model, messages.benign) for each in linear]
        baselines.append(systems.keywords().judge(messages.texts))
    kinds = samples.seen_unseen(messages, seen)
    new = samples.unseen_rows(messages, kinds)
    lists = behaviours()
    if reports := attacks.quoted(messages, new, changed):
        lists["reports of a threat"] = reports
    tables = {
        "systems": _each([*bundles, *baselines], lambda judged: measures.whole(judged, messages)),
        "situations": _each(bundles, lambda judged: measures.by_part(judged, messages, kinds)),
        "innocents": _each(bundles, lambda judged: measures.innocents(judged, messages)),
        "slices": _each(bundles, lambda judged: measures.slices(judged, messages)),
        "lists": _each(bundles, lambda judged: measures.lists(judged.system, lists)),
    }
    tables |= _on_traffic([*bundles, *baselines[:-1]], messages, seen, traffic_texts, new)
    tables |= _changed(bundles, messages, new, changed)
    with _CONSOLE.status("signs and time"):
        signs = {j.system.name: measures.signs(scorers[j.system.name].bundle, j, messages) for j in bundles}
        tables["signs"] = {name: rows for name, (rows, _) in signs.items()}
        tables["cost"] = _cost(paths, baselines, messages)
    wrong = measures.errors(model, messages)
    evaluation = Evaluation(
        bundle=scorers["jingyin"].bundle.manifest.id,
        against=scorers["before"].bundle.manifest.id if against else "",
        files=messages.files,
        counts=dict(Counter(LABELS[i] for i in messages.labels)),
        left_out=messages.left_out,
        tables={name: table for name, table in tables.items() if any(table.values())},
        errors={kind: [measures.error_row(model, messages, i) for i in rows] for kind, rows in wrong.items()},
        notes=[*_notes(messages, seen, training), *filter(None, [signs["jingyin"][1]])],
    )
    (out / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=1) + "\n", encoding="utf-8")
    write_report(out, evaluation, {kind: [messages.texts[i] for i in rows] for kind, rows in wrong.items()})
    return evaluation


def _each(systems: Sequence[Judged], measure: Callable[[Judged], Figures]) -> dict[str, Figures]:
    with _CONSOLE.status("measuring"):
        return {judged.system.name: measure(judged) for judged in systems}


def behaviours() -> dict[str, list[str]]:
    """Return lists of texts whose correct handling is clear from the text alone; none of them is in a training row."""
    plain = samples.read_rows(plain_messages())
    return {
        "plain threats": [row["text"] for row in plain if row["label"] in FLAGGED],
        "plain innocents": [row["text"] for row in plain if row["label"] not in FLAGGED],
        "everyday innocents": everyday(EVERYDAY, _SEED, held_out=True),
        "nonsense": list(nonsense(NONSENSE, _SEED)),
    }


def plain_messages() -> Path:
    """Return the file of plain threats and innocents that comes with the package."""
    return Path(str(files("jingyin.train.evaluate").joinpath("plain_threats.jsonl")))


def _on_traffic(
    judgements: Sequence[Judged], messages: Samples, seen: Seen | None, by_file: Mapping[str, Sequence[str]], new: Bools
) -> Tables:
    """Return false alarms by source, and recall where fewer false alarms are allowed, on `new` threats (n,) if any."""
    tables: Tables = {"traffic": {}, "frontier": {}}
    threats = messages.flagged & new
    threats = threats if threats.any() else messages.flagged
    own_sources = samples.parts(messages.sources, among=messages.traffic)
    for judged in judgements:
        system = judged.system
        sources = {name: judged.take(rows) for name, rows in own_sources.items()}
        with _CONSOLE.status("traffic"):
            sources |= {name: system.judge(texts) for name, texts in by_file.items()}
        kept_out = [name for name in sources if name in by_file or (seen and name not in seen.sources)]
        ordinary = [sources[name].risks for name in kept_out or sources] or [judged.risks[messages.benign]]
        tables["traffic"][system.name] = measures.traffic(sources, kept_out)
        if threats.any():
            risks = judged.risks[threats]
            tables["frontier"][system.name] = measures.frontier(system, risks, np.concatenate(ordinary))
    return tables


def _changed(bundles: Sequence[Judged], messages: Samples, new: Bools, most: int) -> Tables:
    """Return figures of threats and innocents under attack: of all kinds, and in company of `new` ones (n,)."""
    suites, plain = attacks.suites(messages, new, most)
    changed = {name: partial(measures.changed, suites=some, messages=messages) for name, some in suites.items()}
    tables = {name: _each(bundles, measure) for name, measure in changed.items()}
    return tables | {"senders": _each(bundles, lambda judged: measures.greedy(judged, messages, plain))}


def _judge_one(system: System, text: str) -> object:
    return system.judge([text])


def _cost(paths: Mapping[str, Path], baselines: Sequence[Judged], messages: Samples) -> dict[str, Figures]:
    """Return milliseconds a message, one at a time on one thread, and the megabytes of bundles."""
    ways: dict[tuple[str, str], Callable[[str], object]] = {}
    for row, prefilter in (("a message", True), ("without prefilter", False)):
        for name, path in paths.items():
            ways[name, row] = Scorer.load(path, prefilter=prefilter, cache_bytes=0).score  # as a new message
    for system in (judged.system for judged in baselines):
        ways[system.name, "a message"] = partial(_judge_one, system)
    out: dict[str, Figures] = {name: {} for name, _ in ways}
    for (name, row), line in zip(ways, systems.milliseconds([*ways.values()], messages.texts), strict=True):
        figures = {"median": np.median(line), "mean": line.mean(), "95%": np.percentile(line, 95)}
        out[name][row] = {f"ms, {key}": float(value) for key, value in figures.items()}
    for name, path in paths.items():
        out[name]["a message"]["MB"] = systems.size(path) / 1e6
    return out


def _notes(messages: Samples, seen: Seen | None, training: Path) -> list[str]:
    few = [rate for rate in RATES if messages.benign.sum() < rows_needed(rate)]
    missing = [label for i, label in enumerate(LABELS) if i not in messages.labels]
    notes = [f"no row to score has label {', '.join(missing)}: figures of these are left out"] * bool(missing)
    notes += [
        f"recall where {rate:.1%} of the benign are flagged needs {rows_needed(rate)} benign rows" for rate in few
    ]
    if not seen:
        notes.append(
            f"no n-gram baseline, and unseen cases are not shown apart: there is no {training.name} next to the data; "
            "name one with --train"
        )
    return notes
