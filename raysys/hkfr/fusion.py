"""Fusion: a user's document to knowledge, by one of several back-ends behind one call (§2.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from raysys.errors import ConfigError
from raysys.hkfr.anonymise import Anonymiser
from raysys.hkfr.config import (
    Backend,
    EventsBackend,
    LocalBackend,
    RemoteBackend,
    TemplateBackend,
)
from raysys.hkfr.knowledge import Knowledge, Statement, answer_schema, parse
from raysys.hkfr.prompt import PROMPT_VERSION, fusion_prompt
from raysys.hkfr.remote import RemoteFusion
from raysys.hkfr.render import Document
from raysys.hkfr.replies import Reply
from raysys.hkfr.summary import VERSION, summarise
from raysys.hkfr.words import within
from raysys.llm.adapters import adapter_sha256
from raysys.llm.engine import GenerateSpec, generate


class Fusion(Protocol):
    """Documents to replies, with the place of each, in any order.

    identity: all that a reply depends on beside its document; asks: whether a model is asked.
    """

    identity: dict[str, Any]
    asks: bool

    def __call__(self, documents: Sequence[Document]) -> Iterator[tuple[int, Reply]]: ...


class TemplateFusion:
    """Counts in fixed words; the fall-back of the others and the honest baseline."""

    asks = False
    identity: dict[str, Any] = {"backend": "template", "version": VERSION}  # noqa: RUF012

    def __call__(self, documents: Sequence[Document]) -> Iterator[tuple[int, Reply]]:
        for place, document in enumerate(documents):
            yield place, Reply(summarise(document))


class EventsFusion:
    """The arm without fusion: as many of the newest lines as fit a budget of tokens."""

    asks = False

    def __init__(self, backend: EventsBackend) -> None:
        self.tokens = backend.tokens
        self.identity = {"backend": "events", "tokens": backend.tokens}

    def __call__(self, documents: Sequence[Document]) -> Iterator[tuple[int, Reply]]:
        for place, document in enumerate(documents):
            newest = [event.line for event in reversed(document.events)]
            kept = within(newest, self.tokens, "\n").split("\n")
            numbers = range(len(newest), 0, -1)
            facts = (
                Statement(text=line, events=(f"e{number}",))
                for line, number in zip(kept, numbers, strict=False)
            )
            yield place, Reply(Knowledge(facts=tuple(facts)))


class LocalFusion:
    """A model on our own engines; an answer that does not fit is asked for once more, shorter."""

    asks = True

    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend
        self.spec = self._spec(1)
        self.identity = {
            "backend": "local_llm",
            "prompt": PROMPT_VERSION,
            "prompt_chars": backend.prompt_chars,
            "weights": self.spec.open().sha256,
            "adapter": adapter_sha256(backend.adapter) if backend.adapter else None,
            "decoding": self.spec.model_dump(mode="json", exclude={"backbone", "adapter"}),
        }

    def _spec(self, part: int) -> GenerateSpec:
        """The job, of answers of a part of the lengths."""
        backend = self.backend
        limits = (backend.statements, backend.statement_chars, backend.prose_chars)
        return GenerateSpec(
            backbone=backend.backbone,
            adapter=backend.adapter,
            max_prompt_tokens=backend.max_prompt_tokens,
            max_new_tokens=backend.max_new_tokens,
            json_schema=answer_schema(*(-(-limit // part) for limit in limits)),
        )

    def __call__(self, documents: Sequence[Document]) -> Iterator[tuple[int, Reply]]:
        failed = []
        for place, reply in self._asked(self.spec, documents, range(len(documents))):
            if reply.knowledge is None:
                failed.append((place, reply))
            else:
                yield place, reply
        before = dict(failed)
        for place, reply in self._asked(self._spec(2), documents, list(before)):
            yield place, replace(reply, calls=2, tokens=reply.tokens + before[place].tokens)

    def _asked(
        self, spec: GenerateSpec, documents: Sequence[Document], places: Sequence[int]
    ) -> Iterator[tuple[int, Reply]]:
        prompts = [fusion_prompt(documents[p], self.backend.prompt_chars) for p in places]
        left = iter(places)
        backend = self.backend
        for answers in generate(spec, prompts, engine=backend.engine, resources=backend.resources):
            for answer in answers:
                knowledge = None if answer.text is None else parse(answer.text)
                spent = answer.prompt_tokens + answer.new_tokens
                yield next(left), Reply(knowledge, answer.error or "", tokens=spent, calls=1)


def open_fusion(backend: Backend, anonymiser: Anonymiser) -> Fusion:
    """The back-end of these options.

    Raises:
        ConfigError: a remote one without a salt of our own, or without its key; a model that is
            not there.
    """
    match backend:
        case TemplateBackend():
            return TemplateFusion()
        case EventsBackend():
            return EventsFusion(backend)
        case LocalBackend():
            return LocalFusion(backend)
        case RemoteBackend():
            if not anonymiser.salted:
                raise ConfigError(
                    "backend remote_llm: pseudonyms that leave the house need a salt of your own; "
                    "put one into the environment variable that anonymise.salt_env names"
                )
            return RemoteFusion(backend)
