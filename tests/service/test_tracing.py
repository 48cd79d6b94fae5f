import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hfh_embed.errors import MissingDependencyError
from service.client import Client
from service.settings import Settings
from service.tracing import traced
from tests.service.conftest import serving


def test_without_a_collector_there_is_nothing_around_the_application() -> None:
    app = object()
    assert traced(app, Settings()) is app


def test_spans_of_requests_reach_the_collector(snapshot_path) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
        flags = ("--otel-endpoint", endpoint, "--otel-sample", "1")
        with serving(str(snapshot_path), *flags, OTEL_BSP_SCHEDULE_DELAY="100") as (url, _), Client(url) as client:
            assert client.lookup("users", [1]).shape == (1, 40)
        collector.shutdown()
        thread.join()
    paths = {path for path, _ in received}
    spans = b"".join(body for _, body in received)
    assert paths == {"/v1/traces"}
    assert b"/v1/tables/users/lookup" in spans
    assert b"hfh" in spans


def test_a_missing_package_is_told(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    with pytest.raises(MissingDependencyError, match="pip install 'hfh-embed\\[otel\\]'"):
        traced(object(), Settings(otel_endpoint="http://127.0.0.1:1"))
