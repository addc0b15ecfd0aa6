from importlib.resources import files

from jingyin.train.vocabulary.spellings import EXTRA, WORDS, spellings, spellings_table, words


def test_spells_some_characters_or_all() -> None:
    assert list(spellings("曝光")) == ["bao光", "baoguang", "曝guang"]
    assert "dhhz" in spellings("电话轰炸")


def test_a_spelling_of_two_words_stays_out() -> None:
    table = spellings_table(["打钱"], ["打钱", "大钱"])
    assert table == {"打qian": "打钱"} | EXTRA


def test_the_table_is_what_the_script_makes() -> None:
    table = files("jingyin.model").joinpath("tables/spellings.txt").read_text(encoding="utf-8")
    made = spellings_table((*words("slang"), *WORDS), words("lexicon"))
    assert [tuple(line.split(" ")) for line in table.splitlines()] == list(made.items())
