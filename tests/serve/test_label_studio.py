import json
from pathlib import Path

import pytest

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.serve.label_studio import CONFIG, apply_annotations, read_annotations, task, with_signs

DATA = {"text": "好", "label": None, "row": "a.jsonl:1", "reason": "near a threshold"}


def annotated(text: str, *labels: str, cancelled: bool = False) -> dict[str, object]:
    results = [[{"type": "choices", "value": {"choices": [label]}}] for label in labels]
    return {"data": {"text": text}, "annotations": [{"result": each, "was_cancelled": cancelled} for each in results]}


def write(folder: Path, content: object) -> Path:
    (folder / "export.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "export.json"


def test_a_task_suggests_a_label_by_the_names_of_the_interface() -> None:
    made = task(DATA, "ordinary", 0.123456, "jingyin 0123")
    (prediction,) = made["predictions"]
    assert made["data"] == DATA
    assert (prediction["model_version"], prediction["score"]) == ("jingyin 0123", 0.1235)
    (choice,) = prediction["result"]
    assert choice == {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": ["ordinary"]}}
    assert f'<Choices name="{choice["from_name"]}" toName="{choice["to_name"]}"' in CONFIG
    assert [f'<Choice value="{label}"/>' in CONFIG for label in LABELS] == [True] * len(LABELS)


def test_signs_are_named_behind_the_reason_of_a_task() -> None:
    assert with_signs("near a threshold", ["exposure", "deadline", "new_sign"]) == (
        "near a threshold; 告知他人, 限时升级, new_sign"
    )
    assert with_signs("near a threshold", []) == "near a threshold"


@pytest.mark.parametrize(
    ("export", "labels", "disputed", "unanswered"),
    [
        (
            [annotated("a", "ordinary"), annotated("b", "ordinary", "ordinary"),
             annotated("c", "ordinary", "debt_threat"), annotated("d", "ordinary", cancelled=True), annotated("e")],
            {"a": "ordinary", "b": "ordinary"}, 1, 2,
        ),
        (  # tasks about one text are answers about it
            [annotated("a", "ordinary"), annotated("a", "debt_threat"), annotated("b", "ordinary"), annotated("b")],
            {"b": "ordinary"}, 1, 0,
        ),
    ],
)  # fmt: skip
def test_annotations_of_one_label_count_and_others_are_counted(
    tmp_path: Path, export: list[object], labels: dict[str, str], disputed: int, unanswered: int
) -> None:
    found = read_annotations(write(tmp_path, export))
    assert (found.labels, found.disputed, found.open) == (labels, disputed, unanswered)


def test_labels_go_into_the_rows(tmp_path: Path) -> None:
    found = read_annotations(write(tmp_path, [annotated("a", "debt_threat"), annotated("b", "ordinary")]))
    rows = [{"text": "a", "label": "ordinary", "id": 1}, {"text": "b", "label": "ordinary"}, {"text": "c"}]
    assert apply_annotations(rows, found) == (
        [
            {"text": "a", "label": "debt_threat", "id": 1},
            {"text": "b", "label": "ordinary"},
            {"text": "c", "label": None},
        ],
        1,
    )
    with pytest.raises(InputError, match=r"^1 answers are about messages that the data lacks; name the data"):
        apply_annotations(rows[:1], found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([annotated("a", "spam")]), r"has answers \['spam'\]; known labels: ordinary, "),
        ("[1]", r"is no Label Studio export \(TypeError\); export the project as JSON"),
        ("[" * 100_000, r"is no Label Studio export \(RecursionError\)"),
    ],
)
def test_an_export_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path / "export.json")


@pytest.mark.parametrize("text", [None, 5, ["a"]])
def test_a_text_or_an_answer_that_is_no_string(tmp_path: Path, text: object) -> None:
    with pytest.raises(InputError, match=r"the text of task 1 is no string; repair or remove the task"):
        read_annotations(write(tmp_path, [{"data": {"text": text}, "annotations": []}]))
    with pytest.raises(InputError, match=r"is no Label Studio export \(TypeError\); .*: task 1 has another"):
        read_annotations(write(tmp_path, [annotated("a", text)]))


def test_of_several_controls_only_that_of_labels_counts(tmp_path: Path) -> None:
    both = annotated("a", "ordinary", "unsure")
    for annotation, control in zip(both["annotations"], ("label", "confidence"), strict=True):  # type: ignore[call-overload]
        annotation["result"][0]["from_name"] = control
    found = read_annotations(write(tmp_path, [both]))
    assert (found.labels, found.disputed, found.open) == ({"a": "ordinary"}, 0, 0)
    both["annotations"][0]["result"][0]["from_name"] = "kind"  # type: ignore[index]
    with pytest.raises(InputError, match="has choices of 2 controls; name the one of the labels 'label'"):
        read_annotations(write(tmp_path, [both]))


def test_several_choices_of_one_answer_are_disputed(tmp_path: Path) -> None:
    answered = annotated("a", "ordinary")
    answered["annotations"][0]["result"][0]["value"]["choices"] += ["debt_threat"]  # type: ignore[index]
    assert read_annotations(write(tmp_path, [answered])).disputed == 1
