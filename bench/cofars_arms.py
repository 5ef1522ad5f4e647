"""The arms of CoFARS's fair test: one ranker, one feature set, one K; retrievers differ."""

from typing import Any

from bench.fair.arms import Arm, Point
from bench.fair.judge import Claim

RATES = (2e-3, 4e-3)
# Part of what a gate sees that stays off; each next one opens half as much.
_OFF = (75.0, 87.0, 93.0, 97.0)
CANDIDATE_AWARE = ("sim-hard", "sim-soft", "eta", "sdim", "twin")
PLACEBOS = ("cofars-permuted", "cofars-random")
# The full loss as printed, and what it lacks where a part is taken away; of the inner product and
# of γ the selector that is fitted by L_MSE alone depends as well.
_FULL: Point = {"cofars.encoder.anchored": False, "selector.train.epochs": 1}
ABLATIONS: dict[str, Point] = {
    "cofars-inner": {"cofars.encoder.similarity": "inner"},
    "cofars-no-mse": {"cofars.loss.mse": 0.0},
    "cofars-full-loss": _FULL,
    "cofars-full-no-ind": {**_FULL, "cofars.loss.ind": 0.0},
    "cofars-full-no-graph": {**_FULL, "cofars.graph.layers": 0},
}
METRICS = ("auc", "gauc_mean@user")


def arms(base: dict[str, Any], window: int) -> list[Arm]:
    """All arms over a config of `ctr/cofars`; window: the events that candidate-aware arms search.

    Every arm is tried four times. All share the context features in the ranker and in the query
    of its attention, but for `recent-plain`, which knows no context at all.
    """
    cofars = base["cofars"]
    k = int(cofars.get("lists", {}).get("events", 100))
    contexts = cofars["contexts"]
    where: Point = {
        "model.retriever.k": k,
        "model.retriever.contexts": list(contexts["features"]),
        "model.retriever.drop": list(contexts.get("drop", ())),
    }
    preferences = cofars["preferences"]
    counted: Point = {
        **where,
        "model.retriever.kind": "counted-js",
        "model.retriever.attributes": preferences["attributes"],
        "model.retriever.strength": preferences.get("strength", 20.0),
    }
    searched: Point = {"model.retriever.window": window}
    found: Point = {**searched, "model.retriever.k": k}

    def din(name: str, options: Point, axis: str, values: tuple[Any, Any], named: bool) -> Arm:
        tries = tuple({"train.lr": rate, axis: value} for rate in RATES for value in values)
        return Arm(name=name, recipe="ctr/din", options=options, tries=tries, named=named)

    decay, decays = "train.weight_decay", (1e-4, 1e-3)
    field = preferences["attributes"]["fields"][0]["source"]
    chosen = [
        din("recent", {"model.history_length": k}, decay, decays, True),
        din(
            "recent-plain",
            {"model.history_length": k, "features.contexts": []},
            decay,
            decays,
            True,
        ),
        din(
            "random",
            {"model.retriever.kind": "random", "model.retriever.k": k},
            decay,
            decays,
            False,
        ),
        din(
            "exact",
            {**where, "model.retriever.kind": "exact"},
            "model.retriever.least",
            (max(1, k // 5), k),
            True,
        ),
        din("counted-js", counted, "model.retriever.share", (0.1, 0.3), True),
        din(
            "sim-hard",
            {**found, "model.retriever.kind": "sim-hard", "model.retriever.category": field},
            decay,
            decays,
            True,
        ),
        din(
            "sim-soft",
            {**found, "model.retriever.kind": "sim-soft"},
            "model.retriever.width",
            (16, 32),
            True,
        ),
        din(
            "eta", {**found, "model.retriever.kind": "eta"}, "model.retriever.bits", (32, 64), True
        ),
        din(
            "sdim",
            {**searched, "model.retriever.kind": "sdim"},
            "model.retriever.group",
            (2, 3),
            True,
        ),
        din(
            "twin",
            {**found, "model.retriever.kind": "twin"},
            "model.retriever.stage_two",
            ("own", "shared"),
            True,
        ),
        din("full", {**searched, "model.retriever.kind": "full"}, decay, decays, False),
    ]
    for recipe in ("dcnv2", "finalmlp"):
        tries = tuple({"train.lr": rate, decay: value} for rate in RATES for value in decays)
        pooled: Point = {"model.history_length": window}
        chosen.append(Arm(name=recipe, recipe=f"ctr/{recipe}", options=pooled, tries=tries))
    gates = tuple(
        {"cofars.gates.percentile": off, "cofars.gates.choice_percentile": off} for off in _OFF
    )
    chosen.append(Arm(name="cofars", recipe="ctr/cofars", tries=gates, named=True))
    for placebo in ("permuted", "random"):
        chosen.append(
            Arm(
                name=f"cofars-{placebo}",
                recipe="ctr/cofars",
                options={"cofars.lists.placebo": placebo},
                tuned_as="cofars",
                named=True,
            )
        )
    chosen += [
        Arm(name=name, recipe="ctr/cofars", options=options, tuned_as="cofars")
        for name, options in ABLATIONS.items()
    ]
    return chosen


def claims(best_rival: str) -> list[Claim]:
    """What has to hold for "supported" (§5), but for the cost; `best_rival` is candidate-aware."""
    found = [
        Claim(a="cofars", b=other, metric=metric)
        for other in ("recent", "recent-plain", "exact", *PLACEBOS)
        for metric in METRICS
    ]
    found += [
        Claim(a="cofars", b="counted-js", metric=metric, slice="context unseen")
        for metric in METRICS
    ]
    found += [
        Claim(a="cofars", b=other, metric=metric, kind="not worse")
        for other in ("counted-js", best_rival)
        for metric in METRICS
    ]
    return found
