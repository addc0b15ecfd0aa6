"""Makes a bundle: corpus, encoder, classifier, calibration, export, evaluation, promotion."""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

_PACKAGES = (
    "torch", "transformers", "accelerate", "cleanlab", "datasets", "jieba", "jinja2", "markupsafe", "matplotlib",
    "onnx", "pyarrow", "pypinyin", "rich", "safetensors", "scipy", "sklearn", "tensorboard", "tqdm",
)  # fmt: skip
if _missing := [name for name in _PACKAGES if find_spec(name) is None]:
    raise ConfigError(
        f"jingyin.train needs {', '.join(_missing)}; install all with: pip install 'jingyin[train]' "
        "(in a clone: pip install -e '.[train]')"
    )
