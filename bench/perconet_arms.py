"""The arms of PerCoNet's fair test (perconet.md §5) and what is asked of them."""

from typing import Any

from bench.fair.arms import Arm, Point
from bench.fair.judge import Claim
from raysys.data.contexts import ContextCodec
from raysys.data.features import FeatureSpace
from raysys.data.prepared import Prepared
from raysys.news.entities import EntityFit, fit_entities
from raysys.options import merge
from raysys.perconet.config import PerconetConfig, PerconetOptions
from raysys.perconet.presets import PRESETS
from raysys.perconet.ranker import Perconet

# Every tuned arm is tried four times; one with λ in two of the rates.
ALL_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
RATES = (5e-4, 1e-3)
WEIGHTS = (0.03, 0.1)  # λ
PLACEBOS = ("X1", "X2")
# P3 and V3 are one model; it runs once.
PERCONET = tuple(name for name in PRESETS if name != "V3")
NAMED = ("P0", "P1", "P2", "P3", "X1", "X2", "V2", "V4", "V6")
_CONTRASTED = ("V4", "V5", "V6")
C1_STRONG = (("P2", "P0"),)
C1_WEAK = (("P3", "P1"), ("P3", "X1"), ("P3", "X2"))
C2 = (("V4", "V2"), ("V4", "P3"), ("V4", "V6"))


def arms(base: dict[str, Any], data: Prepared, width: int) -> list[Arm]:
    """All arms over a config of `news/perconet`.

    width: of the frozen text vectors. The latent arm and those with one view have fewer weights
    than P3; their query is widened until they have as many (`matched_query`).
    """
    model = base.get("model", {})
    plain = tuple({"train.lr": rate} for rate in ALL_RATES)
    with_weight = tuple(
        {"train.lr": rate, "model.contrast.weight": weight} for rate in RATES for weight in WEIGHTS
    )
    reference = weights_of(merge(model, PRESETS["P3"]), data, width)
    found = []
    for name in PERCONET:
        options = merge(model, PRESETS[name])
        query = matched_query(options, data, width, reference)
        placebo = name in PLACEBOS
        tries = with_weight if name in _CONTRASTED else plain
        found.append(
            Arm(
                name=name,
                recipe="news/perconet",
                options={**_flat(PRESETS[name]), "model.query": query},
                tries=() if placebo else tries,
                tuned_as="P3" if placebo else None,
                named=name in NAMED,
            )
        )
    both = {"features.vectors": ["title", "abstract"]}
    if not _has(data, "abstract"):
        both = {"features.vectors": ["title"]}
    fields: Point = {"features.items": [
        {"source": f"category:{level}", "encoding": "vocabulary"} for level in _levels(data)
    ]}  # fmt: skip
    rivals: dict[str, tuple[str, Point]] = {
        "nrms-title": ("news/nrms", {"features.vectors": ["title"]}),
        "nrms": ("news/nrms", both),
        "naml": ("news/naml", {**both, **fields}),
        "naml-no-category": ("news/naml", both),
        "lstur": ("news/lstur", {**both, **fields}),
        "kred": ("news/kred", both),
    }
    if not _levels(data):
        del rivals["naml"]
    return found + [
        Arm(name=name, recipe=recipe, options=options, tries=plain)
        for name, (recipe, options) in rivals.items()
    ]


def usable(data: Prepared) -> list[str]:
    """Arms of PerCoNet that the data allow: without abstracts there is no claim 2."""
    without = () if _has(data, "abstract") else ("V1", "V2", *_CONTRASTED)
    return [name for name in PERCONET if name not in without]


def claims(metrics: tuple[str, ...], cross: bool) -> list[Claim]:
    """What is asked of the intervals, a family for each claim of the paper; cross: there are two
    views. V6 not worse than V4: then the second view is not shown to matter."""
    asked = {"C1-strong": C1_STRONG, "C1-weak": C1_WEAK, **({"C2": C2} if cross else {})}
    found = [
        Claim(a=a, b=b, metric=metric, family=family)
        for family, pairs in asked.items()
        for a, b in pairs
        for metric in metrics
    ]
    same = [("X1", "P3"), *([("V6", "V4")] if cross else [])]
    return found + [
        Claim(a=a, b=b, metric=metric, kind="not worse") for a, b in same for metric in metrics
    ]


def weights_of(options: dict[str, Any], data: Prepared, width: int) -> int:
    """Trainable numbers of a model that act when it scores: those of the contrast do not."""
    return _count(_built(options, data, width))


def matched_query(options: dict[str, Any], data: Prepared, width: int, wanted: int) -> int:
    """The width of the additive attentions with which a model has `wanted` weights, or nearly."""
    query = int(options.get("query", PerconetOptions().query))
    have = weights_of(options, data, width)
    step = weights_of(merge(options, {"query": query + 1}), data, width) - have
    return max(1, query + round((wanted - have) / step)) if step else query


_FITTED: dict[str, EntityFit] = {}


def _built(options: dict[str, Any], data: Prepared, width: int) -> Perconet:
    chosen = PerconetOptions.model_validate(options)
    fitted = None
    if chosen.user != "latent":
        key = f"{data.dataset.manifest.hash} {chosen.persona.model_dump_json()}"
        if key not in _FITTED:
            _FITTED[key] = EntityFit.of(fit_entities(data, chosen.persona), chosen.persona, 1)
        fitted = _FITTED[key]
    features = FeatureSpace(
        items=(),
        contexts=ContextCodec(features=()),
        vectors=dict.fromkeys(("title", "abstract", "title_abstract"), width),
    )
    return Perconet.from_config(PerconetConfig(**dict(chosen), fitted=fitted), features)


def _count(model: Perconet) -> int:
    contrast = set() if model.heads is None else {id(p) for p in model.heads.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in contrast)


def _flat(options: dict[str, Any], prefix: str = "model") -> Point:
    out: Point = {}
    for key, value in options.items():
        name = f"{prefix}.{key}"
        out |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return out


def _has(data: Prepared, field: str) -> bool:
    column = data.dataset.table("items", [field])[field]
    return column.null_count < len(column)


def _levels(data: Prepared) -> list[int]:
    """Levels of the category path with more than one value."""
    paths = data.dataset.table("items", ["category"])["category"].to_pylist()
    depth = max((len(path or ()) for path in paths), default=0)
    return [
        level
        for level in range(depth)
        if len({path[level] for path in paths if path and len(path) > level}) > 1
    ]
