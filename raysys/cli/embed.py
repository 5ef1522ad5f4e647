"""`raysys embed`: item texts to frozen vectors."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from raysys.data.dataset import Dataset
from raysys.errors import ConfigError
from raysys.llm.embed import EmbedReport, embed_items
from raysys.llm.encoder import EncoderSpec
from raysys.llm.engine import Engine, Resources
from raysys.options import validate


def embed(
    data: Annotated[Path, typer.Option(help="Data set folder.")],
    table: Annotated[
        Path, typer.Option("--table", "--out", help="Vector table folder; made if missing.")
    ],
    backbone: Annotated[
        str, typer.Option(help="hub:ID[@revision], dir:PATH, wheel:minilm or wheel:smollm2.")
    ] = "wheel:minilm",
    adapter: Annotated[
        str | None, typer.Option(help="Folder of a LoRA adapter for the backbone.")
    ] = None,
    fields: Annotated[
        str, typer.Option(help="Item fields: name, title, abstract, text; comma-separated.")
    ] = "title",
    max_tokens: Annotated[int, typer.Option(help="Longer texts are cut, and counted.")] = 256,
    pooling: Annotated[str, typer.Option(help="mean, cls or last.")] = "mean",
    engine: Annotated[str, typer.Option(help="auto, vllm or transformers.")] = "auto",
    engines: Annotated[int, typer.Option(help="Copies of the model, each its own engine.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Encode item texts that the vector table lacks, and bind the items to their vectors."""
    given = dict(backbone=backbone, adapter=adapter, max_tokens=max_tokens, pooling=pooling)
    report = embed_items(
        Dataset(data),
        table,
        validate(EncoderSpec, given),
        tuple(name.strip() for name in fields.split(",")),
        engine=known_engine(engine),
        resources=validate(Resources, dict(engines=engines)),
    )
    typer.echo(report.model_dump_json() if as_json else _sentence(report))


def known_engine(name: str) -> Engine:
    """`name` as an engine.

    Raises:
        ConfigError: there is none of that name.
    """
    for engine in get_args(Engine):
        if engine == name:
            return engine
    raise ConfigError(f"--engine {name} is none of {', '.join(get_args(Engine))}")


def _sentence(report: EmbedReport) -> str:
    fields = ", ".join(f"{name} [{width}]" for name, width in report.widths.items())
    cut = f", {report.truncated} of them cut" if report.truncated else ""
    failed = f"; {report.failed} got no vector, e.g. {report.faults[0]}" if report.failed else ""
    again = f"; {report.rebound} items had another vector before" if report.rebound else ""
    return (
        f"{report.table}: {report.texts} texts of {fields}, {report.distinct} distinct, "
        f"{report.llm_calls} encoded{cut} in {report.seconds:.1f} s{again}{failed}"
    )
