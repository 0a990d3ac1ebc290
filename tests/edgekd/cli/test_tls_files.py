"""Invalid certificate, key and token files are reported with their flag before any connection."""

import subprocess
from pathlib import Path

import pytest

from edgekd.cli.tls import TlsFiles, read_token

CERTS = Path(__file__).parents[3] / "deploy" / "certs.sh"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    subprocess.run([CERTS, folder, "localhost,127.0.0.1", "pi-1"], check=True, capture_output=True)
    return folder


@pytest.mark.needs("openssl")
def test_no_files_are_plaintext_and_any_is_tls(certs: Path) -> None:
    assert not TlsFiles()
    assert TlsFiles(ca=certs / "ca.pem")
    TlsFiles().check()
    TlsFiles(ca=certs / "ca.pem", cert=certs / "pi-1.pem", key=certs / "pi-1.key").check()
    assert TlsFiles(ca=certs / "ca.pem").read() == (None, None, (certs / "ca.pem").read_bytes())


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("names", "fragment"),
    [
        ({"cert": "pi-1.pem"}, "^--tls-cert needs --tls-key: a certificate and its key go together$"),
        ({"key": "pi-1.key"}, "^--tls-key needs --tls-cert"),
        ({"ca": "nowhere.pem"}, "^--tls-ca .*nowhere.pem: No such file or directory$"),
        ({"ca": "pi-1.key"}, "^--tls-ca .*pi-1.key contains no certificate in PEM$"),
        ({"cert": "pi-1.pem", "key": "teacher.key"}, "the key belongs to another certificate$"),
        ({"cert": "pi-1.key", "key": "pi-1.key"}, "not a certificate and a key in PEM"),
        ({"cert": "pi-1.pem", "key": "locked.key"}, "the key is encrypted; use a key without a password"),
    ],
)
def test_an_invalid_file_is_named_with_its_flag(names: dict[str, str], fragment: str, certs: Path) -> None:
    locked = ["openssl", "ec", "-in", certs / "pi-1.key", "-aes128", "-passout", "pass:secret", "-out", certs / "locked.key"]
    subprocess.run(locked, check=True, capture_output=True)
    with pytest.raises(ValueError, match=fragment):
        TlsFiles(**{name: certs / file for name, file in names.items()}).check()


def test_a_token_is_the_content_of_its_file_without_white_space(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("  0123456789abcdef\n")
    assert read_token(tmp_path / "token") == "0123456789abcdef"


@pytest.mark.parametrize("content", [b"", b"short", b"0123456789 abcdef", b"0123456789\xffabcdef", b"x" * 5000])
def test_an_invalid_token_is_rejected_without_being_shown(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ValueError, match="token contains no valid token") as refused:
        read_token(tmp_path / "token")
    assert not content or content.decode("latin-1") not in str(refused.value)


@pytest.mark.needs("openssl")
def test_certificates_are_kept_when_an_edge_is_added(certs: Path) -> None:
    before = {file.name: file.read_bytes() for file in certs.iterdir()}
    subprocess.run([CERTS, certs, "localhost,127.0.0.1", "pi-1", "pi-2"], check=True, capture_output=True)
    after = {file.name: file.read_bytes() for file in certs.iterdir()}
    assert {"pi-2.pem", "pi-2.key"} <= after.keys()
    assert before.items() <= after.items()
    assert all((certs / name).stat().st_mode & 0o077 == 0 for name in after if name.endswith(".key")), "keys are their owner's"
    TlsFiles(ca=certs / "ca.pem", cert=certs / "pi-2.pem", key=certs / "pi-2.key").check()


def test_certs_without_arguments_prints_its_usage() -> None:
    output = subprocess.run([CERTS], capture_output=True, text=True, check=False)
    assert (output.returncode, "deploy/certs.sh DIR TEACHER" in output.stderr) == (2, True)
