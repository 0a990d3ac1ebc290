"""Diagnoses why a teacher is unreachable: gRPC reports nearly every cause as UNAVAILABLE, so this module probes the socket itself.

It opens a connection, sends the preface of an HTTP/2 client, reads the start of the answer, and closes it.
"""

import socket
import ssl
from dataclasses import dataclass, replace

from edgekd.cli.address import format_address
from edgekd.cli.tls import TlsFiles

# RFC 9113, section 3.4: client preface and an empty SETTINGS frame. A server answers with its own SETTINGS frame, type 4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER, _SETTINGS = 9, 4
_ALERT, _HANDSHAKE = 0x15, 0x16  # the first byte of a TLS record

_REQUIRES_TLS = "requires TLS, but this edge uses plaintext: give --tls-ca; for mutual TLS also --tls-cert and --tls-key"

# X509_V_ERR_*, OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64


@dataclass(frozen=True, slots=True)
class Cause:
    """Cause of a failed connection, as a message for the user. `is_final`: a retry cannot help until a setting changes.

    `may_be_chance`: the probe is ambiguous, because a server that shuts down at this moment behaves in the same way.
    """

    text: str
    is_final: bool
    may_be_chance: bool = False


def find_cause(host: str, port: int, tls: TlsFiles, *, timeout_s: float = 5.0) -> Cause | None:
    """Return why no gRPC connection to `host`:`port` is possible; None if no cause was found. Takes at most a few `timeout_s`.

    `tls` must name a CA, or be empty for plaintext.
    """
    first = _probe(host, port, tls, timeout_s)
    if first is None or not first.may_be_chance:
        return first
    # A closed connection may be the server's reaction to this edge, or a shutdown. A shutdown does not happen twice.
    again = _probe(host, port, tls, timeout_s)
    if again != first:
        return again
    if not tls and _uses_tls(host, port, timeout_s):
        return Cause(f"{format_address(host, port)} {_REQUIRES_TLS}", is_final=True)
    return replace(first, is_final=bool(tls))


def _uses_tls(host: str, port: int, timeout_s: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # no data is sent or trusted
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout_s) as connection, context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _probe(host: str, port: int, tls: TlsFiles, timeout_s: float) -> Cause | None:
    where = format_address(host, port)
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except socket.gaierror as error:
        return Cause(f"the name {host} cannot be resolved: {error.strerror}", False)
    except TimeoutError:
        return Cause(f"{where} does not answer: no machine has this address, or a firewall drops the packets", False)
    except ConnectionRefusedError:
        return Cause(f"no server listens at {where}", False)
    except OSError as error:
        return Cause(f"{where}: {error.strerror}", False)
    with connection:
        return _probe_tls(connection, where, host, tls) if tls else _probe_plaintext(connection, where)


def _probe_plaintext(connection: socket.socket, where: str) -> Cause | None:
    try:
        connection.sendall(_PREFACE)
        answer = _read_frame_header(connection)
    except TimeoutError:
        return Cause(f"{where} accepts the connection but sends no data: it is frozen, or not a gRPC server", False)
    except OSError:
        answer = b""
    if answer[:1] in (bytes([_ALERT]), bytes([_HANDSHAKE])):
        return Cause(f"{where} {_REQUIRES_TLS}", True)
    if _is_cut_short(answer):
        return Cause(f"{where} closed the connection at once: it is shutting down, or not a gRPC server", False, may_be_chance=True)
    return None if _is_settings(answer) else Cause(f"{where} is not a gRPC server", True)


def _probe_tls(connection: socket.socket, where: str, host: str, tls: TlsFiles) -> Cause | None:
    assert tls.ca is not None, "an edge with TLS names a CA"
    context = ssl.create_default_context(cafile=str(tls.ca.expanduser()))
    context.set_alpn_protocols(["h2"])
    if tls.cert is not None and tls.key is not None:
        context.load_cert_chain(tls.cert.expanduser(), tls.key.expanduser())
    is_connected = False
    try:
        with context.wrap_socket(connection, server_hostname=host) as secured:
            is_connected = True
            secured.sendall(_PREFACE)
            answer = _read_frame_header(secured)  # TLS 1.3: the server rejects a client certificate only at this point
    except ssl.SSLCertVerificationError as error:
        return Cause(f"{where}: {_describe_untrusted(error, host, tls)}", True)
    except ssl.SSLError as error:
        return _describe_alert(error, where, tls)
    except TimeoutError:
        return Cause(f"{where} does not answer the TLS handshake: it is frozen, or not a TLS server", False)
    except OSError as error:
        if not is_connected:
            return Cause(f"{where} closed the connection during the TLS handshake: {error.strerror or error}", False)
        answer = b""
    if _is_cut_short(answer) and tls.cert is None:
        text = f"{where} closed the connection after the handshake: it requires a client certificate; give --tls-cert and --tls-key"
        return Cause(text, False, may_be_chance=True)
    if _is_cut_short(answer):
        text = f"{where} closed the connection after the handshake: it rejects the certificate {tls.cert}, which may be expired, "
        text += "or signed by a CA that the teacher does not trust (the teacher's --tls-ca)"
        return Cause(text, False, may_be_chance=True)
    return None if _is_settings(answer) else Cause(f"{where} is not a gRPC server", True)


def _describe_untrusted(error: ssl.SSLCertVerificationError, host: str, tls: TlsFiles) -> str:
    if error.verify_code == _EXPIRED:
        return "the teacher's certificate has expired; renew it, and check the clocks of both machines"
    if error.verify_code == _NOT_YET_VALID:
        return "the teacher's certificate is not valid yet; check the clocks of both machines"
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return f"the teacher's certificate is not valid for {host}: issue one for this name, or use a name that it contains"
    return f"the teacher's certificate is not signed by the CA in --tls-ca {tls.ca} ({error.verify_message})"


def _describe_alert(error: ssl.SSLError, where: str, tls: TlsFiles) -> Cause:
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"):
        remedy = "check the port; if the teacher uses plaintext, omit --tls-ca, --tls-cert and --tls-key"
        return Cause(f"{where} is no teacher with TLS: {remedy}", True)
    if "CERTIFICATE_REQUIRED" in reason or (tls.cert is None and "HANDSHAKE_FAILURE" in reason):
        return Cause(f"{where} requires a client certificate: give --tls-cert and --tls-key", True)
    if "CERTIFICATE_EXPIRED" in reason:
        return Cause(f"{where} rejects the certificate {tls.cert}: it has expired", True)
    if "UNKNOWN_CA" in reason or "CERTIFICATE" in reason:
        return Cause(f"{where} rejects the certificate {tls.cert} ({reason})", True)
    return Cause(f"{where}: TLS failed ({reason or error})", False)


def _read_frame_header(connection: socket.socket) -> bytes:
    """Read the header of the server's first frame, in several reads if needed; shorter if the server closes the connection."""
    answer = b""
    while len(answer) < _FRAME_HEADER and (more := connection.recv(_FRAME_HEADER - len(answer))):
        answer += more
    return answer


def _is_cut_short(answer: bytes) -> bool:
    """Return whether it is empty or the start of a SETTINGS frame: the link broke, but the server may be a gRPC server."""
    return len(answer) < _FRAME_HEADER and (len(answer) <= 3 or answer[3] == _SETTINGS)


def _is_settings(answer: bytes) -> bool:
    return len(answer) == _FRAME_HEADER and answer[3] == _SETTINGS
