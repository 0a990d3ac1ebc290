"""Who a certificate is for, who signed it, and from when to when it holds: the few fields of X.509 that people need to see.

Nothing is verified here; that is TLS's business. Python's own ssl module tells these fields only of a certificate that it trusts,
and the one that it does not trust is the one to be explained.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

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
