"""A web server with files and bad days: it breaks off, forgets ranges, lies about lengths, sends away, is slow."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Way:
    """How one request is answered."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    """Instead of the file."""
    cut_after: int | None = None
    """So many bytes of the body, and then the connection is gone."""
    ignores_range: bool = False
    length: int | None = None
    """Said to be the length, whatever comes."""
    has_length: bool = True
    is_chunked: bool = False
    etag: str | None = ""
    """"" is the true one, None is none."""
    bytes_per_s: int | None = None
    waits: threading.Event | None = None
    """Nothing is answered before."""


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Served:
    """What the server has, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ways: dict[str, list[Way]] = field(default_factory=dict)
    """By path; the first is used up with each request, the last one stays."""
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]

    def put(self, path: str, body: bytes, *ways: Way) -> str:
        """The URL of a file; it behaves in each of `ways` once, and then as it should."""
        self.files[path] = body
        self.ways[path] = [*ways, Way()]
        return self.url + path

    def always(self, path: str, way: Way, body: bytes = b"") -> str:
        self.files[path] = body
        self.ways[path] = [way]
        return self.url + path

    def way(self, path: str) -> Way:
        with self.lock:
            ways = self.ways.get(path) or [Way(404, body=b"nothing here")]
            return ways.pop(0) if len(ways) > 1 else ways[0]

    def ranges(self, path: str) -> list[str | None]:
        """What was asked of each GET of a path, None for the whole."""
        return [one.headers.get("range") for one in self.seen if one.path == path]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def served(context: ssl.SSLContext | None = None) -> Iterator[Served]:
    """A server on loopback, in threads of this process; with a `context`, over TLS and as `localhost`."""
    kept = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            headers = {name.lower(): value for name, value in self.headers.items()}
            one = Seen(self.command, self.path, headers, self.rfile.read(length) if length else b"")
            with kept.lock:
                kept.seen.append(one)
            way = kept.way(self.path)
            if way.waits is not None:
                way.waits.wait(60)
            try:
                self._answer(kept.files.get(self.path, b"") if way.body is None else way.body, way)
            except OSError:
                self.close_connection = True

        do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET  # noqa: N815 - as http.server wants them

        def _answer(self, body: bytes, way: Way) -> None:
            etag = f'"{sha256_of(body)[:16]}"' if way.etag == "" else way.etag
            status, begin = way.status, 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if status == 200 and etag and self.headers.get("If-None-Match") == etag:
                status, body = 304, b""
            elif status == 200 and asked and not way.ignores_range and self.headers.get("If-Range", etag) == etag:
                begin = int(asked[1])
                status = 206 if begin < len(body) else 416
            piece = body[begin:] if status != 416 else b""
            self.send_response(status)
            if status == 206 and way.status != 206:
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            if etag:
                self.send_header("ETag", etag)
            if way.is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif way.has_length:
                self.send_header("Content-Length", str(len(piece) if way.length is None else way.length))
            else:
                self.send_header("Connection", "close")
            for name, value in way.headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD" and status != 304:
                self._send(piece, way)

        def _send(self, piece: bytes, way: Way) -> None:
            count = len(piece) if way.cut_after is None else min(way.cut_after, len(piece))
            step = max(1, way.bytes_per_s // 20) if way.bytes_per_s else 1 << 16
            for start in range(0, count, step):
                part = piece[start : min(start + step, count)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if way.is_chunked else part)
                if way.bytes_per_s:
                    time.sleep(0.05)
            if way.cut_after is not None or way.length is not None or not way.has_length:
                self.close_connection = True
                with suppress(OSError):
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
            elif way.is_chunked:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away, or does not trust us, is what is being tested."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    name, scheme = "127.0.0.1", "http"
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        name, scheme = "localhost", "https"
    kept.url = f"{scheme}://{name}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


def certificate(folder: Path, host: str = "localhost") -> tuple[ssl.SSLContext, Path]:
    """A server's context for `host`, and the certificate to trust for it."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "server.pem", folder / "server.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return context, pem


@contextmanager
def proxy(port: int) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a proxy whose every tunnel ends at `port` of this machine, and the heads it was sent."""
    heads: list[bytes] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                head = b""
                while b"\r\n\r\n" not in head and (data := near.recv(1 << 16)):
                    head += data
                heads.append(head)
                far = socket.create_connection(("127.0.0.1", port))
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", heads
