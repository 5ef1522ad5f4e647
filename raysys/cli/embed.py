"""`raysys embed`: item texts to frozen vectors."""

from pathlib import Path
from typing import Annotated

import typer

from raysys.data.dataset import Dataset
from raysys.llm.embed import EmbedReport, embed_items
from raysys.llm.encoder import EncoderSpec
from raysys.options import validate


def embed(
    data: Annotated[Path, typer.Argument(help="Data set folder.")],
    table: Annotated[
        Path, typer.Option("--table", "--out", help="Vector table folder; made if missing.")
    ],
    backbone: Annotated[
        str, typer.Option(help="hub:ID[@revision], dir:PATH or wheel:minilm.")
    ] = "wheel:minilm",
    fields: Annotated[
        str, typer.Option(help="Item fields: name, title, abstract, text; comma-separated.")
    ] = "title",
    max_tokens: Annotated[int, typer.Option(help="Longer texts are cut, and counted.")] = 256,
    pooling: Annotated[str, typer.Option(help="mean, cls or last.")] = "mean",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Encode item texts that the vector table lacks, and bind the items to their vectors."""
    given = dict(backbone=backbone, max_tokens=max_tokens, pooling=pooling)
    spec = validate(EncoderSpec, given)
    report = embed_items(
        Dataset(data), table, spec, tuple(name.strip() for name in fields.split(","))
    )
    typer.echo(report.model_dump_json() if as_json else _sentence(report))


def _sentence(report: EmbedReport) -> str:
    fields = ", ".join(f"{name} [{width}]" for name, width in report.widths.items())
    cut = f", {report.truncated} of them cut" if report.truncated else ""
    again = f"; {report.rebound} items had another vector before" if report.rebound else ""
    return (
        f"{report.table}: {report.texts} texts of {fields}, {report.distinct} distinct, "
        f"{report.llm_calls} encoded{cut} in {report.seconds:.1f} s{again}"
    )
