"""The committed stubs equal the output of the pinned compiler for the schema."""

from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc

from edgekd.v1 import teacher_pb2

PROTO = Path(__file__).resolve().parents[3] / "proto"
STUBS = ("teacher_pb2.py", "teacher_pb2.pyi", "teacher_pb2_grpc.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    outputs = [f"--{kind}={folder}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    assert protoc.main(["protoc", f"-I{PROTO}", *outputs, "edgekd/v1/teacher.proto"]) == 0
    return folder / "edgekd" / "v1"


@pytest.mark.parametrize("name", STUBS)
def test_the_committed_stub_is_the_generated_one(generated: Path, name: str) -> None:
    assert (PROTO / "edgekd" / "v1" / name).read_bytes() == (generated / name).read_bytes()


@pytest.mark.promise(number=20)
def test_a_request_has_only_scalars() -> None:
    """No field of a request can carry a training sample."""
    digests = {"teacher_digest", "dataset_digest"}
    for request in (teacher_pb2.DescribeRequest, teacher_pb2.StreamLogitsRequest):
        for field in request.DESCRIPTOR.fields:
            assert not field.is_repeated, field.name
            assert field.type not in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE), field.name
            assert (field.type == FieldDescriptor.TYPE_STRING) == (field.name in digests), field.name
