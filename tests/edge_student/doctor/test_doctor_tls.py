"""Certificates are parsed as openssl parses them, and invalid data is a ValueError."""

import contextlib
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_student.doctor.tls import Certificate, parse_der, parse_pem


def make(folder: Path, subject: str, *more: str) -> Path:
    key, pem = folder / "key", folder / "pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    command = ["openssl", "req", "-x509", "-new", "-utf8", "-key", key, "-subj", subject, "-out", pem, *more]
    subprocess.run(command, check=True, capture_output=True)
    return pem


def dates(pem: Path) -> list[float]:
    output = subprocess.run(["openssl", "x509", "-in", pem, "-noout", "-dates"], check=True, capture_output=True, text=True).stdout
    times = [line.partition("=")[2] for line in output.splitlines()]
    return [datetime.strptime(time, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp() for time in times]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("days", ["1", "365", "20000"], ids=["a day", "a year", "past 2049, in another format"])
def test_names_and_times_are_those_that_openssl_shows(days: str, tmp_path: Path) -> None:
    pem = make(tmp_path, "/O=EdgeKD/CN=vm.example.org", "-days", days)
    found = parse_pem(pem.read_text())
    assert (found.subject, found.issuer) == ("vm.example.org", "vm.example.org")
    assert [found.not_before, found.not_after] == dates(pem)
    assert found.days_left(found.not_after - 86400 * 3) == 3


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("subject", "name"),
    [("/O=Only Organisation", "Only Organisation"), ("/CN=a\x1b[31mb", r"'a\x1b[31mb'"), ("/C=DE", "(no name)")],
)
def test_a_name_is_always_printable(subject: str, name: str, tmp_path: Path) -> None:
    assert parse_pem(make(tmp_path, subject).read_text()).subject == name


def test_a_file_without_a_certificate_is_a_value_error() -> None:
    for text in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "-----BEGIN PRIVATE KEY-----"):
        with pytest.raises(ValueError, match="certificate"):
            parse_pem(text)


@pytest.fixture(scope="module")
def der(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pem = make(tmp_path_factory.mktemp("der"), "/CN=vm")
    return subprocess.run(["openssl", "x509", "-in", pem, "-outform", "DER"], check=True, capture_output=True).stdout


@pytest.mark.needs("openssl")
@given(at=st.integers(0, 160), byte=st.integers(0, 255), end=st.integers(0, 400))
def test_damage_is_a_value_error_or_another_certificate(der: bytes, at: int, byte: int, end: int) -> None:
    for damaged in (der[:at] + bytes([byte]) + der[at + 1 :], der[:end], bytes([byte]) * end):
        with contextlib.suppress(ValueError):
            assert isinstance(parse_der(damaged), Certificate)
