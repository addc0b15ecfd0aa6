from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jingyin.model.text import CleanText, clean
from jingyin.train import stages as teachers
from jingyin.train.saved import trained_weights
from jingyin.train.stages import teacher_probabilities

TEXTS = [clean(f"第{i}条") for i in range(7)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the run folders that were asked; what one says is the length of its weights' file."""
    calls: list[str] = []

    def says(run: Path, texts: list[CleanText]) -> np.ndarray:
        calls.append(run.name)
        return np.tile(np.arange(5, dtype=np.float32) * trained_weights(run).stat().st_size, (len(texts), 1))

    monkeypatch.setattr(teachers, "_of_run", says)
    return calls


def teacher(tmp_path: Path, name: str, weights: bytes) -> str:
    network = tmp_path / name / "network"
    network.mkdir(parents=True, exist_ok=True)
    (network / "model.safetensors").write_bytes(weights)
    return str(tmp_path / name)


def test_a_teacher_that_has_spoken_is_not_asked_again(tmp_path, asked):
    name = teacher(tmp_path, "one", b"x")
    first = teacher_probabilities([name], TEXTS, tmp_path / "kept")
    assert asked == ["one"]
    assert np.array_equal(teacher_probabilities([name], TEXTS, tmp_path / "kept"), first)
    assert asked == ["one"]
    assert len(list((tmp_path / "kept").iterdir())) == 1
    teacher_probabilities([name], TEXTS, tmp_path / "elsewhere")
    assert asked == ["one", "one"]


def test_it_is_asked_about_other_texts_or_the_same_in_another_order(tmp_path, asked):
    name = teacher(tmp_path, "one", b"x")
    for texts in (TEXTS, TEXTS[:6], TEXTS[::-1], TEXTS):
        assert len(teacher_probabilities([name], texts, tmp_path / "kept")) == len(texts)
    assert len(asked) == len(list((tmp_path / "kept").iterdir())) == 3


def test_it_is_asked_again_once_it_is_another(tmp_path, asked):
    name = teacher(tmp_path, "one", b"x")
    before = teacher_probabilities([name], TEXTS, tmp_path / "kept")
    trained_weights(Path(name)).write_bytes(b"xy")
    after = teacher_probabilities([name], TEXTS, tmp_path / "kept")
    assert asked == ["one", "one"]
    assert not np.allclose(before, after)


def test_outputs_are_cached_by_what_is_read_not_by_its_clean_text_alone(tmp_path):
    plain, disguised = clean("不给钱就打你"), clean("不.给.钱.就.打.你")
    assert plain.text == disguised.text

    def read(texts: Sequence[CleanText]) -> np.ndarray:
        return np.array([len(each.original) for each in texts], np.float32)

    assert [teachers._once("reader", [text], tmp_path, read)[0] for text in (plain, disguised)] == [6, 11]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_share_texts_also_where_they_are_more_than_the_texts(tmp_path, monkeypatch, count):
    texts, gathered = [clean(f"第{i}条") for i in range(count)], list[np.ndarray]()

    def read(texts: Sequence[CleanText]) -> np.ndarray:
        return np.concatenate([np.array([float(each.text[1])]) for each in texts])  # fails without texts, as predict

    def gather(part: list[np.ndarray]) -> list[np.ndarray]:
        gathered[:0] = part  # the last process comes first here
        return gathered

    monkeypatch.setattr(teachers, "gather_object", gather)
    for index in (2, 1, 0):
        state = SimpleNamespace(process_index=index, num_processes=3, is_main_process=index == 0)
        state.wait_for_everyone = lambda: None
        monkeypatch.setattr(teachers, "PartialState", lambda state=state: state)
        with nullcontext() if index == 0 else pytest.raises(FileNotFoundError):  # the first one writes the file
            assert teachers._once("reader", texts, tmp_path, read).tolist() == list(range(count))


def test_the_mean_is_of_logits_and_each_teacher_is_kept_by_itself(tmp_path, asked):
    one, three = teacher(tmp_path, "one", b"x"), teacher(tmp_path, "three", b"xxx")
    both = teacher_probabilities([one, three], TEXTS, tmp_path / "kept")
    wanted = np.exp(2.0 * np.arange(5))
    np.testing.assert_allclose(both, np.tile(wanted / wanted.sum(), (7, 1)), rtol=1e-5)
    assert both.dtype == np.float32
    teacher_probabilities([three], TEXTS, tmp_path / "kept")
    assert asked == ["one", "three"]


def test_what_was_cut_short_is_not_taken_for_what_was_said(tmp_path, asked, monkeypatch):
    name = teacher(tmp_path, "one", b"x")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(teachers.np, "save", fails)
        with pytest.raises(OSError, match="disk full"):
            teacher_probabilities([name], TEXTS, tmp_path / "kept")
    teacher_probabilities([name], TEXTS, tmp_path / "kept")
    assert asked == ["one", "one"]


def test_a_bundle_is_asked_for_what_all_of_its_networks_say(bundle, tmp_path):
    texts = [clean("明天曝光"), clean("去公园")]
    found = teacher_probabilities([str(bundle)], texts, tmp_path / "kept")
    assert found.argmax(1).tolist() == [2, 0]
    assert found.sum(1) == pytest.approx(1, abs=1e-6)
