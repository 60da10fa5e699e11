"""Files behind web addresses: real servers of this machine, some of them bad."""

import contextlib
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmmask.interfaces import BadSample, SourceFile, open_file, web


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache, in a folder of its own."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "deep" / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "deep" / "cache"


@pytest.fixture
def serve():
    """`serve(answer)` -> address; `answer(handler)` answers each request."""
    with contextlib.ExitStack() as servers:

        def serve(answer):
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self):
                    with contextlib.suppress(ConnectionError):
                        answer(self)

                def log_message(self, *args):
                    pass

            server = servers.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            server.daemon_threads, server.block_on_close = True, False
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            servers.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


def content(data, announced=None):
    """An answer with this content."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if announced is None else announced))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def read(address):
    return SourceFile(address).read()


def test_hosts_and_queries_are_told_apart(serve):
    red, blue = serve(content(b"red")), serve(lambda handler: content(f"blue {handler.path}".encode())(handler))
    assert read(f"{red}/x.png") == b"red"
    assert read(f"{blue}/x.png") == b"blue /x.png"
    assert read(f"{blue}/x.png?size=2") == b"blue /x.png?size=2"
    assert SourceFile(f"{blue}/folder/x.PNG?size=2").local_path().endswith("_x.PNG"), "the ending says what it is"


def test_an_address_is_fetched_once_and_again_where_its_fragment_differs(serve):
    counts = []
    address = serve(lambda handler: counts.append(handler.path) or content(b"%d" % len(counts))(handler)) + "/x.png"
    assert [read(address), read(address)] == [b"1", b"1"]
    assert [read(f"{address}#2"), read(f"{address}#2"), read(address)] == [b"2", b"2", b"1"]
    assert counts == ["/x.png", "/x.png"], "the fragment is not sent"
    with open_file(address) as file:
        assert file.read() == "1"
    with pytest.raises(OSError, match="can be read only"):
        open_file(address, "w")


@pytest.mark.parametrize(
    "path",
    [
        "/../../../escape.pth",
        "/a/../../../../escape.pth",
        "/..",
        "/../../../",
        "/%2e%2e/%2e%2e/escape.pth",
        "/" + "n" * 5000,
        "//etc/escape.pth",
        "/..\\..\\escape.pth",
        "/x.png?a=/../../../escape.pth",
    ],
)
def test_nothing_is_written_outside_the_cache(serve, tmp_path, cache, path):
    assert read(serve(content(b"chosen by somebody else")) + path) == b"chosen by somebody else"
    files = [Path(folder, name) for folder, _, names in os.walk(tmp_path) for name in names]
    assert [file.parent for file in files] == [cache / "mmmask"]


def test_a_server_that_never_answers(monkeypatch, cache):
    monkeypatch.setattr(web, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BadSample, match=r"nothing for 0\.2 seconds"):
        read(f"http://127.0.0.1:{silent.getsockname()[1]}/x.png")
    assert not os.listdir(cache / "mmmask")


def test_a_server_that_stops_or_crawls(serve, monkeypatch, cache):
    monkeypatch.setattr(web, "SECONDS", 0.3)
    gone = threading.Event()

    def drip(handler):
        content(b"x", announced=1000)(handler)
        while not gone.wait(0.05):
            handler.wfile.write(b"x")

    crawling = serve(drip)
    stopped = serve(lambda handler: (content(b"x", announced=1000)(handler), gone.wait()))
    try:
        with pytest.raises(BadSample, match="too slow"):
            read(f"{crawling}/x.png")
        with pytest.raises(BadSample, match=r"nothing for 0\.3 seconds"):
            read(f"{stopped}/x.png")
    finally:
        gone.set()
    assert not os.listdir(cache / "mmmask")


def test_what_arrives_in_part_is_not_kept(serve, cache):
    def torn(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"9\r\nabc")

    for answer in (content(b"half", announced=8), content(b""), torn):
        with pytest.raises(BadSample, match="ended after|IncompleteRead"):
            read(serve(answer) + "/x.png")
    with pytest.raises(BadSample, match="404"):
        read(serve(lambda handler: handler.send_error(404)) + "/x.png")
    assert not os.listdir(cache / "mmmask")


def test_an_endless_file_does_not_fill_the_disk(serve, monkeypatch, cache):
    monkeypatch.setattr(web, "ROOM", 2**62)
    with pytest.raises(BadSample, match="nearly full.*FVCORE_CACHE"):
        read(serve(content(b"x")) + "/x.png")
    assert not os.listdir(cache / "mmmask")


@pytest.mark.parametrize(
    "address",
    ["http:///x.png", "http://[::1/x.png", "http://127.0.0.1:99999/x.png", "http://127.0.0.1:port/x.png", "http://\0/x.png",
     "http://127.0.0.1:9/a b\n.png", "http://127.0.0.1:9/ö.png", "ftp://127.0.0.1:9/x.png", "nosuch://x.png"],
)  # fmt: skip
def test_strange_addresses_are_bad_samples(address):
    with pytest.raises(BadSample):
        read(address)
    with pytest.raises(BadSample):
        open(SourceFile(address).local_path()).close() if "nosuch" not in address else read(address)
