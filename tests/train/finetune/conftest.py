import shutil
import subprocess
from collections.abc import Iterator

import pytest
from tests.train.finetune.reading import Reader, leave_some_to_review
from tests.train.finetune.toy_package import make_package


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader for whom the toy bundle is the one in the package."""
    package = tmp_path_factory.mktemp("package")
    default = make_package(package)
    reader = Reader(tmp_path_factory.mktemp("reader"), package)
    reader.paste("jingyin train configs/tiny.yaml --out toy")
    toy = reader.folder / "toy" / "tiny" / "bundle"
    leave_some_to_review(toy)
    shutil.move(toy, default)
    yield reader
    if (pid := reader.folder / "serve.pid").is_file():
        subprocess.run(["kill", pid.read_text().strip()], check=False, capture_output=True)
