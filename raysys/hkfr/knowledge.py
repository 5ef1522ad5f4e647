"""K_u: what is known of a user, as statements with evidence and as prose (§2.2)."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from raysys.hkfr.words import one_line, sentences, within

NOTHING = "Nothing is known of this user yet."
TEXT_VERSION = 2  # of what `Knowledge.text` makes of a record; part of every key
_HEAD = "What the user did, the oldest first:"  # of facts without prose


class Statement(BaseModel):
    """One sentence, and the numbers of the events that say so (e1, e2, ...)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    events: tuple[str, ...]


class Knowledge(BaseModel):
    """Facts, newest first, interests, strongest first, and a summary in prose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: tuple[Statement, ...] = ()
    interests: tuple[Statement, ...] = ()
    prose: str = ""

    def text(self, output: str, prose_tokens: int) -> str:
        """The text for prompts: prose of at most `prose_tokens`, and with `record` after it a
        line per fact, the oldest first, and per interest, the weakest first: a prompt that is too
        long loses the lines behind the first one, from the oldest fact on."""
        lines = [within(sentences(self.prose), prose_tokens, " ")] if self.prose else []
        told = [*reversed(self.facts), *reversed(self.interests)]
        if told and (output == "record" or not lines):
            lines = [*(lines or [_HEAD]), *(statement.text for statement in told)]
        return "\n".join(lines)


def answer_schema(statements: int, statement_chars: int, prose_chars: int) -> dict[str, Any]:
    """JSON schema of a model's answer with at most so many facts, and as many interests."""
    several = _several(statements, statement_chars)
    prose = {"type": "string", "minLength": 1, "maxLength": prose_chars}
    return _object({"facts": several, "interests": several, "prose": prose})


def interests_schema(statements: int, statement_chars: int) -> dict[str, Any]:
    """JSON schema of an answer with at most so many interests and nothing else."""
    return _object({"interests": _several(statements, statement_chars)})


def _several(statements: int, statement_chars: int) -> dict[str, Any]:
    event = {"type": "string", "pattern": "^e[0-9]{1,3}$"}
    statement = _object(
        {
            "text": {"type": "string", "minLength": 1, "maxLength": statement_chars},
            "events": {"type": "array", "items": event, "minItems": 1, "maxItems": 5},
        }
    )
    return {"type": "array", "items": statement, "maxItems": statements}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse(answer: str) -> Knowledge:
    """The knowledge in an answer that fits `answer_schema` or `interests_schema`."""
    given = json.loads(answer)
    facts, interests = (
        tuple(
            Statement(text=_cleaned(statement["text"]), events=tuple(statement["events"]))
            for statement in given.get(name, ())
        )
        for name in ("facts", "interests")
    )
    return Knowledge(facts=facts, interests=interests, prose=_cleaned(given.get("prose", "")))


def _cleaned(text: str) -> str:
    # JSON can spell halves of characters ("\ud83d"), which no file holds.
    return one_line(text.encode("utf-8", "replace").decode("utf-8"), longest=None)
