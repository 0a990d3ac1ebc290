"""Why a teacher cannot be reached: gRPC says UNAVAILABLE to nearly everything, so the connection is tried once more by hand.

Standard library only. It opens one connection, says what every HTTP/2 client says first, listens for an answer, and closes it.
"""

import socket
import ssl
from dataclasses import dataclass, replace

from edgekd.cli.address import format_address
from edgekd.cli.tls import TlsFiles

# RFC 9113, 3.4: the client's preface and an empty SETTINGS frame. A server answers with its own SETTINGS, frame type 4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER, _SETTINGS = 9, 4
_ALERT, _HANDSHAKE = 0x15, 0x16  # the first byte of a TLS record

_WANTS_TLS = "speaks TLS, and this edge does not: give --tls-ca, and --tls-cert and --tls-key if the teacher asks for them"

# X509_V_ERR_*, OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64


@dataclass(frozen=True, slots=True)
class Cause:
    """Why it failed, for the user; `is_final` if trying again cannot help as long as nobody changes a setting.

    `may_be_chance`: it looks like that, but a server that stops at this moment would look the same.
    """

    text: str
    is_final: bool
    may_be_chance: bool = False


def find_cause(host: str, port: int, tls: TlsFiles, *, timeout_s: float = 5.0) -> Cause | None:
    """What stands between us and a gRPC server at `host`:`port`; None if nothing was found. Takes a few `timeout_s` at most."""
    first = _look(host, port, tls, timeout_s)
    if first is None or not first.may_be_chance:
        return first
    # Hanging up may be an answer to us, or the end of a server that was about to stop: that one would not do it twice.
    again = _look(host, port, tls, timeout_s)
    if again != first:
        return again
    if not tls and _speaks_tls(host, port, timeout_s):
        return Cause(f"{format_address(host, port)} {_WANTS_TLS}", is_final=True)
    return replace(first, is_final=bool(tls))


def _speaks_tls(host: str, port: int, timeout_s: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent, and nothing believed
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout_s) as connection, context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _look(host: str, port: int, tls: TlsFiles, timeout_s: float) -> Cause | None:
    where = format_address(host, port)
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except socket.gaierror as error:
        return Cause(f"the name {host} cannot be resolved: {error.strerror}", False)
    except TimeoutError:
        return Cause(f"{where} does not answer: nobody has that address, or a firewall drops what is sent there", False)
    except ConnectionRefusedError:
        return Cause(f"nobody listens at {where}", False)
    except OSError as error:
        return Cause(f"{where}: {error.strerror}", False)
    with connection:
        return _find_behind_tls(connection, where, host, tls) if tls else _find_in_plaintext(connection, where)


def _find_in_plaintext(connection: socket.socket, where: str) -> Cause | None:
    try:
        connection.sendall(_PREFACE)
        answer = _first_word(connection)
    except TimeoutError:
        return Cause(f"{where} takes the connection and says nothing: it is frozen, or no gRPC server", False)
    except OSError:
        answer = b""
    if answer[:1] in (bytes([_ALERT]), bytes([_HANDSHAKE])):
        return Cause(f"{where} {_WANTS_TLS}", True)
    if _is_cut_short(answer):
        return Cause(f"{where} hung up at the first word: it is about to stop, or no gRPC server", False, may_be_chance=True)
    return None if _is_settings(answer) else Cause(f"{where} is no gRPC server", True)


def _find_behind_tls(connection: socket.socket, where: str, host: str, tls: TlsFiles) -> Cause | None:
    context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca.expanduser()))
    context.set_alpn_protocols(["h2"])
    if tls.cert is not None and tls.key is not None:
        context.load_cert_chain(tls.cert.expanduser(), tls.key.expanduser())
    has_shaken_hands = False
    try:
        with context.wrap_socket(connection, server_hostname=host) as secured:
            has_shaken_hands = True
            secured.sendall(_PREFACE)
            answer = _first_word(secured)  # with TLS 1.3 the server says only now what it thinks of our certificate
    except ssl.SSLCertVerificationError as error:
        return Cause(f"{where}: {_distrust(error, host, tls)}", True)
    except ssl.SSLError as error:
        return _alert(error, where, tls)
    except TimeoutError:
        return Cause(f"{where} does not answer a TLS handshake: it is frozen, or no TLS server", False)
    except OSError as error:
        if not has_shaken_hands:
            return Cause(f"{where} broke the connection off in the TLS handshake: {error.strerror or error}", False)
        answer = b""
    if _is_cut_short(answer) and tls.cert is None:
        text = f"{where} hung up after the handshake: it wants a client certificate; give --tls-cert and --tls-key"
        return Cause(text, False, may_be_chance=True)
    if _is_cut_short(answer):
        text = f"{where} hung up after the handshake: it does not accept the certificate {tls.cert}, which may have expired, or "
        text += "was signed by an authority that the teacher does not believe (its --tls-ca)"
        return Cause(text, False, may_be_chance=True)
    return None if _is_settings(answer) else Cause(f"{where} is no gRPC server", True)


def _distrust(error: ssl.SSLCertVerificationError, host: str, tls: TlsFiles) -> str:
    if error.verify_code == _EXPIRED:
        return "the teacher's certificate has expired; renew it, and look at the clocks of both machines"
    if error.verify_code == _NOT_YET_VALID:
        return "the teacher's certificate is not valid yet; look at the clocks of both machines"
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return f"the teacher's certificate is not for {host}: make one that names it, or use a name that it has"
    signer = "the system's authorities" if tls.ca is None else f"the authority in --tls-ca {tls.ca}"
    return f"the teacher's certificate was not signed by {signer} ({error.verify_message})"


def _alert(error: ssl.SSLError, where: str, tls: TlsFiles) -> Cause:
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"):
        return Cause(f"{where} does not speak TLS, and this edge does: leave --tls-ca, --tls-cert and --tls-key out", True)
    if "CERTIFICATE_REQUIRED" in reason or (tls.cert is None and "HANDSHAKE_FAILURE" in reason):
        return Cause(f"{where} wants a client certificate: give --tls-cert and --tls-key", True)
    if "CERTIFICATE_EXPIRED" in reason:
        return Cause(f"{where} does not accept the certificate {tls.cert}: it has expired", True)
    if "UNKNOWN_CA" in reason or "CERTIFICATE" in reason:
        return Cause(f"{where} does not accept the certificate {tls.cert} ({reason})", True)
    return Cause(f"{where}: TLS failed ({reason or error})", False)


def _first_word(connection: socket.socket) -> bytes:
    """The header of the server's first frame, which may come in pieces; less of it if the server hangs up on the way."""
    answer = b""
    while len(answer) < _FRAME_HEADER and (more := connection.recv(_FRAME_HEADER - len(answer))):
        answer += more
    return answer


def _is_cut_short(answer: bytes) -> bool:
    """Whether it is nothing, or the beginning of what a gRPC server says: a link that broke there, not another server."""
    return len(answer) < _FRAME_HEADER and (len(answer) <= 3 or answer[3] == _SETTINGS)


def _is_settings(answer: bytes) -> bool:
    return len(answer) == _FRAME_HEADER and answer[3] == _SETTINGS
