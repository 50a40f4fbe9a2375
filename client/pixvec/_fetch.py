"""Reads http(s) URLs within a time, a size and a number of redirects, through the environment's proxies."""

import http.client
import io
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any, cast
from urllib.parse import urlsplit

from ._errors import InputError, TooLargeError
from ._urls import HttpUrl, parse_http_url, redacted, shown
from ._version import __version__

_BLOCK = 64 << 10


def fetch(url: str, *, timeout_s: float, max_bytes: int) -> bytes:
    """Return what an http(s) URL holds.

    A URL may hold spaces, non-ASCII letters and credentials (sent as Basic authentication, to its own host
    only). The variables http_proxy, https_proxy and no_proxy apply as they do for curl. `timeout_s` limits
    the whole, from connecting to the last byte, redirects (at most 5) included; only looking up the host's
    name can take longer.
    Raises TooLargeError over `max_bytes`, InputError for everything else; both name the URL, without its
    credentials.
    """
    name = shown(url)
    deadline = time.monotonic() + timeout_s
    via = ""
    try:
        parsed = parse_http_url(url)
        proxies = _proxies()
        via = _via(parsed, proxies)
        with _opener(deadline, proxies).open(_request(parsed), timeout=timeout_s) as response:
            return _read(response, max_bytes, name)
    except urllib.error.HTTPError as error:
        error.close()
        # urllib's own words for a bad redirect fill three lines.
        said = shown(str(error.reason).partition("\n")[0])
        raise InputError(f"{name}: the server answered {error.code} {said}{via}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise InputError(f"{name}: not read within {timeout_s:g} s{via}") from error
        raise InputError(f"{name}: {reason}{via}") from error


def _request(parsed: HttpUrl) -> urllib.request.Request:
    agent = {"User-Agent": f"pixvec/{__version__}"}
    request = urllib.request.Request(parsed.url, headers=agent)  # noqa: S310 - the opener knows http(s) only
    if parsed.authorization is not None:
        request.add_unredirected_header("Authorization", parsed.authorization)
    return request


def _proxies() -> dict[str, str]:
    """Return the environment's proxies of http and https; raises ValueError for one of another kind."""
    found = urllib.request.getproxies()
    proxies = {scheme: found[scheme] for scheme in ("http", "https") if found.get(scheme)}
    for scheme, proxy in proxies.items():
        kind = proxy.partition("://")[0].lower() if "://" in proxy else "http"
        if kind not in {"http", "https"}:
            raise ValueError(
                f"{scheme}_proxy = {redacted(proxy)}: only http:// and https:// proxies are used"
            )
    return proxies


def _via(parsed: HttpUrl, proxies: Mapping[str, str]) -> str:
    scheme, address = parsed.origin
    proxy = proxies.get(scheme)
    if proxy is None or urllib.request.proxy_bypass(address):
        return ""
    return f" (through {scheme}_proxy = {redacted(proxy)})"


def _read(response: http.client.HTTPResponse, max_bytes: int, name: str) -> bytes:
    too_large = f"{name} holds more than {max_bytes} bytes, the client's url_max_bytes"
    if int(response.headers.get("Content-Length") or 0) > max_bytes:
        raise TooLargeError(too_large)
    body = bytearray()
    while block := response.read(_BLOCK):
        body += block
        if len(body) > max_bytes:
            raise TooLargeError(too_large)
    if response.length:
        raise InputError(f"{name}: the connection broke {response.length} bytes before the end")
    return bytes(body)


class _DeadlineIO(io.RawIOBase):
    """A socket's bytes within one deadline: a time limit for each read would never end a drip."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - RawIOBase's own signature
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        self._sock.settimeout(remaining)
        return cast("io.RawIOBase", self._raw).readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineSocket:
    """The one method of a socket that HTTPResponse uses."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> IO[bytes]:
        return io.BufferedReader(_DeadlineIO(self._sock, self._deadline))


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:  # noqa: ANN401 - urllib's hook
        request, body, code, message, headers, url = args
        try:
            target = _redirected(url)
        except ValueError as error:
            body.close()
            refused = f"{shown(request.full_url)}: refused to follow a redirect to {shown(url)}"
            raise InputError(f"{refused}: {error}") from error
        following = super().redirect_request(request, body, code, message, headers, target.url)
        if following is None:
            return None
        authorization = target.authorization
        if authorization is None and target.origin == parse_http_url(request.full_url).origin:
            authorization = request.unredirected_hdrs.get("Authorization")
        if authorization is not None:
            following.add_unredirected_header("Authorization", authorization)
        return following


def _redirected(url: str) -> HttpUrl:
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError("only http:// and https:// are followed")
    return parse_http_url(url)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_bounded(http.client.HTTPConnection, self._deadline), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connect = partial(http.client.HTTPSConnection, context=ssl.create_default_context())
        return self.do_open(_bounded(connect, self._deadline), req)


def _bounded(connect: Callable[..., http.client.HTTPConnection], deadline: float) -> Any:  # noqa: ANN401 - urllib's private protocol
    def open_connection(host: str, *, timeout: float) -> http.client.HTTPConnection:
        connection = connect(host, timeout=max(min(timeout, deadline - time.monotonic()), 0.001))
        respond = connection.response_class
        sockets = partial(_DeadlineSocket, deadline=deadline)
        connection.response_class = lambda sock, **kw: respond(sockets(sock), **kw)  # type: ignore[assignment, arg-type]
        return connection

    return open_connection


def _opener(deadline: float, proxies: Mapping[str, str]) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(dict(proxies)),
        _Http(deadline),
        _Https(deadline),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener
