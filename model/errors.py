"""The errors that jingyin raises on purpose.

    JingyinError
    ├── BundleError   a model bundle is missing, damaged, of another format, or gives other results on this machine
    ├── ConfigError   a recipe, a setting or a missing extra: the caller's set-up is wrong
    └── InputError    the data handed in can't be used: wrong type, unknown label, broken file

Each states the value received, the value expected and the remedy; none contains the text of messages, numbers or
senders.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class JingyinError(Exception):
    """Base of every error that jingyin raises on purpose."""


class BundleError(JingyinError):
    """A model bundle can't be used; the message states the problem, the expectation and the remedy."""


class ConfigError(JingyinError):
    """A recipe, a setting or the environment is wrong; all errors are listed at once."""


class InputError(JingyinError):
    """Data handed to jingyin can't be used as it is."""


def faults_of(error: "ValidationError") -> str:
    """Put pydantic's errors into words, each with its place, without the input, which pydantic quotes by default."""
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"]))) for each in faults)


def need(what: str, extra: str, *packages: str) -> None:
    """Raise ConfigError unless the packages of an extra are installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f"{what} needs {', '.join(missing)}; run: pip install 'jingyin[{extra}]'")
