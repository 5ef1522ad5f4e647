"""The fair test of PerCoNet: is it the persona, and is it the second view, that help?

PerCoNet (Liu et al., arXiv 2304.07923) is reconstructed here; no figures of its own are known to
compare with. Arms × seeds over any data set folder with news; everything is kept in `out`, and the
same command goes on where it was stopped. With `placebo` the whole study runs again on the world
whose readers do not care for entities, where a persona must not win.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bench.fair.arms import Arm
from bench.fair.folds import Fold, run_folds
from bench.fair.leaks import leaks_of
from bench.fair.report import tables, write_page
from bench.fair.results import (
    Subject,
    beside_baselines,
    cheap,
    failed_leak,
    results,
)
from bench.fair.slices import driven_by, news_slices
from bench.fair.study import Sizes, run_study
from bench.perconet_arms import PLACEBOS, acting, arms, claims, flops, has_abstracts
from bench.perconet_faithful import Tested, faithfulness
from raysys.artifacts.run import load_run
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError
from raysys.llm.vectors import VectorTable
from raysys.metrics.baselines import reader_kinds
from raysys.metrics.bootstrap import REPLICATES
from raysys.options import load_yaml
from raysys.recipes.ranker import RankerRecipe, table_path
from raysys.recipes.registry import ready

NO_FIGURES = "no published figures compared: PerCoNet is reconstructed, and its own are not known"
METRICS = ("gauc_mean@impression", "ndcg@10@impression")
SHOWN = (*METRICS, "mrr@impression", "ndcg@5@impression")
Figures = dict[str, Any]


def run(
    data: str,
    placebo: str | None = None,
    config: str = "raysys/configs/news/perconet-small.yaml",
    out: str = "runs/bench-perconet-fair",
    seeds: int = 5,
    other_seeds: int = 2,
    rows: int = 300_000,
    valid_rows: int = 30_000,
    users: int = 2_000,
    max_core_hours: float = 4.0,
    replicates: int = REPLICATES,
) -> Figures:
    """Every arm with its figures, every claim with its intervals and words.

    data, placebo: data set folders; the folds of one set are parted by commas and averaged within
    a seed. config: of `news/perconet`; what the arms have in common. rows, valid_rows, users,
    seeds, other_seeds, max_core_hours: see `Sizes`; they hold for each of the two, and for each
    fold of it but for the core hours, which folds share. On `placebo` only the arms run that a
    claim names. News without abstracts leave
    claim 2 out.

    Raises:
        ConfigError: `out` holds a study with other options, news that name no entity, or a config
            whose news are read otherwise than those of the rivals.
        RaysysError: what a training raised.
    """
    base = load_yaml(Path(config))
    if base.get("model", {}).get("encoder", "frozen") != "frozen":
        raise ConfigError(
            f"{config}: encoder={base['model']['encoder']}: the rivals read frozen vectors, and "
            "arms with other inputs cannot be compared; set encoder: frozen"
        )
    sizes = Sizes(
        rows=rows,
        valid_rows=valid_rows,
        users=users,
        seeds=seeds,
        other_seeds=other_seeds,
        max_core_hours=max_core_hours,
    )
    result: Figures = {
        "bench": "perconet-fair",
        "published": NO_FIGURES,
        "config": config,
        "out": out,
    }
    for name, folder in (("data", data), ("placebo", placebo)):
        if folder is not None:
            result[name] = _studied(name, folder, base, Path(out) / name, sizes, users, replicates)
    result["verdict"] = verdict(result)
    return result


def markdown(result: Figures) -> str:
    """The tables of `run` for the page of results."""
    parts = [
        f"{NO_FIGURES[0].upper()}{NO_FIGURES[1:]}.",
        *(f"{claim}: **{words}**." for claim, words in result["verdict"].items()),
    ]
    for name in ("data", "placebo"):
        if name in result:
            title = "The data" if name == "data" else "The same with the law of entities off"
            found = result[name]
            parts.append(f"{title}. {tables(found, 'P3', found['headline'])}")
            parts.append(f"Deletion faithfulness: {_told(found['faithfulness'])}.")
            weights = ", ".join(f"{arm} {n:,}" for arm, n in found["weights"].items())
            parts.append(f"Weights that act when an arm scores: {weights}.")
            cost = ", ".join(f"{arm} {n / 1e6:.2f}" for arm, n in found["flops_per_click"].items())
            parts.append(
                "Counted million FLOPs of a training step by click, forward and backward, the "
                f"contrast included: {cost}. All arms see the same clicks and stop by validation."
            )
    return "\n\n".join(parts)


def verdict(result: Figures) -> dict[str, str]:
    """The fixed words of §5, by claim."""
    found = result["data"]
    leak = failed_leak(found)
    if leak is not None:
        return {"all": f"not to be trusted: {leak} failed"}
    words = {
        "beside": beside_baselines(found, "P3"),
        "C1-strong": _word(result, "C1-strong", (("P2", "P0"),)),
        "C1-weak": _word(result, "C1-weak", tuple(("P3", b) for b in ("P1", "X1", "X2"))),
        "C2": _word(result, "C2", tuple(("V4", b) for b in ("V2", "P3", "V6"))),
        "explanations": _explained(found["faithfulness"]),
    }
    if found["planted"]:
        words["planted readers"] = _recovered(found)
    if words["C1-weak"].startswith("not") and _as_good(found, "X1", "P3"):
        words["C1-weak"] += "; shuffled personas do as well: extra capacity"
    if words["C2"].startswith("not") and _beaten(found, "V4", "P3") and _as_good(found, "V6", "V4"):
        words["C2"] = "contrastive regularisation helps, the second view is not shown to matter"
    return words


def _studied(
    name: str,
    folders: str,
    base: Figures,
    where: Path,
    sizes: Sizes,
    users: int,
    replicates: int,
) -> Figures:
    def train(folder: str, at: Path, share: Sizes) -> Fold:
        data = prepare(Dataset(folder))
        # Every text is encoded now, with each way of reading; trainings side by side only read.
        vectors, width, table = _encoded(base, folder, has_abstracts(data), data)
        own = {**base, "vector_table": str(table)}
        chosen = arms(own, data, width)
        studied = chosen if name == "data" else [arm for arm in chosen if arm.named]
        study = run_study(studied, own, folder, at, share)
        return Fold(data, at, own, chosen, study, cheap(data, users, vectors))

    folds = run_folds(train, folders, where, sizes)
    first, study = folds.first, folds.study
    parts = {
        key: news_slices(fold.data, fold.study.systems["P3"].rows[0][""])
        for key, fold in folds.by_name.items()
    }
    asked = claims(METRICS, has_abstracts(first.data), reader_kinds(first.data) is not None)
    asked = [claim for claim in asked if {claim.a, claim.b} <= study.systems.keys()]
    subject = Subject(name="P3", over="P0", placebos=PLACEBOS, metrics=METRICS, shown=SHOWN)
    found, _ = results(study, first.data, subject, asked, parts, folds.scores, replicates)
    found |= {"data": folders, "window": 50}
    found["weights"] = {arm: acting(load_run(first.runs(arm)[0]).model) for arm in study.systems}
    found["flops_per_click"] = {
        arm: flops(load_run(first.runs(arm)[0]).model, first.data) for arm in study.systems
    }
    tested = [Tested(fold.data, fold.runs("P3")) for fold in folds.by_name.values()]
    found["faithfulness"] = faithfulness(tested, users, replicates)
    # One fold shows whether something leaks; the others are made the same way.
    found["leak_tests"] = leaks_of(
        "P3", first.arms, first.base, first.data, first.study, first.where, users, first.scores
    )
    write_page(found, where, "P3", found["headline"])
    return found


def _encoded(
    base: Figures, folder: str, cross: bool, data: Prepared
) -> tuple[np.ndarray, int, Path]:
    """The frozen vectors [2 + N, D] of what the arms read, D, and the table they are in."""
    fields = ["title", "abstract", "title_abstract"] if cross else ["title"]
    given = {"features.vectors": fields, "features.items": [], "features.contexts": []}
    arm = Arm(name="vectors", recipe="news/nrms", options=given)
    config = arm.config(base, {}, 0, {"data": folder})
    assert isinstance(config, RankerRecipe)
    ready(config)
    table = table_path(config, data.dataset)
    read = VectorTable(table).bound("item", fields[-1], data.item_ids, config.encoder.identity())
    padded = np.concatenate([np.zeros((2, read.shape[1]), np.float32), read])
    return padded, read.shape[1], table


def _recovered(found: Figures) -> str:
    """Does the persona win where, and only where, entities drive the reader?"""

    def rows(a: str, kind: str, verdict: str) -> list[Figures]:
        told = driven_by(kind)
        return [r for r in _rows(found, a, "P0", verdict) if r["claim"].endswith(told)]

    kinds = ("entity", "mixed", "topic")
    if any(rows("X1", kind, "supported") for kind in kinds):
        return "not to be trusted: another reader's persona wins over the latent vector"
    if rows("P3", "topic", "supported"):
        return "not to be trusted: the persona wins for readers who do not care for entities"
    if any(rows("P3", kind, "no verdict") for kind in ("entity", "topic")):
        return "no verdict"
    where = (
        "wins"
        if len(rows("P3", "entity", "supported")) == len(METRICS)
        else ("is not shown to win")
    )
    return (
        f"over the latent vector the persona {where} for entity-driven readers and is not shown "
        "to win for topic-driven ones"
    )


def _word(result: Figures, claim: str, pairs: tuple[tuple[str, str], ...]) -> str:
    found = result["data"]
    missing = [name for pair in pairs for name in pair if name not in found["arms"]]
    if missing:
        return "not testable here: the news have no abstracts"
    if any(_rows(found, a, b, "no verdict") for a, b in pairs):
        return "no verdict"
    lost = [f"{a} over {b}" for a, b in pairs if not _beaten(found, a, b)]
    if lost:
        return f"not supported: not shown is {', '.join(lost)}"
    placebo = result.get("placebo")
    if placebo is not None and claim != "C2":
        leak = failed_leak(placebo)
        if leak is not None:
            return f"not to be trusted: {leak} failed on the placebo"
    if (
        placebo is not None
        and claim != "C2"
        and any(_rows(placebo, a, b, "supported") for a, b in pairs)
    ):
        return "not supported: it also wins where readers do not care for entities"
    if found["planted"]:
        return "supported on planted data, which test the code and not the claim"
    return "supported"


def _rows(found: Figures, a: str, b: str, verdict: str) -> list[Figures]:
    start = f"{a} better than {b} in "
    return [
        row for row in found["claims"] if row["claim"].startswith(start)
        and row["verdict"] == verdict
    ]  # fmt: skip


def _beaten(found: Figures, a: str, b: str) -> bool:
    return len(_rows(found, a, b, "supported")) == len(METRICS)


def _as_good(found: Figures, a: str, b: str) -> bool:
    start = f"{a} not worse than {b} in "
    rows = [row for row in found["claims"] if row["claim"].startswith(start)]
    return bool(rows) and all(row["verdict"] == "not inferior" for row in rows)


def _explained(found: Figures) -> str:
    if "effect" not in found:
        return "not testable here: no clicked candidate has an entity with clicks behind it"
    return f"{'supported' if found['holds'] else 'not supported'} ({_told(found)})"


def _told(found: Figures) -> str:
    if "effect" not in found:
        return f"no candidate to test, {found['skipped']} skipped"
    low, high = found["users"]
    return (
        f"{found['effect']:+.4f} [{low:+.4f}, {high:+.4f}] over {found['candidates']:,} clicked "
        f"candidates, {found['skipped']:,} skipped"
    )
