"""Parse and format HOST:PORT addresses."""

import ipaddress


def parse_address(text: str, *, flag: str, lowest_port: int) -> tuple[str, int]:
    """Split "HOST:PORT" into host and port. An IPv6 host is written in brackets and returned without them.

    Raises ValueError, with the flag's name, for an invalid host name or a port outside lowest_port .. 65535.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or host in ("", "[]") or (":" in host and not bracketed):
        raise ValueError(f"{flag} is {text!r}, must be HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and lowest_port <= int(port) <= 65535):
        hint = "; 0 selects a free port" if lowest_port == 0 else ""
        raise ValueError(f"{flag} is {text!r}, must be HOST:PORT with a port in {lowest_port} .. 65535{hint}")
    try:
        host.encode("idna")  # the socket module encodes like this, and raises an error without the name
    except UnicodeError:
        raise ValueError(f"{flag} is {text!r}, must have a valid host name: each part has 1 to 63 characters") from None
    return (host[1:-1] if bracketed else host), int(port)


def parse_addresses(text: str, *, flag: str, lowest_port: int) -> list[tuple[str, int]]:
    """Split "HOST:PORT,HOST:PORT" into hosts and ports. Raises ValueError like `parse_address`, and for a repeated address."""
    addresses = [parse_address(part.strip(), flag=flag, lowest_port=lowest_port) for part in text.split(",")]
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise ValueError(f"{flag} names {format_address(*address)} twice; name each address once")
    return addresses


def format_address(host: str, port: int) -> str:
    """Format HOST:PORT so that `parse_address` can read it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address. Of the names, only localhost counts as loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
