"""Build what a trained run needs beside its weights."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import typer

from raysys.hkfr.config import InstructionConfig, KnowledgeConfig
from raysys.hkfr.features import FeatureOptions
from raysys.options import resolve
from raysys.recipes.catalogue import build_catalogue, write_news_vectors
from raysys.recipes.cofars_lists import ListsReport, build_lists
from raysys.recipes.hkfr_features import build_features
from raysys.recipes.hkfr_instructions import InstructionsReport, build_instructions
from raysys.recipes.hkfr_knowledge import KnowledgeReport, build_knowledge
from raysys.recipes.personas import build_personas

app = typer.Typer(no_args_is_help=True, help="Build what a trained run needs beside its weights.")


@app.command("cofars-lists")
def cofars_lists(
    run: Annotated[Path, typer.Argument(help="Run folder of ctr/cofars.")],
    data: Annotated[Path, typer.Option(help="Data set folder: whose histories.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the lists; RUN/indexes/cofars by default.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Keep the lists there; add later events only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Build the contexts of each prototype for all users: the nightly job of CoFARS.

    Lists replace those in their place when they are complete, never before.
    """
    report = build_lists(run, data, out, append=append)
    typer.echo(report.model_dump_json() if as_json else _sentence(report))


@app.command("personas")
def personas(
    run: Annotated[Path, typer.Argument(help="Run folder of news/perconet.")],
    data: Annotated[
        Path | None, typer.Option(help="Data set folder: whose histories; the run's by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File; RUN/indexes/personas/cards.jsonl by default.")
    ] = None,
    user: Annotated[list[str] | None, typer.Option(help="Only this user; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Write what the ranker believes of each user as persona cards, one line of JSON each."""
    report = build_personas(run, data, out, tuple(user or ()))
    told = (
        f"{report.out}: cards of {report.users:,} users with {report.entities:,} entities, "
        f"{report.fallback:,} users without one; model {report.model_id}, {report.seconds:.1f} s"
    )
    typer.echo(report.model_dump_json() if as_json else told)


@app.command("catalogue")
def catalogue(
    run: Annotated[Path, typer.Argument(help="Run folder of a news/... recipe.")],
    data: Annotated[Path, typer.Option(help="Newer data set folder: its news and histories.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    vector_table: Annotated[
        Path | None,
        typer.Option(help="Table of text vectors; with one kept, only new texts are encoded."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Let a trained news ranker know newer news and histories, without training: the hourly job."""
    report = build_catalogue(run, data, out, vector_table)
    told = (
        f"{report.out}: {report.news:,} news, {report.new:,} of them new, histories of "
        f"{report.users:,} users; {report.llm_calls:,} texts encoded; model {report.model_id} as "
        f"before, {report.seconds:.1f} s"
    )
    typer.echo(report.model_dump_json() if as_json else told)


@app.command("news-vectors")
def news_vectors(
    run: Annotated[Path, typer.Argument(help="Run folder of news/perconet.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
) -> None:
    """Write the ranker's news vectors as Parquet, for retrieval elsewhere."""
    typer.echo(f"{out}: {write_news_vectors(run, out):,} news")


@app.command("hkfr-knowledge")
def hkfr_knowledge(
    data: Annotated[Path, typer.Option(help="Data set folder: whose events.")],
    out: Annotated[Path, typer.Option(help="Knowledge store; made if missing.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. backend.name=local_llm days=7")
    ] = None,
    day: Annotated[
        datetime | None,
        typer.Option(
            "--date",
            formats=["%Y-%m-%d"],
            help="Day of the knowledge, of events before it; by default the one after the last.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Fuse each user's events into a knowledge text: the nightly job of HKFR.

    Only users whose events are new are fused; run again, it goes on where it was interrupted.
    """
    wanted: date | None = day.date() if day else None
    report = build_knowledge(data, out, resolve(KnowledgeConfig, config, overrides or []), wanted)
    typer.echo(report.model_dump_json() if as_json else _knowledge_sentence(report))


@app.command("hkfr-instructions")
def hkfr_instructions(
    data: Annotated[Path, typer.Option(help="Data set folder: whose requests.")],
    knowledge: Annotated[Path, typer.Option(help="Store of `raysys build hkfr-knowledge`.")],
    out: Annotated[Path, typer.Option(help="Folder of the samples.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. train_per_user=10")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Word instructions about each user's next order, with answers: what HKFR tunes on."""
    options = resolve(InstructionConfig, config, overrides or [])
    report = build_instructions(data, knowledge, out, options, overwrite=overwrite)
    typer.echo(report.model_dump_json() if as_json else _instructions_sentence(report))


@app.command("hkfr-features")
def hkfr_features(
    model: Annotated[
        str, typer.Argument(help="Run folder of llm/instruct; wheel:, dir: or hub: for no tuning.")
    ],
    knowledge: Annotated[Path, typer.Option(help="Folder of knowledge by date.")],
    samples: Annotated[Path, typer.Option(help="Folder of samples the model was tuned on.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the feature table, e.g. RUN/indexes/features.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. values=p top=3 hidden=32")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Write what a tuned model would answer for each user and day, as numbers: HKFR's nightly job.

    Dates that are there stay; texts that are as they were the day before are not read again.
    """
    options = resolve(FeatureOptions, config, overrides or [])
    report = build_features(model, knowledge, samples, out, options)
    numbers = ", ".join(f"{name} {width}" for name, width in report.widths.items()) or "nothing new"
    told = (
        f"{report.out}: {len(report.dates)} dates, {report.users:,} users on them, "
        f"{report.texts:,} texts, {report.read:,} of them read; {numbers}; "
        f"{report.kept_dates} dates were there, {report.seconds:.1f} s"
    )
    typer.echo(report.model_dump_json() if as_json else told)


def _instructions_sentence(report: InstructionsReport) -> str:
    parts = ", ".join(f"{count:,} {name}" for name, count in report.samples.items())
    skipped = "".join(f"; no task {name}: {why}" for name, why in report.skipped.items())
    return (
        f"{report.out}: samples {parts} of {len(report.tasks)} tasks; "
        f"{report.without_knowledge:,} requests without knowledge{skipped}; {report.seconds:.1f} s"
    )


def _knowledge_sentence(report: KnowledgeReport) -> str:
    ends = sorted({*report.dates[:1], *report.dates[-1:]})
    when = " to ".join(ends) or "each request"
    asked = f", {report.llm_calls:,} LLM calls, {report.tokens:,} tokens" * bool(report.llm_calls)
    return (
        f"{report.out}: knowledge of {report.users:,} users ({report.cold:,} without events) of "
        f"{when} by {report.backend}; {report.changed:,} changed{asked}, {report.fallbacks:,} "
        f"fall-backs, {report.dropped_claims:,} of {report.claims:,} claims dropped, "
        f"{report.seconds:.1f} s"
    )


def _sentence(report: ListsReport) -> str:
    added = "" if report.added is None else f", {report.added:,} events added"
    served = (
        "" if report.served else "; the run's snapshot holds other histories, which do not use them"
    )
    return (
        f"{report.out}: lists of {report.users:,} users, {report.contexts:,} contexts, "
        f"{report.events:,} events{added}; {report.open:.1%} of contexts × prototypes belong "
        f"together; {report.bytes:,} bytes, selector {report.selector}, model {report.model_id}, "
        f"{report.seconds:.1f} s{served}"
    )
