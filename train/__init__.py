"""Makes a bundle: corpus, encoder, classifier, calibration, export, evaluation, promotion."""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

if find_spec("torch") is None or find_spec("transformers") is None:
    raise ConfigError(
        "jingyin.train needs torch and transformers; install them with: pip install 'jingyin[train]' "
        "(in a clone: pip install -e '.[train]')"
    )
