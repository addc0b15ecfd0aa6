"""An analyst's decision about a case, and the label of the row that it makes."""

from typing import Any, Literal

from jingyin.model.errors import InputError, JingyinError
from jingyin.model.labels import BENIGN, FLAGGED

Decision = Literal["threat", "innocent"]
LABELS_OF: dict[str, tuple[str, ...]] = {"threat": (*FLAGGED, "other_threat"), "innocent": (*BENIGN, "other_threat")}


class MissingError(JingyinError):
    """There is no such case."""

    status = 404


class ConflictError(JingyinError):
    """Another analyst was faster."""

    status = 409


def label_of(case: dict[str, Any], decision: Decision, label: str | None) -> str:
    """Return the label of a decision; raises InputError for one that contradicts it.

    Without one, a threat has the label that the bundle gave, if that is flagged, else just "flagged", as `jingyin
    finetune` reads it; an innocent is ordinary.
    """
    if label is None:
        return "ordinary" if decision == "innocent" else case["label"] if case["label"] in FLAGGED else "flagged"
    if label not in LABELS_OF[decision]:
        raise InputError(f"label: wanted one of {', '.join(LABELS_OF[decision])} for the decision {decision}")
    return label


def conflict(case: dict[str, Any]) -> str:
    """Say what another analyst has done to a case meanwhile."""
    if case["state"] == "decided":
        by = f" by {case['by']}" if case["by"] else ""
        return f"this case was decided{by} meanwhile: {case['decision']}, {case['decided_label']}; undo that first"
    return "this case is open again, or has been decided and opened since; look at it again"
