"""The arms of LARR's fair test: one ranker, one feature set; what is known of the scene differs."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.fair.arms import Arm, Point
from bench.fair.judge import Claim
from bench.fair.slices import NEW_ITEMS, RARE_OR_UNSEEN

RATES = (2e-3, 4e-3)
# What an arm without an option of its own is tried with: twice as many rates.
ALL_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SMALL_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
ALIGNED = (0.1, 0.3)  # η, where m is tuned
OFF_THE_SHELF = "wheel:minilm"
PLACEBOS = ("larr-random", "larr-permuted", "larr-shuffled")
_DEALT = {"random": "random_vectors", "permuted": "permuted_texts", "shuffled": "shuffled_requests"}
# §5 f, one thing at a time.
ABLATIONS: dict[str, Point] = {
    "larr-eta-0": {"larr.alignment.weight": 0.0},
    "larr-mean": {"larr.encoder.aggregate": "mean"},
    "larr-concat": {"larr.encoder.aggregate": "concat"},
    "larr-towers-only": {"larr.use": "concat"},
    "larr-align-only": {"larr.use": "none"},
}
SLICES = (RARE_OR_UNSEEN, NEW_ITEMS)
CONTROLS = ("dcnv2", "single-pass", "larr-random")  # (b), (d), and the decisive placebo


def arms(
    base: dict[str, Any],
    encoder: str,
    variants: Mapping[str, str],
    window: int,
    pooling: str,
    small: str | None = None,
) -> list[Arm]:
    """All arms over a config of `ctr/larr`.

    encoder: a spec string, of LARR's own arms; with another one than `wheel:minilm`, per-feature
    vectors of that are an arm of their own. variants: name → spec string of an encoder that lacks
    a stage or a pair type. window: events that arms which search the history see. pooling: of
    `encoder` and of the variants. small: an encoder of a few layers that learns with the ranker.

    Every tuned arm is tried four times. Rankers without m know the scene by ids, but for
    `no-scene`, which does not know it at all.
    """
    k = int(base.get("model", {}).get("history_length", 50))
    plain = tuple({"train.lr": rate} for rate in ALL_RATES)
    with_m = tuple(
        {"train.lr": rate, "larr.alignment.weight": eta} for rate in RATES for eta in ALIGNED
    )
    searched: Point = {"model.retriever.window": window, "model.retriever.k": k}
    sim: Point = {**searched, "model.retriever.kind": "sim-soft"}
    twin: Point = {**searched, "model.retriever.kind": "twin"}
    tuned: Point = {"scene_encoder.backbone": encoder, "scene_encoder.pooling": pooling}
    stock: Point = {"scene_encoder.backbone": OFF_THE_SHELF, "scene_encoder.pooling": "mean"}

    def rival(name: str, recipe: str, options: Point, *, named: bool = False) -> Arm:
        return Arm(name=name, recipe=recipe, options=options, tries=plain, named=named)

    def scene(name: str, options: Point, tuned_as: str | None = None, named: bool = False) -> Arm:
        tries = with_m if tuned_as is None else ()
        return Arm(
            name=name,
            recipe="ctr/larr",
            options={**tuned, **options},
            tries=tries,
            tuned_as=tuned_as,
            named=named,
        )

    chosen = [
        rival("no-scene", "ctr/din", {"features.contexts": []}, named=True),
        rival("dcnv2", "ctr/dcnv2", {}, named=True),
        rival("din", "ctr/din", {}, named=True),
        rival("sim", "ctr/din", sim),
        rival("twin", "ctr/din", twin),
        scene("larr", {}, named=True),
        # It knows the past as LARR does: what differs is how the context is encoded.
        scene("single-pass", {**stock, "larr.single_pass": True}, named=True),
        scene("sim-m", sim, tuned_as="sim"),
        scene("twin-m", twin, tuned_as="twin"),
    ]
    if encoder != OFF_THE_SHELF:
        chosen.append(scene("off-the-shelf", stock, named=True))
    chosen += [
        scene(f"larr-{name}", {"larr.placebo": placebo}, tuned_as="larr", named=True)
        for name, placebo in _DEALT.items()
    ]
    chosen += [scene(name, options, tuned_as="larr") for name, options in ABLATIONS.items()]
    if small is not None:
        # What a frozen model is held against, at rates that do not undo what it has learned.
        learned: Point = {"scene_encoder.backbone": small, "scene_encoder.pooling": "last"}
        learned["larr.frozen"] = False
        chosen.append(
            Arm(
                name="larr-unfrozen",
                recipe="ctr/larr",
                options=learned,
                tries=tuple({"train.lr": rate} for rate in SMALL_RATES),
            )
        )
    chosen += [
        scene(f"larr-{name}", {"scene_encoder.backbone": spec}, tuned_as="larr", named=True)
        for name, spec in variants.items()
    ]
    return chosen


def claims(variants: Mapping[str, str], metrics: Sequence[str]) -> list[Claim]:
    """What is asked of the intervals (§5); those of `CONTROLS` have to hold for "supported"."""
    found = [Claim(a="larr", b=other, metric=metric) for other in CONTROLS for metric in metrics]
    for family, others in (
        ("scene", ["no-scene", "din"]),
        ("stages", [f"larr-{name}" for name in variants]),
    ):
        found += [
            Claim(a="larr", b=other, metric=metric, family=family)
            for other in others
            for metric in metrics
        ]
    # Only what is shown to be as good as LARR refutes it.
    found += [
        Claim(a=other, b="larr", metric=metric, kind="not worse")
        for other in ("larr-random", *(f"larr-{name}" for name in variants))
        for metric in metrics
    ]
    return found
