"""HOST:PORT as people write it, at either end."""

import ipaddress


def parse_address(text: str, *, flag: str, lowest_port: int) -> tuple[str, int]:
    """Host and port of "HOST:PORT"; an IPv6 host stands in brackets and is returned without them.

    Raises ValueError, naming the flag, for a host that can be no name, or unless the port is in lowest_port .. 65535.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or host in ("", "[]") or (":" in host and not bracketed):
        raise ValueError(f"{flag} is {text!r}, must be HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and lowest_port <= int(port) <= 65535):
        hint = "; 0 takes a free port" if lowest_port == 0 else ""
        raise ValueError(f"{flag} is {text!r}, must be HOST:PORT with a port in {lowest_port} .. 65535{hint}")
    try:
        host.encode("idna")  # as the socket module does, whose error is none of the system's and names nothing
    except UnicodeError:
        raise ValueError(f"{flag} is {text!r}: no host has such a name, whose parts have 1 to 63 letters each") from None
    return (host[1:-1] if bracketed else host), int(port)


def parse_addresses(text: str, *, flag: str, lowest_port: int) -> list[tuple[str, int]]:
    """Hosts and ports of "HOST:PORT,HOST:PORT". Raises ValueError as `parse_address`, and for one that comes twice."""
    addresses = [parse_address(part.strip(), flag=flag, lowest_port=lowest_port) for part in text.split(",")]
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise ValueError(f"{flag} names {format_address(*address)} twice; name each address once")
    return addresses


def format_address(host: str, port: int) -> str:
    """HOST:PORT as `parse_address` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine itself; a name other than localhost counts as another."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
