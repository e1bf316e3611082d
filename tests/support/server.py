"""A web server on loopback."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Server:
    """A web server on loopback that sends ``files`` by path with ``headers``.

    Attributes:
        failures: status codes to send first, by path.
        requests: their paths.
    """

    url: str
    files: dict[str, bytes]
    headers: dict[str, dict[str, str]]
    failures: dict[str, list[int]]
    requests: list[str]


@contextmanager
def serving() -> Iterator[Server]:
    shared = Server("", {}, {}, {}, [])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            shared.requests.append(self.path)
            waiting = shared.failures.get(self.path)
            if waiting:
                self.send_error(waiting.pop(0))
            elif self.path in shared.files:
                body = shared.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                for key, value in shared.headers.get(self.path, {}).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
            else:
                self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            return None

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shared.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield shared
    httpd.shutdown()
    httpd.server_close()
