import ast
import json
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import jingyin
from jingyin.model.bundle import default_path

ROOT = Path(__file__).parent.parent


def test_public_names() -> None:
    assert len(set(jingyin.__all__)) == len(jingyin.__all__)
    for name in jingyin.__all__:
        try:
            assert callable(getattr(jingyin, name)) or isinstance(getattr(jingyin, name), tuple)
        except jingyin.ConfigError as error:  # an extra that is not installed
            assert "pip install 'jingyin[" in str(error)  # noqa: PT017
    with pytest.raises(AttributeError, match="module 'jingyin' has no attribute 'relable'"):
        _ = jingyin.relable  # type: ignore[attr-defined]


def test_no_mutant_is_stale() -> None:
    mutants = yaml.safe_load((ROOT / "bench/data/mutants.yaml").read_text(encoding="utf-8"))
    stale = [each["name"] for each in mutants if (ROOT / each["file"]).read_text("utf-8").count(each["old"]) != 1]
    assert not stale, "their texts do not occur exactly once; update the list"
    assert all((ROOT / each["tests"].split()[0]).is_file() for each in mutants)


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        (
            "from jingyin import Scorer; assert Scorer.load().score('明天下午三点老地方见').action == 'pass'",
            "torch transformers datasets pandas jieba sklearn scipy starlette pyarrow",
        ),
        (
            "from jingyin.serve.gateways import kannel, smpp, cmpp, smgp, sgip",
            "onnxruntime numpy tokenizers pydantic",
        ),
    ],
)
def test_a_verdict_needs_no_training_package_and_a_filter_no_network(code: str, unwanted: str) -> None:
    code += f"; import sys; print(sorted({{*{unwanted.split()}}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_no_module_of_model_and_serve_needs_a_training_package() -> None:
    code = """
import sys
from importlib import import_module
from pkgutil import walk_packages
for name in ("torch", "transformers", "datasets", "pandas"):
    sys.modules[name] = None
import jingyin.model, jingyin.serve
for package in (jingyin.model, jingyin.serve):
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        if module.name == "jingyin.train.network":  # of train alone
            continue
        try:
            import_module(module.name)
        except jingyin.ConfigError as error:  # an extra that is not installed
            assert "pip install 'jingyin[" in str(error), error
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("model", "jingyin.serve jingyin.train"),
        ("serve", "jingyin.train"),
        ("serve/memory", "jingyin.serve.http jingyin.serve.cases jingyin.serve.gateways jingyin.serve.archive"),
        ("train/corpus", "jingyin.train.pack jingyin.train.evaluate jingyin.train.stages jingyin.train.pipeline"),
        ("train/pack", "jingyin.train.evaluate jingyin.train.stages jingyin.train.pipeline jingyin.train.finetune"),
    ],
)
def test_imports_go_one_way(folder: str, forbidden: str) -> None:
    files = [*(ROOT / folder).rglob("*.py")]
    trees = [(file, ast.parse(file.read_text("utf-8"))) for file in files]
    imports = [(file.name, node.module or "") for file, tree in trees for node in ast.walk(tree)
               if isinstance(node, ast.ImportFrom)]  # fmt: skip
    assert not [each for each in imports if each[1].startswith(tuple(forbidden.split()))]


@pytest.mark.parametrize("module", ["bundles", "data", "encoder", "network", "recipes", "runs", "saved", "loop"])
def test_packing_is_above_the_modules_that_it_imports(module: str) -> None:
    assert "jingyin.train.pack" not in (ROOT / f"train/{module}.py").read_text("utf-8")


def test_the_constraints_are_the_versions_of_the_default_bundle() -> None:
    lines = (ROOT / "configs" / "default" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    provenance = json.loads((default_path() / "manifest.json").read_text(encoding="utf-8"))["provenance"]
    made_with = {**provenance["versions"], **provenance["export_versions"]}
    del made_with["jingyin"]
    assert {name: pinned.get(name) for name in made_with} == {name: v.split("+")[0] for name, v in made_with.items()}
    declared = {Requirement(line).name: Requirement(line).specifier for line in requires("jingyin") or ()}
    assert all(version in declared[name] for name, version in pinned.items())


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, as `python -m build` does; offline, with the installed hatchling."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def committed(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.mark.exhaustive
def test_the_wheel_made_from_the_sdist_holds_every_file(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {f"jingyin/{name}" for name in committed("model", "train", "serve", "configs")}
    assert wanted <= held
    assert {"jingyin/__init__.py", "jingyin/py.typed"} <= held
    assert not any("__pycache__" in name for name in held)


@pytest.mark.exhaustive
def test_the_sdist_holds_the_tests(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/test_package.py"} <= held


@pytest.mark.exhaustive
def test_the_wheel_works_as_a_zip_on_the_path(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import jingyin; " \
        "print(jingyin.__file__); print(jingyin.Scorer.load().score('你好').action)"  # fmt: skip
    done = subprocess.run([sys.executable, "-I", "-c", code, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, action = done.stdout.split()
    assert ".whl" in where
    assert action == "pass"
