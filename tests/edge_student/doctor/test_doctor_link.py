"""Findings of `doctor` on the link to a real teacher: mutual TLS, wrong CA, expired certificates, no teacher, no data."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import teacher
from scripted_teacher import RunningTeacher, ScriptedTeacher

from edge_student.doctor import link
from edge_student.doctor.finding import Finding, Status
from edge_student.doctor.link import check_link
from edge_student.doctor.tls import Certificate, Certificates, check_certificates
from edge_student.settings.doctor import DoctorConfig
from edgekd.cli.tls import TlsFiles
from edgekd.v1 import teacher_pb2

CERTS = Path(__file__).parents[3] / "deploy" / "certs.sh"
DAY = 86400.0


def make_certs(folder: Path, *, days: int = 365) -> Path:
    environment = {"DAYS": str(days), "PATH": os.environ["PATH"]}
    subprocess.run([CERTS, folder, "localhost,127.0.0.1", "pi-1"], check=True, capture_output=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certs(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certs(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def mutual(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = ("--tls-cert", str(certs / "teacher.pem"), "--tls-key", str(certs / "teacher.key"), "--tls-ca", str(certs / "ca.pem"))
    with teacher(tmp_path_factory.mktemp("store"), *flags) as serving:
        yield serving.address


def edge_of(address: str, certs: Path, authority: Path | None = None) -> DoctorConfig:
    files = {"tls_cert": certs / "pi-1.pem", "tls_key": certs / "pi-1.key", "tls_ca": (authority or certs) / "ca.pem"}
    return DoctorConfig(teacher=address, **files)


def look(config: DoctorConfig, later: float = 0.0) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_link(config, time.time() + later)}


def statuses(found: dict[str, Finding]) -> tuple[str, ...]:
    return tuple(found[f"link.{name}"].status.value for name in ("tls", "reach", "round-trip", "throughput"))


NO_WAY = ("problem", "unknown", "unknown")


@pytest.mark.needs("openssl")
@pytest.mark.slow
def test_a_good_link_is_reported_with_measured_values(mutual: str, certs: Path) -> None:
    found = look(edge_of(mutual, certs))
    assert statuses(found) == ("ok", "ok", "ok", "ok")
    summary = found["link.tls"].summary
    assert "the teacher's certificate names localhost, is signed by EdgeKD CA, and is valid for 365 days" in summary
    assert "the certificate of this edge names pi-1, is signed by EdgeKD CA, and is valid for 365 days" in summary
    assert found["link.reach"].summary.endswith("over TLS")
    details = found["link.round-trip"].details
    assert (details["dataset"], len(details["round_trip_ms"]), min(details["round_trip_ms"]) > 0) == ("digits:public", 7, True)
    details = found["link.throughput"].details
    assert (details["num_batches"], details["num_bytes"]) == (64, 64 * 128 * 10 * 4)
    assert details["bytes_per_s"] == pytest.approx(details["num_bytes"] / details["seconds"])


@pytest.mark.needs("openssl")
@pytest.mark.slow
def test_certificates_outside_their_period_by_this_clock(mutual: str, certs: Path) -> None:
    found = look(edge_of(mutual, certs), later=340 * DAY)["link.tls"]
    assert (found.status, "expires in 25 days" in found.summary) == (Status.WARNING, True)
    found = look(edge_of(mutual, certs), later=375 * DAY)["link.tls"]
    assert (found.status, "the teacher's certificate expired 10 days ago" in found.summary) == (Status.PROBLEM, True)
    found = look(edge_of(mutual, certs), later=-20000 * DAY)["link.tls"]
    assert (found.status, "the teacher's certificate becomes valid in 20000" in found.summary) == (Status.PROBLEM, True)
    assert "machine.clock" in found.remedy


@pytest.mark.needs("openssl")
@pytest.mark.slow
def test_a_rejected_connection_names_the_cause(mutual: str, certs: Path, foreign: Path) -> None:
    found = look(edge_of(mutual, certs, authority=foreign))
    assert statuses(found) == ("unknown", *NO_WAY), "untrusted certificates are not ok"
    assert "is not signed by the CA in --tls-ca" in found["link.reach"].summary
    found = look(edge_of(mutual, foreign, authority=certs))
    assert statuses(found) == ("unknown", *NO_WAY)
    assert "rejects the certificate" in found["link.reach"].summary
    found = look(DoctorConfig(teacher=mutual))
    assert "requires TLS, but this edge uses plaintext" in found["link.reach"].summary
    found = look(edge_of(mutual, certs.parent / "nowhere"))
    assert (statuses(found), "No such file" in found["link.tls"].summary) == (("problem", *NO_WAY), True)


@pytest.mark.needs("openssl")
@pytest.mark.slow
def test_a_teacher_whose_certificate_has_expired(certs: Path, tmp_path: Path) -> None:
    expired = tmp_path / "expired"
    expired.mkdir()
    for name in ("ca.pem", "ca.key"):
        shutil.copy(certs / name, expired / name)
    make_certs(expired, days=-1)
    flags = ("--tls-cert", str(expired / "teacher.pem"), "--tls-key", str(expired / "teacher.key"))
    with teacher(tmp_path / "store", *flags) as serving:
        found = look(edge_of(serving.address, certs))
    assert statuses(found) == ("problem", *NO_WAY)
    assert found["link.tls"].summary == "the teacher's certificate expired 1 days ago, by the clock of this machine"
    assert "the teacher's certificate has expired" in found["link.reach"].summary


@pytest.mark.slow
def test_a_wrong_token_is_a_finding_and_never_shown(tmp_path: Path) -> None:
    for name, content in (("right", "5ecret-5ecret-5ecret"), ("wrong", "guess-guess-guess-guess")):
        (tmp_path / name).write_text(content)
    with teacher(tmp_path / "store", "--token-file", str(tmp_path / "right")) as serving:
        found = look(DoctorConfig(teacher=serving.address, token_file=tmp_path / "wrong"))
        right = look(DoctorConfig(teacher=serving.address, token_file=tmp_path / "right"))
    assert statuses(found) == ("ok", "ok", "problem", "unknown")
    assert "the token is not this server's" in found["link.round-trip"].summary
    assert "guess" not in str([finding.as_json() for finding in found.values()])
    assert statuses(right) == ("ok", "ok", "ok", "ok")


def test_an_absent_teacher_is_a_problem_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = look(DoctorConfig(teacher=f"127.0.0.1:{port}"))
    assert statuses(found) == ("ok", *NO_WAY)
    assert found["link.reach"].summary == f"no server listens at 127.0.0.1:{port}"
    assert "start `cloud-teacher serve` on that machine" in found["link.reach"].remedy


def test_without_a_teacher_the_link_is_unknown() -> None:
    found = look(DoctorConfig())
    assert statuses(found) == ("unknown",) * 4
    assert {finding.summary for finding in found.values()} == {"not checked, because no teacher address was given"}


def test_a_teacher_with_a_smaller_limit_is_a_problem_before_anything_is_received() -> None:
    with RunningTeacher(ScriptedTeacher(max_batch_size=64)) as running:
        found = look(DoctorConfig(teacher=running.address, public_batch=128))
    assert statuses(found) == ("ok", "ok", "problem", "unknown")
    assert found["link.round-trip"].summary == "public batch size is 128, must be at most 64, the teacher's limit"


def test_a_teacher_that_responds_but_streams_nothing_times_out() -> None:
    is_over = threading.Event()

    def send_nothing(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        is_over.wait(60)
        return [chunk]

    with RunningTeacher(ScriptedTeacher({3: send_nothing})) as running:
        try:
            found = look(DoctorConfig(teacher=running.address, public_batch=8, max_silence=0.5))
        finally:
            is_over.set()
    assert statuses(found) == ("ok", "ok", "ok", "problem")
    assert "connected, but sent no data for 0.5 s" in found["link.throughput"].summary


def test_the_throughput_test_ends_after_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_MAX_RECEIVE_S", 1e-9)
    scripted = ScriptedTeacher()
    with RunningTeacher(scripted) as running:
        found = look(DoctorConfig(teacher=running.address, public_batch=8))["link.throughput"]
    assert (found.status, found.details["num_batches"], found.details["num_bytes"]) == (Status.OK, 1, 8 * 5 * 4)


def test_plaintext_on_a_network_is_a_warning_even_if_it_was_requested() -> None:
    empty = Certificates(edge=None, authority=None, teacher=None, errors="")
    assert check_certificates(empty, TlsFiles(), "vm", 0.0, is_open=True).status is Status.WARNING
    assert check_certificates(empty, TlsFiles(), "127.0.0.1", 0.0, is_open=True).status is Status.OK
    certificate = Certificate(subject="vm", issuer="CA", not_before=0.0, not_after=400 * DAY)
    local = Certificates(edge=certificate, authority=certificate, teacher=None, errors="")
    assert check_certificates(local, TlsFiles(ca=Path("ca.pem")), "vm", 1.0, is_open=False).status is Status.UNKNOWN
