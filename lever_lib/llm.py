"""The one door to a language model: a question goes out, a checked JSON object comes back, or one line says why not.

Any endpoint that speaks the OpenAI protocol will do. `OPENAI_BASE_URL` and `OPENAI_API_KEY` say which, in the
environment or in a `.env` file. An answer that cannot be used is told back to the model with the reason, a request that
fails is sent again; both end after some tries, or when the time for the whole conversation is up. What the model said
can be recorded, and a recording answers in its place, without network or key.
"""

from __future__ import annotations

import base64
import fcntl
import html
import io
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import unquote
from urllib.request import getproxies

from lever_lib.artifacts import ROOT, json_hash, shown
from lever_lib.bounded import read_bytes
from lever_lib.errors import LeverError, one_line, writing_to

if TYPE_CHECKING:
    import httpx2
    import openai

T = TypeVar("T")
Messages = list[dict[str, str]]

_LOG = logging.getLogger(__name__)
_KEY, _URL, _HOME = "OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com/v1"
_HEADERS = "OPENAI_CUSTOM_HEADERS"  # more that it sends
_ALSO_SENT = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # by the client, if the environment has them
_NO_KEY = "none"  # the client wants one; endpoints on one's own machine do not look at it
_OFFLINE = "use `search.decompose: offline`"
_LATER = f"try later, raise timeout_s or {_OFFLINE}"
_BACKOFF, _MOST_BACKOFF = 0.25, 8.0  # seconds before a request is sent again, doubling up to the most
_MOST_ANSWER = 30_000  # bytes of text
_MOST_COUNT = 10**9  # tokens, and seconds, of an answer that anybody can believe
_MOST_BODY = 1_000_000  # bytes: such an answer with every letter escaped, and the thoughts that some models send along
_MOST_TOLD_BACK, _MOST_REASON = 10_000, 300  # letters of an answer shown again, and of a reason in a message or log
_SECRET = 8  # letters; what is shorter is a dummy, and hiding it would hide parts of words
_TOO_LONG = f"it is longer than {_MOST_ANSWER // 1000} kB"
_OBJECT = re.compile(r'\{\s*["}]')  # how a JSON object starts; prose may hold other braces


class LLMError(LeverError):
    """No usable answer from a language model; the message says why and what to do."""


class Refused(ValueError):
    """An answer is not what was asked for. The model is told the reason."""


@dataclass(frozen=True)
class Settings:
    """Which model to ask, and how patiently."""

    model: str = "gpt-5-nano"
    timeout_s: float = 60.0  # for the whole conversation, retries and waiting included
    tries: int = 3  # answers and failed requests together
    record: Path | None = None  # where live exchanges are appended
    replay: Path | None = None  # recorded exchanges that answer instead; nothing is sent then, and nothing recorded


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What came of a conversation.

    Attributes:
        value: what `check` made of the answer.
        answered_by: model and host, and whether it was recorded.
        tokens: of all answers together as the endpoint counted them; None if it did not count one of them.
        seconds: from the first request to the last answer, waiting included; on replay those of the recording.
        tries: answers and failed requests that it took; a recording holds no failed requests.
    """

    value: T
    answered_by: str
    tokens: int | None
    seconds: float
    tries: int


@dataclass(frozen=True)
class _Answer:
    """What a model said. Its seconds count from the answer before, failed requests in between included."""

    content: str | None
    finish_reason: str | None  # `refusal` if the content is why the model declined
    tokens: int | None
    seconds: float = 0.0
    host: str = ""


@dataclass(frozen=True)
class _Failure:
    """A request that brought no answer. If there is a cure, asking again is of no use before."""

    reason: str
    cure: str | None = None
    wait: float | None = None  # seconds before asking again, None if nobody has said


def converse(system: str, user: str, schema: dict, check: Callable[[Any], T], settings: Settings) -> Reply[T]:
    """Ask a language model for a JSON object, and again with the reason if the answer cannot be used.

    Args:
        system: what the model is to do; `schema` is added to it in words.
        user: what it is to do it with.
        schema: JSON schema of the object, within what the `strict` mode of endpoints allows.
        check: makes a value of the object, or raises `Refused` with a reason that the model can act on.
        settings: which model, and how patiently.

    Raises:
        LLMError: on a missing or wrong key, an unknown model, a recording that does not hold the exchange, or if there
            is no usable answer within the tries and the time.
    """
    task = f"{system}\n\nAnswer with one JSON object and nothing else. Its JSON schema:\n{json.dumps(schema)}"
    messages = [{"role": "system", "content": task}, {"role": "user", "content": _text(user)}]
    answers: list[_Answer] = []
    with closing(_source(settings)) as source:
        for number in range(1, settings.tries + 1):
            answer = source.ask(messages, schema)
            value, reason = _judged(answer, check)
            reason = reason and source.hide(reason)
            _LOG.info("%s, try %d: %s", settings.model, number, "accepted" if reason is None else _one_line(reason))
            if isinstance(answer, _Answer):
                answers.append(answer)
                if reason is None:
                    return _reply(value, answers, number, settings)
                messages = messages + _told_back(answer, reason)
            elif answer.cure is not None or number == settings.tries:
                break
            else:
                time.sleep(answer.wait)
    cure = (isinstance(answer, _Failure) and answer.cure) or f"ask another model or {_OFFLINE}"
    count = f"{number} {'try' if number == 1 else 'tries'}"
    raise LLMError(f"{settings.model} at {source.host}: no usable answer in {count}: {_one_line(reason)}; {cure}")


def check(settings: Settings) -> None:
    """See that a model can be asked, or that there is a recording, without asking anything.

    Raises:
        LLMError: if not.
    """
    _source(settings).close()


def _source(settings: Settings) -> _Endpoint | _Recording:
    return _Endpoint(settings) if settings.replay is None else _Recording(settings)


def _judged(answer: _Answer | _Failure, check: Callable[[Any], T]) -> tuple[T | None, str | None]:
    """The value of an answer, and why it cannot be used: None if it can."""
    if isinstance(answer, _Failure):
        return None, answer.reason
    try:
        return check(_object_in(answer)), None
    except Refused as refused:
        return None, _text(str(refused))


def _reply(value: T, answers: list[_Answer], number: int, settings: Settings) -> Reply[T]:
    who = f"{settings.model} at {answers[-1].host}{'' if settings.replay is None else ', recorded'}"
    counts = [answer.tokens for answer in answers]
    tokens = None if None in counts else sum(counts)
    return Reply(value, who, tokens, sum(answer.seconds for answer in answers), number)


def _told_back(answer: _Answer, reason: str) -> Messages:
    request = f"This answer cannot be used: {reason}\nAnswer again, with one JSON object as described."
    said = (answer.content or "")[:_MOST_TOLD_BACK]
    return [{"role": "assistant", "content": said}, {"role": "user", "content": request}]


def _object_in(answer: _Answer) -> dict[str, Any]:
    """The one JSON object in an answer, whatever stands around it."""
    if answer.finish_reason == "refusal":
        raise Refused(f"the model declined: {answer.content}")
    if answer.finish_reason == "length":
        raise Refused("it was cut off at the length limit")
    if answer.finish_reason == _TOO_LONG or len((answer.content or "").encode()) > _MOST_ANSWER:
        raise Refused(_TOO_LONG)
    if answer.content is None:
        raise Refused(f"it has no text (finish_reason {answer.finish_reason})")
    found: dict[bytes, dict[str, Any]] = {}
    start = _OBJECT.search(answer.content)
    while start:
        try:
            value, end = json.JSONDecoder().raw_decode(answer.content, start.start())
            # Python reads more than JSON can say, NaN and half letters; writing it down again finds them out.
            found[json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()] = value
        except (ValueError, RecursionError) as error:
            raise Refused(f"it is no JSON: {error}") from None  # nor is what may be whole within it
        start = _OBJECT.search(answer.content, end)
    if len(found) != 1:
        raise Refused(f"it must hold one JSON object, holds {len(found) or 'none'}")
    return next(iter(found.values()))


class _Endpoint:
    """A live language model."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._access = _find_access(settings.model)
        self.host = self._access.host
        if settings.record is not None:
            _append(settings.record, b"")  # if it cannot be written, better now than after an answer that was paid for
        import openai  # takes a second: only who asks a model shall wait for it, and before the clock starts

        for name in ("openai", "httpx2", "httpcore2"):  # they log what a server says, which may be the key
            logging.getLogger(name).setLevel(logging.WARNING)
        self._begun = self._since = time.monotonic()
        self._client = openai.OpenAI(
            api_key=self._access.key,
            base_url=self._access.url,
            max_retries=0,
            http_client=_http_client(self._access),
        )
        self._structured = True
        self._failures = 0

    def ask(self, messages: Messages, schema: dict) -> _Answer | _Failure:
        """The model's answer, recorded if wanted, or what came between."""
        answer = self._in_time(messages, schema)
        if isinstance(answer, _Failure):
            # Hidden before it is cut, for half a key would not be recognised.
            return self._patience(replace(answer, reason=_one_line(self._access.hide(answer.reason))))
        now = time.monotonic()
        said = {"content": answer.content, "finish_reason": answer.finish_reason}
        said = {name: None if text is None else self._access.hide(text) for name, text in said.items()}
        answer = replace(answer, **said, seconds=now - self._since, host=self.host)
        self._since = now
        if self._settings.record is not None:
            line = {"key": _exchange_key(self._settings.model, messages, schema), "model": self._settings.model}
            line |= {"messages": messages, **asdict(answer)}
            _append(self._settings.record, json.dumps(line).encode() + b"\n")
        return answer

    def hide(self, text: str) -> str:
        """A text without the secrets that go out with every request."""
        return self._access.hide(text)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _left(self) -> float:
        return max(0.0, self._begun + self._settings.timeout_s - time.monotonic())

    def _patience(self, failure: _Failure) -> _Failure:
        """The failure with the seconds to wait, or with a cure if that is more than are left."""
        if failure.cure is not None:
            return failure
        backoff = min(_BACKOFF * 2**self._failures, _MOST_BACKOFF)
        self._failures += 1
        wait, left = backoff if failure.wait is None else failure.wait, self._left()
        if wait < left:
            return replace(failure, wait=wait)
        spent = f"{wait:g} s to wait, {left:.1f} left of timeout_s = {self._settings.timeout_s:g}"
        return _Failure(f"{failure.reason} ({spent})", _LATER)

    def _in_time(self, messages: Messages, schema: dict) -> _Answer | _Failure:
        """Send a request and drop it when the time is up: a server that drips bytes outlives any timeout of a read."""
        left = self._left()
        box: SimpleQueue[_Answer | _Failure | Exception] = SimpleQueue()

        def work() -> None:
            """Put the answer, or whatever went wrong, into the box."""
            try:
                box.put(self._request(messages, schema, left + 1))  # to end this thread if closing does not
            except Exception as error:
                box.put(error)

        if left > 0:
            Thread(target=work, name="llm", daemon=True).start()
        try:
            outcome = box.get(timeout=left)
        except Empty:  # `close` comes next, and pulls the connection from under the thread
            return _Failure(f"no answer within timeout_s = {self._settings.timeout_s:g}", _LATER)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _request(self, messages: Messages, schema: dict, timeout_s: float) -> _Answer | _Failure:
        """One round trip, or two with an endpoint that knows no `response_format`: the schema is in the words too."""
        import httpx2
        import openai

        strict = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        options = {"response_format": strict} if self._structured else {}
        create = self._client.chat.completions.with_streaming_response.create
        # The client's errors carry the request with its key, so none of them leaves this function.
        try:
            with create(model=self._settings.model, messages=messages, timeout=timeout_s, **options) as response:
                body = b"".join(response.iter_bytes())
        except openai.APIStatusError as error:
            failure = _status_failure(error, self._settings.model)
            # Some endpoints stumble over what they do not know instead of refusing it.
            named = any(word in failure.reason for word in ("response_format", "json_schema"))
            rejected = (error.status_code in {400, 422} or named) and self._structured
        except (openai.OpenAIError, httpx2.HTTPError, UnicodeError) as error:  # the last: a host that cannot be one
            cause = error.__cause__ or error
            return _Failure(f"the connection failed ({type(cause).__name__}: {cause}); {_URL} says where it goes")
        except Exception as error:  # servers may say what no client was made for
            return _Failure(f"the answer cannot be read ({type(error).__name__}: {error})", f"check {_URL}")
        else:
            return _read_answer(body)
        if not rejected:
            return failure
        self._structured = False
        reason = _one_line(self._access.hide(failure.reason))
        _LOG.info("%s: asked again without response_format: %s", self._settings.model, reason)
        return self._request(messages, schema, timeout_s)


def _http_client(access: _Access) -> httpx2.Client:
    """A client that reads no more of any answer, be it an error, than `_MOST_BODY`.

    Raises:
        LLMError: if the system's settings for connections cannot be used.
    """
    import httpx2
    import openai

    class Bounded(httpx2.SyncByteStream):
        """The start of a body; one that goes on is an error."""

        def __init__(self, whole: httpx2.SyncByteStream) -> None:
            self.whole = whole

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in self.whole:
                size += len(chunk)
                if size > _MOST_BODY:
                    raise httpx2.ReadError(f"the answer is longer than {_MOST_BODY // 1000} kB")
                yield chunk

        def close(self) -> None:
            """End the connection."""
            self.whole.close()

    def bound(response: httpx2.Response) -> None:
        """Put a bound to a body before anybody reads it."""
        if response.headers.get("content-encoding", "identity") not in ("", "identity"):
            raise httpx2.DecodingError("the answer is compressed, which was not asked for")  # who knows to how much
        response.stream = Bounded(response.stream)
        response.encoding = "utf-8"  # whatever the server calls it: some of Python's encodings are none of texts

    try:
        return openai.DefaultHttpxClient(
            auth=access.login,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [bound]},
            follow_redirects=False,  # whoever it leads to would get the headers of one's own, with the keys in them
        )
    except (ValueError, ImportError, OSError, httpx2.InvalidURL) as error:
        reason = type(error).__name__
        if not isinstance(error, httpx2.InvalidURL):  # which may show a short part of a login
            reason = _one_line(access.hide(f"{reason}: {error}"))
        raise LLMError(
            f"no connection can be made as *_PROXY and SSL_CERT_* in the environment say ({reason}); "
            f"change them, or {_OFFLINE}"
        ) from None


def _read_answer(body: bytes) -> _Answer | _Failure:
    """What a body says, with nothing taken for granted: many endpoints speak the protocol nearly."""
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        return _Failure(f"what came is no JSON: {_bounded(body)}", f"check {_URL}: most end in /v1")
    completion = completion if isinstance(completion, dict) else {}
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return _Failure(f"the answer has no choices: {_bounded(body)}")
    usage = completion.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    tokens = tokens if type(tokens) is int and 0 <= tokens < _MOST_COUNT else None
    refusal, content, reason = (
        _text(part) for part in (message.get("refusal"), message.get("content"), choice.get("finish_reason"))
    )
    if any(len((part or "").encode()) > _MOST_ANSWER for part in (refusal, content, reason)):
        return _Answer(None, _TOO_LONG, tokens)
    return _Answer(refusal, "refusal", tokens) if refusal else _Answer(content, reason, tokens)


def _bounded(body: bytes) -> str:
    """The text of a body; of one too long to look for secrets in it in no time, only how long it is."""
    return body.decode(errors="replace") if len(body) <= _MOST_ANSWER else f"{len(body)} bytes"


def _text(value: Any) -> str | None:
    """A text that can be sent: a Python string may hold half letters (lone surrogates), which no encoding can say."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def _one_line(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _MOST_REASON else f"{line[: _MOST_REASON - 3]}..."


def _status_failure(error: openai.APIStatusError, model: str) -> _Failure:
    status = error.status_code
    said = f"Error code: {status} - {_bounded(error.response.content)}"
    if status in {408, 409, 429} or status >= 500:
        return _Failure(said, wait=_retry_after(error.response.headers.get("retry-after", "")))
    if 300 <= status < 400:
        return _Failure(f"Error code: {status} - it leads to {error.response.headers.get('location')}", f"set {_URL}")
    cures = {
        401: f"check {_KEY}",
        403: f"check {_KEY} and what it is allowed",
        404: f"check model = {model!r} and {_URL}",
    }
    return _Failure(said, cures.get(status, f"ask another model or {_OFFLINE}"))


def _retry_after(value: str) -> float | None:
    """Seconds that a `Retry-After` header asks for, by number or date; None if it says neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class _Access:
    """Where to ask, and what nobody else must see."""

    host: str
    url: str  # without user and password: the client logs it
    key: str = field(repr=False)
    login: tuple[str, str] | None = field(repr=False)
    others: tuple[str, ...] = field(default=(), repr=False)  # for proxies on the way, and in headers of one's own

    def hide(self, text: str) -> str:
        """A text without the secrets that an endpoint may have repeated in it, escaped and broken as may be."""
        for secret in self.secrets:
            text = re.sub(re.escape(secret), "[key]", text, flags=re.IGNORECASE)  # addresses come in small letters
        plain, spans = _unescaped(text)
        plain, found = plain.lower(), []
        for needle in {_unescaped(secret)[0].lower() for secret in self.secrets}:
            at = plain.find(needle) if len(needle) >= _SECRET else -1
            while at >= 0:
                found.append((spans[at][0], spans[at + len(needle) - 1][1]))
                at = plain.find(needle, at + 1)
        parts, done = [], 0
        for start, end in sorted(found):  # they may overlap
            if start >= done:
                parts += [text[done:start], "[key]"]
            done = max(done, end)
        return "".join([*parts, text[done:]])

    @property
    def secrets(self) -> list[str]:
        """What is hidden, the longest first."""
        secrets = [self.key, *self.others, *(_login_secrets(*self.login) if self.login else [])]
        return sorted((secret for secret in secrets if len(secret) >= _SECRET), key=len, reverse=True)


_ESCAPE = re.compile(
    r"\\+u[0-9a-fA-F]{4}|\\+[nrtfbv]?|(?:%[0-9a-fA-F]{2})+|&(?:#[0-9]{1,20}|#[xX][0-9a-fA-F]{1,20}|[A-Za-z][A-Za-z0-9]{1,31});?"
)
_LAYERS = 8  # of escapes within escapes


def _unescaped(text: str) -> tuple[str, list[tuple[int, int]]]:
    r"""What JSON, addresses and HTML mean by a text, within each other, too: only letters that a key may have.

    `\u003c`, `%3c`, `&#60;`, `&#x3c;` and `&lt;` are the same. What else there is, blanks and backslashes, is left out.

    Returns:
        The letters, and the span of the text that each stands for.
    """
    spans = [(at, at + 1) for at in range(len(text))]
    for _ in range(2 * _LAYERS):
        parts, kept, done = [], [], 0
        for found in _ESCAPE.finditer(text):
            start, end = found.span()
            letters = _letters(found[0])
            parts += [text[done:start], letters]
            kept += spans[done:start] + [(spans[start][0], spans[end - 1][1])] * len(letters)
            done = end
        before, text, spans = text, "".join([*parts, text[done:]]), kept + spans[done:]
        if text == before:
            text, spans = _without_blanks(text, spans)  # within an escape, too
            if text == before:
                break
    return _without_blanks(text, spans)


def _without_blanks(text: str, spans: list[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    here = [at for at, one in enumerate(text) if "!" <= one <= "~"]
    return "".join(text[at] for at in here), [spans[at] for at in here]


def _letters(escape: str) -> str:
    """What an escape stands for."""
    if escape[0] == "&":
        return html.unescape(escape)
    if escape[0] == "%":
        return bytes.fromhex(escape.replace("%", "")).decode(errors="replace")
    return chr(int(escape[-4:], 16)) if "u" in escape else ""


def _find_access(model: str) -> _Access:
    """Endpoint and key: each from the environment, else from `.env` where we are, else from that of the repository."""
    here = {name: value for name, value in os.environ.items() if value.strip()}
    values = _dotenv(ROOT / ".env") | _dotenv(Path.cwd() / ".env") | here
    key, url = values.get(_KEY, "").strip(), values.get(_URL, "").strip()
    if not key and not url:
        raise LLMError(f"no key for {model}: set {_KEY} in the environment or in .env, or {_OFFLINE}")
    for name, value in ((_KEY, key), *((name, os.environ.get(name, "")) for name in _ALSO_SENT)):
        if not re.fullmatch(r"[!-~]*", value):
            raise LLMError(f"{name}: must be ASCII without blanks")
    import httpx2  # what it makes of an address is what counts: the client goes there

    try:
        parts = httpx2.URL(url or _HOME)
        sound = parts.scheme in {"http", "https"} and parts.host and (parts.port or 0) < 65536
        sound = sound and not parts.query and not parts.fragment  # a path is put behind it
    except httpx2.InvalidURL:
        sound = False
    if not sound:
        raise LLMError(f"{_URL}: must be an address like {_HOME}, without ? and #")
    login = (parts.username, parts.password) if parts.username else None
    others = (*_of_proxies(), *_of_headers(os.environ.get(_HEADERS, "")))
    return _Access(parts.host, str(parts.copy_with(userinfo=b"")), key or _NO_KEY, login, others)


def _login_secrets(user: str, password: str) -> Iterator[str]:
    """A login in all ways in which it is sent or told."""
    for one, other in {(user, password), (unquote(user), unquote(password))}:
        yield from (one, other, base64.b64encode(f"{one}:{other}".encode(errors="replace")).decode())


def _of_proxies() -> Iterator[str]:
    """What nobody must see of the proxies that the environment names, even if an address is none."""
    for address in getproxies().values():
        login, at, _ = address.rpartition("@")
        if at:
            user, _, password = login.split("://", 1)[-1].partition(":")
            yield from _login_secrets(user, password)
            yield from re.split("[/?#@:]", password)  # where readers of addresses see the end of it


def _of_headers(lines: str) -> Iterator[str]:
    """What the client sends along, a header in each line, because the environment says so."""
    for line in lines.splitlines():
        value = line.partition(":")[2].strip()
        yield from (value, *value.split())


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    logging.getLogger("dotenv").setLevel(logging.ERROR)  # a line for each that it cannot read
    text = read_bytes(path).decode(errors="replace")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text), interpolate=False).items() if value}


class _Recording:
    """A file of answers in a model's place. Of two answers to the same messages the later counts."""

    def __init__(self, settings: Settings) -> None:
        self._model = settings.model
        self.host = shown(settings.replay)
        if not settings.replay.is_file():
            raise LLMError(f"{self.host}: no such recording; record it with {_KEY} set")
        lines = read_bytes(settings.replay).removesuffix(b"\n").split(b"\n")
        self._answers = dict(
            _recorded(line, f"{self.host}, line {number}") for number, line in enumerate(lines, 1) if lines != [b""]
        )

    def ask(self, messages: Messages, schema: dict) -> _Answer:
        """The recorded answer to these messages."""
        key = _exchange_key(self._model, messages, schema)
        if key not in self._answers:
            question = f"answer of {self._model} to {_one_line(messages[-1]['content'])!r}"
            raise LLMError(f"{self.host}: holds no {question}; record it again with {_KEY} set")
        return self._answers[key]

    def hide(self, text: str) -> str:
        """The text: who replays has no secrets to send."""
        return text

    def close(self) -> None:
        """Nothing is open."""


def _recorded(line: bytes, place: str) -> tuple[str, _Answer]:
    kinds = {"content": str | None, "finish_reason": str | None, "tokens": int | None, "seconds": int | float}
    kinds |= {"host": str, "key": str}
    try:
        exchange = json.loads(line.decode())
        values = {name: exchange[name] for name in kinds}
        whole = all(isinstance(values[name], kind) for name, kind in kinds.items())
        counts = [value for value in (values["tokens"], values["seconds"]) if value is not None]
        whole = whole and not any(isinstance(value, bool) or not 0 <= value < _MOST_COUNT for value in counts)
        whole = whole and len(values["host"]) <= _MOST_REASON and values["host"].isprintable()
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise LLMError(f"{place}: damaged; record it again with {_KEY} set")
    texts = {name: _text(values[name]) for name in ("content", "finish_reason")}
    return values.pop("key"), _Answer(**(values | texts))


def _exchange_key(model: str, messages: Messages, schema: dict) -> str:
    return json_hash([model, messages, schema])


def _append(path: Path, line: bytes) -> None:
    """Append a line whole or not at all, whatever comes between."""
    with writing_to(shown(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without waiting: a pipe that nobody reads is no place for a recording.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            line = line if not line or _ends_a_line(path) else b"\n" + line
            before = os.fstat(file).st_size
            if os.write(file, line) != len(line):
                if stat.S_ISREG(os.fstat(file).st_mode):
                    os.ftruncate(file, before)
                raise LLMError(f"{shown(path)}: could not be written to the end; is the disk full?")
        finally:
            os.close(file)


def _ends_a_line(path: Path) -> bool:
    """Whether what is appended to a file begins a line; an editor may have left the last one open."""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
