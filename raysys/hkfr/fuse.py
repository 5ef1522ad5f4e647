"""From documents to rows of the store: fused once, filtered, or summed up where fusion fails."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from raysys.data.manifest import canonical_json
from raysys.hkfr.claims import Filter
from raysys.hkfr.config import KnowledgeConfig
from raysys.hkfr.fusion import Fusion, TemplateFusion
from raysys.hkfr.knowledge import NOTHING, TEXT_VERSION, Knowledge
from raysys.hkfr.render import Document
from raysys.hkfr.replies import Reply
from raysys.hkfr.store import TextRow
from raysys.hkfr.summary import summarise


@dataclass
class Fuser:
    """Knowledge texts by one back-end.

    filter: of what it claims; names: of the catalogue.
    llm_calls, tokens, fallbacks: so far; a fall-back is a user whose text is the template's.
    """

    config: KnowledgeConfig
    fusion: Fusion
    names: Iterable[str]
    filter: Filter = field(init=False)
    llm_calls: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    fallbacks: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.filter = Filter.of(self.names if self.fusion.asks else ())

    def key(self, document: Document, fusion: Fusion | None = None) -> str:
        """First 32 hex digits of the sha256 of all that the text depends on."""
        config = self.config
        fusion = fusion or self.fusion
        parts = {
            "events": document.lines,
            "templates": document.templates,
            "fusion": fusion.identity,
            "text": TEXT_VERSION,
            "output": config.output,
            "prose_tokens": config.prose_tokens,
            "claims": config.claims if fusion.asks else None,
        }
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]

    def __call__(self, documents: list[Document]) -> Iterator[tuple[int, TextRow]]:
        """A row for each of the documents, with its place among them, in any order.

        Where the back-end was out of reach the row has the key of the template's text, so that
        the next run asks it again; where its answers were no good it has the key asked for.
        """
        known = [place for place, document in enumerate(documents) if document.events]
        for place in set(range(len(documents))) - set(known):
            nothing = Knowledge()
            yield place, self._row(documents[place], Reply(nothing), NOTHING, backend="template")
        for place, reply in self.fusion([documents[place] for place in known]):
            yield known[place], self._kept(documents[known[place]], reply)

    def _kept(self, document: Document, reply: Reply) -> TextRow:
        self.llm_calls += reply.calls
        self.tokens += reply.tokens
        if reply.knowledge is None:
            return self._fallback(document, reply)
        kept = reply.knowledge
        before = (self.filter.claims, self.filter.dropped)
        if self.fusion.asks and self.config.claims == "drop":
            kept = self.filter(kept, [event.line for event in document.events])
        claims, dropped = self.filter.claims - before[0], self.filter.dropped - before[1]
        text = self._text(kept)
        if not text.strip():
            why = f"nothing is left of the answer; {dropped} of {claims} claims were dropped"
            return self._fallback(document, Reply(None, why, tokens=reply.tokens))
        told = Reply(kept, tokens=reply.tokens)
        return self._row(document, told, text, claims=claims, dropped=dropped)

    def _fallback(self, document: Document, reply: Reply) -> TextRow:
        self.fallbacks += 1
        summary = summarise(document)
        text = self._text(summary)
        if not reply.lasting:
            key = self.key(document, TemplateFusion())
            return self._row(document, Reply(summary), text, key=key, backend="template")
        told = Reply(summary, tokens=reply.tokens)
        why = reply.why or "no answer"
        return self._row(document, told, text, backend="template", fallback=why)

    def _text(self, knowledge: Knowledge) -> str:
        return knowledge.text(self.config.output, self.config.prose_tokens)

    def _row(self, document: Document, reply: Reply, text: str, **others: Any) -> TextRow:
        assert reply.knowledge is not None
        given: dict[str, Any] = dict(
            key=self.key(document),
            text=text,
            record=reply.knowledge.model_dump_json(),
            backend=self.fusion.identity["backend"],
            fallback=None,
            claims=0,
            dropped=0,
            tokens=reply.tokens,
        )
        return TextRow(**(given | others))
