"""`raysys generate`: prompts of a file to texts, or to JSON of a schema."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from raysys.cli.embed import known_engine
from raysys.errors import ConfigError
from raysys.llm.answers import GenerateReport, generate_rows
from raysys.llm.engine import GenerateSpec, Resources
from raysys.llm.rows import read_prompts
from raysys.options import validate


def generate(
    rows: Annotated[Path, typer.Argument(help="Rows with prompts: .parquet or .jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder of the answers, in Parquet parts.")],
    backbone: Annotated[
        str, typer.Option(help="hub:ID[@revision], dir:PATH or wheel:smollm2.")
    ] = "wheel:smollm2",
    adapter: Annotated[
        str | None, typer.Option(help="Folder of a LoRA adapter for the backbone.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column of the prompts.")] = "prompt",
    template: Annotated[
        str | None, typer.Option(help="Words prompts of columns: 'Describe {name}.'")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column of ids to carry along.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="JSON schema that every answer must fit.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of the chat.")] = None,
    chat: Annotated[bool, typer.Option(help="Use the model's chat template.")] = True,
    max_prompt_tokens: Annotated[
        int, typer.Option(help="Longer prompts are cut, and counted.")
    ] = 512,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws, at a temperature above 0.")] = 0,
    engine: Annotated[str, typer.Option(help="auto, vllm or transformers.")] = "auto",
    engines: Annotated[int, typer.Option(help="Copies of the model, each its own engine.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Answer the prompt of every row; run again, it goes on where it was interrupted."""
    given = dict(
        backbone=backbone,
        adapter=adapter,
        chat=chat,
        system=system,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        json_schema=_schema(schema) if schema else None,
    )
    report = generate_rows(
        read_prompts(rows, column=column, template=template, id_column=id_column),
        out,
        validate(GenerateSpec, given),
        engine=known_engine(engine),
        resources=validate(Resources, dict(engines=engines)),
    )
    typer.echo(report.model_dump_json() if as_json else _sentence(report))


def _schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"--schema {path}: no such file") from error
    except ValueError as error:
        raise ConfigError(f"--schema {path}: not JSON ({error})") from error


def _sentence(report: GenerateReport) -> str:
    earlier = f", {report.resumed:,} of them by an earlier run" if report.resumed else ""
    return (
        f"{report.out}: {report.rows:,} rows{earlier}; {report.failed:,} without an answer, "
        f"{report.truncated:,} prompts cut; {report.new_tokens:,} tokens in {report.seconds:.1f} s"
    )
