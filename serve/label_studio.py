"""Label Studio: tasks for annotators, and the labels that they gave.

Formats: https://labelstud.io/guide/tasks (data, predictions) and https://labelstud.io/guide/export (JSON).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.signs import name_of

CONFIG = """<View>
  <Text name="text" value="$text"/>
  <Header value="$reason"/>
  <Choices name="label" toName="text" choice="single" required="true">
{choices}
  </Choices>
</View>
""".format(choices="\n".join(f'    <Choice value="{label}"/>' for label in LABELS))
"""The labelling interface that the tasks are made for."""


def task(data: Mapping[str, Any], suggestion: str, score: float, model: str) -> dict[str, Any]:
    """Return a task: `data`, with "text", "reason" and anything else to show, and the label that `model` suggests.

    `score`, 0 to 1, is how sure the suggestion is.
    """
    choice = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [suggestion]}}
    prediction = {"model_version": model, "score": round(score, 4), "result": [choice]}
    return {"data": dict(data), "predictions": [prediction]}


def with_signs(reason: str, signs: Sequence[str]) -> str:
    """Return `reason`, why a person is asked, with the Chinese names of the `signs` in the verdict's reasons."""
    return "; ".join([reason, *([", ".join(name_of(sign, "zh") for sign in signs)] if signs else [])])


@dataclass(frozen=True)
class Annotations:
    """Results of annotation: text -> label, and the numbers of texts with two labels and with none."""

    labels: dict[str, str]
    disputed: int
    open: int


def read_annotations(path: Path) -> Annotations:
    """Read an export in Label Studio's JSON format; raises InputError if it isn't one, or has an unknown label.

    The answers of several tasks about one text count as answers about that text.
    """
    answers: dict[str, set[str]] = {}
    for number, (text, choices) in enumerate(read_choices(path), 1):
        if not isinstance(text, str):
            raise InputError(f"{path}: the text of task {number} is no string; repair or remove the task")
        answers.setdefault(text, set()).update(choices)
    if unknown := sorted(set().union(*answers.values()) - set(LABELS)):
        raise InputError(f"{path} has answers {unknown}; known labels: {', '.join(LABELS)}")
    labels = {text: next(iter(choices)) for text, choices in answers.items() if len(choices) == 1}
    sizes = Counter(min(len(choices), 2) for choices in answers.values())
    return Annotations(labels, disputed=sizes[2], open=sizes[0])


def read_choices(path: Path, column: str = "text") -> list[tuple[object, set[str]]]:
    """Return the text of each task of an export, and the distinct labels that annotators chose for it.

    The text is what a task's data call `column`, else "text". Of several controls only the one named "label" counts.
    Raises InputError if the file is no export, or none of several controls has that name.
    """
    fault, advice = f"{path} is no Label Studio export", "export the project as JSON, not JSON-MIN or CSV"
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); name an export of Label Studio") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{fault} ({type(error).__name__}); {advice}") from None
    chosen: list[tuple[object, set[tuple[object, str]]]] = []
    for number, each in enumerate(tasks if isinstance(tasks, list) else [tasks], 1):
        try:
            data = each["data"]
            chosen.append((data[column] if column in data else data["text"], _choices(each["annotations"])))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else "has another structure"
            raise InputError(f"{fault} ({type(error).__name__}); {advice}: task {number} {what}") from None
    controls = {control for _, choices in chosen for control, _ in choices}
    if len(controls) > 1 and "label" not in controls:
        raise InputError(f"{path} has choices of {len(controls)} controls; name the one of the labels 'label'")
    wanted = {"label"} & controls or controls
    return [(text, {label for control, label in choices if control in wanted}) for text, choices in chosen]


def _choices(annotations: Sequence[Mapping[str, Any]]) -> set[tuple[object, str]]:
    """Return the distinct choices of annotators, each with its control; cancelled annotations are ignored."""
    return {
        (each.get("from_name"), _label(choice))
        for annotation in annotations
        if not annotation.get("was_cancelled")
        for each in annotation["result"]
        if each["type"] == "choices"
        for choice in each["value"]["choices"]
    }


def _label(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def apply_annotations(rows: Sequence[Mapping[str, Any]], annotations: Annotations) -> tuple[list[dict[str, Any]], int]:
    """Return the rows with the annotators' labels, and the number of labels changed.

    Raises InputError if labels are for messages that aren't among `rows`.
    """
    if strangers := len(annotations.labels.keys() - {row["text"] for row in rows}):
        raise InputError(f"{strangers} answers are about messages that the data lacks; name the data that was audited")
    out = [{**row, "label": annotations.labels.get(row["text"], row.get("label"))} for row in rows]
    return out, sum(new["label"] != old.get("label") for new, old in zip(out, rows, strict=True))
