"""Makes a bundle: corpus, encoder, classifier, calibration, export, evaluation, promotion."""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

if _missing := [name for name in ("torch", "transformers", "pyarrow", "pypinyin") if find_spec(name) is None]:
    raise ConfigError(
        f"jingyin.train needs {', '.join(_missing)}; install all with: pip install 'jingyin[train]' "
        "(in a clone: pip install -e '.[train]')"
    )
