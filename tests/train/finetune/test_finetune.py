import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from jingyin import Scorer
from jingyin.cli import main
from jingyin.model.bundle import read_bundle
from jingyin.model.errors import ConfigError
from jingyin.train import finetune as run
from jingyin.train import finetune_data as corpus
from jingyin.train.corpus import store
from jingyin.train.corpus.similar import SIMILAR, similar_pairs
from jingyin.train.finetune import finetune
from jingyin.train.finetune_data import Columns

pytestmark = pytest.mark.train

# A kind of threat that the made-up corpus does not hold, and innocents like it.
THREATS = ("群主收卫生费", "进山要交买路钱", "摊位不挂牌", "车停这里要守车钱", "厂门口装卸归我们")
MENACES = ("少一分砸摊", "不给就扎胎", "拆你的门", "让你开不了张", "一车都别想走")
INNOCENT = ("群主收团购钱", "进山要买门票", "摊位要登记", "车停这里免费", "厂门口装卸请排队")
ENDS = ("周五截止", "多谢配合", "有事找我", "请带身份证", "晚上八点前")


def own_rows() -> list[tuple[str, str]]:
    pairs = [(f"{a}，{b}，{c}", "flagged") for a in THREATS for b in MENACES for c in ["听懂", "看着办"]]
    return pairs + [(f"{a}，{b}，{c}", "not_flagged") for a in INNOCENT for b in ENDS for c in ["谢谢", "收到回复"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mine.csv"
    lines = ["sms,spam", *(f"{text},{int(label == 'flagged')}" for text, label in own_rows())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finetuned(tiny_run: Path, corpus: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that `jingyin finetune` leaves; the made-up corpus stands in for the authored messages."""
    out = tmp_path_factory.mktemp("finetuned") / "run"
    command = ["finetune", str(data), "--out", str(out), "--bundle", str(tiny_run / "bundle"), "--text-column", "sms"]
    command += ["--label-column", "spam", "--label-map", "1=flagged", "--label-map", "0=not_flagged"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["jingyin", *command])
        patch.setattr(run, "authored_corpus", lambda _: store.read(corpus))
        patch.setattr(run, "decide", judged)
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return out


def judged(folder: Path, incumbent: Path, sources: list[str]) -> object:
    """Stand in for `promote`, whose own tests say what it does: the made-up test rows are too few for it."""
    from jingyin.train.promote import Promotion

    ids = [read_bundle(path).manifest.id for path in (folder / "bundle", incumbent)]
    assert set(sources) == {"own", "authored"}
    return Promotion(True, ids[0], ids[1], {}, [])


def test_what_was_labelled_is_learnt_and_what_was_known_is_kept(finetuned, tiny_run):
    counts = {
        (each["source"], each["what"]): each for each in json.loads((finetuned / "finetune.json").read_text())["counts"]
    }
    own, known = counts["own", "threats flagged"], counts["authored", "label right"]
    assert own["after"] >= own["before"]
    assert own["after"] > 0.5 * own["rows"]
    assert known["after"] >= known["before"] - 1
    scorer = Scorer.load(finetuned / "bundle")
    assert scorer.score("想让手机安静，转三百到这个号，不转接着打").label == "pay_to_stop"
    assert scorer.bundle.manifest.id != read_bundle(tiny_run / "bundle").manifest.id


def test_near_duplicates_stay_on_one_side(finetuned):
    splits = store.read(finetuned / "corpus")
    rows = [(split, row) for split in ("train", "calibration", "test") for row in splits[split] if row.source == "own"]
    plain = [(split, row.text) for split, row in rows if not row.evasion]
    for i, j, _ in similar_pairs([text for _, text in plain], SIMILAR):
        assert plain[i][0] == plain[j][0]
    shares = Counter(split for split, _ in plain)
    assert sum(shares.values()) == 100
    assert shares["test"] >= 20
    assert {row.evasion for _, row in rows} > {"", "dressed"}


def test_the_run_tells_how_it_was_made(finetuned, tiny_run):
    manifest = read_bundle(finetuned / "bundle").manifest
    facts = json.loads((finetuned / "finetune.json").read_text(encoding="utf-8"))
    assert facts["command"].startswith("jingyin finetune ")
    assert facts["bundles"] == {"incumbent": read_bundle(tiny_run / "bundle").manifest.id}
    assert set(facts["training_rows"]) == {"own", "authored"}
    assert manifest.provenance["data_sha256"] == facts["data_sha256"]
    assert facts["bundle"] == manifest.id
    assert "| own messages | threats flagged |" in (finetuned / "report.md").read_text(encoding="utf-8")
    assert f"Command: `{facts['command']}`" in (finetuned / "bundle" / "card.md").read_text(encoding="utf-8")
    assert not (finetuned / "checkpoint").exists()


def test_a_finished_run_is_kept(finetuned, tiny_run, data):
    told: list[str] = []
    columns = Columns("sms", "spam", {"1": "flagged", "0": "not_flagged"})
    outcome = finetune([str(data)], finetuned, columns, bundle=tiny_run / "bundle", tell=told.append)
    assert told == [f"{finetuned}: finished before, kept; --fresh replaces it"]
    assert outcome.promote
    other = Columns("sms", "spam", {"1": "pay_to_stop", "0": "ordinary"})
    with pytest.raises(
        ConfigError,
        match=r"was begun with other data, columns, bundle, seed or replay .*--fresh, or name another --out",
    ):
        finetune([str(data)], finetuned, other, bundle=tiny_run / "bundle")


def test_the_shares_of_lawful_messages_are_those_that_the_incumbent_was_last_calibrated_by(
    bundle, corpus, tmp_path, monkeypatch
):
    last = {"lawful_rate": 0.01, "lawful_loss": 0.003}
    first = dict.fromkeys(last, 0.1)
    read, found = read_bundle(bundle), []
    monkeypatch.setattr(run, "tune_prefilter", lambda weights, *_: weights)
    monkeypatch.setattr(run, "_rates", lambda *_: (0.02, 0.01))
    monkeypatch.setattr(run, "_passed", lambda *_: (0.5,))
    monkeypatch.setattr(run, "pack_finetuned", lambda *given: found.append(given[3]))
    for provenance in ({"recipe": last}, {"recipe": first, "calibrated": {"recipe": last}}, {}):
        told = replace(read, manifest=read.manifest.model_copy(update={"provenance": provenance}))
        monkeypatch.setattr(run, "read_bundle", lambda _, told=told: told)
        run._pack(bundle, corpus, tmp_path, {})
    assert [(each.lawful_rate, each.lawful_loss) for each in found] == [(0.01, 0.003), (0.01, 0.003), (0.001, 0.002)]
    assert {(each.review_rate, each.block_rate, each.passed) for each in found} == {(0.02, 0.01, (0.5,))}


def test_a_run_is_begun_with_its_replay(bundle, corpus, data, tmp_path, monkeypatch):
    begun = []

    def open_run(_, given, **__):
        begun.append(given)
        raise ConfigError("seen")

    monkeypatch.setattr(run, "open_run", open_run)
    columns = Columns("sms", "spam", {"1": "flagged", "0": "not_flagged"})
    for replay in (None, corpus):
        with pytest.raises(ConfigError, match="seen"):
            finetune([str(data)], tmp_path / "out", columns, bundle=bundle, replay=replay)
    assert begun[1] == {**begun[0], "replay": store.fingerprint_of(corpus)}
    assert "replay" not in begun[0]


def test_a_folder_of_something_else_is_never_touched(tmp_path, data, tiny_run):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    columns = Columns("sms", "spam", {"1": "flagged", "0": "not_flagged"})
    for fresh in (False, True):
        with pytest.raises(
            ConfigError, match="is there and holds no fine-tuning; name another --out, or remove it yourself"
        ):
            finetune([str(data)], tmp_path / "mine", columns, bundle=tiny_run / "bundle", fresh=fresh)
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_groups_that_the_incumbent_was_trained_on_are_trained_on():
    texts = [f"第{i}条" for i in range(20)]
    placed = corpus._shares(list(range(20)), texts, known={0, 1, 2})
    assert placed[:3] == ["train"] * 3
    assert Counter(placed) == {"train": 14, "test": 4, "calibration": 2}


def test_a_group_goes_to_one_side_as_a_whole():
    placed = corpus._shares([0] * 10 + list(range(10, 20)), [f"第{i}条" for i in range(20)], known=set())
    assert len(set(placed[:10])) == 1
