"""The corpus: authored messages, slots, evasion, public corpora, and splits without leaks."""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

_missing = [name for name in ("pyarrow", "pypinyin") if find_spec(name) is None]
if _missing:
    raise ConfigError(f"the corpus needs {', '.join(_missing)}, not installed here; run: pip install 'jingyin[train]'")
