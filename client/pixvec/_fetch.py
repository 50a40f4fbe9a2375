"""Reads http(s) URLs within a time, a size and a number of redirects, through the environment's proxies."""

import http.client
import io
import re
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
from ._urls import HttpUrl, parse_http_url, shown, without_user
from ._version import __version__

_BLOCK = 64 << 10
_MAX_REDIRECTS = 5


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
    proxies = _Proxies(urllib.request.getproxies())
    try:
        request = _request(parse_http_url(url))
        with _opener(deadline, proxies).open(request, timeout=timeout_s) as response:
            return _read(response, max_bytes, name)
    except urllib.error.HTTPError as error:
        error.close()
        # urllib's own words for a bad redirect fill three lines.
        said = shown(str(error.reason).partition("\n")[0])
        raise InputError(f"{name}: the server answered {error.code} {said}{proxies.via}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise InputError(f"{name}: not read within {timeout_s:g} s{proxies.via}") from error
        raise InputError(f"{name}: {shown(str(reason))}{proxies.via}") from error


def _request(parsed: HttpUrl) -> urllib.request.Request:
    agent = {"User-Agent": f"pixvec/{__version__}"}
    request = urllib.request.Request(parsed.url, headers=agent)  # noqa: S310 - the opener knows http(s) only
    if parsed.authorization is not None:
        request.add_unredirected_header("Authorization", parsed.authorization)
    return request


class _Proxies(urllib.request.ProxyHandler):
    """Sends each request, a redirect's too, through the proxy of its own scheme and host, where it has one.

    via: the proxy of the last request, as an error ends with it.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__({scheme: environment.get(scheme, "") for scheme in ("http", "https")})
        self.via = ""

    # urllib's names
    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:  # noqa: A002, ANN401
        if req.has_proxy():  # on its way to the proxy
            return None
        self.via = ""
        if not proxy or urllib.request.proxy_bypass(req.host):
            return None
        named = f"{type}_proxy = {shown(without_user(proxy))}"
        _check_proxy(proxy, named)
        self.via = f" (through {named})"
        return super().proxy_open(req, proxy, type)


def _check_proxy(proxy: str, named: str) -> None:
    """Raise ValueError for a proxy that cannot be used; what urllib raises would show half of a password."""
    url = proxy if "://" in proxy else f"http://{proxy.removeprefix('//')}"
    if url.partition("://")[0].lower() not in {"http", "https"}:
        raise ValueError(f"{named}: only http:// and https:// proxies are used")
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 and "@" not in parts.path else None
    except ValueError:
        host = None
    if not host:
        raise ValueError(f"{named}: write http://HOST:PORT (in a password / as %2F, ? as %3F, # as %23)")


def _read(response: http.client.HTTPResponse, max_bytes: int, name: str) -> bytes:
    too_large = f"{name} holds more than {max_bytes} bytes, the client's url_max_bytes"
    stated = response.headers.get("Content-Length")
    if stated is not None and response.length is None and not response.chunked:
        raise InputError(f"{name}: the server answered with Content-Length {shown(stated)!r}, no number")
    if (response.length or 0) > max_bytes:
        raise TooLargeError(too_large)
    body = bytearray()
    try:
        while block := response.read(_BLOCK):
            body += block
            if len(body) > max_bytes:
                raise TooLargeError(too_large)
    except http.client.IncompleteRead as error:
        raise InputError(f"{name}: the connection broke before the end") from error
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
    # Counted below: urllib's own error does not name the limit.
    max_redirections = max_repeats = _MAX_REDIRECTS + 1

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:  # noqa: ANN401 - urllib's hook
        request, body, code, message, headers, url = args
        followed = sum(getattr(request, "redirect_dict", {}).values())
        if followed >= _MAX_REDIRECTS:
            body.close()
            raise ValueError(f"more than {_MAX_REDIRECTS} redirects")
        try:
            target = _redirected(url, headers.get("Location") or "")
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


def _redirected(url: str, location: str) -> HttpUrl:
    """Return where a redirect leads; `location`: what the server wrote, of which urllib has made `url`."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError("only http:// and https:// are followed")
    if re.match(r"\w+://(?:[/?#]|$)", location):
        raise ValueError(f"{shown(location)!r} has no host")
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


def _opener(deadline: float, proxies: _Proxies) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        proxies,
        _Http(deadline),
        _Https(deadline),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener
