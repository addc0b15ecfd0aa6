import json
from collections import Counter, defaultdict
from random import Random

import pyarrow.parquet as pq
import pytest
from tests.json_lines import read, write

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import FLAGGED
from jingyin.train.corpus import rows as signs
from jingyin.train.corpus import store
from jingyin.train.corpus.build import build, group_records, source_key
from jingyin.train.corpus.check import check
from jingyin.train.corpus.company import label_in
from jingyin.train.corpus.perturb import HELD_OUT, TRAINING
from jingyin.train.corpus.rows import Record
from jingyin.train.corpus.slots import SLOT
from jingyin.train.corpus.stats import stats
from jingyin.train.corpus.store import Row, load_recipe

HAN = "春夏秋冬风花雪月山水云天地人日星河海石木火土金草虫鱼鸟马牛羊米面茶酒衣书琴棋画诗歌灯门窗"


def sentence(rng: Random) -> str:
    return "".join(rng.choices(HAN, k=rng.randint(10, 30)))


def row(text: str, label: str = "ordinary", **more: str) -> dict[str, str]:
    return {"text": text, "label": label, "family": "f", "voice": "plain", **more}


@pytest.fixture
def corpus(tmp_path):
    """A recipe over 400 authored rows, of them 20 minimal pairs, and 100 public ones of ten users."""
    rng = Random(1)
    rows = []
    for i in range(180):
        rows.append(row("{name}，" + sentence(rng) + "{amount}", ("ordinary", "debt_threat")[i % 2]))
        rows.append(row(sentence(rng), ("pay_to_stop", "lawful_collection", "other_threat")[i % 3]))
    for i in range(20):
        start = sentence(rng)
        rows.append(row(start + "吧", "ordinary", pair=f"p{i}"))
        rows.append(row(start + "哼", "debt_threat", pair=f"p{i}"))
    write(tmp_path / "authored" / "a.jsonl", rows)
    write(tmp_path / "nus.jsonl", [{"text": sentence(rng), "user": f"u{i % 10}"} for i in range(100)])
    recipe = tmp_path / "corpus.yaml"
    recipe.write_text(
        f"authored: {tmp_path}/authored\npublic: [{{kind: nus, path: {tmp_path}/nus.jsonl, weight: 0.5}}]\n"
    )
    return recipe


def built(corpus, more="", out="out"):
    """Build with more in the recipe; return the rows of each split."""
    corpus.write_text(corpus.read_text() + more)
    build(corpus, corpus.parent / out)
    return store.read(corpus.parent / out)


def test_build_is_deterministic_and_passes_its_check(corpus, tmp_path):
    first = build(corpus, tmp_path / "one")
    assert build(corpus, tmp_path / "two") == first == store.fingerprint(store.read(tmp_path / "one"))
    assert build(corpus, tmp_path / "one") == first  # a corpus is replaced
    names = ["README.md", "calibration.parquet", "corpus.json", "test.parquet", "train.parquet", "validation.parquet"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == names
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert check([tmp_path / "one", tmp_path / "two"]) == []
    assert first in (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    manifest = json.loads((tmp_path / "one" / "corpus.json").read_text(encoding="utf-8"))
    assert manifest["fingerprint"] == first
    assert "| debt_threat | f |" in stats(tmp_path / "one")


def test_what_a_test_writer_wrote_is_test_only_with_all_that_is_grouped_with_it(corpus, tmp_path):
    start = sentence(Random(9))
    mine = [row(sentence(Random(seed)), writer="w9") for seed in range(100, 120)]
    pair = [row(start + "吧", pair="q", writer="w9"), row(start + "哼", "debt_threat", pair="q", writer="w1")]
    write(tmp_path / "authored" / "b.jsonl", [*mine, *pair])
    splits = built(corpus, "test_writers: [w9]\n")
    assert {split for split, rows in splits.items() for r in rows if r.writer in ("w1", "w9")} == {"test"}
    assert sum(r.writer in ("w1", "w9") for r in splits["test"]) == 22
    assert splits["train"]


def test_labelled_messages_of_one_s_own_take_the_place_of_authored_ones_like_them(corpus, tmp_path):
    before = built(corpus, out="before")
    templates = [row.template for split in store.SPLITS for row in before[split] if row.source == "authored"]
    like = [SLOT.sub("", template) + "嗯" for template in templates[::2]]
    long = "，".join(sentence(Random(seed)) for seed in range(200, 230))
    own = [{"text": text, "label": "pay_to_stop"} for text in [*like, long, long + "啊"]]
    write(tmp_path / "own.jsonl", own)
    splits = "{train: 0.7, validation: 0.1, calibration: 0.1, test: 0.1}"
    own_only = f"public: [{{kind: own, path: {tmp_path}/own.jsonl, splits: {splits}}}]"
    corpus.write_text(f"authored: {tmp_path}/authored\n{own_only}\n")
    after = built(corpus)
    placed = {row.template: split for split in store.SPLITS for row in after[split] if row.source == "own"}
    assert placed.keys() == {each["text"] for each in own}
    assert list(placed.values()).count("train") > len(own) / 2
    assert placed[long] == placed[long + "啊"]
    left = [row.template for split in store.SPLITS for row in after[split] if row.source == "authored"]
    assert not set(templates[::2]) & set(left)


def test_an_own_message_like_one_side_of_a_minimal_pair_moves_the_other_to_no_other_split(corpus, tmp_path):
    def placed(splits: dict[str, list[Row]]) -> dict[str, tuple[str, str]]:
        return {r.template: (split, r.group) for split, rows in splits.items() for r in rows if r.source == "authored"}

    rng = Random(4)
    firsts, seconds = ([sentence(rng) for _ in range(40)] for _ in range(2))
    sides = [(firsts, "ordinary"), (seconds, "debt_threat")]
    pairs = [row(text, label, pair=f"q{i}") for side, label in sides for i, text in enumerate(side)]
    write(tmp_path / "authored" / "b.jsonl", pairs)
    before = placed(built(corpus, out="before"))
    write(tmp_path / "own.jsonl", [{"text": text, "label": "ordinary"} for text in firsts])
    corpus.write_text(f"authored: {tmp_path}/authored\npublic: [{{kind: own, path: {tmp_path}/own.jsonl}}]\n")
    after = placed(built(corpus))
    assert after.keys() == before.keys() - set(firsts)
    assert after == {template: before[template] for template in after}


@pytest.mark.parametrize("seed", range(6))
def test_near_copies_that_are_much_of_a_label_are_trained_on(corpus, tmp_path, seed):
    rng = Random(seed)
    copies = [{"text": f"{name}先生再不还钱就把你的照片贴到小区{seed}", "label": "debt_threat"} for name in HAN[:20]]
    others = [{"text": sentence(rng), "label": ("debt_threat", "ordinary")[i > 20]} for i in range(200)]
    write(tmp_path / "own.jsonl", [*copies, *others])
    splits = "{train: 0.7, validation: 0.1, calibration: 0.1, test: 0.1}"
    corpus.write_text(
        f"seed: {seed}\nauthored: {tmp_path}/authored\n"
        f"public: [{{kind: own, path: {tmp_path}/own.jsonl, splits: {splits}}}]\n"
    )
    splits = built(corpus)
    assert {row.template for row in splits["train"]} > {each["text"] for each in copies}
    assert any(row.source == "own" for row in splits["test"])


def test_a_recipe_wants_so_many_messages_of_each_kind_and_split_and_all_of_one_s_own(corpus, tmp_path):
    write(tmp_path / "own.jsonl", [{"text": sentence(Random(seed)), "label": "ordinary"} for seed in range(300, 340)])
    public = f"public: [{{kind: nus, path: {tmp_path}/nus.jsonl}}, {{kind: jsonl, path: {tmp_path}/own.jsonl}}]"
    corpus.write_text(f"authored: {tmp_path}/authored\n{public}\n")
    build(corpus, tmp_path / "whole")
    corpus.write_text(
        f"authored: {tmp_path}/authored\n{public}\nmost_authored: &most {{train: 50, test: 0}}\nmost_public: *most\n"
    )
    build(corpus, tmp_path / "out")
    whole, few = (store.read(tmp_path / name) for name in ("whole", "out"))
    for split in store.SPLITS:
        for source in ("authored", "nus"):
            found, others = ({row.template for row in rows[split] if row.source == source} for rows in (few, whole))
            assert found <= others
            assert len(found) == min(len(others), {"train": 50, "test": 0}.get(split, len(others)))
        own = [sum(row.source == "jsonl" and not row.evasion for row in rows[split]) for rows in (few, whole)]
        assert own[0] == own[1]


def test_rows(corpus):
    splits = built(corpus)
    rows = [r for found in splits.values() for r in found]
    assert len({r.template for r in rows}) == 500
    assert not any(SLOT.search(r.text) for r in rows)
    assert not any(r.evasion for split in store.SPLITS[1:] for r in splits[split])
    weights: dict[str, set[float]] = defaultdict(set)
    for r in rows:
        weights[r.source].add(r.weight)
        assert r.evasion not in HELD_OUT
    assert weights == {"authored": {1.0}, "nus": {0.5}}  # of each row: one of a message's rows is shown an epoch
    slotted = Counter(r.template for r in splits["train"] if "{amount}" in r.template and not r.evasion)
    assert set(slotted.values()) == {2}


def test_disguises_are_as_common_on_every_label(corpus, tmp_path):
    build(corpus, tmp_path / "out")
    for label in ("ordinary", "debt_threat"):
        rows = [r for r in store.read(tmp_path / "out")["train"] if r.label == label]
        assert sum(r.evasion != "" for r in rows) / len(rows) == pytest.approx(1 / 3, abs=0.06)


def test_a_source_that_is_test_only_is_kept_out(corpus, tmp_path):
    write(tmp_path / "weibo.jsonl", [{"text": sentence(Random(i))} for i in range(500, 520)])
    more = f"{{kind: weibo, path: {tmp_path}/weibo.jsonl, splits: {{test: 1}}}}"
    corpus.write_text(corpus.read_text().replace("public: [", f"public: [{more}, "))
    splits = built(corpus)
    assert Counter(split for split, rows in splits.items() for r in rows if r.source == "weibo") == {"test": 20}


def test_framed_copies_are_of_training_messages_and_of_every_label(corpus):
    splits = built(corpus, "framed: 0.5\n")
    framed = {r.template: r.label for r in splits["train"] if r.evasion == "framed"}
    authored = {r.template: r.label for r in splits["train"] if r.source == "authored"}
    assert 0.4 < len(framed) / len(authored) < 0.6
    assert framed.items() <= authored.items()
    assert set(framed.values()) == set(authored.values())
    assert not [r for split in store.SPLITS[1:] for r in splits[split] if r.evasion]


def test_restyled_copies_are_of_all_training_messages_and_only_of_them(corpus):
    splits = built(corpus, "restyled: 2\nevasion: {share: 0}\n")
    copies = Counter(r.template for r in splits["train"] if r.evasion == "restyled")
    sources = {r.template: r.source for r in splits["train"]}
    assert dict(copies) == {t: 2 if s == "authored" else 1 for t, s in sources.items()}
    assert not [r for split in store.SPLITS[1:] for r in splits[split] if r.evasion]


def test_training_messages_stand_in_company_of_messages_of_the_training_split(corpus):
    splits = built(corpus, "company: 2\nevasion: {share: 0}\n")
    copies = [r for r in splits["train"] if r.evasion and not r.pair.endswith(":company")]
    plain = [r for r in splits["train"] if not r.evasion]
    assert not [r for split in ("validation", "test") for r in splits[split] if r.evasion]
    assert {r.evasion for r in copies} == {"company:lawful", "company:chat"}
    labels = {r.template: r.label for r in plain}
    for r in copies:
        kind = r.evasion.removeprefix("company:")
        assert r.label == label_in(labels[r.template], kind)
        assert r.signs == "?"
        assert r.text[r.start : r.end] in [each.text for each in plain if each.template == r.template]
        assert r.beside == {"lawful": "lawful_collection", "chat": "ordinary"}[kind]
    by_source = Counter(r.source for r in copies)
    messages = Counter({r.template: r.source for r in plain}.values())
    assert by_source["nus"] / messages["nus"] == pytest.approx(2 / 3, abs=0.35)  # of ads and service there are none
    assert by_source["authored"] / messages["authored"] == pytest.approx(1.1, abs=0.35)


def test_both_sides_of_a_minimal_pair_stand_among_the_same_lawful_notices(corpus):
    train = built(corpus, "company: 2\nevasion: {share: 0}\n")["train"]
    sides: dict[str, list[store.Row]] = defaultdict(list)
    for r in train:
        if r.pair.endswith(":company"):
            assert (r.evasion, r.beside, r.template) == ("company:lawful", "lawful_collection", r.text)
            sides[r.pair].append(r)
    assert len(sides) == len({r.pair for r in train if r.pair and not r.evasion}) > 5
    for one, other in sides.values():
        assert one.text[: one.start] + one.text[one.end :] == other.text[: other.start] + other.text[other.end :]
        assert {one.label, other.label} == {"lawful_collection", "debt_threat"}


def test_threats_are_handed_on_and_reported_as_pairs_and_innocents_framed(corpus):
    train = built(corpus, "reported: 1\nevasion: {share: 0}\n")["train"]
    framed = [r for r in train if r.evasion]
    by_pair: dict[str, list[store.Row]] = {}
    for r in framed:
        assert (r.template, r.beside) == (r.text, "")  # a message of its own, with one label
        by_pair.setdefault(r.pair, []).append(r)
    threats = {r.group for r in train if r.label in FLAGGED and not r.evasion}
    assert {r.group for r in framed} > threats
    assert all(r.label not in FLAGGED for r in framed if r.group not in threats)
    of_threats = [rows for rows in by_pair.values() if any(r.label in FLAGGED for r in rows)]
    # A message has a pair of its own, also where several share a group.
    assert len(of_threats) == len({r.template for r in train if r.label in FLAGGED and not r.evasion})
    for rows in of_threats:
        assert [(r.evasion, r.label in FLAGGED) for r in rows] == [
            ("company:passed_on", True),
            ("company:report", False),
        ]


def test_a_message_has_at_most_so_many_copies_and_those_in_frames_besides(corpus):
    settings = "draws: 1\ncompany: 4\ndressed: 1\nreported: 1\nevasion: {share: 1}\n"
    every, some = (
        Counter((r.template, r.source) for r in built(corpus, more)["train"] if r.template != r.text or not r.evasion)
        for more in (settings, "copies: 2\n")
    )
    most = {"authored": 3, "nus": 2}
    assert {key: min(most.get(key[1], 1), count) for key, count in every.items()} == some
    assert max(every.values()) > 3


def test_an_authored_calibration_message_comes_once_more_in_company_of_its_own_split(corpus):
    settings = "company: 2\nsplits: {train: 0.2, validation: 0.0, calibration: 0.8, test: 0.0}\n"
    rows = built(corpus, settings)["calibration"]
    plain = {r.template: r for r in rows if not r.evasion}
    copies = [r for r in rows if r.evasion]
    assert len(copies) > 20
    assert len({r.template for r in copies}) == len(copies)
    assert {r.source for r in copies} == {"authored"}
    assert all(plain[r.template].text in r.text and r.evasion.startswith("company:") for r in copies)


def test_signs_go_with_every_copy_and_the_card_counts_them(corpus, tmp_path, monkeypatch):
    templates = [each["text"] for each in read(tmp_path / "authored" / "a.jsonl")]
    lines = [{"row": signs.row_id(text), "signs": ["visit", "joke"]} for text in templates[:30]]
    write(tmp_path / "signs.jsonl", lines)
    monkeypatch.setattr(signs, "ANNOTATED", tmp_path / "signs.jsonl")
    monkeypatch.setattr(signs, "_annotated", signs._annotated.__wrapped__)
    build(corpus, tmp_path / "out")
    rows = [r for found in store.read(tmp_path / "out").values() for r in found]
    assert {r.signs for r in rows if r.template in templates[:30]} == {"visit,joke"}
    assert {r.signs for r in rows if r.template not in templates[:30]} == {"?"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "People annotated 30 messages." in " ".join(card.split())
    assert "People read the signs of 30 of 500 messages:" in card


def test_the_key_of_a_corpus_changes_with_what_it_is_made_of(corpus, tmp_path, monkeypatch):
    keys = [source_key(corpus), source_key(corpus)]
    for name in ("ANNOTATED", "OF_FAMILIES"):
        other = tmp_path / name
        other.write_bytes(getattr(signs, name).read_bytes() + b"\n")
        with monkeypatch.context() as patch:
            patch.setattr(signs, name, other)
            keys.append(source_key(corpus))
    write(tmp_path / "authored" / "b.jsonl", [row("又一条")])
    keys.append(source_key(corpus))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_pairs_and_users_stay_on_one_side(corpus, tmp_path):
    splits = built(corpus)
    home = {r.template: split for split, rows in splits.items() for r in rows}
    for template, split in home.items():
        if template.endswith("吧"):
            assert home[template[:-1] + "哼"] == split
    pairs = defaultdict(set)
    for r in (r for rows in splits.values() for r in rows):
        pairs[r.pair].add(r.template)
    assert all(not template.endswith(("吧", "哼")) for template in pairs.pop(""))  # and a user is no pair
    assert sorted(map(len, pairs.values())) == [2] * 20
    users = defaultdict(set)
    for given in read(tmp_path / "nus.jsonl"):
        users[given["user"]].add(home[given["text"]])
    assert all(len(found) == 1 for found in users.values())
    assert len(set.union(*users.values())) > 1


def test_a_split_does_not_move_when_rows_are_added(corpus, tmp_path):
    build(corpus, tmp_path / "one")
    write(tmp_path / "authored" / "0.jsonl", [row("全新的一条消息放在最前面看看会不会挪动别的")])
    build(corpus, tmp_path / "two")
    homes = [
        {r.template: split for split, rows in store.read(tmp_path / name).items() for r in rows}
        for name in ("one", "two")
    ]
    assert all(homes[1][template] == split for template, split in homes[0].items())


def test_public_messages_like_others_are_dropped_and_authored_ones_grouped():
    def record(text, source="authored", group=""):
        return Record(text, "ordinary", "f", "plain", source, group)

    records = [
        record("明天上午十点到社区服务中心领取补贴请带证件{name}"),
        record("{surname}，明天上午十点到社区服务中心领取补贴请带好证件"),
        record("今晚一起去看新上映的电影好不好"),
        record("今晚一起去看新上映的电影好不好呀", "nus", "nus:a"),
        record("周末爬山记得带水和帽子", "nus", "nus:a"),
        record("给我带一份早饭谢谢啦", "nus", "nus:a"),
    ]
    kept, groups = group_records(records, 0.5)
    assert [r.text for r in kept] == [records[i].text for i in (0, 1, 2, 4, 5)]
    assert groups[0] == groups[1]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3


def test_a_failed_build_leaves_what_was_there(corpus, tmp_path, monkeypatch):
    build(corpus, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        build(corpus, tmp_path / "out")
    with pytest.raises(OSError, match="disk full"):
        build(corpus, tmp_path / "new")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["authored", "corpus.yaml", "nus.jsonl", "out"]


def test_a_folder_that_is_no_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="exists and is not a corpus; name a new folder"):
        build(corpus, tmp_path / "authored")


def test_a_bad_row_stops_the_build(corpus, tmp_path):
    write(tmp_path / "authored" / "b.jsonl", [row("x", "spam")])
    with pytest.raises(InputError, match=r"b\.jsonl:1: label: 'spam' is unknown"):
        build(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_errors_of_a_recipe_at_once(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "drawz: 3\ndraws: 0\nsplits: {train: 0.9}\nevasion: {families: [emoji]}\n"
        "public: [{kind: tweets, path: nowhere.txt}]\n"
    )
    with pytest.raises(ConfigError, match=r"has 6 error\(s\)") as error:
        load_recipe(recipe)
    for part in ("drawz", "draws", "add up to 0.9", "['emoji'] can't be used", "unknown kind 'tweets'", "nowhere.txt"):
        assert part in str(error.value)


def test_a_kind_that_comes_twice_is_refused(corpus, tmp_path):
    source = f"{{kind: jsonl, path: {tmp_path}/nus.jsonl, weight: WEIGHT}}"
    corpus.write_text(f"public: [{source.replace('WEIGHT', '1')}, {source.replace('WEIGHT', '3')}]\n")
    wanted = "jsonl in more than one entry; weight and splits go by kind: put the messages into"
    with pytest.raises(ConfigError, match=wanted):
        load_recipe(corpus)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("authored: typo.jsonl\n", r"typo\.jsonl does not exist; give the path of a file or folder"),
        ("a: [", r"r\.yaml is no YAML \(\w+\)"),
    ],
)
def test_a_recipe_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_the_card_names_the_families_of_the_recipe(corpus, tmp_path):
    corpus.write_text(f"{corpus.read_text()}evasion: {{families: [{TRAINING[1]}]}}\n")
    build(corpus, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"disguised copies from these families: {TRAINING[1]}." in card


def test_a_folder_tells_the_fingerprint_of_its_corpus(corpus, tmp_path):
    assert store.fingerprint_of(tmp_path) == ""
    assert build(corpus, tmp_path / "out") == store.fingerprint_of(tmp_path / "out")


def test_generated_innocents_are_ordinary_training_rows(corpus, tmp_path):
    splits = built(corpus, "nonsense: 20\neveryday: 60\n")
    found = Counter((split, r.source, r.label) for split, rows in splits.items() for r in rows)
    assert found["train", "everyday", "ordinary"] == 60
    assert found["train", "nonsense", "ordinary"] == 20
    assert {r.source for split in store.SPLITS[1:] for r in splits[split]} == {"authored", "nus"}
    assert check([tmp_path / "out"]) == []
