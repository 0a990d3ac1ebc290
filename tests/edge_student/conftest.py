"""What more than one file of whole runs needs."""

from collections.abc import Iterator

import pytest
from processes import teacher


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a teacher that serves while a file's tests run."""
    with teacher(tmp_path_factory.mktemp("store")) as serving:
        yield serving.address
