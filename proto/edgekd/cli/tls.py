"""Check certificate, key and token files before a connection fails with an unclear error.

Standard library only, apart from paths. No message contains the content of a key or a token.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgekd.files import expanded

_MIN_TOKEN, _MAX_TOKEN = 16, 4096


class Pem(NamedTuple):
    """Contents of the TLS files in PEM; None for a file that was not named."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Own identity (`cert`, a chain, and its `key`) and trusted authority (`ca`). Without any file, connections are plaintext."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def __bool__(self) -> bool:
        return (self.cert, self.key, self.ca) != (None, None, None)

    def read(self) -> Pem:
        """Read the files. Raises OSError for an unreadable file."""
        return Pem(*(None if path is None else expanded(path).read_bytes() for path in (self.cert, self.key, self.ca)))

    def check(self) -> None:
        """Check that all files are readable, valid and complete. Raises ValueError with flag and file."""
        if (self.cert is None) != (self.key is None):
            given, missing = ("--tls-cert", "--tls-key") if self.key is None else ("--tls-key", "--tls-cert")
            raise ValueError(f"{given} needs {missing}: a certificate and its key go together")
        for flag, path in (("--tls-cert", self.cert), ("--tls-key", self.key), ("--tls-ca", self.ca)):
            if path is not None:
                _read(flag, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            try:
                context.load_verify_locations(expanded(self.ca))
            except ssl.SSLError:
                raise ValueError(f"--tls-ca {self.ca} contains no certificate in PEM") from None
        if self.cert is not None and self.key is not None:
            try:
                context.load_cert_chain(expanded(self.cert), expanded(self.key), password=_no_password)
            except ssl.SSLError as error:
                raise ValueError(f"--tls-cert {self.cert} and --tls-key {self.key}: {_reason_of(error)}") from None


class TlsSettings:
    """Checks for the settings below. Settings classes inherit from it and declare the fields with their own help texts."""

    __slots__ = ()
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    token_file: Path | None

    @property
    def tls(self) -> TlsFiles:
        """TLS files of these settings; false without any file."""
        return TlsFiles(cert=self.tls_cert, key=self.tls_key, ca=self.tls_ca)

    def check_secrets(self) -> None:
        """Check certificate, key and token files. Raises ValueError with flag and file."""
        self.tls.check()
        if self.token_file is not None:
            read_token(self.token_file)


def read_token(path: Path) -> str:
    """Read the token in a file, without surrounding white space.

    Raises ValueError for an unreadable file or an invalid token. A token has 16 to 4096 printable ASCII characters without spaces.
    """
    token = _read("--token-file", path).strip()
    if not _MIN_TOKEN <= len(token) <= _MAX_TOKEN or not all(0x21 <= byte <= 0x7E for byte in token):
        raise ValueError(
            f"--token-file {path} contains no valid token: it must have {_MIN_TOKEN} to {_MAX_TOKEN} printable ASCII characters "
            "without spaces, for example from `openssl rand -hex 32`"
        )
    return token.decode("ascii")


def _read(flag: str, path: Path) -> bytes:
    try:
        return expanded(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{flag} {path}: {error.strerror}") from None
    except ValueError as error:  # for an invalid path
        raise ValueError(f"{flag} {str(path)!r}: {error}") from None


def _no_password() -> str:
    raise ssl.SSLError(0, "the key is encrypted; use a key without a password, readable by its owner only")


def _reason_of(error: ssl.SSLError) -> str:
    reason = getattr(error, "reason", None)  # only errors of OpenSSL have a reason
    if reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    if reason is None and error.errno == 0:
        return str(error.args[-1])
    return f"not a certificate and a key in PEM{f' ({reason})' if reason else ''}"
