import json

import pytest

from jingyin.train.evaluate.evaluate import evaluate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated(bundle, data, tmp_path_factory):
    """An evaluation of rows of cases, writers and real traffic; training has seen case A1 and writer w1 alone."""
    folder = tmp_path_factory.mktemp("situations")
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    for row in rows:
        row["source"] = "authored"
    of_label = {label: [row for row in rows if row["label"] == label] for label in ("ordinary", "debt_threat")}
    for row in of_label["ordinary"][:50]:
        row["source"] = "nus"
    for row in of_label["ordinary"][50:60] + of_label["debt_threat"][:20]:
        row["case"] = "B7"
    for row in of_label["debt_threat"][20:25]:
        row["case"] = "A1"
    for row in of_label["debt_threat"][15:40]:  # five of them of the unseen case
        row["writer"] = "w2"
    for row in of_label["ordinary"][60:70]:
        row["writer"] = "w1"
    of_label["debt_threat"][0]["text"] = "明天去公园"  # a threat that the toy can't see
    of_label["ordinary"][50]["text"] = "明天去曝光"
    train = [dict(row, case="A1", writer="w1") for row in rows]
    for name, content in (("test", rows), ("train", train)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return evaluate(bundle, [folder / "test.jsonl"], folder / "out", folder / "train.jsonl", []), folder / "out"


def test_unseen_cases_and_writers_stand_apart_from_rows_like_training_and_from_real_traffic(evaluated):
    found, _ = evaluated
    assert [(each.name, each.rows) for each in found.situations] == [
        ("unseen cases", 30), ("unseen writers", 20), ("like training", 370), ("real traffic", 50),
    ]  # fmt: skip
    unseen, others, like, real = found.situations
    assert (unseen.review.count, unseen.review.rows) == (19, 20)
    assert (unseen.block.count, unseen.innocents_review.count, unseen.innocents_block.rows) == (19, 1, 10)
    assert (others.review.count, others.review.rows, others.innocents_review.rows) == (20, 20, 0)
    assert (like.review.rows, like.review.value, like.innocents_review.count) == (80, 1.0, 0)
    assert (real.review.rows, real.innocents_review.rows) == (0, 50)


def test_macro_recall_is_the_mean_over_the_labels_that_have_rows(evaluated):
    unseen, _, like, real = evaluated[0].situations
    assert {label: each.count for label, each in unseen.by_label.items() if each.rows} == {
        "ordinary": 9,
        "debt_threat": 19,
    }
    assert unseen.macro_recall == pytest.approx((9 / 10 + 19 / 20) / 2)
    assert (like.macro_recall, real.macro_recall) == (1.0, 1.0)


def test_the_report_shows_them(evaluated):
    page = (evaluated[1] / "report.html").read_text(encoding="utf-8")
    assert "<td>unseen cases" in page
    assert "macro-recall" in page
