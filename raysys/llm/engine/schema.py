"""Answers that are JSON of a schema: the schema is checked before, every answer after."""

import json
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from llguidance import LLMatcher


def grammar(schema: dict[str, Any]) -> str:
    """The schema as a grammar of tokens, without blanks between them: small models that may
    write blanks do so for ever."""
    return str(
        LLMatcher.grammar_from_json_schema(
            json.dumps(schema), defaults={"whitespace_flexible": False}
        )
    )


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse what is no JSON schema, or none that can be held to while generating.

    Raises:
        ValueError: with the place in the schema.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "its root"
        raise ValueError(f"not a JSON schema: {error.message} (at {where})") from error
    problem = LLMatcher.validate_grammar(grammar(schema))
    if problem:
        raise ValueError(f"this JSON schema cannot be generated: {problem}")


def fault_of_json(text: str, schema: dict[str, Any], finished: bool) -> str | None:
    """Why `text` is no answer of the schema; None if it is one."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        why = "" if finished else "; it was cut at max_new_tokens"
        return f"the answer is not JSON ({error.msg} at character {error.pos}{why}): {text[:60]!r}"
    except (ValueError, RecursionError) as error:  # a number too long, lists too deep
        return f"the answer is not JSON that can be read ({error}): {text[:60]!r}"
    for error in Draft202012Validator(schema).iter_errors(value):
        return f"the answer does not fit the schema: {error.message[:200]}"
    return None
