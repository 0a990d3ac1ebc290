"""Certificates, keys and tokens as files: what must hold of them, said before a connection fails in words that nobody understands.

Standard library only, apart from paths. No content of a key or a token ever stands in a message.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgekd.files import expanded

_LEAST_TOKEN, _MOST_TOKEN = 16, 4096


class Pem(NamedTuple):
    """What the files held when they were read, in PEM; None for one that was not named."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Who one is (`cert`, a chain, with its `key`) and whom one believes (`ca`). Either or both; neither is plaintext."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def __bool__(self) -> bool:
        return (self.cert, self.key, self.ca) != (None, None, None)

    def read(self) -> Pem:
        """The files as they are now. Raises OSError for one that cannot be read."""
        return Pem(*(None if path is None else expanded(path).read_bytes() for path in (self.cert, self.key, self.ca)))

    def check(self) -> None:
        """Raises ValueError, naming flag and file, for a file that cannot be read or is not what it should be, or a key without its
        certificate.
        """
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
                raise ValueError(f"--tls-ca {self.ca} holds no certificate in PEM") from None
        if self.cert is not None and self.key is not None:
            try:
                context.load_cert_chain(expanded(self.cert), expanded(self.key), password=_no_password)
            except ssl.SSLError as error:
                raise ValueError(f"--tls-cert {self.cert} and --tls-key {self.key}: {_why(error)}") from None


class TlsSettings:
    """What a command with the settings below can say of them, at either end. For a dataclass to inherit from; no fields."""

    __slots__ = ()
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    token_file: Path | None

    @property
    def tls(self) -> TlsFiles:
        """The files of TLS; false without any."""
        return TlsFiles(cert=self.tls_cert, key=self.tls_key, ca=self.tls_ca)

    def check_secrets(self) -> None:
        """ValueError, naming flag and file, for a certificate, key or token that cannot be used."""
        self.tls.check()
        if self.token_file is not None:
            read_token(self.token_file)


def read_token(path: Path) -> str:
    """The token in a file, without the white space around it.

    Raises ValueError if the file cannot be read, or what it holds is no token: 16 to 4096 printable ASCII characters without a gap.
    """
    token = _read("--token-file", path).strip()
    if not _LEAST_TOKEN <= len(token) <= _MOST_TOKEN or not all(0x21 <= byte <= 0x7E for byte in token):
        raise ValueError(
            f"--token-file {path} holds no token: it must be {_LEAST_TOKEN} to {_MOST_TOKEN} printable ASCII characters without a "
            "gap, as `openssl rand -hex 32` makes them"
        )
    return token.decode("ascii")


def _read(flag: str, path: Path) -> bytes:
    try:
        return expanded(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{flag} {path}: {error.strerror}") from None
    except ValueError as error:  # of the path itself
        raise ValueError(f"{flag} {str(path)!r}: {error}") from None


def _no_password() -> str:
    raise ssl.SSLError(0, "the key is encrypted; give one without a password, readable by its owner only")


def _why(error: ssl.SSLError) -> str:
    reason = getattr(error, "reason", None)  # only those of OpenSSL have one
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is that of another certificate"
    if reason is None and error.errno == 0:
        return str(error.args[-1])
    return f"not a certificate and a key in PEM{f' ({reason})' if reason else ''}"
