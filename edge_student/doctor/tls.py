"""Certificates, as far as people have to look at them: whose they are, who signed them, and how long they hold.

Whether the two ends believe each other is not asked here; `doctor_link` tries it.
"""

import contextlib
import socket
import ssl
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from edge_student.doctor.finding import Finding, ok, problem, unknown, warning
from edgekd.cli.address import is_loopback
from edgekd.cli.tls import TlsFiles

_SOON_DAYS = 30
_CONNECT_S = 5.0


_DAY_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Names as text that may be printed; times in seconds since 1970."""

    subject: str
    issuer: str
    not_before: float
    not_after: float

    def days_left(self, now: float) -> float:
        """Days until it expires; negative when it has."""
        return (self.not_after - now) / _DAY_S


def parse_pem(text: str) -> Certificate:
    """The first certificate in a PEM file, which is the one that a chain is for. ValueError if there is none."""
    return _read(lambda: x509.load_pem_x509_certificate(text.encode()))


def parse_der(data: bytes) -> Certificate:
    """The fields of a certificate in DER. ValueError if it is none."""
    return _read(lambda: x509.load_der_x509_certificate(data))


def _read(load: Callable[[], x509.Certificate]) -> Certificate:
    try:
        with warnings.catch_warnings(action="ignore"):  # what it thinks of a stranger's serial number is nobody's concern here
            found = load()
            return Certificate(
                subject=_name(found.subject),
                issuer=_name(found.issuer),
                not_before=found.not_valid_before_utc.timestamp(),
                not_after=found.not_valid_after_utc.timestamp(),
            )
    except (ValueError, x509.InvalidVersion) as error:  # its fields are parsed when they are asked for
        raise ValueError(f"this is no certificate: {str(error).partition('. ')[0]}") from None


def _name(name: x509.Name) -> str:
    """The common name, else the organisation; what cannot be printed is shown as Python would."""
    kinds = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    values = [value.value for kind in kinds for value in name.get_attributes_for_oid(kind)]
    text = str(values[0]) if values else "nobody"
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """The certificates that were read, each with what to call it; and why one could not be read."""

    ours: Certificate | None
    authority: Certificate | None
    teacher: Certificate | None
    trouble: str


def read_papers(tls: TlsFiles, host: str, port: int) -> Papers:
    """The certificates in our own files, and the one that the teacher shows, believed or not."""
    trouble = []

    def read(path: Path | None) -> Certificate | None:
        try:
            return None if path is None else parse_pem(path.expanduser().read_text(encoding="ascii", errors="replace"))
        except OSError as error:
            trouble.append(f"{path}: {error.strerror}")
        except ValueError as error:
            trouble.append(f"{path}: {error}")
        return None

    ours, authority = read(tls.cert), read(tls.ca)
    teacher = None
    with contextlib.suppress(OSError, ValueError):  # why there is none is what link.reach says
        teacher = _shown_by(host, port) if tls else None
    return Papers(ours=ours, authority=authority, teacher=teacher, trouble="; ".join(trouble))


def _shown_by(host: str, port: int) -> Certificate | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # to look at it; nothing is sent, and nothing believed
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), _CONNECT_S) as connection, context.wrap_socket(connection) as secured:
        shown = secured.getpeercert(binary_form=True)
    return None if shown is None else parse_der(shown)


def find_papers(papers: Papers, tls: TlsFiles, host: str, now: float, *, is_open: bool) -> Finding:
    """Whose certificates these are, and how long they hold; `is_open`: whether both ends believe the other's."""
    check = "link.tls"
    named = {"the teacher's": papers.teacher, "this edge's": papers.ours, "the authority's": papers.authority}
    known = {name: certificate for name, certificate in named.items() if certificate is not None}
    details = {
        name.removesuffix("'s").rpartition(" ")[2]: {
            "subject": paper.subject,
            "issuer": paper.issuer,
            "not_before": paper.not_before,
            "not_after": paper.not_after,
            "days_left": round(paper.days_left(now), 2),
        }
        for name, paper in known.items()
    }
    if papers.trouble:
        return problem(
            check, f"a certificate cannot be read: {papers.trouble}", "name a certificate in PEM, as deploy/certs.sh makes them"
        )
    if not tls:
        if is_loopback(host):
            return ok(check, "no TLS is asked for, and the teacher, or the near end of a tunnel, is on this machine")
        text = "no TLS is asked for, and the wire is plaintext: everybody on the way can read and change what is sent"
        return warning(check, text, "make certificates with deploy/certs.sh, and give --tls-ca, --tls-cert and --tls-key")
    early = [name for name, paper in known.items() if now < paper.not_before]
    if early:
        days = (known[early[0]].not_before - now) / 86400
        text = f"{early[0]} certificate is not valid yet, and will be in {days:.1f} days by the clock of this machine"
        return problem(check, text, "look at the clocks of both machines (machine.clock), then make a new certificate", **details)
    late = [name for name, paper in known.items() if paper.days_left(now) < 0]
    if late:
        text = f"{late[0]} certificate expired {-known[late[0]].days_left(now):.0f} days ago, by the clock of this machine"
        return problem(check, text, "delete its .pem and run deploy/certs.sh again; if it is new, look at the clock", **details)
    said = "; ".join(
        f"{name} is for {paper.subject}, signed by {paper.issuer}, good for {paper.days_left(now):.0f} days"
        for name, paper in known.items()
    )
    if papers.teacher is None:
        return unknown(
            check, f"the teacher has shown no certificate{'; ' if said else ''}{said}", "mend link.reach first", **details
        )
    soon = [name for name, paper in known.items() if paper.days_left(now) < _SOON_DAYS]
    if soon:
        text = f"{soon[0]} certificate expires in {known[soon[0]].days_left(now):.0f} days: {said}"
        return warning(
            check, text, "delete its .pem and run deploy/certs.sh again; a running teacher takes it from the file", **details
        )
    if not is_open:
        return unknown(
            check, f"no connection came about, so who believes whom is not known; {said}", "mend link.reach first", **details
        )
    return ok(check, said, **details)
