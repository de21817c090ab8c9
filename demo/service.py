"""A service that greets: `--once` answers itself one request and ends, `--check` tests its template."""

import os
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import jinja2

PAGE = jinja2.Template("Hello from {{ name }}, user {{ uid }}, Jinja {{ version }}")


class Greeter(BaseHTTPRequestHandler):
    def do_GET(self):
        body = PAGE.render(name="kiln", uid=os.getuid(), version=jinja2.__version__).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def main():
    if "--check" in sys.argv:
        PAGE.render(name="check")
        return
    once = "--once" in sys.argv
    server = HTTPServer(("127.0.0.1", 0 if once else int(os.environ["PORT"])), Greeter)
    if not once:
        server.serve_forever()
    threading.Thread(target=server.handle_request, daemon=True).start()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as answer:
        print(answer.read().decode())


if __name__ == "__main__":
    main()
