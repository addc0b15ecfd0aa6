import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jingyin import LABELS, BundleError, Scorer
from jingyin.model.bundle import (
    FILES,
    Calibration,
    Fusion,
    Manifest,
    Missed,
    Network,
    Point,
    Prefilter,
    PrefilterExit,
    SignScale,
    Threshold,
    default_path,
    manifest_id,
    read_bundle,
    sha256,
    write_bundle,
)
from jingyin.model.labels import FLAGGED
from jingyin.model.prefilter import BUCKETS

THRESHOLD = Threshold(risk=0.5, target=0.01, bound=0.009, rows=400, false_positives=0, sources={"chat": (0, 400)})
NETWORK = Network(
    file="model.onnx", vocabulary="lexicon", max_tokens=64, fusion=Fusion(scores=(0.3, 0.1), weights=(0.6,), bias=-1.4)
)
EXIT = PrefilterExit(threshold=-2, probabilities=(1, 0, 0, 0, 0))
SIGNS = {
    "flooding": SignScale(slope=1.5, bias=-0.5, threshold=0.6, precision=0.92, found=40),
    "exposure": SignScale(slope=1.0, bias=0.0, threshold=0.9, precision=0.0, found=0),
}
PARTS = {
    "labels": LABELS,
    "review": THRESHOLD,
    "block": THRESHOLD,
    "calibration": Calibration(ece_before=0.03, ece_after=0.01, rows=400),
    "prefilter": Prefilter(ordinary=EXIT, lawful=EXIT),
    "networks": (NETWORK,),
    "discount": 1.0,
    "provisional": Fusion(scores=(0.2, 0.5), weights=(), bias=-3.0),
    "curve": (Point(risk=0.5, rate=0.0, bound=0.007, recall=0.8),),
    "passed": (0.2,),
    "loss": {"in corpus": Missed(lost=0, flagged=50, bound=0.06)},
    "provenance": {"command": "made by a test"},
}
ALL_FILES = (*FILES, "model.onnx")
WEIGHTS = np.zeros((2, BUCKETS), np.float16)
WEIGHTS[:, :2] = [[0.5, -1], [2, 0]]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose network and tokenizer are stand-ins: reading checks hashes, not contents."""
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json", "lexicon.txt", "card.md"):
        (folder / name).write_text(f"stand-in for {name}", encoding="utf-8")
    golden = '[{"file": "model.onnx", "ids": [2, 9, 3], "logits": [1, 0, 0, 0, 0]}]'
    (folder / "golden.json").write_text(golden, encoding="utf-8")
    np.savez_compressed(folder / "prefilter.npz", weights=WEIGHTS)
    write_bundle(folder, PARTS)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The bundle in the package, its networks linked rather than copied."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in (*read_bundle(default_path()).manifest.files, "manifest.json"):
        if name.endswith(".onnx"):
            (folder / name).symlink_to(default_path() / name)
        else:
            shutil.copyfile(default_path() / name, folder / name)
    return folder


def parts_of(bundle: Path) -> dict[str, object]:
    content = read_bundle(bundle).manifest.model_dump()
    return {key: value for key, value in content.items() if key not in ("format_version", "id", "files")}


def change_manifest(bundle: Path, **changes: object) -> None:
    content = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")


def refuses(bundle: Path, message: str) -> None:
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        read_bundle(bundle)


def test_what_is_written_is_read(bundle):
    read = read_bundle(bundle)
    assert read.manifest.review == THRESHOLD
    assert read.manifest.labels == LABELS
    assert read.manifest.networks == (NETWORK,)
    assert (read.golden[0].file, read.golden[0].ids) == ("model.onnx", [2, 9, 3])
    assert np.array_equal(read.prefilter_weights, WEIGHTS)
    assert read.prefilter_weights.dtype == np.float32
    assert set(read.manifest.files) == set(ALL_FILES)


def test_signs_keep_their_order(bundle):
    assert read_bundle(bundle).manifest.signs == {}
    for signs in (SIGNS, dict(reversed(SIGNS.items()))):
        write_bundle(bundle, {**PARTS, "signs": signs})
        assert list(read_bundle(bundle).manifest.signs.items()) == list(signs.items())


def test_the_id_is_a_hash_of_all_the_rest(bundle):
    content = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert content["id"] == manifest_id(content)
    assert re.fullmatch("[0-9a-f]{16}", content["id"])
    assert manifest_id({**content, "passed": [0.3]}) != content["id"]
    assert write_bundle(bundle, PARTS).id == content["id"]


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file(bundle, name):
    (bundle / name).unlink()
    refuses(bundle, f"bundle small has no {name}; copy the whole folder again or export it anew")


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_damaged_file(bundle, name):
    wanted = sha256((bundle / name).read_bytes())[:12]
    (bundle / name).write_bytes(b"other")
    refuses(
        bundle,
        f"{name} of bundle small has sha256 {sha256(b'other')[:12]}, the manifest wants {wanted}: "
        "the file is damaged or was changed; copy the bundle again or export it anew",
    )


def test_no_bundle_at_all(tmp_path):
    wanted = "is not a bundle: it has no manifest.json; name a folder that `jingyin train` wrote (RUN/bundle)"
    refuses(tmp_path, f"{tmp_path} {wanted}")
    gone = "is not a bundle: it does not exist; name a folder that `jingyin train` wrote (RUN/bundle)"
    refuses(tmp_path / "gone", f"{tmp_path / 'gone'} {gone}")
    (tmp_path / "file").touch()
    refuses(tmp_path / "file", f"{tmp_path / 'file'} {wanted}")


@pytest.mark.parametrize("version", [0, 1, 10, 12, None, "11"])
def test_another_format_version(bundle, version):
    change_manifest(bundle, format_version=version)
    refuses(
        bundle,
        f"bundle small has format version {version!r}, this jingyin reads 11; install the jingyin that "
        "wrote it, or make another: jingyin finetune MESSAGES, or jingyin train RECIPE...",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"review": {**THRESHOLD.model_dump(), "risk": 0.01}}, "was changed after export; export the bundle anew"),
        ({"note": "hello"}, "can't be read (ValidationError); export it anew"),
        ({"files": {"extra.txt": "0"}}, "lists missing or unknown files (extra.txt); export it anew"),
    ],
)
def test_a_changed_manifest(bundle, changes, message):
    files = {**read_bundle(bundle).manifest.files, **changes.get("files", {})}
    change_manifest(bundle, **{**changes, "files": files})
    refuses(bundle, f"manifest.json of bundle small {message}")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "AttributeError"),
        ('{"format_version": 11}', "ValidationError"),
        ("\xff", "JSON"),
    ],
)
def test_a_manifest_that_is_none(bundle, content, error):
    (bundle / "manifest.json").write_text(content, encoding="utf-8")
    wanted = rf"^manifest\.json of bundle small can't be read \({error}\w*\); export it anew$"
    with pytest.raises(BundleError, match=wanted):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("golden.json", b"[{", "JSONDecodeError"),
        ("golden.json", b"3", "TypeError"),
        ("golden.json", b'[{"ids": "x"}]', "ValidationError"),
        ("prefilter.npz", b"", "EOFError"),
        ("prefilter.npz", b"PK\x03\x04 no zip", "BadZipFile"),
        ("prefilter.npz", b"\x80\x04N.", "ValueError"),  # a pickle, which is not run
    ],
)
def test_parts_that_were_broken_before_they_were_hashed(bundle, name, content, error):
    (bundle / name).write_bytes(content)
    write_bundle(bundle, PARTS)
    refuses(bundle, f"bundle small has unreadable parts ({error}); export it anew")


@pytest.mark.parametrize("shape", [(BUCKETS,), (1, BUCKETS), (2, 4), (3, BUCKETS)])
def test_a_prefilter_of_another_shape(bundle, shape):
    np.savez_compressed(bundle / "prefilter.npz", weights=np.zeros(shape, np.float16))
    write_bundle(bundle, PARTS)
    refuses(bundle, f"prefilter.npz of bundle small has weights of shape {shape}; wanted (2, 524288); export it anew")


@pytest.mark.parametrize("name", ["ordinary", "lawful"])
@pytest.mark.parametrize("probabilities", [(), (0.5, 0.5), (0.2,) * 6])
def test_a_stop_without_a_probability_for_each_label(bundle, name, probabilities):
    exit_ = EXIT.model_copy(update={"probabilities": probabilities})
    prefilter = Prefilter(ordinary=EXIT, lawful=EXIT).model_copy(update={name: exit_})
    write_bundle(bundle, {**PARTS, "prefilter": prefilter})
    refuses(
        bundle,
        f"manifest.json of bundle small has {len(probabilities)} probabilities for {name} messages; "
        "wanted 5, one for each label; export it anew",
    )


def with_networks(*files: str) -> dict[str, object]:
    """Return PARTS with a cascade of these networks."""
    return {**PARTS, "networks": tuple(NETWORK.model_copy(update={"file": file}) for file in files)}


def test_a_cascade_of_three_networks(bundle):
    for name in ("tiny.onnx", "verifier.onnx", "pieces.json"):
        (bundle / name).write_text(f"stand-in for {name}", encoding="utf-8")
    tiny, model = (NETWORK.model_copy(update={"file": file}) for file in ("tiny.onnx", "model.onnx"))
    pieces = NETWORK.model_copy(update={"file": "verifier.onnx", "vocabulary": "pieces"})
    written = write_bundle(bundle, {**PARTS, "networks": (tiny, model, pieces)})
    assert set(written.files) == {*ALL_FILES, "tiny.onnx", "verifier.onnx", "pieces.json"}
    assert [each.file for each in read_bundle(bundle).manifest.networks] == ["tiny.onnx", "model.onnx", "verifier.onnx"]
    (bundle / "pieces.json").unlink()
    refuses(bundle, "bundle small has no pieces.json; copy the whole folder again or export it anew")


@pytest.mark.parametrize("files", [("model.onnx", "tiny.onnx"), ("../other.onnx",), ("model.onnx", "model.onnx")])
def test_networks_that_no_bundle_has(bundle, files):
    wanted = r"^a bundle's networks are some of tiny\.onnx, model\.onnx, verifier\.onnx, in this order"
    with pytest.raises(BundleError, match=wanted):
        write_bundle(bundle, with_networks(*files))


def test_without_a_network(bundle):
    with pytest.raises(ValueError, match="at least 1 item"):
        write_bundle(bundle, with_networks())


def test_a_file_that_no_bundle_has(bundle):
    (bundle / "notes.txt").touch()
    refuses(bundle, "bundle small holds notes.txt, which no bundle has; remove it, or copy it anew")


def test_writing_wants_every_file(bundle):
    (bundle / "prefilter.npz").unlink()
    (bundle / "card.md").unlink()
    wanted = r"^bundle small lacks card\.md, prefilter\.npz; write them before the manifest$"
    with pytest.raises(BundleError, match=wanted):
        write_bundle(bundle, PARTS)


def test_golden_messages_are_checked_on_this_machine(copy):
    parts = parts_of(copy)
    golden = json.loads((copy / "golden.json").read_text(encoding="utf-8"))
    golden[1]["logits"][0] += 0.6
    (copy / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    manifest = write_bundle(copy, parts)
    wanted = rf"^golden message 1 of bundle {manifest.id} is off by 0\.[4-8]\d\d on this machine, at most 0\.25 was"
    with pytest.raises(BundleError, match=wanted):
        Scorer.load(copy)


def test_a_network_without_a_golden_message_is_refused(copy):
    parts = parts_of(copy)
    golden = json.loads((copy / "golden.json").read_text(encoding="utf-8"))
    file = parts["networks"][0]["file"]
    kept = [message for message in golden if message["file"] != file]
    (copy / "golden.json").write_text(json.dumps(kept), encoding="utf-8")
    manifest = write_bundle(copy, parts)
    with pytest.raises(BundleError, match=rf"^bundle {manifest.id} has no golden message for {re.escape(file)}, so"):
        Scorer.load(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", r"^onnxruntime can't load model\.onnx \(\w+\); export the bundle again, or install"),
        ("tokenizer.json", r"^tokenizer\.json can't be read as a tokenizer"),
    ],
)
def test_a_scorer_refuses_what_it_cannot_load(copy, name, message):
    parts = parts_of(copy)
    (copy / name).unlink()
    (copy / name).write_bytes(b"{}")
    write_bundle(copy, parts)
    with pytest.raises(BundleError, match=message):
        Scorer.load(copy)


def test_labels_without_a_flagged_one(bundle):
    labels = ("ordinary", "lawful_collection", "debt_threat", "spam", "other_threat")
    manifest = write_bundle(bundle, {**PARTS, "labels": labels})
    refuses(
        bundle,
        f"bundle {manifest.id} has labels {', '.join(labels)}, but the risk also needs pay_to_stop: train one on these "
        "labels",
    )


def test_a_bundle_that_flags_other_labels(bundle, monkeypatch):
    labels, exit_ = (*LABELS, "prize_scam"), EXIT.model_copy(update={"probabilities": (1, 0, 0, 0, 0, 0)})
    six = {**PARTS, "labels": labels, "prefilter": Prefilter(ordinary=exit_, lawful=exit_)}
    five = read_bundle(bundle).manifest
    assert five.flagged_labels == FLAGGED
    assert "flagged_labels" not in json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    monkeypatch.setattr("jingyin.model.bundle.FLAGGED", (*FLAGGED, "other_threat"))
    now = "this jingyin debt_threat, pay_to_stop"
    then = "its thresholds are of another risk; use the jingyin that wrote it, or train a bundle with this one"
    refuses(bundle, f"bundle {five.id} flags debt_threat, pay_to_stop, {now}, other_threat: {then}")
    monkeypatch.setattr("jingyin.model.bundle.FLAGGED", (*FLAGGED, "prize_scam"))
    manifest = write_bundle(bundle, six)
    assert read_bundle(bundle).manifest.flagged == [2, 3, 5]
    monkeypatch.undo()
    refuses(bundle, f"bundle {manifest.id} flags debt_threat, pay_to_stop, prize_scam, {now}: {then}")


def test_a_copy_loads_under_its_own_id(copy):
    changed = write_bundle(copy, {**parts_of(copy), "provenance": {"command": "a copy"}})
    assert isinstance(changed, Manifest)
    assert Scorer.load(str(copy)).score("你好").bundle == changed.id != read_bundle(default_path()).manifest.id


def test_the_bundle_in_the_package_is_whole_and_small():
    read = read_bundle(default_path())
    assert sum(file.stat().st_size for file in read.path.iterdir()) <= 64 << 20
    assert [each.file for each in read.manifest.networks] == ["tiny.onnx", "model.onnx", "verifier.onnx"]
    assert read.manifest.review.risk <= read.manifest.block.risk
    assert read.manifest.review.bound <= read.manifest.review.target
    assert set(read.manifest.loss) == {"in corpus", "on unseen situations"}
    for network in read.manifest.networks:
        assert sum(golden.file == network.file for golden in read.golden) >= len(LABELS)
