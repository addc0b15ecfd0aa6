import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from tests import json_lines
from tests.command import run_command
from tests.train.conftest import FILLER, PHRASES, few_checkpoints

from jingyin import Scorer
from jingyin.model.bundle import read_bundle, write_bundle
from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import BENIGN, FLAGGED
from jingyin.train import finetune as run
from jingyin.train import finetune_report
from jingyin.train.corpus import store
from jingyin.train.corpus.build import build
from jingyin.train.corpus.public import HIDDEN_LABEL
from jingyin.train.corpus.similar import SIMILAR, similar_pairs
from jingyin.train.corpus.store import Row
from jingyin.train.data import read_split
from jingyin.train.finetune import FinetuneResult, finetune
from jingyin.train.finetune_data import Columns, Labelled
from jingyin.train.pack import calibrate
from jingyin.train.pack.readings import is_traffic
from jingyin.train.pack.thresholds import rate_at
from jingyin.train.promote import Promotion, load_config

# A kind of threat that the made-up corpus does not hold, and innocents like it.
THREATS = ("群主收卫生费", "进山要交买路钱", "摊位不挂牌", "车停这里要守车钱", "厂门口装卸归我们")
MENACES = ("少一分砸摊", "不给就扎胎", "拆你的门", "让你开不了张", "一车都别想走")
INNOCENT = ("群主收团购钱", "进山要买门票", "摊位要登记", "车停这里免费", "厂门口装卸请排队")
ENDS = ("周五截止", "多谢配合", "有事找我", "请带身份证", "晚上八点前")
TRAFFIC = [
    f"{place}{what}{when}"
    for place in ("东门", "西院", "河边")
    for what in ("卖西瓜", "放电影", "修单车", "招人")
    for when in ("早八点", "下雨改期", "来的扣一", "别忘了", "问老周")
]
COLUMNS = Columns("sms", "spam", {"1": "flagged", "0": "not_flagged"})


def own_rows() -> list[tuple[str, str]]:
    pairs = [(f"{a}，{b}，{c}", "flagged") for a in THREATS for b in MENACES for c in ["听懂", "看着办"]]
    return pairs + [(f"{a}，{b}，{c}", "not_flagged") for a in INNOCENT for b in ENDS for c in ["谢谢", "收到回复"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mine.csv"
    lines = ["sms,spam", *(f"{text},{int(label == 'flagged')}" for text, label in own_rows()), "别来,或许", ",1"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traffic") / "all.jsonl"
    path.write_bytes("\n".join(json.dumps({"body": each}, ensure_ascii=False) for each in TRAFFIC).encode("gb18030"))
    return path


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus recipe of made-up messages, in place of the default bundle's."""
    folder = tmp_path_factory.mktemp("replay")
    rng = Random(3)
    rows = []
    for label in list(PHRASES) * 80:
        before, after = ("".join(rng.choices(FILLER, k=10)) for _ in range(2))
        text = "，".join([before, *(rng.choice(part) for part in PHRASES[label]), after])
        rows.append({"text": text, "label": label, "family": f"{label}_family", "voice": "plain"})
    json_lines.write(folder / "rows.jsonl", rows)
    content = {"authored": str(folder / "rows.jsonl"), "draws": 1, "evasion": {"share": 0.3}}
    content["public"] = [{"kind": "nus", "path": "nowhere.jsonl"}]
    content["splits"] = {"train": 0.6, "validation": 0.1, "calibration": 0.2, "test": 0.1}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "corpus.yaml"


def judged(folder: Path, incumbent: Path, traffic: int) -> Promotion:
    """Stand in for `promote`, whose own tests say what it does: the made-up test rows are too few for it."""
    ids = [read_bundle(path).manifest.id for path in (folder / "bundle", incumbent)]
    assert traffic > 0
    return Promotion(True, ids[0], ids[1], {}, [])


@pytest.fixture(scope="module")
def incumbent(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with thresholds as a real one has; its own flag whatever the prefilter doesn't stop."""
    folder = shutil.copytree(tiny_run / "bundle", tmp_path_factory.mktemp("incumbent") / "bundle")
    manifest = read_bundle(folder).manifest
    parts = {name: getattr(manifest, name) for name in type(manifest).model_fields}
    parts["review"] = manifest.review.model_copy(update={"risk": 0.5})
    parts["block"] = manifest.block.model_copy(update={"risk": 0.9, "least": 0.5})
    write_bundle(folder, parts)
    return folder


@pytest.fixture(scope="module")
def finetuned(
    incumbent: Path, replay: Path, data: Path, traffic: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder that `jingyin finetune` leaves."""
    out = tmp_path_factory.mktemp("finetuned") / "run"
    command = ["finetune", data, "--out", out, "--bundle", incumbent, "--text-column", "sms"]
    command += ["--label-column", "spam", "--label-map", "1=flagged", "--label-map", "0=not_flagged"]
    command += ["--benign", traffic, "--benign-column", "body", "--benign-encoding", "gb18030"]
    with few_checkpoints(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "default_replay", lambda: replay)
        patch.setattr(finetune_report, "decide", judged)
        patch.setitem(run.TRAINED, "model", {"epochs": 4, "learning_rate": 3e-3})  # a toy learns at a toy's rate
        assert run_command(*command) == 3  # two rows are left out
    return out


def test_what_was_labelled_is_learnt_and_what_was_known_is_kept(finetuned, incumbent):
    counts = {
        (each["source"], each["what"]): each for each in json.loads((finetuned / "finetune.json").read_text())["counts"]
    }
    trained, own, known = (
        counts["own messages trained on", "threats flagged"],
        counts["own messages", "threats flagged"],
        counts["other messages", "label right"],
    )
    assert trained["after"] >= 0.98 * trained["rows"]
    assert own["after"] >= own["before"]
    innocents = counts["own messages", "ordinary and lawful flagged"]
    assert innocents["before"] > 0.5 * innocents["rows"] > innocents["after"]
    assert known["after"] >= 0.9 * known["before"]
    assert counts["own traffic", "ordinary and lawful flagged"]["after"] <= 1
    scorer = Scorer.load(finetuned / "bundle")
    assert scorer.score("想让手机安静，转三百到这个号，不转接着打").label == "pay_to_stop"
    assert scorer.bundle.manifest.id != read_bundle(incumbent).manifest.id


def test_own_false_alarms_license_no_others(finetuned, incumbent):
    rows = store.read(finetuned / "corpus")["calibration"]
    texts = [row.text for row in rows if row.source == "authored" and row.label in BENIGN]
    risks = np.array([verdict.risk for verdict in Scorer.load(incumbent).score_many(texts)])
    recipe = yaml.safe_load((finetuned / "recipes" / "cascade.yaml").read_text(encoding="utf-8"))
    assert recipe["review_rate"] == max(0.2, rate_at(risks, ["authored"] * len(texts), 0.5, bounded=True))


@pytest.mark.parametrize(("flagged", "rate"), [(0, 0.0004), (1, 0.0025 / 4)])
def test_real_traffic_raises_a_target_by_what_is_observed_not_by_its_bound(
    flagged, rate, incumbent, tmp_path, monkeypatch
):
    texts = [f"第{i}号车位周五能停吗" for i in range(400)]
    rows = [Row(text, "ordinary", "other", "plain", "jsonl", f"{i}", text, "", 1.0) for i, text in enumerate(texts)]
    store.write(dict.fromkeys(store.SPLITS, rows), {}, "real", tmp_path / "corpus")
    risks = [0.9] * flagged + [0.0] * (400 - flagged)
    monkeypatch.setattr(run, "verdicts", lambda *_: [SimpleNamespace(risk=risk) for risk in risks])
    bundle = read_bundle(incumbent)
    review = bundle.manifest.review.model_copy(update={"target": 0.0004})
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"review": review}))
    recipe = run._calibrate(bundle, Scorer.load(incumbent), tmp_path / "corpus")
    assert recipe["review_rate"] == pytest.approx(rate)


def test_near_duplicates_stay_on_one_side(finetuned):
    splits = store.read(finetuned / "corpus")
    rows = [(split, row) for split in store.SPLITS for row in splits[split] if row.source == "own"]
    plain = [(split, row.text) for split, row in rows if not row.evasion]
    for i, j, _ in similar_pairs([text for _, text in plain], SIMILAR):
        assert plain[i][0] == plain[j][0]
    assert len(plain) == 100
    assert Counter(split for split, _ in plain)["test"] >= 10
    assert {row.evasion for split, row in rows if split == "train"} > {""}


def test_the_run_tells_how_it_was_made(finetuned, incumbent):
    manifest, report = read_bundle(finetuned / "bundle").manifest, (finetuned / "report.md").read_text(encoding="utf-8")
    facts = json.loads((finetuned / "finetune.json").read_text(encoding="utf-8"))
    assert set(manifest.provenance["training_rows"]) == {"own", "authored", "jsonl"}
    assert manifest.provenance["bundles"][str(incumbent)] == read_bundle(incumbent).manifest.id
    assert manifest.provenance["command"].startswith("jingyin finetune ")
    assert f"Bundle `{manifest.id}` against" in report
    assert "| own messages | threats flagged |" in report
    rejected = json_lines.read(finetuned / "rejected.jsonl")
    assert [each["fault"] for each in rejected] == [HIDDEN_LABEL, "no text"]
    assert (facts["rejected"], facts["promote"]) == (2, True)
    tasks = json.loads((finetuned / "disobeyed.json").read_text(encoding="utf-8"))
    known = json_lines.read(finetuned / "known.jsonl")
    assert len(tasks) == facts["disobeyed"]
    assert [each["text"] for each in known] == [each["data"]["text"] for each in tasks]
    labelled = dict(own_rows())
    assert all(each["action"] == {"flagged": "block"}.get(labelled[each["text"]], "pass") for each in known)
    assert {each["note"] for each in known} <= {"labelled flagged", "labelled not_flagged"}  # as the user wrote it
    assert not list(finetuned.rglob("checkpoint"))


def test_what_is_trained_on_and_what_is_held_out_is_told(finetuned):
    splits = store.read(finetuned / "corpus")
    own = {split: [row for row in rows if row.source == "own" and not row.evasion] for split, rows in splits.items()}
    threats = {split: sum(row.label in FLAGGED for row in rows) for split, rows in own.items()}
    assert run._placed(finetuned / "corpus") == (
        f"{len(own['train'])} of your messages ({threats['train']} threats) are trained on, {len(own['test'])} of your "
        f"messages ({threats['test']} threats) are the test; near-copies of one message stay together"
    )


def test_what_is_labelled_as_not_flagged_counts_whatever_the_bundle_takes_it_for():
    rows = [Row("", label, "not_flagged", "", "own", "", "", "", 1.0) for label in ("other_threat", "ordinary")]
    before, after = ([SimpleNamespace(action=action, label="ordinary")] * 2 for action in ("block", "pass"))
    assert finetune_report._counts("own", rows, [before, after]) == [
        finetune_report.Count("own", "ordinary and lawful flagged", 2, 2, 0)
    ]


def test_a_finished_run_is_kept(finetuned, incumbent, data, traffic, replay):
    told: list[str] = []
    given = {"benign": [str(traffic)], "benign_columns": Columns("body", encoding="gb18030"), "corpus": replay}
    given["bundle"] = incumbent
    report = finetune([str(data)], finetuned, COLUMNS, **given, tell=told.append)
    assert told == [f"{finetuned}: finished before, kept; --fresh replaces it"]
    assert isinstance(report, FinetuneResult)
    assert report.promote
    other = Columns("sms", "spam", {"1": "pay_to_stop", "0": "ordinary"})
    with pytest.raises(InputError, match=r"holds a run with other columns; name another output, or replace .* --fresh"):
        finetune([str(data)], finetuned, other, **given)
    wanted = r"^2 row\(s\) can't be used:\n1 row\(s\): unknown label \(not shown, .*\) \(first: .*: row"
    with pytest.raises(InputError, match=wanted):
        finetune([str(data)], finetuned, COLUMNS, **given, strict=True)


def test_a_folder_of_something_else_is_never_touched(tmp_path, data, tiny_run):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="is not empty and holds no earlier run"):
            finetune([str(data)], tmp_path / "mine", COLUMNS, bundle=tiny_run / "bundle", fresh=fresh)
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_file_that_becomes_traffic_makes_another_run(tmp_path, bundle, monkeypatch):
    a, b = (csv_of(tmp_path / name, [f"{name[0]}{place}{what}" for place in "东西南北中" for what in THREATS])
            for name in ("a.csv", "b.csv"))  # fmt: skip
    monkeypatch.setattr(run, "_run", lambda *_: FinetuneResult(0, [], 0, True, []))
    finetune([a, b], tmp_path / "run", Columns(), bundle=bundle)
    with pytest.raises(InputError, match="holds a run with other benign; name another output"):
        finetune([a], tmp_path / "run", Columns(), benign=[b], bundle=bundle)
    with pytest.raises(ConfigError, match="an input file is named twice"):
        finetune([a], tmp_path / "run", Columns(), benign=[a], bundle=bundle)


def test_a_bundle_of_other_labels_is_refused_at_once(tmp_path, make_bundle):
    other = make_bundle(labels=("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "menace"))
    with pytest.raises(ConfigError, match=r"^the networks of .* put out .*, menace; wanted .*, other_threat, in this"):
        finetune([csv_of(tmp_path / "a.csv", list(TRAFFIC))], tmp_path / "run", Columns(), bundle=other)
    assert not (tmp_path / "run").exists()


def csv_of(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(["text,label", *(f"{text},not_flagged" for text in texts)]) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("train", "test", "allowed"),
    [
        ({"nus": 3, "jsonl": 1}, {"nus": 3, "jsonl": 1, "authored": 2}, 0.25),  # one of all
        ({"nus": 3}, {"nus": 9, "weibo": 49}, 1 / 49),  # one of the sources kept out of training
        ({"nus": 3}, {"weibo": 30_000}, 0.00004),
        ({}, {"jsonl": 1}, 0.5),
        ({}, {"authored": 5}, 0.00004),
    ],
)
def test_one_message_of_the_traffic_may_be_blocked(train, test, allowed, tmp_path, monkeypatch):
    of_split = {"train": train, "validation": {}, "calibration": {}, "test": test}
    splits = {
        split: [Row("x", "ordinary", "", "", source, "", "", "", 1.0) for source, n in counts.items() for _ in range(n)]
        for split, counts in of_split.items()
    }
    decided: list[Path] = []
    monkeypatch.setattr(finetune_report, "promote", lambda *given: decided.append(given[2]))
    finetune_report.decide(tmp_path, tmp_path, finetune_report._pooled(splits))
    assert load_config(decided[0]).traffic.block == allowed


def test_too_few(tmp_path, tiny_run):
    (tmp_path / "few.csv").write_text("text,label\n甲乙,flagged\n丙,\n", encoding="utf-8")
    wanted = r"^1 different message\(s\) can be used; wanted at least 20, .*\n1 row\(s\): no l"
    with pytest.raises(InputError, match=wanted):
        finetune([str(tmp_path / "few.csv")], tmp_path / "run", Columns(), bundle=tiny_run / "bundle")


def test_the_corpus_keeps_origins_apart_and_mined_messages_train_alone(tmp_path, bundle, replay):
    rows = [Labelled(f"{a}，{b}", "pay_to_stop", "", "cases") for a in THREATS for b in MENACES]
    rows += [Labelled(f"{a}，{b}", "ordinary", "", "own") for a in INNOCENT for b in ENDS]
    mined = [f"{place}{what}" for place in "东西南北" for what in ("门的花开了", "街新来一家面馆", "湖有灯会")]
    rows += [Labelled(text, "ordinary", "", "mined") for text in mined]
    path = run._corpus_recipe(rows, TRAFFIC, read_bundle(bundle), replay, tmp_path)
    kinds = [each["kind"] for each in yaml.safe_load(path.read_text(encoding="utf-8"))["public"]]
    assert kinds == ["own", "cases", "jsonl", "mined"]
    build(path, tmp_path / "corpus")
    splits = store.read(tmp_path / "corpus")
    of_split = {split: Counter(row.source for row in found if not row.evasion) for split, found in splits.items()}
    assert [split for split in store.SPLITS if of_split[split]["mined"]] == ["train"]
    assert sum(counts["cases"] for counts in of_split.values()) == 25
    assert of_split["test"]["jsonl"] > 0
    weights = {row.source: row.weight for row in splits["train"]}
    assert weights["cases"] == weights["own"] > weights["mined"] == weights["jsonl"] == 1.0


def test_no_picked_message_sets_a_threshold(tmp_path, bundle, replay):
    rows = [Labelled(f"{a}，{b}", "lawful_collection", "", "cases") for a in INNOCENT for b in (*ENDS, *MENACES)]
    path = run._corpus_recipe(rows, [], read_bundle(bundle), replay, tmp_path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["public"][0]["splits"] = {"train": 0.5, "calibration": 0.5}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    build(path, tmp_path / "corpus")
    calibration = read_split(tmp_path / "corpus", "calibration")
    assert calibration.own.sum() > 5
    assert not (is_traffic(calibration) & calibration.own).any()
    assert is_traffic(calibration).any()
    risks = np.where(calibration.own, 0.99, 0.01)
    recipe = SimpleNamespace(review_rate=0.2, block_rate=0.2, lawful_rate=0.01)
    review, block = calibrate._thresholds(recipe, calibration, risks, (0.0, 0.0))
    assert review.risk <= 0.02
    assert block.risk <= 0.02


def test_few_own_messages_weigh_a_quarter_but_each_at_most_eight_times(tmp_path, bundle, replay):
    weights, replayed = [], []
    for count in (20, 700, 50_000):
        rows = [Labelled(f"第{i}条", "ordinary", "") for i in range(count)]
        path = run._corpus_recipe(rows, [], read_bundle(bundle), replay, tmp_path)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert [each["kind"] for each in content["public"]] == ["own"]  # the public file is not here
        weights.append(content["public"][0]["weight"])
        replayed.append((content["most_authored"]["train"], content["most_public"]["train"]))
    assert weights == [8.0, 2.72, 1.0]
    assert replayed == [(2_000, 2_000), (2_000, 2_000), (35_000, 35_000)]  # as many of each kind as own ones


@pytest.mark.parametrize(("messages", "epochs"), [(20_000, 1), (30_000, 1), (100_000, 0.3)])
def test_an_epoch_shows_no_more_messages_than_a_run_has_time_for(messages, epochs, bundle, corpus, monkeypatch):
    monkeypatch.setattr(run, "read_split", lambda *_: SimpleNamespace(messages=np.arange(messages)))
    recipes = [run._classify(read_bundle(bundle), name, 64, corpus) for name in run.TRAINED]
    assert [each["epochs"] for each in recipes] == pytest.approx([epochs, 2 * epochs, 4 * epochs])


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("threats", "innocents"), [(25, 0), (0, 25), (5, 95), (500, 9_500)], ids=["threats", "innocents", "95%", "10000"]
)
def test_rows_in_any_proportion(threats, innocents, tiny_run, replay, tmp_path, monkeypatch):
    rng = Random(4)
    kinds = [("flagged", THREATS, MENACES)] * threats + [("not_flagged", INNOCENT, ENDS)] * innocents
    rows = [
        {"text": "，".join([rng.choice(one), "".join(rng.choices(FILLER, k=14)), rng.choice(other)]), "label": side}
        for side, one, other in kinds
    ]
    json_lines.write(tmp_path / "mine.jsonl", rows)
    monkeypatch.setattr(finetune_report, "decide", lambda *_: Promotion(False, "a", "b", {}, []))
    monkeypatch.setitem(run.TRAINED, "model", {"epochs": 4 if len(rows) < 1_000 else 0.05, "learning_rate": 3e-3})
    given = {"bundle": tiny_run / "bundle", "corpus": replay, "tell": lambda _: None}
    report = finetune([str(tmp_path / "mine.jsonl")], tmp_path / "run", Columns(), **given)
    counts = {each.what: each for each in report.counts if each.source == "own messages trained on"}
    assert sum(each.rows for each in counts.values()) >= 0.6 * len(rows)
    assert set(counts) == {
        *["threats flagged"] * bool(threats), *["ordinary and lawful flagged"] * bool(innocents),
    }  # fmt: skip
    known = next(each for each in report.counts if (each.source, each.what) == ("other messages", "label right"))
    assert known.after >= known.before - 2
