"""The command line, in the process of the tests."""

import sys

import pytest

from jingyin.cli import main


def run_command(*arguments: object) -> int:
    """Run `jingyin` with arguments; return its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match=r"^\d$") as ended:  # noqa: PT012
        patch.setattr(sys, "argv", ["jingyin", *map(str, arguments)])
        main()
    return int(str(ended.value))
