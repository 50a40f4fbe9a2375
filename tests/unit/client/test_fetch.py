"""URLs, against a real HTTP server that misbehaves."""

import json
import re
import select
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from pixvec import InputError, TooLargeError, to_input
from pixvec._urls import parse_http_url, redacted, shown

BODY = b"cat" * 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("://")[2].partition("/")[2] or self.path  # a proxy is sent the whole URL
        getattr(self, re.split("[/?]", path.strip("/"))[0])()

    def do_CONNECT(self) -> None:
        """Relay bytes to the host asked for, as a proxy does for https."""
        host, _, port = self.path.rpartition(":")
        cast("Site", self.server).tunnels.append(self.path)
        with socket.create_connection((host, int(port))) as upstream:
            self.send_response(200)
            self.end_headers()
            while readable := select.select([self.connection, upstream], [], [], 5)[0]:
                for one in readable:
                    if not (data := one.recv(1 << 16)):
                        self.close_connection = True
                        return
                    (upstream if one is self.connection else self.connection).sendall(data)

    def echo(self) -> None:
        self.answer(body=json.dumps([self.path, self.headers.get("Authorization")]).encode())

    def to_umlaut(self) -> None:
        self.answer(302, Location="/echo/M\xc3\xbcn chen.jpg?q=\xc3\xa4")  # bytes of UTF-8

    def to_same_host(self) -> None:
        self.answer(302, Location="/echo")

    def to_other_host(self) -> None:
        self.answer(302, Location=f"http://localhost:{cast('Site', self.server).server_port}/echo")

    def to_itself(self) -> None:
        self.answer(302, Location="/to_itself")

    def to_no_host(self) -> None:
        self.answer(302, Location="http://")

    def to_no_host_but_path(self) -> None:
        self.answer(302, Location="https:///good")

    def to_proxied_host(self) -> None:
        self.answer(302, Location="http://elsewhere.invalid/missing")

    def odd_length(self) -> None:
        self.answer(body=b"cat", Content_Length="abc")
        self.close_connection = True

    def colored(self) -> None:
        self.wfile.write(b"HTTP/1.1 500 \x1b[31mred\x9b\r\nContent-Length: 0\r\n\r\n")

    def chunked_cut(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"a\r\nxxxxx")
        self.close_connection = True

    def to_bad_port(self) -> None:
        self.answer(302, Location="http://user:secret@127.0.0.1:99999/x")

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


class Site(ThreadingHTTPServer):
    def __init__(self, host: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.tunnels: list[str] = []
        super().__init__((host, 0), Handler)


@contextmanager
def serving(server: Site) -> Iterator[Site]:
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving(Site()) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def echoed(url: str) -> Any:
    return json.loads(to_input(url).image)


def test_a_url_is_read(site: str) -> None:
    assert to_input(f"{site}/good").image == BODY
    assert to_input(f"{site}/good".replace("http:", "HTTP:")).image == BODY


def test_redirects_are_followed_up_to_five(site: str) -> None:
    assert to_input(f"{site}/again/4").image == BODY
    for path in ("again/5", "to_itself"):
        with pytest.raises(InputError, match=f"/{path}: more than 5 redirects$"):
            to_input(f"{site}/{path}")


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


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("cut", "the connection broke 997 bytes before the end"),
        ("chunked_cut", "the connection broke before the end"),
        ("odd_length", "the server answered with Content-Length 'abc', no number"),
        ("to_no_host", "refused to follow a redirect to .*: 'http://' has no host"),
        ("to_no_host_but_path", "refused to follow a redirect to .*: 'https:///good' has no host"),
        ("colored", r"the server answered 500 \\x1b\[31mred\\x9b"),
    ],
)
def test_a_bad_answer_is_named(site: str, path: str, said: str) -> None:
    with pytest.raises(InputError, match=f"/{path}: {said}$"):
        to_input(f"{site}/{path}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http:///x", "http://[bad/x", "http://a b/x"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(InputError, match="http:"):
        to_input(url)


def test_other_schemes_are_not_read() -> None:
    with pytest.raises(InputError, match="a URL begins with http:"):
        to_input("ftp://127.0.0.1/x")


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/München.jpg", "/M%C3%BCnchen.jpg"),
        ("/a cat.jpg", "/a%20cat.jpg"),
        ("/a%20cat%2F1.jpg", "/a%20cat%2F1.jpg"),
        ("/100%.jpg", "/100%25.jpg"),
        ("/猫.jpg?größe=1 2&x=%C3%A4#oben", "/%E7%8C%AB.jpg?gr%C3%B6%C3%9Fe=1%202&x=%C3%A4"),
        ('/a+b;c=1,2@x/{id}|"<>^`\\', "/a+b;c=1,2@x/%7Bid%7D%7C%22%3C%3E%5E%60%5C"),
        ("/\udcfc.jpg", "/%FC.jpg"),  # a line of stdin in Latin-1
        ("?q=1", "?q=1"),
    ],
)
def test_what_a_url_cannot_hold_is_quoted_once(site: str, path: str, sent: str) -> None:
    assert echoed(f"{site}/echo{path}")[0] == f"/echo{sent}"


def test_white_space_around_a_url_is_not_part_of_it(site: str) -> None:
    assert echoed(f" {site}/echo \n")[0] == "/echo"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://münchen.example/ä", "http://xn--mnchen-3ya.example/%C3%A4"),
        ("http://m%C3%BCnchen.example", "http://xn--mnchen-3ya.example/"),
        ("HTTPS://Host.Example:8443/x", "https://host.example:8443/x"),
        ("http://[2001:db8::1]:80/x", "http://[2001:db8::1]:80/x"),
        ("http://user:pass@host/x#y", "http://host/x"),
    ],
)
def test_a_host_goes_in_its_idna_form(url: str, sent: str) -> None:
    assert parse_http_url(url).url == sent


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http:///x", "no host"),
        ("http://host:99999/x", "not a number of 1 to 65535"),
        ("http://host:0/x", "not a number of 1 to 65535"),
        ("http://host:http/x", "not a number of 1 to 65535"),
        ("http://a b/x", "'a b' is not the name of a host"),
        ("http://host\\@evil/x", "control character|not the name of a host|Name or service|resolution"),
        ("http://host/a\nb", "control character"),
        ("http://\u2603\u2603.example\u3002\u3002/x", "IDNA"),
        ("http://[bad/x", "IPv6"),
    ],
)
def test_what_is_no_url_says_why(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        to_input(url, url_timeout_s=2)


def test_an_ipv6_address_is_read() -> None:
    with serving(Site("::1")) as server:
        assert to_input(f"http://[::1]:{server.server_port}/good").image == BODY


def test_a_redirect_may_hold_any_letters(site: str) -> None:
    assert echoed(f"{site}/to_umlaut")[0] == "/echo/M%C3%BCn%20chen.jpg?q=%C3%A4"
    with pytest.raises(InputError, match=r"refused to follow a redirect to .*99999/x: the port") as caught:
        to_input(f"{site}/to_bad_port")
    assert "secret" not in str(caught.value)


def test_credentials_of_a_url_are_sent_to_its_host_alone(site: str) -> None:
    expected = "Basic " + b64encode("user:ge heim@ä".encode()).decode()
    private = site.replace("//", "//user:ge%20heim%40%C3%A4@")
    assert echoed(f"{private}/echo")[1] == expected
    assert echoed(f"{private}/to_same_host")[1] == expected
    assert echoed(f"{private}/to_other_host")[1] is None
    assert echoed(f"{site}/echo")[1] is None


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1:1/x",
        "http://user:se/secret@127.0.0.1:1/x",
        "http://user:se#secret@127.0.0.1:1/x",
        "http://secret@127.0.0.1:1/x",
        "http://127.0.0.1:1/x?X-Amz-Credential=secret&X-Amz-Signature=secret&a=1",
        "http://127.0.0.1:1/x?sig=secret",
        "http://127.0.0.1:1/x?a=1&access_token=secret#y",
        "ftp://user:secret@host/x",
        "file://user:secret@host/x",
    ],
)
def test_no_message_holds_credentials(url: str) -> None:
    with pytest.raises(InputError) as caught:
        to_input(url)
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)


def test_what_steers_a_terminal_is_shown_as_its_code() -> None:
    hostile = "a\x1b]0;x\x07\x1b[2J\nerror: fake\r\t\x7f\x9b\u2028\u202e\u2066\u200f.jpg"
    assert shown(hostile) == (
        r"a\x1b]0;x\x07\x1b[2J\x0aerror: fake\x0d\x09\x7f\x9b\u2028\u202e\u2066\u200f.jpg"
    )
    assert shown("Ünïcödé 猫 \u200d🐈") == "Ünïcödé 猫 \u200d🐈"


def test_what_is_not_secret_is_shown() -> None:
    plain = "https://host/a@b.jpg?page=2&keyboard=qwertz&monkey=1"
    assert redacted(plain) == shown(plain) == plain
    assert shown("photos//a@b.jpg") == "photos//a@b.jpg"
    assert shown("x" * 1000) == "x" * 256 + "… (1000 characters)"


def test_the_environments_proxy_is_used(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", site)
    monkeypatch.setenv("no_proxy", "direct.invalid,.local.invalid")
    assert echoed("http://elsewhere.invalid/echo/ü")[0] == "http://elsewhere.invalid/echo/%C3%BC"
    for direct in ("http://direct.invalid/good", "http://a.local.invalid/good"):
        with pytest.raises(InputError, match=r"(?i)name|resolution"):
            to_input(direct, url_timeout_s=2)
    with pytest.raises(InputError, match=r"404 Not Found \(through http_proxy = http://127.0.0.1"):
        to_input("http://elsewhere.invalid/missing")


def test_https_goes_through_a_tunnel_of_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    secure = Site()
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("no_proxy", "")
    with serving(secure), serving(Site()) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_port}")
        assert to_input(f"https://127.0.0.1:{secure.server_port}/good").image == BODY
        assert proxy.tunnels == [f"127.0.0.1:{secure.server_port}"]


def test_only_the_proxy_of_the_url_counts(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:secret@127.0.0.1:1080")
    assert to_input(f"{site}/good").image == BODY
    monkeypatch.setenv("http_proxy", "socks5://user:secret@127.0.0.1:1080")
    assert to_input(f"{site}/good").image == BODY  # no_proxy names its host
    with pytest.raises(InputError, match=r"http_proxy = socks5://\*\*\*@127.0.0.1:1080: only http"):
        to_input(f"{site}/to_proxied_host")
    monkeypatch.setenv("http_proxy", site)
    with pytest.raises(InputError, match=r"/to_proxied_host: .* 404 Not Found \(through http_proxy = http"):
        to_input(f"{site}/to_proxied_host")


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://127.0.0.1:1080",
        "http://user:secret@127.0.0.1:1",
        "user:secret@127.0.0.1:1",
        "//user:secret@127.0.0.1:1",
        "user:se/secret@127.0.0.1:1",
        "http://user:se/secret@127.0.0.1:1",
        "http://user:se#secret@127.0.0.1:1",
        "http://user:se@secret@127.0.0.1:1",
        "http:/user:secret@127.0.0.1:1",
        "user:secret@127.0.0.1:secret@127.0.0.1:99999",
        "http://secret@",
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(InputError, match="http_proxy = ") as caught:
        to_input("http://elsewhere.invalid/x")
    assert "secret" not in str(caught.value)


def test_an_answer_that_is_not_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(b"\xff\xd8\xff")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+/x: "):
            to_input(f"http://127.0.0.1:{listener.getsockname()[1]}/x", url_timeout_s=2)
        thread.join()
