"""Stores on loopback: an S3 server in this process, and web servers of a test's choice."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "word-of-somebody",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What the server takes; with AWS_ENDPOINT_URL, all that a process has to have in its environment."""


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of an S3 server that holds nothing."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def client_of(endpoint: str) -> pafs.S3FileSystem:
    """A client that may make buckets and remove them."""
    return pafs.S3FileSystem(
        access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region=CREDENTIALS["AWS_DEFAULT_REGION"],
        endpoint_override=endpoint,
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )


def put(client: pafs.S3FileSystem, key: str, content: bytes) -> None:
    with client.open_output_stream(key) as stream:
        stream.write(content)


@contextmanager
def web_server(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Host and port of a web server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class StallingS3(http.server.BaseHTTPRequestHandler):
    """As much of S3 as reading takes: the files of a folder as objects of any bucket, until `stalled` is set."""

    folder: Path
    stalled: threading.Event
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.stalled.is_set():
            time.sleep(600)  # a daemon thread: it ends with the test's process
        data = (self.folder / self.path.partition("?")[0].rpartition("/")[2]).read_bytes()
        begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        piece = data[int(begin) : int(end) + 1 if end else None]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(piece)))
        self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(piece) - 1}/{len(data)}")
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:
        pass
