"""Very large archives: `jingyin relabel` scores every row, `jingyin campaigns` groups near-copies of flagged messages.

Bounded memory, resumable, exact. The base package imports without any of it.
"""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

if find_spec("pyarrow") is None:
    raise ConfigError("relabelling needs pyarrow; run: pip install 'jingyin[batch]'")
