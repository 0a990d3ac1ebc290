"""The identity of an edge and its run: in the metadata of every call, and in the edge's log."""

import contextvars
import io
import json
import logging
from pathlib import Path

import grpc
import pytest
from scripted_teacher import BreakStream, RunningTeacher, ScriptedTeacher

from edge_student.fetch import fetch
from edge_student.settings.fetch import FetchConfig
from edgekd.cli.logs import JsonFormatter
from edgekd.v1 import teacher_pb2
from edgekd.wire.identity import name_of_host, read_id
from edgekd.wire.limits import EDGE_ID_KEY, RUN_ID_KEY


class ListeningTeacher(ScriptedTeacher):
    """Records the metadata of every call."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.heard: list[dict[str, object]] = []

    def _hear(self, context: grpc.ServicerContext) -> None:
        self.heard.append({key: value for key, value in context.invocation_metadata() if key != "user-agent"})

    def Describe(self, request, context):
        self._hear(context)
        return super().Describe(request, context)

    def StreamLogits(self, request, context):
        self._hear(context)
        yield from super().StreamLogits(request, context)


def broken(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
    raise BreakStream(grpc.StatusCode.UNAVAILABLE)


def test_every_call_names_edge_and_run_and_every_failure_names_the_batch(tmp_path: Path) -> None:
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(JsonFormatter({}))
    fetching = logging.getLogger("edge_student.fetch")
    fetching.addHandler(handler)
    teacher = ListeningTeacher({4: broken})  # in batch 1, of three chunks each
    try:
        with RunningTeacher(teacher) as running:
            config = FetchConfig(teacher=running.address, cache=tmp_path, batch_size=7, edge_id="pi-1")
            # A program's log names its run until it exits; this process continues.
            assert contextvars.copy_context().run(fetch, config) == 0
    finally:
        fetching.removeHandler(handler)
    assert len(teacher.heard) >= 3
    assert all(heard.keys() == {EDGE_ID_KEY, RUN_ID_KEY} for heard in teacher.heard)
    ((edge, run),) = {(heard[EDGE_ID_KEY], heard[RUN_ID_KEY]) for heard in teacher.heard}
    assert (edge, len(str(run))) == ("pi-1", 12)
    (trouble,) = [line for line in map(json.loads, log.getvalue().splitlines()) if "failed" in line["message"]]
    assert (trouble["level"], trouble["index"], trouble["run"]) == ("warning", 1, run)


def test_the_default_edge_id_is_the_host_name() -> None:
    assert FetchConfig(teacher="127.0.0.1:1").edge_id == name_of_host()
    assert read_id(name_of_host())


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "pi\n1"])
def test_an_invalid_edge_id_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=r"--edge-id is .*, must be 1 to 64 characters"):
        FetchConfig(teacher="127.0.0.1:1", edge_id=name)
