"""Make, import, check and show data sets."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pyarrow.compute as pc
import typer

from raysys.cli.printing import print_faults, print_pairs
from raysys.data.check import check as check_folder
from raysys.data.dataset import Dataset
from raysys.data.faults import FIRST_FAULTS
from raysys.data.loaders import LOADERS, import_dataset
from raysys.data.manifest import Manifest
from raysys.data.mapping import LocalMapper
from raysys.data.schema import SPLITS
from raysys.data.tagging import read_gazetteer, tag_dataset
from raysys.data.world import WorldConfig, make_world
from raysys.data.world.show import draw_map
from raysys.data.world.show import show as world_figures
from raysys.dist import RayMapper
from raysys.errors import ConfigError
from raysys.options import merge, parse_overrides, validate

app = typer.Typer(no_args_is_help=True, help="Make, import, check and show data sets.")
make = typer.Typer(no_args_is_help=True, help="Generate data sets with known truth.")
app.add_typer(make, name="make")

Out = Annotated[Path, typer.Option(help="Folder to write; it appears only when it is complete.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Further options.")
]


class Kind(StrEnum):
    """What a planted world logs."""

    FOOD = "food"
    NEWS = "news"


def _effect(name: str) -> Any:
    return typer.Option(f"--effects.{name}", min=0, max=1, help=f"0 turns the law of {name} off.")


@make.command("world")
def world(
    out: Out,
    overrides: Overrides = None,
    users: Annotated[int, typer.Option(help="Number of users.")] = 2000,
    days: Annotated[int, typer.Option(help="Length of the period.")] = 60,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    kind: Annotated[Kind, typer.Option(help="Meals of the city, or its readers' news.")] = (
        Kind.FOOD
    ),
    context: Annotated[int, _effect("context")] = 1,
    words: Annotated[int, _effect("words")] = 1,
    taste: Annotated[int, _effect("taste")] = 1,
    joint_behaviour: Annotated[int, _effect("joint_behaviour")] = 1,
    entity: Annotated[int, _effect("entity")] = 1,
    abstract: Annotated[int, _effect("abstract")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 writes in this process.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the planted world: logs whose true click probabilities are known."""
    effects = {
        "context": context, "words": words, "taste": taste,
        "joint_behaviour": joint_behaviour, "entity": entity, "abstract": abstract,
    }  # fmt: skip
    values = {"users": users, "days": days, "seed": seed, "kind": kind.value, "effects": effects}
    config = validate(WorldConfig, merge(values, parse_overrides(overrides or [])), "world")
    mapper = RayMapper(workers) if workers else LocalMapper()
    _written(make_world(config, out, mapper, overwrite=overwrite), out, as_json)


@make.command("readers")
def readers(
    news: Annotated[Path, typer.Option(help="Data set folder whose items are the articles.")],
    out: Out,
    overrides: Overrides = None,
    users: Annotated[int, typer.Option(help="Number of readers.")] = 2000,
    days: Annotated[int, typer.Option(help="Length of the period.")] = 60,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    taste: Annotated[int, _effect("taste")] = 1,
    entity: Annotated[int, _effect("entity")] = 1,
    abstract: Annotated[int, _effect("abstract")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 writes in this process.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Let simulated readers, entity-driven, topic-driven and mixed, read real news.

    Their clicks are drawn from a law that is known; nobody read these articles so.
    """
    effects = {"taste": taste, "entity": entity, "abstract": abstract}
    further = parse_overrides(overrides or [])
    for key in ("articles_per_day", "named_entities"):
        if key in further:
            raise ConfigError(f"make readers: {key} comes from the articles of --news")
    values = {"users": users, "days": days, "seed": seed, "kind": "readers", "effects": effects}
    config = validate(WorldConfig, merge(values, further), "readers")
    mapper = RayMapper(workers) if workers else LocalMapper()
    _written(make_world(config, out, mapper, news=news, overwrite=overwrite), out, as_json)


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="Layout: " + ", ".join(LOADERS) + ".")],
    src: Annotated[Path, typer.Option(help="Folder or file to read.")],
    out: Out,
    overrides: Overrides = None,
    folds: Annotated[int | None, typer.Option(help="Folds, for logs without time.")] = None,
    fold: Annotated[int | None, typer.Option(help="Which fold is the test part.")] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="YAML that describes the log (layout mapped).")
    ] = None,
    on_bad_entities: Annotated[
        str | None, typer.Option(help="fail or drop malformed entity annotations.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Read a public layout, or any log described by a mapping, into a data set folder."""
    given = {"folds": folds, "fold": fold, "mapping": mapping, "on_bad_entities": on_bad_entities}
    options = {key: value for key, value in given.items() if value is not None}
    options = merge(options, parse_overrides(overrides or []))
    if name == "mapped" and "mapping" not in options:
        raise ConfigError(
            "import mapped: --mapping is missing; name the YAML file that says which column "
            "means what (docs/tutorial-own-logs.md)"
        )
    _written(import_dataset(name, src, out, options, overwrite=overwrite), out, as_json)


@app.command("tag")
def tag(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Data set folder.")],
    gazetteer: Annotated[
        Path,
        typer.Option(help="Names: a file with id, name, label, type; or a data set with entities."),
    ],
    out: Out,
    replace: Annotated[
        bool, typer.Option("--replace", help="Tag news that have entities, too.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Look up the entities of news that come without, and tell how noisy that is."""
    names = read_gazetteer(gazetteer)
    report = tag_dataset(path, names, out, replace=replace, overwrite=overwrite)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_pairs(f"wrote {out}", report.model_dump(exclude={"out"}))


@app.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Data set folder.")],
    first: Annotated[int, typer.Option(min=1, help="Faults shown per kind.")] = FIRST_FAULTS,
    as_json: AsJson = False,
) -> None:
    """Validate a data set folder; exits with 1 if there is a fault."""
    report = check_folder(path, first=first)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print_faults(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command("show")
def show(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Data set folder.")],
    png: Annotated[
        Path | None, typer.Option(help="Draw the context-prototype map of a world.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the manifest, the data card and, of a generated world, its figures."""
    dataset = Dataset(path)
    manifest = dataset.manifest
    splits = _split_counts(dataset)
    figures = world_figures(path) if manifest.world else {}
    if png is not None:
        draw_map(path, png)
    if as_json:
        shown = manifest.model_dump(mode="json") | {"splits": splits}
        shown |= {"figures": figures} if figures else {}
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    print_pairs(str(path), _summary(manifest) | {"splits": _shares(splits)})
    print_pairs("data card", manifest.data_card.model_dump(mode="json"))
    if figures:
        print_pairs("world", figures)


def _split_counts(dataset: Dataset) -> dict[str, int]:
    """Impressions in each split."""
    counts = dict.fromkeys(SPLITS, 0)
    if "impressions" not in dataset.manifest.tables:
        return {}
    for part in dataset.parts("impressions", ["split"]):
        for value in pc.value_counts(part["split"].combine_chunks()).to_pylist():
            counts[value["values"]] += value["counts"]
    return {name: count for name, count in counts.items() if count}


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name} {n} ({n / total:.1%})" for name, n in counts.items())


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "data_card_id": manifest.data_card_id,
        "kind": manifest.kind,
        "candidates": manifest.candidates,
        "history_behaviours": ", ".join(manifest.history_behaviours),
        "context features": ", ".join(f"{n} ({kind})" for n, kind in manifest.contexts.items()),
        **{
            name: f"{entry.rows} rows in {len(entry.files)} files"
            for name, entry in manifest.tables.items()
        },
    }


def _written(manifest: Manifest, out: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        print_pairs(f"wrote {out}", _summary(manifest))
