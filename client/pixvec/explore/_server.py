"""Serves the page on this machine's loopback: thumbnails and images when they are asked for, and search."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socket import AddressFamily
from typing import NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from pixvec._client import Client
from pixvec._errors import InputError, PixvecError
from pixvec._inputs import MAX_BYTES
from pixvec._types import Array
from pixvec.dataset import Dataset
from pixvec.dataset._images import Cache, Images

from ._nearest import Near, Neighbourhoods, Search
from ._page import DATA, NEAR_ROWS, PAGE, as_script, data_of, page_files

IMAGE_PX, THUMB_PX, MOST_THUMB_PX = 1600, 128, 512
CACHE_BYTES = 64 << 20
SEARCH_ROWS = 48
MAX_TEXT_BYTES = 16 << 10
_POLL_S = 0.05  # how soon it notices that it is to close
# The scripts are files of this server; Bokeh sets styles on elements.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Another dataset may be served at this address next time.
    "Cache-Control": "no-store",
}
_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_OF_A_ROW = re.compile(r"/(thumb|image|size|near)/([0-9]{1,9})")


class Answer(NamedTuple):
    """What a request gets."""

    status: HTTPStatus
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Site:
    """What there is to ask for, by path; knows nothing of sockets."""

    files: Mapping[str, bytes]
    rows: int
    images: Images
    cache: Cache
    neighbourhoods: Neighbourhoods
    search: Search | None

    def get(self, target: str) -> Answer:
        """Answer a GET."""
        path, _, query = target.partition("?")
        name = path.removeprefix("/") or PAGE
        if name in self.files:
            return Answer(HTTPStatus.OK, _KINDS[name.rpartition(".")[2]], self.files[name])
        asked = _OF_A_ROW.fullmatch(path)
        if asked is None or int(asked[2]) >= self.rows:
            return _failure(HTTPStatus.NOT_FOUND, f"{path}: there is nothing of that name")
        try:
            return self._of_a_row(asked[1], int(asked[2]), query)
        except InputError as error:
            return _failure(HTTPStatus.NOT_FOUND, str(error))

    def most_bytes(self, target: str) -> int:
        """Return how much may be posted."""
        return MAX_TEXT_BYTES if target == "/search/text" else MAX_BYTES

    def post(self, target: str, body: bytes) -> Answer:
        """Answer a POST."""
        if target not in {"/search/image", "/search/text"} or self.search is None:
            return _failure(HTTPStatus.NOT_FOUND, f"{target}: there is nothing of that name")
        try:
            vector = self.search.image(body) if target == "/search/image" else self.search.text(_text(body))
        except PixvecError as error:
            return _failure(HTTPStatus.BAD_REQUEST, str(error))
        return _near(self.neighbourhoods.of_vector(vector, SEARCH_ROWS))

    def _of_a_row(self, what: str, row: int, query: str) -> Answer:
        if what == "near":
            return _near(self.neighbourhoods.of_row(row, NEAR_ROWS))
        if what == "size":
            return _json(HTTPStatus.OK, self.images.size(row))
        if what == "image":
            return self._jpeg(row, IMAGE_PX, self.images.whole)
        return self._jpeg(row, _thumb_px(query), self.images.thumb)

    def _jpeg(self, row: int, px: int, make: Callable[[int, int], bytes]) -> Answer:
        body = self.cache.get((row, px), lambda: make(row, px))
        return Answer(HTTPStatus.OK, "image/jpeg", body)


class Explorer:
    """A page that is being served; close it, or use it as a context manager."""

    def __init__(self, server: "_Server") -> None:
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(_POLL_S,), name="explorer", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self._server.server_address[:2]
        name = str(host)
        return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"

    def wait(self) -> None:
        """Return when it is closed, by another thread, or raise KeyboardInterrupt."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.site.images.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    dataset: Dataset,
    projections: Mapping[str, Array],
    columns: Mapping[str, Array],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    client: Client | None = None,
    fetch: bool = True,
) -> Explorer:
    """Serve the page on this machine, and only to it.

    projections, columns: see `pixvec.explore`; without `neighbours` those of a row are found when it is
    clicked. port: 0 takes a free one. client: embeds the images, and the texts if the dataset's model takes
    any, that are searched for; without one there is no search. fetch: get images that the dataset knows by
    URL when they are looked at; the page itself asks for none. Raises InputError, also for an address that is
    taken, and what the client raises when it asks for the model.
    """
    if not _is_loopback(host):
        raise InputError(
            f"host = {host!r} is not of this machine's loopback: use 127.0.0.1, or a tunnel to it"
        )
    data = data_of(dataset, projections, columns)
    search = Search(dataset, client) if client else None
    offered = {"texts": search.takes_texts} if search else None
    site = Site(
        files=page_files() | {DATA: as_script(data | {"served": True, "search": offered})},
        rows=len(dataset.rows),
        images=Images(dataset.rows, dataset.about, fetches=fetch),
        cache=Cache(CACHE_BYTES),
        neighbourhoods=Neighbourhoods(dataset),
        search=search,
    )
    try:
        return Explorer(_Server(host, port, site))
    except (OSError, OverflowError) as error:
        raise InputError(f"port = {port}: {error}; take another one, or 0 for any free one") from error


def is_ours(host: str | None, served: str) -> bool:
    """Tell whether a Host header names this server.

    A page of another site may have its own name lead to 127.0.0.1 and then ask here as if it were ours, but
    the browser still sends that name as the Host. The port may differ, as it does through a tunnel.
    """
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and name in {served, "localhost", "127.0.0.1", "::1"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, site: Site) -> None:
        self.host, self.site = host, site
        self.address_family = AddressFamily.AF_INET6 if ":" in host else AddressFamily.AF_INET
        super().__init__((host, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True  # or what follows the headers waits 40 ms for them to be acknowledged
    server: _Server

    def do_GET(self) -> None:
        self._answer(lambda: self.server.site.get(self.path))

    def do_POST(self) -> None:
        self._answer(self._posted)

    def log_message(self, *_: object) -> None:
        """Say nothing: a page of thumbnails is hundreds of requests."""

    def _posted(self) -> Answer:
        size, most = self.headers.get("Content-Length", ""), self.server.site.most_bytes(self.path)
        if not re.fullmatch("[0-9]{1,12}", size) or int(size) > most:
            self.close_connection = True
            return _failure(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"search by at most {most} bytes")
        return self.server.site.post(self.path, self.rfile.read(int(size)))

    def _answer(self, answer: Callable[[], Answer]) -> None:
        try:
            self._send(answer() if self._allowed() else self._refused())
        except (ConnectionError, TimeoutError):  # the page was closed meanwhile
            self.close_connection = True

    def _allowed(self) -> bool:
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if not is_ours(host, self.server.host) or (origin is not None and origin.partition("://")[2] != host):
            return False
        # What a page of another site embeds has no Origin, but says this; a link there may lead here.
        site, mode = self.headers.get("Sec-Fetch-Site"), self.headers.get("Sec-Fetch-Mode")
        return site in {None, "none", "same-origin"} or mode == "navigate"

    def _refused(self) -> Answer:
        self.close_connection = True
        return _failure(HTTPStatus.FORBIDDEN, "open this page as http://127.0.0.1 or http://localhost")

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _thumb_px(query: str) -> int:
    given = parse_qs(query).get("size", [""])[0]
    wanted = int(given) if re.fullmatch("[0-9]{1,4}", given) else THUMB_PX
    return max(16, min(MOST_THUMB_PX, wanted))


def _text(body: bytes) -> str:
    try:
        text = body.decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"the text is not UTF-8: {error}") from error
    if not text:
        raise InputError("the text is empty: write what to search for")
    return text


def _near(found: Near) -> Answer:
    return _json(HTTPStatus.OK, found._asdict())


def _json(status: HTTPStatus, told: object) -> Answer:
    return Answer(status, "application/json", json.dumps(told).encode())


def _failure(status: HTTPStatus, why: str) -> Answer:
    return _json(status, {"error": why})
