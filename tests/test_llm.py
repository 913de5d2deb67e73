import base64
import html
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from email.utils import formatdate
from urllib.parse import quote

import openai  # noqa: F401  before any clock starts
import pytest

from lever_lib import llm
from lever_lib.errors import LeverError
from lever_lib.llm import LLMError, Refused, Settings, converse
from tests.llm_server import (
    LLMServer,
    completion,
    drips,
    echoes,
    fails,
    floods,
    floods_with,
    hangs_up,
    is_silent,
    says,
    sends,
)

KEY = "sk-secret-0123456789"
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
GOOD = '{"n": 7}'
HTML = "<html><body>Sign in</body></html>"


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No key, no address and no `.env` of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(llm, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def access(monkeypatch):
    """Sets address and key as a user would."""

    def use(url, key=KEY):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", key)

    return use


def seven(answer):
    if answer.get("n") != 7:
        raise Refused(f"n = {answer.get('n')!r} must be 7")
    return answer["n"]


def ask(check=seven, user="say seven", **settings):
    return converse("You count.", user, SCHEMA, check, Settings(**{"model": "stub", "timeout_s": 5.0} | settings))


def refusal(**settings):
    """The one line that a conversation ends with, which takes no longer than it may."""
    start = time.monotonic()
    with pytest.raises(LLMError) as caught:
        ask(**settings)
    assert time.monotonic() - start < settings.get("timeout_s", 5.0) + 1
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 700
    assert caught.value.__cause__ is None
    return line


def test_a_question_is_asked_and_answered(access):
    with LLMServer(says(GOOD, tokens=12)) as server:
        access(server.url)
        reply = ask()
    assert (reply.value, reply.answered_by, reply.tokens, reply.tries) == (7, "stub at 127.0.0.1", 12, 1)
    assert 0 < reply.seconds < 5
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"
    assert request["body"]["model"] == "stub"
    strict = {"name": "answer", "strict": True, "schema": SCHEMA}
    assert request["body"]["response_format"] == {"type": "json_schema", "json_schema": strict}
    system, user = server.messages(0)
    assert system["role"] == "system"
    assert system["content"].startswith("You count.")
    assert json.dumps(SCHEMA) in system["content"], "for endpoints that know no response_format"
    assert user == {"role": "user", "content": "say seven"}


def test_errors_are_such_that_a_person_can_mend():
    assert issubclass(LLMError, LeverError)
    assert issubclass(Refused, ValueError)
    assert not issubclass(Refused, LeverError)


ACCEPTED = {
    "plain": GOOD,
    "a fence": f"```json\n{GOOD}\n```",
    "prose": f"Sure {{really}}! Here you are: {GOOD} Anything else?",
    "the same twice": f'{GOOD} and once more {{"n":7}}',
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_one_object_is_taken_whatever_stands_around_it(access, content):
    with LLMServer(says(content)) as server:
        access(server.url)
        reply = ask()
    assert (reply.value, reply.tries, len(server.requests)) == (7, 1, 1)


TOLD_BACK = {
    "wrong content": (says('{"n": 8}'), "n = 8 must be 7"),
    "two objects": (says('{"n": 7} or {"n": 8}'), "it must hold one JSON object, holds 2"),
    "true is not one": (says('{"n": 1} or {"n": true}'), "it must hold one JSON object, holds 2"),
    "no object": (says("seven"), "it must hold one JSON object, holds none"),
    "cut off": (says('{"n": ', finish_reason="length"), "it was cut off at the length limit"),
    "cut off and hushed up": (says('{"m": {"n": 7}, "o'), "it is no JSON"),
    "a comma too many": (says('{"m": {"n": 7},}'), "it is no JSON"),
    "no number": (says('{"n": NaN}'), "it is no JSON"),
    "no finite number": (says('{"n": 1e999}'), "it is no JSON"),
    "half a letter": (says('{"n": "\\ud800"}'), "it is no JSON"),
    "endless brackets": (says('{"n": ' + "[" * 20_000), "it is no JSON"),
    "endless digits": (says('{"n": ' + "1" * 20_000 + "}"), "it is no JSON"),
    "too long": (says(json.dumps({"n": 7, "m": "x" * 30_000})), "it is longer than 30 kB"),
    "null": (says(None), "it has no text (finish_reason stop)"),
    "parts": (says([{"type": "text", "text": GOOD}]), "it has no text (finish_reason stop)"),
    "declined": (says(None, refusal="I do not count."), "the model declined: I do not count."),
}


@pytest.mark.parametrize(("step", "reason"), TOLD_BACK.values(), ids=TOLD_BACK)
def test_an_answer_that_cannot_be_used_is_told_back(access, step, reason):
    with LLMServer(step, says(GOOD, tokens=5)) as server:
        access(server.url)
        reply = ask()
    assert (reply.value, reply.tries, len(server.requests), reply.tokens) == (7, 2, 2, 15)
    *before, assistant, user = server.messages(1)
    assert before == server.messages(0)
    assert assistant["role"] == "assistant"
    assert user["role"] == "user"
    assert reason in user["content"]
    assert len(json.dumps(server.messages(1))) < 20_000


def test_what_the_model_said_is_told_back_with_the_reason(access):
    with LLMServer(says('{"n": 8}'), says('{"n": 9}'), says(GOOD)) as server:
        access(server.url)
        assert ask().tries == 3
    said = [message["content"] for message in server.messages(2) if message["role"] == "assistant"]
    assert said == ['{"n": 8}', '{"n": 9}']


@pytest.mark.parametrize(("step", "reason"), TOLD_BACK.values(), ids=TOLD_BACK)
def test_after_the_last_try_one_line_says_why(access, step, reason):
    with LLMServer(step) as server:
        access(server.url)
        line = refusal(tries=2)
    assert len(server.requests) == 2
    assert "stub at 127.0.0.1: no usable answer in 2 tries" in line
    assert reason in line
    assert "`search.decompose: offline`" in line


@pytest.fixture
def hasty(monkeypatch):
    """Waits a fifth of the usual time."""
    monkeypatch.setattr(llm, "_BACKOFF", 0.05)


AGAIN = {
    "500": (fails(500, "engine on fire"), "engine on fire"),
    "503 of a proxy": (sends(503, "<h1>upstream</h1>", "text/html"), "<h1>upstream</h1>"),
    "no choices": (sends(200, '{"choices": []}'), "has no choices"),
    "null choices": (sends(200, '{"choices": null, "error": {"message": "overloaded"}}'), "overloaded"),
    "null choice": (sends(200, '{"choices": [null]}'), "has no choices"),
    "null message": (sends(200, '{"choices": [{"message": null}]}'), "has no choices"),
    "null": (sends(200, "null"), "has no choices"),
    "dropped": (hangs_up, "the connection failed"),
    "no end": (floods, "longer than 1000 kB"),
    "no end of an error": (floods_with(500), "longer than 1000 kB"),
    "compressed": (sends(200, "{}", content_encoding="gzip"), "compressed, which was not asked for"),
    "no encoding of a text": (sends(500, "on fire", "text/html; charset=base64"), "on fire"),
    "nor of bytes": (sends(500, "on fire", "text/html; charset=rot13"), "on fire"),
    "what steers a terminal": (sends(500, "\x1b]0;on\x07 fire", "text/html"), "]0;on fire"),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("HTTPS_PROXY", "foo://x"),
        ("HTTP_PROXY", ":::"),
        ("SSL_CERT_FILE", "/nowhere"),
    ],
)
def test_connections_that_cannot_be_made_are_one_line(access, monkeypatch, name, value):
    access("https://127.0.0.1:1/v1")
    monkeypatch.setenv(name, value)
    assert "*_PROXY and SSL_CERT_* in the environment" in refusal(tries=1)


def test_a_pipe_is_no_place_for_a_recording(access, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    access("http://127.0.0.1:1/v1")
    with pytest.raises(LeverError, match="pipe: cannot be written"):
        ask(record=tmp_path / "pipe")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/v1?api-key=x", "http://127.0.0.1:1/v1#x"])
def test_an_address_ends_with_its_path(access, address):
    access(address)
    assert "without ? and #" in refusal(tries=1)


def test_what_else_is_sent_must_be_sendable(access, monkeypatch):
    access("http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_ORG_ID", "a\nb")
    assert refusal(tries=1).startswith("OPENAI_ORG_ID: must be ASCII")


def test_the_login_of_a_proxy_is_hidden(access, monkeypatch):
    access("http://somewhere.invalid/v1")

    def repeats(handler):
        handler.send(407, handler.headers["Proxy-Authorization"])

    with LLMServer(repeats) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", "http://somebody:open%20sesame@"))
        line = refusal(tries=1)
    assert "[key]" in line
    assert not any(
        secret in line for secret in ("somebody", "sesame", base64.b64encode(b"somebody:open sesame").decode())
    )


@pytest.mark.parametrize(
    "step", [sends(400, "I know: authorization: Bearer gw-TopSecretKey999"), says("gw-TopSecretKey999")]
)
def test_what_headers_of_ones_own_say_is_hidden(access, monkeypatch, tmp_path, step):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: a\nAuthorization: Bearer gw-TopSecretKey999")
    with LLMServer(step) as server:
        access(server.url)
        line = refusal(tries=1, record=tmp_path / "record.jsonl")
    assert server.requests
    assert "TopSecret" not in line + (tmp_path / "record.jsonl").read_text()


def test_a_key_in_an_address_is_hidden_though_it_comes_in_small_letters(access):
    key = "sk-SeCrEtKeyAbCdEf0123456789"

    def redirects(handler):
        handler.send_response(302)
        handler.send_header("Location", f"{key}://x/")
        handler.end_headers()

    with LLMServer(redirects) as server:
        access(server.url, key)
        line = refusal(tries=1)
    assert "[key]" in line
    assert key.lower() not in line.lower()


@pytest.mark.parametrize("password", ["passwordLong1#x", "password/Long1", "ab#Long1", "p%41ssword@:Long1", "?Long1"])
def test_the_password_of_a_proxy_is_hidden_even_if_its_address_is_none(access, monkeypatch, password):
    access("http://somewhere.invalid/v1")
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{password}@127.0.0.1:1/")
    line = refusal(tries=1)
    assert "Long1" not in line
    assert password[:4] not in line


def test_hiding_takes_no_time_worth_mentioning(access, monkeypatch):
    key = "".join(random.Random(0).choices("abcdefghijklm", k=1500))
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with LLMServer(sends(500, key[:-1] * 600)) as server:
        access(server.url, key)
        assert "899400 bytes" in refusal(tries=1, timeout_s=2)


@pytest.mark.parametrize(("step", "reason"), AGAIN.values(), ids=AGAIN)
def test_a_request_that_failed_is_sent_again(access, hasty, step, reason, caplog):
    with LLMServer(step, says(GOOD)) as server, caplog.at_level(logging.INFO, "lever_lib.llm"):
        access(server.url)
        reply = ask()
    assert (reply.value, reply.tries, reply.tokens, len(server.requests)) == (7, 2, 10, 2)
    assert 0.05 <= reply.seconds < 2, "waiting belongs to it"
    assert server.messages(1) == server.messages(0), "there is nothing to tell back"
    first, second = [record.getMessage() for record in caplog.records if record.name == "lever_lib.llm"]
    assert first.startswith("stub, try 1: ")
    assert reason in first
    assert second == "stub, try 2: accepted"


@pytest.mark.parametrize(("step", "reason"), AGAIN.values(), ids=AGAIN)
def test_requests_that_go_on_failing_count_as_tries(access, hasty, step, reason):
    with LLMServer(step) as server:
        access(server.url)
        line = refusal(tries=2)
    assert len(server.requests) == 2
    assert "2 tries" in line
    assert reason in line


def test_waiting_doubles_and_stops_when_the_time_is_too_short(access):
    with LLMServer(fails(500, "on fire")) as server:
        access(server.url)
        start = time.monotonic()
        line = refusal(tries=9, timeout_s=1.5)
    assert len(server.requests) == 3, "after 0, 0.25 and 0.75 s; the next would be after 1.75 s"
    assert time.monotonic() - start < 1.4
    assert "1 s to wait" in line
    assert "left of timeout_s = 1.5" in line


def test_after_the_last_try_nobody_waits(access):
    with LLMServer(fails(429, "slow down", retry_after="2")) as server:
        access(server.url)
        start = time.monotonic()
        assert "slow down" in refusal(tries=1)
    assert time.monotonic() - start < 1


def test_too_many_requests_wait_as_told(access):
    with LLMServer(fails(429, "slow down", retry_after="1"), says(GOOD)) as server:
        access(server.url)
        start = time.monotonic()
        reply = ask()
    assert 1 <= time.monotonic() - start < 2
    assert (reply.tries, len(server.requests)) == (2, 2)


@pytest.mark.parametrize(
    "told", ["30", "inf", "1e400", pytest.param(formatdate(time.time() + 3600, usegmt=True), id="date")]
)
def test_too_long_a_wait_is_not_begun(access, told):
    with LLMServer(fails(429, "slow down", retry_after=told)) as server:
        access(server.url)
        start = time.monotonic()
        line = refusal(timeout_s=3.0)
    assert time.monotonic() - start < 1
    assert len(server.requests) == 1
    assert "slow down" in line
    assert "to wait" in line
    assert "left of timeout_s = 3" in line


@pytest.mark.parametrize(
    "told",
    [
        *("", "soon", "-5", "nan", "0", formatdate(0, usegmt=True), "Fri, 99 Foo 2026 00:00:00 GMT"),
        *("Mon, 01 Jan 99999999999 00:00:00", "Mon, 01 Jan 2024 00:00:00 +99999999999999999999"),
    ],
)
def test_a_wait_that_makes_no_sense_is_a_short_one(access, hasty, told):
    with LLMServer(fails(429, "slow down", retry_after=told), says(GOOD)) as server:
        access(server.url)
        assert ask(timeout_s=2.0).tries == 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("step", [is_silent, drips])
def test_the_time_is_for_the_whole_conversation(access, step):
    with LLMServer(says('{"n": 8}'), fails(500, "on fire", retry_after="0.7"), step) as server:
        access(server.url)
        start = time.monotonic()
        line = refusal(timeout_s=2.6, tries=9)  # so long that a busy machine gets to the third request
    assert 2.6 <= time.monotonic() - start < 3.6
    assert len(server.requests) == 3
    assert "no answer within timeout_s = 2.6" in line
    assert "raise timeout_s" in line


def test_a_check_that_took_all_the_time_leaves_none_to_ask_again(access, monkeypatch):
    def slow(answer):
        time.sleep(0.5)
        monkeypatch.setattr(llm, "Thread", None)  # which nothing can be sent without
        raise Refused("not now")

    with LLMServer(says(GOOD)) as server:
        access(server.url)
        line = refusal(check=slow, timeout_s=0.4)
    assert len(server.requests) == 1
    assert "no answer within timeout_s = 0.4" in line


@pytest.mark.parametrize("step", [is_silent, drips])
def test_an_abandoned_request_ends(access, step):
    with LLMServer(step) as server:
        access(server.url)
        refusal(timeout_s=0.3)
        end = time.monotonic() + 3
        while any(thread.name == "llm" for thread in threading.enumerate()):
            assert time.monotonic() < end, "a thread is left behind"
            time.sleep(0.05)


def test_an_interrupt_passes_at_once(access):
    with LLMServer(is_silent) as server:
        access(server.url)
        start = time.monotonic()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            ask(timeout_s=20.0)
    assert time.monotonic() - start < 1.5


def test_half_letters_do_not_stop_the_conversation(access):
    def half(answer):
        raise Refused("\ud800 is no letter")

    with LLMServer(says('{"n": "\ud83d"}')) as server:
        access(server.url)
        assert "? is no letter" in refusal(check=half, user="say \udcff")
    assert server.messages(0)[1]["content"] == "say ?"
    assert "? is no letter" in server.messages(1)[-1]["content"]


def test_an_error_of_our_own_is_not_hidden(access, monkeypatch):
    monkeypatch.setattr(llm, "_read_answer", lambda body: 1 / 0)
    with LLMServer(says(GOOD)) as server:
        access(server.url)
        with pytest.raises(ZeroDivisionError):
            ask()
    assert len(server.requests) == 1


def test_an_error_of_the_check_is_not_the_models(access):
    with LLMServer(says(GOOD)) as server:
        access(server.url)
        with pytest.raises(KeyError):
            ask(check=lambda answer: answer["m"])
    assert len(server.requests) == 1


AT_ONCE = {
    "wrong key": (fails(401, "Incorrect API key provided"), "Incorrect API key provided", "check OPENAI_API_KEY"),
    "not allowed": (fails(403, "not in your region"), "not in your region", "check OPENAI_API_KEY"),
    "unknown model": (fails(404, "does not exist"), "does not exist", "check model = 'stub' and OPENAI_BASE_URL"),
    "not paid": (sends(402, '{"detail": "no credit"}'), "no credit", "offline"),
    "a web page": (sends(200, HTML, "text/html"), "Sign in", "check OPENAI_BASE_URL"),
    "nothing": (sends(200, ""), "no JSON", "check OPENAI_BASE_URL"),
}


@pytest.mark.parametrize(("step", "reason", "cure"), AT_ONCE.values(), ids=AT_ONCE)
def test_what_only_a_person_can_mend_is_not_tried_again(access, step, reason, cure):
    with LLMServer(step) as server:
        access(server.url)
        start = time.monotonic()
        line = refusal()
    assert time.monotonic() - start < 1
    assert len(server.requests) == 1
    assert "in 1 try: " in line
    assert reason in line
    assert cure in line


def test_a_host_that_cannot_be_one(access):
    access(f"http://{'a' * 80}.test/v1")
    line = refusal(tries=1)
    assert "the connection failed (UnicodeError" in line
    assert "OPENAI_BASE_URL" in line


def test_nobody_there(access):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        access(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        line = refusal(tries=2)
    assert "in 2 tries" in line
    assert "Connection refused" in line
    assert "OPENAI_BASE_URL" in line


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_without_response_format_is_asked_without(access, status):
    unknown = fails(status, "response_format: unknown type json_schema")
    with LLMServer(unknown, says('{"n": 8}'), says(GOOD)) as server:
        access(server.url)
        reply = ask(tries=2)
    assert (reply.value, reply.tries, reply.tokens) == (7, 2, 20), "what was turned down is no try"
    assert ["response_format" in request["body"] for request in server.requests] == [True, False, False]
    assert server.messages(1) == server.messages(0)


def test_a_bad_request_stays_bad_without_response_format(access):
    with LLMServer(fails(400, "context too long")) as server:
        access(server.url)
        line = refusal()
    assert len(server.requests) == 2
    assert "in 1 try" in line
    assert "context too long" in line


@pytest.mark.parametrize("key", [None, "", "  "])
def test_without_a_key_nothing_is_tried(monkeypatch, key):
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    line = refusal()
    assert "OPENAI_API_KEY" in line
    assert "`search.decompose: offline`" in line


def test_an_endpoint_of_ones_own_needs_no_key(monkeypatch):
    with LLMServer(says(GOOD)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert ask().value == 7
    assert server.requests[0]["headers"]["Authorization"] == "Bearer none"


@pytest.mark.parametrize("folder", ["", "repository"])
def test_a_dotenv_file_will_do_and_goes_no_further(tmp_path, folder):
    (tmp_path / "repository").mkdir()
    before = dict(os.environ)
    with LLMServer(says(GOOD)) as server:
        text = f"OPENAI_API_KEY='${{HOME}}{KEY}'\nOPENAI_BASE_URL={server.url}\nOTHER\n"
        (tmp_path / folder / ".env").write_text(text, encoding="utf-8")
        assert ask().value == 7
    assert server.requests[0]["headers"]["Authorization"] == f"Bearer ${{HOME}}{KEY}"
    assert dict(os.environ) == before


def test_the_environment_comes_before_here_and_here_before_the_repository(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / ".env").write_text(f"OPENAI_API_KEY={KEY}-repository\nOPENAI_BASE_URL=http://x\n")
    with LLMServer(says(GOOD)) as server:
        (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}-here\nOPENAI_BASE_URL={server.url}\n")
        ask()
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}-environment")
        monkeypatch.setenv("OPENAI_BASE_URL", "")
        ask()
    sent = [request["headers"]["Authorization"] for request in server.requests]
    assert sent == [f"Bearer {KEY}-here", f"Bearer {KEY}-environment"]


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://127.0.0.1", "http://", "http://[::1", "http://a:b@c:d/v1", "http://c:99999"]
)
def test_an_address_must_be_one(access, url):
    access(url)
    line = refusal()
    assert line.startswith("OPENAI_BASE_URL: must be an address like https://")
    assert url not in line, "it may hold a password"


@pytest.mark.parametrize("key", ["sk-ключ-0123", "sk-one sk-two", "sk-one\nsk-two"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(access, key):
    access("http://127.0.0.1:9", key)
    assert refusal() == "OPENAI_API_KEY: must be ASCII without blanks"


def answer_with(text):
    return json.dumps(completion(text))


def in_the_headers(handler):
    """Says it where clients log it."""
    said = handler.headers["Authorization"]
    handler.send_response(401, said)
    handler.send_header("x-request-id", said)
    handler.end_headers()


ECHOES = {
    "401": echoes(401, '{"error": {"message": "bad header {}"}}'),
    "400": echoes(400, "{}"),
    "500": echoes(500, '{"error": {"message": "' + "x" * 260 + ' {}"}}'),
    "no JSON": echoes(200, "{}"),
    "no choices": echoes(200, '{"error": "{}"}'),
    "wrong answer": echoes(200, answer_with("{}")),
    "refused answer": echoes(200, answer_with('{"n": "{}"}')),
    "odd end": echoes(200, json.dumps(completion(None, finish_reason="{}"))),
    "declined": echoes(200, json.dumps(completion(None, refusal="{}"))),
    "escaped": echoes(
        200, answer_with('{"n": "{}"}'), lambda text: text.replace("s", "\\\\u0073").replace("p", "\\\\u0070")
    ),
    "escaped by others": echoes(401, "<p>{}</p>", lambda text: text.replace("s", "&#x73;").replace("p", "%70")),
    "broken": echoes(401, "{}", lambda text: text[:12] + "\n" + text[12:]),
    "in the headers": in_the_headers,
}


def everything_of(error):
    """What a traceback and a look at the chain of errors show."""
    chain, seen = [error], []
    while chain:
        one = chain.pop()
        seen += [str(one), repr(one), repr(vars(one)), *traceback.format_exception(one)]
        chain += [linked for linked in (one.__cause__, one.__context__) if linked is not None]
    return "\n".join(seen)


@pytest.mark.parametrize("login", ["", "me:pass-word-1234@"], ids=["key", "login"])
@pytest.mark.parametrize("step", ECHOES.values(), ids=ECHOES)
def test_no_secret_is_in_an_error_a_log_or_a_recording(access, hasty, step, login, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    with LLMServer(step) as server:
        access(server.url.replace("//", f"//{login}"))
        with pytest.raises(LLMError) as caught:
            ask(tries=2, record=tmp_path / "exchanges.jsonl")
    sent = server.requests[0]["headers"]["Authorization"].split()[1]
    assert (sent == KEY) is not bool(login), "a login takes the key's place"
    shown = everything_of(caught.value) + caplog.text + (tmp_path / "exchanges.jsonl").read_text()
    shown += json.dumps([request["body"] for request in server.requests])
    for secret in (KEY, "pass-word-1234", sent, sent[:8]):
        assert secret not in shown
    assert "[key]" in shown or "x" * 200 in shown or step is in_the_headers


@pytest.mark.parametrize(
    "escape",
    [
        html.escape,
        quote,
        lambda text: json.dumps(json.dumps(text)),
        lambda text: text.replace("s", "&#115"),
        *(
            lambda text, blank=blank: text[:9] + blank + text[9:]
            for blank in (
                "\\u0020",
                "%20",
                "&nbsp;",
                "\\f",
                "&#32;",
                "\\u2003",
                "&#8195;",
                "%E2%80%83",
                "%C2%A0",
                "&ensp;",
            )
        ),
        lambda text: quote(quote(text)),
        lambda text: html.escape(html.escape(text)).replace("s", "&amp;#115;"),
        lambda text: html.escape(json.dumps(text).strip('"')),
        lambda text: "\u2009".join(text),
    ],
)
def test_a_secret_is_known_however_it_is_written(escape):
    key = "sk-secret&key<0123456789>"
    hidden = llm._Access("host", "http://host", key, None).hide(f"see {escape(key)} there")
    assert hidden.replace('"', "").replace("\\", "") == "see [key] there"


@pytest.mark.parametrize("blank", ["", " ", "\n", "%20"])
def test_a_secret_with_an_escape_in_it_is_known_though_broken_by_blanks(blank):
    cookie = "connect.sid=s%3AabcDEF123456.sigXYZ"
    hide = llm._Access("host", "http://host", "sk-ab%41cd%5Cn0123", others=(cookie,), login=None).hide
    for text in (cookie, "sk-ab%41cd%5Cn0123", "connect.sid=s:abcDEF123456.sigXYZ"):
        assert hide(f"see {blank.join(text)} there") == "see [key] there"


def test_secrets_that_overlap_are_hidden_whole():
    hide = llm._Access("host", "http://host", "abcdefgh12345678ijkl", ("12345678", "ijklmnopqrst")).hide
    for text in ("abcdefgh12345678ijklmnopqrst", "abcdefgh12345678ijkl, 12345678", "12345678, ijklmnopqrst"):
        escaped = "".join(f"&#{ord(one)};" for one in text)
        assert not set(re.findall(r"\d+", hide(f"see {escaped} there"))) - {str(ord(one)) for one in ", "}


def test_hiding_takes_no_longer_than_reading():
    key = "sk-" + "nt" * 30 + "-end"
    text = "".join(2 * f"\\{one}" + one + 2 * f"\\{one}" if one in "nt" else one for one in key[:-1])
    started = time.monotonic()
    assert "[key]" not in llm._Access("host", "http://host", key, None).hide(text * 20)
    assert time.monotonic() - started < 5


def test_no_secret_is_in_what_was_found():
    found = llm._Access("host", "http://host", KEY, ("me", "password"))
    assert KEY not in repr(found)
    assert "password" not in repr(found)


def test_a_dummy_is_no_secret(access, tmp_path):
    """Hiding the key `n` would spoil every answer."""
    with LLMServer(says(GOOD)) as server:
        access(server.url, "n")
        assert ask().value == 7


def recorded(tmp_path, server, access, **settings):
    """A conversation and its recording; after it there is no server, no address and no key."""
    file = tmp_path / "new" / "exchanges.jsonl"
    access(server.url.replace("//", "//me:pass-word-1234@"))
    reply = ask(record=file, **settings)
    access("", "")
    return reply, file


def test_a_recorded_conversation_replays_as_it_was(access, hasty, tmp_path):
    steps = (fails(500, "on fire"), says(None, refusal="no"), says('{"n": 8}', tokens=4), says(GOOD))
    with LLMServer(*steps) as server:
        start = time.monotonic()
        live, file = recorded(tmp_path, server, access, tries=4)
    assert 0.05 < live.seconds < time.monotonic() - start
    first, second, third = [json.loads(line) for line in file.read_text().splitlines()]
    names = {"key", "model", "host", "messages", "content", "finish_reason", "tokens", "seconds"}
    assert set(first) == set(second) == set(third) == names
    assert (first["content"], first["finish_reason"]) == ("no", "refusal")
    assert (second["model"], second["host"]) == ("stub", "127.0.0.1")
    assert (second["content"], second["finish_reason"], second["tokens"]) == ('{"n": 8}', "stop", 4)
    assert second["messages"] == server.messages(2)
    assert third["key"] == llm.json_hash(["stub", server.messages(3), SCHEMA])
    before = file.read_bytes()
    again = ask(replay=file, record=file, tries=4)
    assert (
        (again.value, again.tokens, again.seconds) == (live.value, live.tokens, live.seconds) == (7, 24, live.seconds)
    )
    assert again.answered_by == "stub at 127.0.0.1, recorded"
    assert (live.tries, again.tries) == (4, 3), "a request that failed is no exchange"
    assert len(server.requests) == 4
    assert file.read_bytes() == before


def test_a_recording_is_checked_like_a_model(access, tmp_path):
    with LLMServer(says(GOOD)) as server:
        _, file = recorded(tmp_path, server, access)

    def strict(answer):
        raise Refused("it must be 8 by now")

    line = refusal(replay=file, check=strict, tries=1)
    assert "exchanges.jsonl: no usable answer in 1 try: it must be 8 by now" in line


@pytest.mark.parametrize("tokens", [None, "10", True])
def test_an_unknown_number_of_tokens_stays_unknown(access, tmp_path, tokens):
    with LLMServer(says('{"n": 8}', tokens=tokens), says(GOOD)) as server:
        live, file = recorded(tmp_path, server, access)
    assert live.tokens is None
    assert ask(replay=file).tokens is None


@pytest.mark.parametrize(
    "other",
    [{"user": "say eight"}, {"model": "stub-2"}, {"check": lambda answer: seven({})}],
    ids=["question", "model", "told back"],
)
def test_what_was_not_recorded_must_be(access, tmp_path, other):
    with LLMServer(says(GOOD)) as server:
        _, file = recorded(tmp_path, server, access)
    line = refusal(replay=file, **other)
    assert "exchanges.jsonl: holds no answer of stub" in line
    assert "record it again with OPENAI_API_KEY set" in line


def test_the_later_of_two_answers_counts(access, tmp_path):
    with LLMServer(says('{"n": 7, "first": true}'), says(GOOD)) as server:
        recorded(tmp_path, server, access)
        _, file = recorded(tmp_path, server, access)
    assert ask(replay=file, check=dict).value == {"n": 7}


def test_no_recording_at_all(tmp_path):
    line = refusal(replay=tmp_path / "none.jsonl")
    assert "none.jsonl: no such recording" in line
    (tmp_path / "none.jsonl").write_bytes(b"")
    assert "none.jsonl: holds no answer" in refusal(replay=tmp_path / "none.jsonl")


DAMAGES = {
    "half a line": lambda line: line[: len(line) // 2],
    "no JSON": lambda line: b"hello",
    "empty": lambda line: b"",
    "not text": lambda line: line.replace(b"stub", b"\xff"),
    "a list": lambda line: b"[]",
    "no content": lambda line: line.replace(b'"content": "{', b'"contents": "{'),
    "a wrong kind": lambda line: line.replace(b'"tokens": 10', b'"tokens": "10"'),
    "a negative count": lambda line: line.replace(b'"tokens": 10', b'"tokens": -10'),
    "more than all time": lambda line: re.sub(rb'"seconds": [^,}]+', b'"seconds": 1' + b"0" * 400, line),
    "no number": lambda line: re.sub(rb'"seconds": [^,}]+', b'"seconds": NaN', line),
    "two lines in one": lambda line: line.replace(b'"host": "', b'"host": "\\n'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_line_is_named(access, tmp_path, damage, number):
    with LLMServer(says('{"n": 8}'), says('{"n": 9}'), says(GOOD)) as server:
        _, file = recorded(tmp_path, server, access)
    lines = file.read_bytes().splitlines()
    lines[number - 1] = damage(lines[number - 1])
    file.write_bytes(b"\n".join(lines) + b"\n")
    assert f"exchanges.jsonl, line {number}: damaged" in refusal(replay=file)


def test_half_letters_of_a_recording_are_no_letters(access, tmp_path):
    with LLMServer(says(GOOD)) as server:
        _, file = recorded(tmp_path, server, access)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"content": "\ud800"}))
    assert "holds no answer" in refusal(replay=file), "to what it is told back"


def test_a_recording_that_cannot_be_written_is_found_out_before_asking(access, tmp_path):
    with LLMServer(says(GOOD)) as server:
        access(server.url)
        with pytest.raises(LeverError, match="directory"):
            ask(record=tmp_path)
    assert server.requests == []


def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path, monkeypatch):
    recording = tmp_path / "exchanges.jsonl"
    llm._append(recording, b"first\n")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(llm.os, "write", lambda file, line: write(file, line[:2]))
        with pytest.raises(LLMError, match=r"exchanges.jsonl: could not be written to the end"):
            llm._append(recording, b"line\n")
    assert recording.read_bytes() == b"first\n"
    recording.write_bytes(b"first\nleft open")
    llm._append(recording, b"line\n")
    assert recording.read_bytes() == b"first\nleft open\nline\n"


def test_two_who_record_at_once_do_not_mix(tmp_path):
    recording = tmp_path / "exchanges.jsonl"
    lines = [f"{number}".encode() * 5000 + b"\n" for number in range(8)]
    threads = [
        threading.Thread(target=lambda line=line: [llm._append(recording, line) for _ in range(20)]) for line in lines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(recording.read_bytes().splitlines(keepends=True)) == sorted(20 * lines)


def test_a_redirect_is_not_followed(access, monkeypatch):
    """Whoever it leads to would get what `OPENAI_CUSTOM_HEADERS` says."""
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "api-key: TopSecretKey999")
    with LLMServer(says(GOOD)) as other, LLMServer(sends(307, "", location=other.url)) as server:
        access(server.url)
        line = refusal()
    assert f"307 - it leads to {other.url}" in line
    assert "set OPENAI_BASE_URL" in line
    assert not other.requests


def test_the_client_is_loaded_by_those_only_who_ask():
    code = "import sys, lever_lib.llm; sys.exit('openai' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=llm.Path(llm.__file__).parents[1], check=False).returncode == 0
    )
