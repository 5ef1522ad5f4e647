"""The arms of CoFARS's fair test: one ranker, one feature set, one K; retrievers differ."""

from collections.abc import Sequence
from typing import Any

from bench.fair.arms import Arm, Point
from bench.fair.judge import Claim
from bench.fair.slices import UNSEEN

RATES = (2e-3, 4e-3)
# What an arm without an option of its own is tried with: twice as many rates.
_ALL_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
# Part of what a gate sees that stays off.
_OFF = (85.0, 93.0)
CANDIDATE_AWARE = ("sim-hard", "sim-soft", "eta", "sdim", "twin")
PLACEBOS = ("cofars-permuted", "cofars-random")
# The method as printed: the full loss moves selector, prototypes and graph. `cofars` itself is the
# selector as shipped, which L_MSE alone has fitted: graph and short-term state are silent.
_FULL: Point = {"cofars.encoder.anchored": False, "selector.train.epochs": 1}
# Name -> options and the arm it is an ablation of.
ABLATIONS: dict[str, tuple[Point, str]] = {
    "cofars-inner": ({"cofars.encoder.similarity": "inner"}, "cofars"),
    "cofars-no-mse": ({"cofars.loss.mse": 0.0}, "cofars"),
    "cofars-full-no-ind": ({**_FULL, "cofars.loss.ind": 0.0}, "cofars-full-loss"),
    "cofars-full-no-graph": ({**_FULL, "cofars.graph.layers": 0}, "cofars-full-loss"),
}


def arms(base: dict[str, Any], window: int, category: str | None = None) -> list[Arm]:
    """All arms over a config of `ctr/cofars`.

    window: the newest events that arms which search or pool the history see. category: the item
    field of SIM's hard search; None: the first that preferences are counted of.

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
        "model.retriever.behaviours": list(preferences.get("behaviours", ())),
    }
    searched: Point = {"model.retriever.window": window}
    found: Point = {**searched, "model.retriever.k": k}

    def arm(
        name: str,
        options: Point,
        axis: tuple[str, tuple[Any, Any]] | None = None,
        *,
        named: bool = True,
        recipe: str = "ctr/din",
    ) -> Arm:
        tries: tuple[Point, ...] = tuple({"train.lr": rate} for rate in _ALL_RATES)
        if axis is not None:
            tries = tuple({"train.lr": rate, axis[0]: v} for rate in RATES for v in axis[1])
        return Arm(name=name, recipe=recipe, options=options, tries=tries, named=named)

    field = category or preferences["attributes"]["fields"][0]["source"]
    kind = "model.retriever.kind"
    chosen = [
        arm("recent", {"model.history_length": k}),
        arm("recent-plain", {"model.history_length": k, "features.contexts": []}),
        arm("random-k", {kind: "random", "model.retriever.k": k}, named=False),
        arm("exact", {**where, kind: "exact"}, ("model.retriever.least", (max(1, k // 5), k))),
        arm("counted-js", counted, ("model.retriever.share", (0.1, 0.3))),
        arm("sim-hard", {**found, kind: "sim-hard", "model.retriever.category": field}),
        arm("sim-soft", {**found, kind: "sim-soft"}, ("model.retriever.width", (16, 32))),
        arm("eta", {**found, kind: "eta"}, ("model.retriever.bits", (32, 64))),
        arm("sdim", {**searched, kind: "sdim"}, ("model.retriever.group", (2, 3))),
        arm("twin", {**found, kind: "twin"}, ("model.retriever.stage_two", ("own", "shared"))),
        arm("full", {**searched, kind: "full"}, named=False),
    ]
    pooled: Point = {"model.history_length": window}
    chosen += [arm(n, pooled, named=False, recipe=f"ctr/{n}") for n in ("dcnv2", "finalmlp")]
    gates: tuple[Point, ...] = tuple(
        {
            "train.lr": rate,
            "cofars.gates.percentile": off,
            "cofars.gates.choice_percentile": off,
        }
        for rate in RATES
        for off in _OFF
    )
    for name, options in (("cofars", {}), ("cofars-full-loss", _FULL)):
        chosen.append(Arm(name=name, recipe="ctr/cofars", options=options, tries=gates, named=True))
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
        Arm(name=name, recipe="ctr/cofars", options=options, tuned_as=of)
        for name, (options, of) in ABLATIONS.items()
    ]
    return chosen


def claims(best_rival: str, metrics: Sequence[str]) -> list[Claim]:
    """What has to hold for "supported" (§5), but for the cost; `best_rival` is candidate-aware."""
    found = [
        Claim(a="cofars", b=other, metric=metric)
        for other in ("recent", "recent-plain", "exact", *PLACEBOS)
        for metric in metrics
    ]
    found += [Claim(a="cofars", b="counted-js", metric=metric, slice=UNSEEN) for metric in metrics]
    found += [
        Claim(a="cofars", b=other, metric=metric, kind="not worse")
        for other in ("counted-js", best_rival)
        for metric in metrics
    ]
    return found
