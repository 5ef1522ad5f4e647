"""Prompts to texts, or to JSON of a given schema, by either engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysys.llm.adapters import merged_backbone
from raysys.llm.backbones import Backbone, BackboneSpec, open_backbone
from raysys.llm.encoder import Dtype
from raysys.llm.engine.choice import Engine, Resources, choose
from raysys.llm.engine.schema import check_schema


class GenerateSpec(BaseModel):
    """What an answer depends on beside its prompt.

    chat: wrap the prompt in the model's chat template, where it has one; system: its first
    message. max_prompt_tokens counts the template's tokens too; a longer prompt is cut at its
    end, and counted. temperature 0 takes the most likely token; above that, the draw of a row
    depends on `seed` and the row's number only, on one engine. json_schema: the answer is JSON of
    this schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "wheel:smollm2"
    adapter: str | None = None
    chat: bool = True
    system: str | None = None
    max_prompt_tokens: int = Field(default=512, ge=8)
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    seed: int = Field(default=0, ge=0)
    json_schema: dict[str, Any] | None = None
    dtype: Dtype = "auto"

    @field_validator("backbone")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        return str(BackboneSpec.parse(value))

    @field_validator("json_schema")
    @classmethod
    def _valid_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            check_schema(value)
        return value

    def open(self) -> Backbone:
        """The model's folder, the adapter merged into it.

        Raises:
            ConfigError, ArtifactError: as `open_backbone` and `merged_backbone`.
        """
        backbone = open_backbone(self.backbone)
        return merged_backbone(backbone, self.adapter) if self.adapter else backbone


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt: `text`, or `error` in words; the other is None.

    prompt_tokens, new_tokens: how many; truncated: the prompt was cut; finished: the model ended
    the answer itself, before max_new_tokens.
    """

    text: str | None
    error: str | None
    prompt_tokens: int = 0
    new_tokens: int = 0
    truncated: bool = False
    finished: bool = False


Answers = list[Answer]


def generate(
    spec: GenerateSpec,
    prompts: Sequence[object],
    *,
    first_row: int = 0,
    engine: Engine = "auto",
    resources: Resources | None = None,
) -> Iterator[Answers]:
    """Answers to the prompts [N], in order, in chunks of any size that add up to N.

    first_row: number of the first prompt, for the draws of a resumed job.

    Raises:
        ConfigError, ArtifactError: as `GenerateSpec.open` and `choose`; no causal model; more
            tokens than the model has positions.
        RaysysError: the engine died again and again.
    """
    if not len(prompts):
        return
    if choose(engine, spec.open(), "generate", len(prompts)) == "transformers":
        from raysys.llm.engine.local import generate_by_transformers

        yield from generate_by_transformers(spec, prompts, first_row)
        return
    from raysys.llm.engine.vllm_generate import generate_by_vllm

    yield from generate_by_vllm(spec, prompts, first_row, resources or Resources())
