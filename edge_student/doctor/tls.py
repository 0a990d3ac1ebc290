"""Check the certificates of the link: subject, issuer and validity period.

Whether both ends trust each other is not checked here. doctor/link.py tests it with a connection.
"""

import contextlib
import socket
import ssl
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from edge_student.doctor.finding import Finding, ok, problem, unknown, warning
from edgekd.cli.address import is_loopback
from edgekd.cli.tls import TlsFiles

_CHECK = "link.tls"
_SOON_DAYS = 30
_CONNECT_S = 5.0
_DAY_S = 86400
_LABELS = {
    "teacher": "the teacher's certificate",
    "edge": "the certificate of this edge",
    "authority": "the certificate of the authority (CA)",
}
_RENEW = "delete its .pem file and run deploy/certs.sh again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Fields of a certificate. Names contain printable characters only; times are seconds since 1970."""

    subject: str
    issuer: str
    not_before: float
    not_after: float

    def days_left(self, now: float) -> float:
        """Return the days until it expires, negative if it has expired."""
        return (self.not_after - now) / _DAY_S


def parse_pem(text: str) -> Certificate:
    """Parse the first certificate of a PEM file, which is the leaf of a chain. Raises ValueError if there is no certificate."""
    return _read(lambda: x509.load_pem_x509_certificate(text.encode()))


def parse_der(data: bytes) -> Certificate:
    """Parse a certificate in DER. Raises ValueError for other data."""
    return _read(lambda: x509.load_der_x509_certificate(data))


def _read(load: Callable[[], x509.Certificate]) -> Certificate:
    try:
        with warnings.catch_warnings(action="ignore"):  # for example on non-standard serial numbers
            certificate = load()
            return Certificate(
                subject=_name(certificate.subject),
                issuer=_name(certificate.issuer),
                not_before=certificate.not_valid_before_utc.timestamp(),
                not_after=certificate.not_valid_after_utc.timestamp(),
            )
    except (ValueError, x509.InvalidVersion) as error:  # the fields are parsed on access
        raise ValueError(f"not a certificate: {str(error).partition('. ')[0]}") from None


def _name(name: x509.Name) -> str:
    """Return the common name, else the organisation. Text that is not printable is escaped as in Python."""
    kinds = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    values = [value.value for kind in kinds for value in name.get_attributes_for_oid(kind)]
    text = str(values[0]) if values else "(no name)"
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """The certificates of a link: of this edge, of the CA, and of the teacher. `errors` lists files that cannot be read."""

    edge: Certificate | None
    authority: Certificate | None
    teacher: Certificate | None
    errors: str


def read_certificates(tls: TlsFiles, host: str, port: int) -> Certificates:
    """Read the local certificate files, and fetch the teacher's certificate without verification."""
    errors = []

    def read(path: Path | None) -> Certificate | None:
        try:
            return None if path is None else parse_pem(path.expanduser().read_text(encoding="ascii", errors="replace"))
        except OSError as error:
            errors.append(f"{path}: {error.strerror}")
        except ValueError as error:
            errors.append(f"{path}: {error}")
        return None

    edge, authority = read(tls.cert), read(tls.ca)
    teacher = None
    with contextlib.suppress(OSError, ValueError):  # link.reach reports the cause
        teacher = _fetch_certificate(host, port) if tls else None
    return Certificates(edge=edge, authority=authority, teacher=teacher, errors="; ".join(errors))


def _fetch_certificate(host: str, port: int) -> Certificate | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only to inspect it; no data is sent
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), _CONNECT_S) as connection, context.wrap_socket(connection) as secured:
        der = secured.getpeercert(binary_form=True)
    return None if der is None else parse_der(der)


def check_certificates(certificates: Certificates, tls: TlsFiles, host: str, now: float, *, is_open: bool) -> Finding:
    """Check files and validity periods at `now`, in seconds since 1970. `is_open` is whether the TLS connection succeeded."""
    if certificates.errors:
        return problem(
            _CHECK, f"a certificate cannot be read: {certificates.errors}", "set the flag to a PEM file made by deploy/certs.sh"
        )
    if not tls:
        return _check_plaintext(host)
    named = {"teacher": certificates.teacher, "edge": certificates.edge, "authority": certificates.authority}
    known = {name: certificate for name, certificate in named.items() if certificate is not None}
    details = {
        name: {
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "not_before": certificate.not_before,
            "not_after": certificate.not_after,
            "days_left": round(certificate.days_left(now), 2),
        }
        for name, certificate in known.items()
    }
    return _check_period(known, now, details) or _check_days_left(known, now, details, is_open=is_open)


def _check_plaintext(host: str) -> Finding:
    if is_loopback(host):
        return ok(_CHECK, "TLS is off, and the address of the teacher or of the tunnel to it is on this machine")
    text = "TLS is off, so everyone on the network path can read and change the data"
    return warning(_CHECK, text, "make certificates with deploy/certs.sh, and set --tls-ca, --tls-cert and --tls-key")


def _check_period(known: Mapping[str, Certificate], now: float, details: Mapping[str, object]) -> Finding | None:
    early = [name for name, certificate in known.items() if now < certificate.not_before]
    if early:
        days = (known[early[0]].not_before - now) / _DAY_S
        text = f"{_LABELS[early[0]]} becomes valid in {days:.1f} days, by the clock of this machine"
        return problem(_CHECK, text, "set the clocks of both machines (machine.clock), then make a new certificate", **details)
    late = [name for name, certificate in known.items() if certificate.days_left(now) < 0]
    if late:
        text = f"{_LABELS[late[0]]} expired {-known[late[0]].days_left(now):.0f} days ago, by the clock of this machine"
        return problem(_CHECK, text, f"{_RENEW}; if the certificate is new, check the clock", **details)
    return None


def _check_days_left(known: Mapping[str, Certificate], now: float, details: Mapping[str, object], *, is_open: bool) -> Finding:
    listed = "; ".join(
        f"{_LABELS[name]} names {certificate.subject}, is signed by {certificate.issuer}, and is valid for "
        f"{certificate.days_left(now):.0f} days"
        for name, certificate in known.items()
    )
    if "teacher" not in known:
        text = "the teacher sent no certificate" + (f"; {listed}" if listed else "")
        return unknown(_CHECK, text, "fix link.reach first", **details)
    soon = [name for name, certificate in known.items() if certificate.days_left(now) < _SOON_DAYS]
    if soon:
        text = f"{_LABELS[soon[0]]} expires in {known[soon[0]].days_left(now):.0f} days: {listed}"
        return warning(_CHECK, text, f"{_RENEW}; a running teacher reloads the file", **details)
    if not is_open:
        return unknown(_CHECK, f"the connection failed, so trust is not known; {listed}", "fix link.reach first", **details)
    return ok(_CHECK, listed, **details)
