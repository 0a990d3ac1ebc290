"""The classification of failed calls: transient, denied, or refused."""

from pathlib import Path

import grpc
import pytest

from edge_student.ipc.messages import Configure
from edge_student.receive import connection as connection_module
from edge_student.receive.connection import Connection
from edge_student.receive.description import AccessDeniedError, RequestRefusedError
from edge_student.receive.diagnose import Cause
from edge_student.receive.retry import LinkLostError
from edgekd.cli.tls import TlsFiles

Code = grpc.StatusCode
CONFIG = Configure(
    teacher="vm:1",
    batch_size=1,
    seed=0,
    encoding="float32",
    top_k=0,
    window=1,
    max_wait_s=1.0,
    log_level="info",
    niceness=0,
    is_idle=False,
)


class FailedCall(grpc.RpcError):
    """The error of a call that failed with this status."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


def translated(
    code: grpc.StatusCode, details: str | None = "why", *, diagnose: bool = False, has_worked: bool = False
) -> tuple[type[Exception], str]:
    """Return type and text of the error that `translate` returns."""
    error = Connection(CONFIG).translate(FailedCall(code, details), diagnose=diagnose, has_worked=has_worked)
    return type(error), str(error)


@pytest.mark.parametrize(
    ("code", "at_first", "later"),
    [
        (Code.UNAVAILABLE, LinkLostError, LinkLostError),
        (Code.RESOURCE_EXHAUSTED, LinkLostError, LinkLostError),
        (Code.CANCELLED, LinkLostError, LinkLostError),
        (Code.INVALID_ARGUMENT, RequestRefusedError, RequestRefusedError),
        (Code.OUT_OF_RANGE, RequestRefusedError, RequestRefusedError),
        (Code.FAILED_PRECONDITION, RequestRefusedError, RequestRefusedError),
        (Code.UNIMPLEMENTED, RequestRefusedError, LinkLostError),
        (Code.UNAUTHENTICATED, AccessDeniedError, LinkLostError),
        (Code.PERMISSION_DENIED, AccessDeniedError, LinkLostError),
    ],
)
def test_the_error_depends_on_the_status_and_on_an_earlier_success(
    code: grpc.StatusCode, at_first: type[Exception], later: type[Exception]
) -> None:
    assert translated(code) == (at_first, f"teacher vm:1: {code.name}: why")
    assert translated(code, has_worked=True) == (later, f"teacher vm:1: {code.name}: why")


def test_details_of_the_teacher_are_escaped_and_cut() -> None:
    assert translated(Code.UNAVAILABLE, None) == (LinkLostError, "teacher vm:1: UNAVAILABLE: ")
    _, text = translated(Code.UNAVAILABLE, "\x1b[2J" + "a" * 10_000)
    assert text.isprintable()
    assert len(text) < 600


@pytest.mark.parametrize(
    ("is_final", "has_worked", "expected"),
    [(True, False, AccessDeniedError), (True, True, LinkLostError), (False, False, LinkLostError)],
)
def test_unavailable_gets_the_cause_that_the_probe_finds(
    is_final: bool, has_worked: bool, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[tuple[str, int, TlsFiles]] = []

    def find_cause(host: str, port: int, tls: TlsFiles) -> Cause:
        probed.append((host, port, tls))
        return Cause("its certificate has expired", is_final=is_final)

    monkeypatch.setattr(connection_module, "find_cause", find_cause)
    found = translated(Code.UNAVAILABLE, diagnose=True, has_worked=has_worked)
    assert found == (expected, "teacher vm:1: UNAVAILABLE: its certificate has expired")
    assert probed == [("vm", 1, TlsFiles())]


@pytest.mark.parametrize(("code", "diagnose"), [(Code.UNAVAILABLE, False), (Code.CANCELLED, True), (Code.UNAUTHENTICATED, True)])
def test_nothing_is_probed_without_need(code: grpc.StatusCode, diagnose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "find_cause", lambda *_: pytest.fail("probed"))
    assert translated(code, diagnose=diagnose)[1] == f"teacher vm:1: {code.name}: why"


def test_without_a_cause_unavailable_keeps_the_text_of_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(Path("ca.pem")))

    for find_cause in (lambda *_: None, unreadable):
        monkeypatch.setattr(connection_module, "find_cause", find_cause)
        assert translated(Code.UNAVAILABLE, diagnose=True) == (LinkLostError, "teacher vm:1: UNAVAILABLE: why")
