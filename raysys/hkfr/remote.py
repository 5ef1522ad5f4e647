"""The back-end `remote_llm`: an OpenAI-compatible endpoint, asked so often and no more (§2.2)."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from raysys.errors import ConfigError
from raysys.hkfr.config import RemoteBackend
from raysys.hkfr.knowledge import answer_schema, parse
from raysys.hkfr.prompt import PROMPT_VERSION, fusion_prompt
from raysys.hkfr.render import Document
from raysys.hkfr.replies import Reply
from raysys.llm.engine.schema import fault_of_json

_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_LOST = (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
_MOST_TOKENS = 10**7  # of one answer; whoever states more is not believed
log = logging.getLogger(__name__)


class RemoteFusion:
    """Asks the endpoint for each document.

    An answer that does not fit the schema is asked for once more. After `give_up_after` documents
    in a row that the endpoint did not answer at all, it is not asked any more.

    Raises:
        ConfigError: the environment has no key.
    """

    asks = True

    def __init__(self, backend: RemoteBackend) -> None:
        key = os.environ.get(backend.api_key_env)
        if not key:
            raise ConfigError(
                f"backend remote_llm: the environment variable {backend.api_key_env} (api_key_env) "
                "holds no key"
            )
        self.backend = backend
        limits = (backend.statements, backend.statement_chars, backend.prose_chars)
        self.schema = answer_schema(*limits)
        self.identity: dict[str, Any] = {
            "backend": "remote_llm",
            "prompt": PROMPT_VERSION,
            "prompt_chars": backend.prompt_chars,
            "model": backend.model,
            "decoding": {
                "json_schema": self.schema,
                "max_new_tokens": backend.max_new_tokens,
                "temperature": backend.temperature,
                "seed": backend.seed,
            },
        }
        self._session = requests.Session()
        self._session.mount("https://", HTTPAdapter(pool_maxsize=backend.concurrency))
        self._session.headers["Authorization"] = f"Bearer {key}"
        self._lock = threading.Lock()
        self._unanswered = 0  # documents in a row

    def __call__(self, documents: Sequence[Document]) -> Iterator[tuple[int, Reply]]:
        with ThreadPoolExecutor(self.backend.concurrency) as pool:
            yield from enumerate(pool.map(self._reply, documents))

    def _reply(self, document: Document) -> Reply:
        why, tokens = "", 0
        for call in (1, 2):
            if self._unanswered >= self.backend.give_up_after:
                return Reply(None, lasting=False, calls=call - 1)
            try:
                answer = self._posted(document)
            except requests.RequestException as error:
                self._count_unanswered(error)
                return Reply(None, lasting=False, calls=call, tokens=tokens)
            with self._lock:
                self._unanswered = 0
            content, used = _content(answer)
            tokens += used
            why = fault_of_json(content, self.schema, finished=True) or ""
            if not why:
                return Reply(parse(content), calls=call, tokens=tokens)
        return Reply(None, why, calls=2, tokens=tokens)

    def _posted(self, document: Document) -> requests.Response:
        """The answer, after as many tries as it takes.

        Raises:
            requests.RequestException: the last try failed, or the endpoint refused the request.
        """
        backend = self.backend
        body = {
            "model": backend.model,
            "messages": [
                {"role": "user", "content": fusion_prompt(document, backend.prompt_chars)}
            ],
            "max_tokens": backend.max_new_tokens,
            "temperature": backend.temperature,
            "seed": backend.seed,
            "user": document.pseudonym,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "knowledge", "strict": True, "schema": self.schema},
            },
        }
        wait = backend.backoff_s
        for left in range(backend.retries, -1, -1):
            try:
                answer = self._session.post(
                    f"{backend.url.rstrip('/')}/chat/completions",
                    json=body,
                    timeout=backend.timeout_s,
                    # Events go to the host that was named, and to no other.
                    allow_redirects=False,
                )
            except _LOST:
                if not left:
                    raise
            else:
                if answer.status_code == 200:
                    return answer
                if answer.status_code not in _AGAIN or not left:
                    raise requests.HTTPError(f"status {answer.status_code}", response=answer)
                wait = max(wait, _asked_wait(answer))
            time.sleep(min(wait, backend.backoff_max_s))
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _count_unanswered(self, error: Exception) -> None:
        with self._lock:
            self._unanswered += 1
            if self._unanswered == self.backend.give_up_after:
                log.warning(
                    "%s gave no answer for %d users in a row (%s): the others of this run get the "
                    "template's text, and are tried again by the next run",
                    self.backend.url,
                    self._unanswered,
                    error,
                )


def _asked_wait(answer: requests.Response) -> float:
    """Seconds that `Retry-After` asks for; 0 where it does not, or states a date."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _content(answer: requests.Response) -> tuple[str, int]:
    """The text of a chat completion, "" of anything else, and the tokens it states."""
    try:
        body = answer.json()
        content = body["choices"][0]["message"]["content"]
        used = (body.get("usage") or {}).get("total_tokens")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", 0
    if not isinstance(used, int) or not 0 <= used <= _MOST_TOKENS:
        used = 0
    return (content if isinstance(content, str) else ""), used
