"""The address of a server, checked when a client is made: gRPC takes port 99999 for port 34463."""

import ipaddress
import re
from collections.abc import Sequence

from ._errors import BadOptionError
from ._urls import without_user

_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|xds):")
_DNS = re.compile(r"dns:(?://[^/]*/)?")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?")
_MAX_SOCKET_PATH_BYTES = 107
_DEFAULT_PORT = 50051
# Of a name in DNS.
_MAX_LABEL = 63


def parse_target(given: object) -> str:
    """Return the target of a client as one string; raises BadOptionError that says how to write it.

    given: HOST:PORT, several with commas between them or in a sequence, or a gRPC target with its scheme.
    """
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")]
        addresses: Sequence[object] = [given] if _SCHEME.match(given.strip()) else parts
    elif isinstance(given, Sequence) and not isinstance(given, bytes | bytearray | memoryview):
        addresses = given
    else:
        raise _refused(given, "is not a str or a list of them: write HOST:PORT")
    if len(addresses) > 1 and "" in addresses:
        raise _refused(
            ",".join(map(str, addresses)),
            "has an address that is empty: remove the comma, or write HOST:PORT",
        )
    checked = [_checked(address) for address in addresses]
    if not checked:
        raise _refused(given, "is empty: name a server as HOST:PORT")
    if len(checked) > 1 and (schemed := next(filter(_SCHEME.match, checked), None)):
        raise _refused(schemed, "is one of several: write each as HOST:PORT, without a scheme")
    if len(checked) > 1 and len({ip.version for ip in map(_ip, map(host_of, checked)) if ip}) > 1:
        raise _refused(
            ",".join(checked), "mixes IPv4 and IPv6: write addresses of one kind, or dns:///NAME:PORT"
        )
    return ",".join(checked)


def is_several(target: str) -> bool:
    """Tell whether a target is a list of addresses."""
    return "," in target and not _SCHEME.match(target)


def is_loopback(target: str) -> bool:
    """Tell whether a gRPC target cannot leave this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    address = rest.lstrip("/") if scheme in {"dns", "ipv4", "ipv6"} and rest else target
    return all(_is_loopback_host(host_of(part)) for part in address.split(","))


def host_of(address: str) -> str:
    """Return the host of HOST:PORT, an IPv6 address without its brackets."""
    bracketed = re.fullmatch(r"\[(.+)\](?::\d+)?", address)
    return bracketed[1] if bracketed else re.sub(r":\d+$", "", address)


def _checked(address: object) -> str:
    if not isinstance(address, str):
        raise _refused(address, "is not a str: write HOST:PORT")
    address = address.strip()
    if not address:
        raise _refused(address, "is empty: name a server as HOST:PORT")
    scheme = _SCHEME.match(address)
    if scheme is None or scheme[1] == "dns":
        start = _DNS.match(address)
        _check_host_port(address[start.end() :] if start else address, address)
    elif scheme[1] in {"ipv4", "ipv6"}:
        for one in address[scheme.end() :].split(","):
            _check_literal(one, scheme[1], address)
    elif scheme[1] in {"unix", "unix-abstract"}:
        _check_socket(address[scheme.end() :], address)
    return address


def _check_host_port(host_port: str, target: str) -> None:
    if "://" in host_port or host_port.startswith("//"):
        scheme, _, rest = host_port.partition("//")
        place = rest.rpartition("@")[2].lstrip("/").partition("/")[0]
        tls = " and tls=True" if scheme in {"https:", "grpcs:"} else ""
        raise _refused(target, f"is a URL: write {place if ':' in place else f'{place}:PORT'!r}{tls}")
    host, port = _split(host_port, target)
    if not host:
        raise _refused(target, "has no host: write HOST:PORT")
    _check_port(port, target, f"{host}:{_DEFAULT_PORT}")
    if not (_is_ip(host) or _HOST.fullmatch(host)):
        raise _refused(target, "is not HOST:PORT: a host has letters, digits, '.', '-' and '_'")
    if any(not 0 < len(label) <= _MAX_LABEL for label in host.removesuffix(".").split(".")):
        raise _refused(
            target, f"is not HOST:PORT: between the dots of a host are 1 to {_MAX_LABEL} characters"
        )


def _check_literal(address: str, kind: str, target: str) -> None:
    host, port = _split(address, target)
    version = 4 if kind == "ipv4" else 6
    if not _is_ip(host) or ipaddress.ip_address(host.strip("[]")).version != version:
        raise _refused(
            target, f"is not a list of {'IP:PORT' if version == 4 else '[IP]:PORT'} with IPv{version}"
        )
    _check_port(port, target, f"{kind}:{host}:{_DEFAULT_PORT}")


def _check_port(port: str | None, target: str, example: str) -> None:
    if port is None:
        raise _refused(target, f"has no port: write {example!r}")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) <= 65_535):
        raise _refused(target, f"has port {port!r}: a port is a number of 1 to 65535, as in {example!r}")


def _check_socket(path: str, target: str) -> None:
    size = len(path.removeprefix("//").encode("utf-8", "surrogateescape"))
    if not 0 < size <= _MAX_SOCKET_PATH_BYTES:
        raise _refused(
            target,
            f"has a socket path of {size} bytes: write unix:PATH of 1 to {_MAX_SOCKET_PATH_BYTES} bytes",
        )


def _split(address: str, target: str) -> tuple[str, str | None]:
    """Return host and port, None when there is no port; an IPv6 address keeps its brackets."""
    if bracketed := _BRACKETED.fullmatch(address):
        ip = _ip(bracketed[1])
        if ip and ip.version == 4:
            raise _refused(target, f"has brackets around IPv4: write '{ip}:{bracketed[2] or _DEFAULT_PORT}'")
        return f"[{bracketed[1]}]", bracketed[2]
    if address.startswith("["):
        ip = _ip(address[1:].partition("]")[0])
        raise _refused(target, f"is not [IPV6]:PORT: write '[{ip or '::1'}]:{_DEFAULT_PORT}'")
    host, colon, port = address.rpartition(":")
    if ":" in host and (_is_ip(host) or _is_ip(address)):
        example = f"[{host}]:{port}" if _is_ip(host) else f"[{address}]:{_DEFAULT_PORT}"
        raise _refused(target, f"is an IPv6 address without brackets: write {example!r}")
    return (host, port) if colon else (address, None)


def _is_ip(host: str) -> bool:
    return _ip(host.removeprefix("[").removesuffix("]")) is not None


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(value: object, why: str) -> BadOptionError:
    shown = without_user(value) if isinstance(value, str) else value
    return BadOptionError(f"target = {shown!r} {why}")
