import os
from hashlib import sha256
from pathlib import Path

import pytest

from jingyin.model.errors import ConfigError, InputError, JingyinError
from jingyin.model.files import Run, atomic_file, atomic_folder, file_sha256, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_file(path) as file:
        file.write(b"one")
        assert names(tmp_path) == ["_a.txt.writing"]
    with pytest.raises(ZeroDivisionError, match="division"), atomic_file(path) as file:
        file.write(b"two" * (1 // 0))
    assert names(tmp_path) == ["a.txt"]
    assert path.read_bytes() == b"one"


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("one", "two"):
        with atomic_folder(out) as draft:
            (draft / content).write_text(content)
        assert names(out) == [content]
    with pytest.raises(ZeroDivisionError, match="division"), atomic_folder(out) as draft:
        (draft / "three").write_text(str(1 // 0))
    assert (names(tmp_path), names(out)) == (["out"], ["two"])


def test_a_folder_that_cant_be_put_in_place_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), atomic_folder(out):
        monkeypatch.setattr(Path, "replace", full)
    assert (names(tmp_path), names(out)) == (["out"], ["old"])


def test_json_is_readable_and_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"签": [1]})
    data = (tmp_path / "a.json").read_bytes()
    assert data.decode() == '{\n "签": [\n  1\n ]\n}\n'
    assert file_sha256(tmp_path / "a.json") == sha256(data).hexdigest()


def test_a_run_resumes_with_the_same_facts_and_keeps_its_result(tmp_path: Path) -> None:
    out, facts = tmp_path / "deep" / "run", {"seed": 1, "inputs": ("a", "b")}
    with Run.open(out, facts, done="metrics.json") as run:
        assert run.result is None
        (out / "step-1").touch()
    with Run.open(out, facts, done="metrics.json") as run:
        assert run.result is None
        assert (out / "step-1").exists()
        run.finish({"loss": 0.5})
    with Run.open(out, facts, done="metrics.json") as run:
        assert run.result == {"loss": 0.5}
    assert names(out) == ["_begun.json", "_lock", "metrics.json", "step-1"]


def test_other_facts_are_refused_by_name_and_replaced_on_request(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Run.open(out, {"seed": 1, "rows": 5}, done="done.json") as run:
        (out / "checkpoint").mkdir()
        run.finish({})
    with pytest.raises(InputError, match="holds a run with other seed, model; name another output"):
        Run.open(out, {"seed": 2, "rows": 5, "model": "x"}, done="done.json").__enter__()
    with Run.open(out, {"seed": 2}, done="done.json", fresh=True) as run:
        assert run.result is None
        assert names(out) == ["_begun.json", "_lock"]
    with Run.open(out, {"seed": 2}, done="done.json"):
        pass


def test_a_kill_while_a_run_is_replaced_leaves_it_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with Run.open(out, {"seed": 1}, done="done.json") as run:
        (out / "a").touch()
        run.finish({})
    unlinked = []

    def killed(path: Path, missing_ok: bool = False) -> None:
        if unlinked:
            raise KeyboardInterrupt
        unlinked.append(path.name)
        os.unlink(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(Path, "unlink", killed)
        Run.open(out, {"seed": 2}, done="done.json", fresh=True).__enter__()
    assert unlinked == ["done.json"]
    with Run.open(out, {"seed": 1}, done="done.json") as run:
        assert run.result is None


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=r"is not empty and holds no earlier run \(1 other files\)"):
            Run.open(tmp_path, {}, done="done.json", fresh=fresh).__enter__()
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        Run.open(tmp_path / "thesis.txt", {}, done="done.json").__enter__()
    assert names(tmp_path) == ["thesis.txt"]


def test_the_second_process_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", {}, done="done.json"), pytest.raises(JingyinError, match="another run writes to"):
        Run.open(tmp_path / "run", {}, done="done.json").__enter__()
