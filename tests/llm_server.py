"""A language model for tests: a real HTTP server on this machine that does what its script says, one step a request."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from threading import Event, Thread

from lever_lib.recognise import meant_by


class LLMServer:
    """Answers requests by the steps of a script in turn; the last step answers all that come after.

    A step is a function of the handler of one request. `requests` holds what was asked: path, headers, body.
    """

    def __init__(self, *script):
        self.script = script
        self.requests = []
        self.over = Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.owner = self

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def messages(self, number):
        return self.requests[number]["body"]["messages"]

    def __enter__(self):
        Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner.requests.append({"path": self.path, "headers": self.headers, "body": body})
        step = owner.script[min(len(owner.requests), len(owner.script)) - 1]
        try:
            step(self)
        except OSError:  # nobody listens any more
            self.close_connection = True

    def send(self, status, text, kind="application/json", **headers):
        content = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def completion(content, finish_reason="stop", tokens=10, **message):
    """The body of an answer, as the protocol wants it."""
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
    return body if tokens is None else {**body, "usage": {"total_tokens": tokens}}


def says(content, *args, **kwargs):
    """Answers."""
    return sends(200, json.dumps(completion(content, *args, **kwargs)))


def sends(status, text, kind="application/json", **headers):
    """Sends these very bytes."""
    return lambda handler: handler.send(status, text, kind, **headers)


def fails(status, message, **headers):
    """Sends an error as the protocol wants it."""
    return sends(status, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}), **headers)


def echoes(status, template, escaped=str):
    """Sends the Authorization header back, in place of `{}`."""
    return lambda handler: handler.send(status, template.replace("{}", escaped(handler.headers["Authorization"])))


def chooses(handler):
    """Chooses, from the sentences that a question comes with, what asks for just that, and repeats the key beside."""
    asked = handler.server.owner.requests[-1]
    system, user = (message["content"] for message in asked["body"]["messages"][:2])
    listed = {line: set(meant_by(line)) for line in re.findall("^- (.*)$", system, re.MULTILINE)}
    exactly = re.search(r"Choose exactly (\d+)", system)
    counts = [int(exactly[1])] if exactly else range(len(listed) + 1)
    groups = (group for count in counts for group in combinations(listed, count))
    wanted = set(meant_by(user))
    chosen = next(group for group in groups if set().union(*map(listed.get, group)) == wanted)
    says(f"{json.dumps({'sentences': chosen})} said {asked['headers']['Authorization']}")(handler)


def is_silent(handler):
    """Never answers."""
    handler.server.owner.over.wait()


def drips(handler):
    """Sends a byte now and then, forever: no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    while not handler.server.owner.over.wait(0.2):
        handler.wfile.write(b" ")


def floods_with(status):
    """Sends without end, as fast as it goes."""

    def step(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        while not handler.server.owner.over.is_set():
            handler.wfile.write(b" " * 65536)

    return step


floods = floods_with(200)


def hangs_up(handler):
    """Ends the connection in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
