"""Who a certificate is for, who signed it, and from when to when it holds: the few fields of X.509 that people need to see.

Nothing is verified here; that is TLS's business. Python's own ssl module tells these fields only of a certificate that it trusts,
and the one that it does not trust is the one to be explained. Standard library only.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _SET, _OBJECT_ID, _VERSION = 0x30, 0x31, 0x06, 0xA0
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}  # UTCTime, GeneralizedTime
_COMMON_NAME, _ORGANISATION = bytes.fromhex("550403"), bytes.fromhex("55040a")
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
    match = _PEM.search(text)
    if match is None:
        raise ValueError("there is no certificate in PEM")
    try:
        return parse_der(base64.b64decode("".join(match[1].split()), validate=True))
    except binascii.Error as error:
        raise ValueError(f"the certificate is damaged: {error}") from None


def parse_der(data: bytes) -> Certificate:
    """The fields of a certificate in DER (RFC 5280, 4.1). ValueError if it is none."""
    outer = dict([_only(data, _SEQUENCE)])[_SEQUENCE]
    tag, signed = next(_values(outer), (0, b""))
    fields = list(_values(signed)) if tag == _SEQUENCE else []
    if fields and fields[0][0] == _VERSION:
        fields = fields[1:]
    # serial number, signature algorithm, issuer, validity, subject, ...
    if len(fields) < 5 or [tag for tag, _ in fields[2:5]] != [_SEQUENCE] * 3:
        raise ValueError("this is no certificate")
    issuer, validity, subject = (content for _, content in fields[2:5])
    times = [_time(tag, content) for tag, content in _values(validity)]
    if len(times) != 2:
        raise ValueError("a certificate has two times, and this has not")
    return Certificate(subject=_name(subject), issuer=_name(issuer), not_before=times[0], not_after=times[1])


def _only(data: bytes, wanted: int) -> tuple[int, bytes]:
    found = list(_values(data))
    if [tag for tag, _ in found] != [wanted]:
        raise ValueError("this is no certificate")
    return found[0]


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents of the values that follow one another (X.690: tag, length, content)."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("the certificate ends in its middle")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            num_bytes = length & 0x7F
            length = int.from_bytes(data[at : at + num_bytes], "big")
            at += num_bytes
        if at + length > len(data):
            raise ValueError("the certificate ends in its middle")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    if tag not in _TIMES:
        raise ValueError("a certificate's time is none")
    return datetime.strptime(content.decode("ascii", "replace"), _TIMES[tag]).replace(tzinfo=UTC).timestamp()


def _name(content: bytes) -> str:
    """The common name, else the organisation; what cannot be printed is shown as Python would."""
    found = {}
    for _, group in _values(content):
        for tag, pair in _values(group):
            parts = list(_values(pair)) if tag == _SEQUENCE else []
            if len(parts) == 2 and parts[0][0] == _OBJECT_ID:
                found[parts[0][1]] = parts[1][1].decode("utf-8", "replace")
    name = found.get(_COMMON_NAME) or found.get(_ORGANISATION) or "nobody"
    return name if name.isprintable() else ascii(name)
