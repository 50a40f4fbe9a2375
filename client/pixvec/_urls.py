"""URLs as people write them, and names as messages may show them. No input and no output."""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit

# What a path or a query may hold as it is (RFC 3986), and "%", which begins what is quoted already.
_SAFE = "!$%&'()*+,/:;=?@[]~"
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9._~-]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_USER = re.compile(r"(?<=//)[^/?#\s]*@")
# Presigned URLs of the object stores, and the usual names of keys.
_SECRET = re.compile(
    r"(?i)([?&](?:[\w.-]*(?:signature|credential|token|secret|password|api[_-]?key|access[_-]?key)[\w.-]*"
    r"|sig|key|auth)=)[^&#\s]*"
)
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MAX_SHOWN = 256


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """An http(s) URL as it is sent.

    url: ASCII, quoted, without credentials and fragment. authorization: the header that its credentials make.
    """

    url: str
    host: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def origin(self) -> tuple[str, str]:
        """Scheme and address: what credentials belong to."""
        parts = urlsplit(self.url)
        return parts.scheme, parts.netloc


def parse_http_url(text: str) -> HttpUrl:
    """Return what to send for an http(s) URL; raises ValueError with the reason when it is none.

    Characters that a URL cannot hold are quoted as UTF-8, those that are quoted stay. The host goes in its
    IDNA form (IDNA 2003, as Python's own codec has it).
    """
    if _CONTROL.search(text):
        raise ValueError("a URL holds no control character such as a line break: quote or remove it")
    parts = urlsplit(text)
    if not parts.hostname:
        raise ValueError("the URL has no host: write http://HOST/PATH")
    host = _host(parts.hostname)
    port = _port(parts)
    path = _quoted(parts.path) or "/"
    query = f"?{_quoted(parts.query)}" if parts.query else ""
    return HttpUrl(f"{parts.scheme.lower()}://{host}{port}{path}{query}", host, _authorization(parts))


def redacted(url: str) -> str:
    """Return a URL with `***` for its credentials: user and password, signatures and keys of the query."""
    try:
        _ = urlsplit(url).port
        hidden = _USER.sub("***@", url)
    except ValueError:
        # "/", "?" or "#" in a password ends the address before its "@": nothing before the last one is shown.
        scheme, slashes, rest = url.partition("//")
        hidden = f"{scheme}{slashes}***@{rest.rpartition('@')[2]}" if "@" in rest else url
    return _SECRET.sub(r"\1***", hidden)


def without_user(address: str) -> str:
    """Return an address with `***` for all that stands before its last "@".

    It need not be a URL: a proxy may be written as USER:PASSWORD@HOST:PORT, with any password.
    """
    scheme = _SCHEME.match(address)
    start = scheme.end() if scheme else 0
    _, at, host = address[start:].rpartition("@")
    return f"{address[:start]}***@{host}" if at else address


def shown(name: str) -> str:
    """Return a path or URL as a message shows it: `abbreviated`, and without what steers a terminal."""
    return escaped(abbreviated(name))


def abbreviated(name: str) -> str:
    """Return a path or URL as UTF-8 can hold it, of bounded length, without credentials."""
    text = redacted(name) if _SCHEME.match(name) else name
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}… ({len(name)} characters)"


def escaped(text: str) -> str:
    r"""Return a text with \xNN or \uNNNN for the characters that would steer a terminal or forge a line.

    These are the control characters C0 and C1, line breaks among them, and those that change the direction of
    text or begin a line.
    """
    return _STEERING.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _host(name: str) -> str:
    if ":" in name:
        return f"[{name}]"
    try:
        name = unquote(name, errors="strict")
        host = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"the host {name!r} has no IDNA form: write it as xn--…") from error
    if not _HOST.fullmatch(host):
        raise ValueError(f"{name!r} is not the name of a host")
    return host


def _port(parts: SplitResult) -> str:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        # Without the text itself, which may be half of a password.
        raise ValueError(
            "the port is not a number of 1 to 65535 (in a password write / as %2F, ? as %3F, # as %23)"
        )
    return "" if port is None else f":{port}"


def _quoted(text: str) -> str:
    return quote(_LONE_PERCENT.sub("%25", text), safe=_SAFE, errors="surrogateescape")


def _authorization(parts: SplitResult) -> str | None:
    if parts.username is None and parts.password is None:
        return None
    user, password = (unquote_to_bytes(part or "") for part in (parts.username, parts.password))
    return f"Basic {b64encode(user + b':' + password).decode()}"
