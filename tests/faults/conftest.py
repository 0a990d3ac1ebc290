"""One teacher for all tests that do not disturb it, and the results of runs without faults."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import TeacherProcess, teacher, train
from sameness import FLAGS

Reference = Callable[..., Path]


@pytest.fixture(scope="session")
def fast_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    """Yield a teacher that sends as fast as it can."""
    with teacher(tmp_path_factory.mktemp("faults-store")) as serving:
        yield serving


@pytest.fixture(scope="session")
def undisturbed(fast_teacher: TeacherProcess, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Return a function that gives the folder of a run without faults, with additional flags. Each run happens once."""
    folders: dict[tuple[str, ...], Path] = {}

    def reference(*flags: str) -> Path:
        if flags not in folders:
            folders[flags] = tmp_path_factory.mktemp("undisturbed")
            train(fast_teacher.address, folders[flags], *FLAGS, *flags)
        return folders[flags]

    return reference
