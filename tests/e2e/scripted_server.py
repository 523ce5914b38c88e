"""A server that stands for quire where the chat page has to meet certain answers."""

import http.server
import json
import queue
import threading
import urllib.request


class ScriptedServer:
    """Serves the real page, under its real headers, and answers as told.

    `replies`: for each request to the API the next (status, headers, body). A body
    that is a list is written piece by piece; a piece that is a queue.Queue waits for
    what the test puts in.
    """

    def __init__(self, server, model):
        with urllib.request.urlopen(server.url + "/") as answer:
            self._page = answer.read()
            self._headers = {
                name: answer.headers[name] for name in ("Content-Type", "Content-Security-Policy")
            }
        self.replies = queue.Queue()
        self.models = [(200, json.dumps({"data": [{"id": model}]}))]
        self.ready = (200, "{}")
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def _answer(self, status, headers, pieces):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in pieces:
                    if isinstance(piece, queue.Queue):
                        piece = piece.get()
                    self.wfile.write(piece.encode() if isinstance(piece, str) else piece)
                    self.wfile.flush()

            def do_GET(self):
                json_type = {"Content-Type": "application/json"}
                if self.path == "/":
                    self._answer(200, scripted._headers, [scripted._page])
                elif self.path == "/v1/models":
                    models = scripted.models
                    status, body = models.pop(0) if len(models) > 1 else models[0]
                    self._answer(status, json_type, [body])
                elif self.path == "/health/ready":
                    status, body = scripted.ready
                    self._answer(status, json_type, [body])
                else:
                    self._answer(404, json_type, ["{}"])

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body = scripted.replies.get()
                self._answer(status, headers, body if isinstance(body, list) else [body])

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reply_error(self, status, message, param=None):
        body = json.dumps({"error": {"message": message, "type": "t", "param": param, "code": None}})
        self.replies.put((status, {"Content-Type": "application/json"}, body))

    def reply_stream(self, *pieces):
        self.replies.put((200, {"Content-Type": "text/event-stream"}, list(pieces)))

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def event(text, num_tokens=0):
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
    if num_tokens:
        chunk["usage"] = {"prompt_tokens": 5, "completion_tokens": num_tokens}
    return "data: " + json.dumps(chunk) + "\n\n"


DONE = "data: [DONE]\n\n"
