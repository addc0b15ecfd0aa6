"""The one way in which recipes are read from YAML."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from jingyin.model.errors import ConfigError

M = TypeVar("M")


def read_yaml(path: Path, schema: TypeAdapter[M]) -> M:
    """Read a YAML file by a schema; an empty one is an empty mapping. Raises ConfigError with every error and key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"recipe {path} can't be read ({error.strerror}); name a YAML file such as those in configs/"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe {path} is no YAML ({type(error).__name__}); compare it with those in configs/"
        ) from None
    try:
        return schema.validate_python({} if content is None else content)
    except ValidationError as error:
        errors = [f"  {'.'.join(map(str, e['loc'][-2:])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"recipe {path} has {len(errors)} error(s):\n" + "\n".join(errors)) from None
