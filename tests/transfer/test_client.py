"""The client: where a token goes, what an answer means, what is never followed, sent or said."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from support.served import Served, Way, certificate, proxy, served
from trn.errors import StorageError, UsageError
from trn.transfer.answers import Refused, Unreachable
from trn.transfer.client import Client, retry_after_s
from trn.transfer.places import may_have_token, place_of, shown

TOKEN = "eyJ-this-is-nobodys-business"


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as kept:
        yield kept


def client_for(*hosts: str, token: str | None = TOKEN, timeout_s: float = 5.0) -> Client:
    return Client(lambda: token, frozenset(hosts), timeout_s=timeout_s)


def test_a_token_goes_to_the_hosts_that_are_named_and_to_no_other(server: Served) -> None:
    url = server.put("/x", b"{}")
    for hosts, is_sent in (
        ((server.host,), True),
        (("127.0.0.1",), True),
        ((" 127.0.0.1 ",), True),
        (("127.0.0.1:1",), False),
        (("example.org",), False),
        ((), False),
    ):
        server.seen.clear()
        client_for(*hosts).request("GET", url)
        assert ("authorization" in server.seen[0].headers) is is_sent, hosts
    client_for(server.host).request("GET", url)
    assert server.seen[-1].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("url", "host", "is_allowed"),
    [
        ("https://example.org/x", "example.org", True),
        ("https://EXAMPLE.org./x", "example.ORG", True),
        ("https://example.org/x", "example.org:443", True),
        ("https://example.org:8443/x", "example.org:443", False),
        ("http://example.org/x", "example.org", False),  # anybody on the way could read it
        ("https://example.org.evil.example/x", "example.org", False),
        ("https://notexample.org/x", "example.org", False),
        ("http://127.0.0.2:8000/x", "127.0.0.2", True),
        ("http://[::1]:8000/x", "[::1]:8000", True),
        ("http://[::1]:8000/x", "[::1]", True),
        ("http://localhost/x", "localhost", True),
        ("http://localhost.example/x", "localhost.example", False),
        ("http://127.0.0.1.example/x", "127.0.0.1.example", False),
    ],
)
def test_a_host_is_the_named_one_or_it_is_not(url: str, host: str, is_allowed: bool) -> None:
    assert may_have_token(place_of(url), [host]) is is_allowed


@pytest.mark.parametrize(
    "url",
    [
        "https://somebody:geheim@example.org/x",
        "https://geheim@example.org/x",
        "https://example.org@evil.example/x",
        "https://example.org\\@evil.example/x",
        "https://example.org/x?token=geheim",
        "https://example.org/x?a=1&X-Amz-Signature=geheim",
        "https://example.org/x?%74oken=geheim",
        "https://example.org/x?a=1;api_key=geheim",
        "https://example.org/x#access_token=geheim",
        "https://example.org/geheim\r\nX: y",
        "https://example.org/geheim x",
        "https:///geheim",
        "https://exämple.org/geheim",
        "https://example.org:geheim/x",
        "https://[example.org/geheim",
        "ftp://example.org/geheim",
        "geheim",
    ],
)
def test_a_url_with_a_secret_or_an_odd_host_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Refused) as told:
        client_for("example.org").request("POST", url, body=b"x")
    assert told.value.status == 0
    assert "geheim" not in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_shown_of_a_url_has_neither_user_nor_query_and_an_end() -> None:
    assert shown("https://a:b@example.org/x?token=1#c") == "https://...@example.org/x"
    assert shown("s3://bucket/key\n") == "s3://bucket/key?"
    assert len(shown("https://example.org/" + "x" * 10_000)) == 200


def test_an_answer_has_status_headers_in_any_case_and_body(server: Served) -> None:
    url = server.put("/x", b"", Way(201, (("Location", "/there"),), body=b'{"lease_id": "a"}'))
    answer = client_for(server.host).request("POST", url, body=b"[1]", headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.headers["location"], answer.headers.get("LOCATION")) == (201, "/there", "/there")
    assert answer.document() == {"lease_id": "a"}
    (seen,) = server.seen
    assert (seen.method, seen.body, seen.headers["idempotency-key"]) == ("POST", b"[1]", "k")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_json_object_is_refused(server: Served, body: bytes) -> None:
    answer = client_for().request("GET", server.put("/x", body))
    with pytest.raises(Refused, match="no JSON object"):
        answer.document()


@pytest.mark.parametrize("status", [500, 502, 503, 599, 408, 425, 429])
def test_what_may_be_better_later_is_unreachable_with_the_servers_wish(server: Served, status: int) -> None:
    url = server.put("/x", b"", Way(status, (("Retry-After", "7"),)))
    with pytest.raises(Unreachable) as told:
        client_for().request("GET", url)
    assert (told.value.status, told.value.retry_after_s) == (status, 7.0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422, 301, 302, 307, 308, 304, 600])
def test_what_will_be_no_better_is_refused_with_its_answer(server: Served, status: int) -> None:
    headers = (("Retry-After", "3"), ("Location", f"{server.url}/other"))
    url = server.put("/x", b"", Way(status, headers, body=b'{"why": "because"}' if status != 304 else b""))
    with pytest.raises(Refused) as told:
        client_for(server.host).request("PUT", url, body=b"x")
    assert (told.value.status, told.value.retry_after_s) == (status, 3.0)
    if status != 304:
        assert told.value.answer is not None
        assert told.value.answer.document() == {"why": "because"}
    assert TOKEN not in str(told.value)
    assert len(server.seen) == 1


def test_a_wish_is_a_number_or_a_date() -> None:
    assert retry_after_s(" 12 ") == 12.0
    assert retry_after_s(formatdate(1_000_030, usegmt=True), now=1_000_000) == 30.0
    assert retry_after_s(formatdate(900_000, usegmt=True), now=1_000_000) == 0.0
    for junk in ("", "soon", "-1", "1e9", "Wed, 99 Foo 2026", "١٢"):
        assert retry_after_s(junk) is None


def test_a_refused_request_says_that_no_token_was_sent(server: Served) -> None:
    url = server.always("/x", Way(401))
    with pytest.raises(Refused, match="answered 401 Unauthorized; no token was sent there"):
        client_for("example.org").request("GET", url)
    with pytest.raises(Refused, match="there is no token to send"):
        client_for(server.host, token=None).request("GET", url)
    with pytest.raises(Refused, match=r"answered 401 Unauthorized$"):
        client_for(server.host).request("GET", url)


@pytest.mark.parametrize("token", ["a b", "a\nb", "a\r\nX-Evil: 1", "ä"])
def test_a_token_that_no_header_may_have_is_not_sent(server: Served, token: str) -> None:
    with pytest.raises(Refused, match="characters that no header may have") as told:
        client_for(server.host, token=token).request("GET", server.put("/x", b""))
    assert token not in str(told.value)
    assert not server.seen


def test_a_token_is_asked_for_anew_with_each_request(server: Served) -> None:
    tokens = iter(["first", "second"])
    client = Client(lambda: next(tokens), frozenset({server.host}))
    for _ in range(2):
        client.request("GET", server.put("/x", b""))
    assert [one.headers["authorization"] for one in server.seen] == ["Bearer first", "Bearer second"]


def test_a_redirection_is_not_followed_with_a_token(server: Served) -> None:
    with served() as other:
        other.put("/x", b"secret data")
        url = server.always("/x", Way(302, (("Location", f"{other.url}/x"),)))
        for ask in (lambda c: c.open(url), lambda c: c.request("GET", url), lambda c: c.request("POST", url, body=b"")):
            with pytest.raises(Refused, match="no redirection is followed"):
                ask(client_for(server.host, other.host))
        assert other.seen == []


def test_a_download_without_token_is_redirected_and_takes_none_along(server: Served) -> None:
    with served() as other:
        other.put("/y?Signature=abc", b"data")  # signed by the server that sends there
        url = server.always("/x", Way(302, (("Location", f"{other.url}/y?Signature=abc"),)))
        with client_for(other.host).open(url) as stream:
            assert (stream.status, stream.read(100)) == (200, b"data")
        (seen,) = other.seen
        assert "authorization" not in seen.headers


@pytest.mark.parametrize(
    "location", ["http://example.org/x", "ftp://example.org/x", "https://a:b@example.org/x", "file:///etc/passwd", ""]
)
def test_a_redirection_to_what_is_not_https_is_refused(server: Served, location: str) -> None:
    url = server.always("/x", Way(302, (("Location", location),)))
    with pytest.raises(Refused, match="it redirects"):
        client_for().open(url)


def test_redirections_have_an_end(server: Served) -> None:
    url = server.always("/x", Way(307, (("Location", "/x"),)))
    with pytest.raises(Refused, match="more than 5 times"):
        client_for().open(url)
    assert len(server.seen) == 6


def test_a_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Served) -> None:
    context, pem = certificate(tmp_path)
    with served(context) as secure:
        secure.put("/x", b"data")
        with pytest.raises(Refused, match="its certificate is not trusted"):
            client_for().request("GET", f"{secure.url}/x")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        client = client_for("localhost")
        assert client.request("GET", f"{secure.url}/x").body == b"data"
        assert secure.seen[-1].headers["authorization"] == f"Bearer {TOKEN}"
        with pytest.raises(Refused, match="its certificate is not trusted"):  # it is one for localhost
            client.request("GET", f"{secure.url.replace('localhost', '127.0.0.1')}/x")
        # from http on this machine to https, and never from https down to http
        with client.open(server.always("/up", Way(302, (("Location", f"{secure.url}/x"),)))) as stream:
            assert stream.read(10) == b"data"
        secure.always("/down", Way(302, (("Location", f"{server.url}/up"),)))
        with pytest.raises(Refused, match="redirects to what is not https"):
            client_for().open(f"{secure.url}/down")


def test_a_proxy_gives_a_tunnel_and_sees_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, pem = certificate(tmp_path, "models.example")
    with served(context) as secure, proxy(int(secure.url.rpartition(":")[2])) as (address, heads):
        secure.put("/x", b"data")
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://some%40body:geheim@{address}")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert client_for("models.example").request("GET", "https://models.example/x").body == b"data"
        (head,) = heads
        assert head.startswith(b"CONNECT models.example:443 ")
        assert base64.b64encode(b"some@body:geheim") in head
        assert TOKEN.encode() not in head
        assert secure.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert "proxy-authorization" not in secure.seen[0].headers
        with served() as near:  # what is not encrypted, and what is on this machine, goes past it
            client_for().request("GET", near.put("/x", b""))
        with pytest.raises(Unreachable):  # an address that nobody has
            client_for(timeout_s=0.2).request("GET", "http://192.0.2.1/x")
        with pytest.raises(Refused, match="not trusted"):
            client_for().request("GET", f"{secure.url}/x")
        assert len(heads) == 1


@pytest.mark.parametrize("address", ["socks5://geheim@127.0.0.1:1", "http://geheim@127.0.0.1:port", "://"])
def test_a_proxy_that_is_none_is_said_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(UsageError, match="HTTPS_PROXY: expected the address of a proxy") as told:
        client_for()
    assert "geheim" not in str(told.value)


def test_nobody_there_is_unreachable_within_the_timeout() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="no connection"):
            client_for().request("GET", f"http://127.0.0.1:{bound.getsockname()[1]}/x?word=1")
        bound.listen(1)  # it takes the connection, and says nothing
        before = time.monotonic()
        with pytest.raises(Unreachable, match=r"no answer within 0.3 s"):
            client_for(timeout_s=0.3).request("GET", f"http://127.0.0.1:{bound.getsockname()[1]}/x")
        assert time.monotonic() - before < 10


@pytest.mark.parametrize(
    "said", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]
)
def test_what_is_no_http_or_ends_early_is_unreachable(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(said)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(Unreachable, match="the connection broke"):
            client_for().request("GET", f"http://127.0.0.1:{listening.getsockname()[1]}/x")
        thread.join(10)


def test_an_answer_that_comes_before_everything_was_sent_is_heard(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with open(big, "wb") as stream:
        stream.truncate(200 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 12)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        with open(big, "rb") as stream, pytest.raises(Refused, match="answered 413"):
            client_for().request("PATCH", url, body=stream, length=200 << 20)
        thread.join(10)


def test_an_answer_without_end_is_refused(server: Served) -> None:
    with pytest.raises(Refused, match="larger than 1048576 bytes"):
        client_for().request("GET", server.put("/x", bytes((1 << 20) + 1)))
    with pytest.raises(Unreachable, match="took longer than"):
        client_for(timeout_s=0.2).request("GET", server.put("/y", bytes(1000), Way(bytes_per_s=200)))


def test_an_encoded_answer_is_refused_as_nobody_asked_for_one(server: Served) -> None:
    url = server.put("/x", b"\x1f\x8b", Way(headers=(("Content-Encoding", "gzip"),)))
    with pytest.raises(Refused, match="encoded as 'gzip'"):
        client_for().request("GET", url)
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_of_a_file_exactly_the_promised_bytes_are_sent(server: Served) -> None:
    url = server.put("/x", b"")
    stream = io.BytesIO(b"0123456789")
    stream.seek(2)
    client_for().request("PATCH", url, body=stream, length=5, headers={"Upload-Offset": "2"})
    assert (server.seen[0].body, server.seen[0].headers["content-length"]) == (b"23456", "5")
    assert "transfer-encoding" not in server.seen[0].headers
    client_for().request("PATCH", url, body=io.BytesIO(b""), length=0)
    assert server.seen[1].body == b""
    with pytest.raises(StorageError, match="ended 5 bytes too early"):
        client_for(timeout_s=2).request("PATCH", url, body=io.BytesIO(b"01234"), length=10)


def test_a_connection_that_was_closed_is_opened_again(server: Served) -> None:
    client = client_for()
    for _ in range(3):
        server.put("/x", b"abc", Way(headers=(("Connection", "close"),)))
        assert client.request("GET", f"{server.url}/x").body == b"abc"
        assert json.loads(client.request("GET", server.put("/y", b"[1]")).body) == [1]
    client.close()
    assert client.request("GET", f"{server.url}/y").body == b"[1]"


def test_threads_share_a_client(server: Served) -> None:
    url = server.put("/x", b"x" * 1000)
    client, found = client_for(), []
    threads = [threading.Thread(target=lambda: found.append(client.request("GET", url).body)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [b"x" * 1000] * 20
