"""URLs, against a real HTTP server that misbehaves."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pixvec import InputError, TooLargeError, to_input

BODY = b"cat" * 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        getattr(self, self.path.strip("/").split("/")[0])()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self) -> None:
        self.answer(body=BODY)

    def missing(self) -> None:
        self.answer(404, b"<html>")

    def again(self) -> None:
        left = int(self.path.split("/")[-1])
        self.answer(302, Location=f"/again/{left - 1}" if left else "/good")

    def to_file(self) -> None:
        self.answer(302, Location="file:///etc/hostname")

    def to_ftp(self) -> None:
        self.answer(302, Location="ftp://127.0.0.1/x")

    def cut(self) -> None:
        self.answer(body=b"cat", Content_Length="1000")
        self.close_connection = True

    def chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(20):
            self.wfile.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self._drip()

    def drip_head(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self._drip()

    def _drip(self) -> None:
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            self.close_connection = True


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_is_read(site: str) -> None:
    assert to_input(f"{site}/good").image == BODY
    assert to_input(f"{site}/good".replace("http:", "HTTP:")).image == BODY


def test_redirects_are_followed_up_to_five(site: str) -> None:
    assert to_input(f"{site}/again/4").image == BODY
    with pytest.raises(InputError, match="/again/5: the server answered 302"):
        to_input(f"{site}/again/5")


def test_a_redirect_leaves_http_never(site: str) -> None:
    with pytest.raises(InputError, match=r"'file:///etc/hostname' is not allowed"):
        to_input(f"{site}/to_file")
    with pytest.raises(InputError, match=r"refused to follow a redirect to ftp://127.0.0.1/x"):
        to_input(f"{site}/to_ftp")


def test_a_failure_names_url_and_status(site: str) -> None:
    with pytest.raises(InputError, match=r"/missing: the server answered 404 Not Found"):
        to_input(f"{site}/missing")


@pytest.mark.parametrize("path", ["good", "chunked"])
def test_too_large_is_refused_stated_or_not(site: str, path: str) -> None:
    with pytest.raises(TooLargeError, match=f"/{path} holds more than 2999 bytes"):
        to_input(f"{site}/{path}", url_max_bytes=2999)
    assert len(to_input(f"{site}/{path}", url_max_bytes=30_000).image) in {3000, 20_000}


@pytest.mark.parametrize("path", ["drip", "drip_head"])
def test_the_time_limit_is_for_the_whole(site: str, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=r"not read within 0.3 s"):
        to_input(f"{site}/{path}", url_timeout_s=0.3)
    assert 0.25 < time.monotonic() - started < 2


def test_a_body_cut_short_is_no_image(site: str) -> None:
    with pytest.raises(InputError, match="/cut: "):
        to_input(f"{site}/cut")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http:///x", "http://[bad/x", "http://a b/x"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(InputError, match="http:"):
        to_input(url)


def test_other_schemes_are_not_read() -> None:
    with pytest.raises(InputError, match="a URL begins with http:"):
        to_input("ftp://127.0.0.1/x")
