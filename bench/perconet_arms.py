"""The arms of PerCoNet's fair test (perconet.md §5) and what is asked of them."""

from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.fair.arms import Arm, Point
from bench.fair.judge import Claim
from bench.fair.slices import driven_by
from raysys.artifacts.ranker import Ranker
from raysys.data.contexts import ContextCodec
from raysys.data.features import FeatureSpace
from raysys.data.prepared import Prepared
from raysys.data.sampling import ImpressionLoader
from raysys.news.entities import EntityFit, EntityOptions, fit_entities
from raysys.options import flat, merge
from raysys.perconet.config import PerconetConfig, PerconetOptions
from raysys.perconet.presets import PRESETS
from raysys.perconet.ranker import Perconet
from raysys.perconet.views import text_groups

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)  # what every arm is tried with
PLACEBOS = ("X1", "X2")
# P3 and V3 are one model; it runs once.
PERCONET = tuple(name for name in PRESETS if name != "V3")
NAMED = ("P0", "P1", "P2", "P3", "X1", "X2", "V2", "V4", "V6")
_TWO_VIEWS = ("V1", "V2", "V4", "V5", "V6")  # what news without abstracts cannot be
C1_STRONG = (("P2", "P0"),)
C1_WEAK = (("P3", "P1"), ("P3", "X1"), ("P3", "X2"))
C2 = (("V4", "V2"), ("V4", "P3"), ("V4", "V6"))


def arms(base: dict[str, Any], data: Prepared, width: int) -> list[Arm]:
    """All arms over a config of `news/perconet` that the data allow; without abstracts all read
    titles alone, and there is no claim 2.

    width: of the frozen text vectors. Arms that lack a part of P3 have fewer weights; their query
    is widened until they have as many (`matched_query`).
    """
    cross = has_abstracts(data)
    model = base.get("model", {})
    alone = {} if cross else {"fusion": "title"}
    tries = tuple({"train.lr": rate} for rate in RATES)

    def options_of(name: str) -> dict[str, Any]:
        return merge(PRESETS[name], {} if name[0] == "V" else alone)

    reference = weights_of(merge(model, options_of("P3")), data, width)
    # Without abstracts V0 is P3.
    names = [n for n in PERCONET if cross or n not in (*_TWO_VIEWS, "V0")]
    found = []
    for name in names:
        options = options_of(name)
        query = matched_query(merge(model, options), data, width, reference)
        found.append(
            Arm(
                name=name,
                recipe="news/perconet",
                options={**flat(options, "model."), "model.query": query},
                tries=tries,
                named=name in NAMED,
            )
        )
    title: Point = {"features.vectors": ["title"], "features.items": [], "features.contexts": []}
    texts = {**title, "features.vectors": ["title", "abstract"] if cross else ["title"]}
    levels = _levels(data)
    fields = [{"source": f"category:{n}", "encoding": "vocabulary"} for n in levels]
    # What is known of entities is known to all alike.
    shared = {k: v for k, v in model.get("persona", {}).items() if k in EntityOptions.model_fields}
    entities = flat({"entity": shared}, "model.") if shared else {}
    rivals: dict[str, tuple[str, Point]] = {
        "nrms-title": ("news/nrms", title),
        "nrms": ("news/nrms", texts),
        "naml": ("news/naml", {**texts, "features.items": fields}),
        "naml-no-category": ("news/naml", texts),
        "lstur": ("news/lstur", {**texts, "features.items": fields}),
        "kred": ("news/kred", {**texts, **entities}),
    }
    if not cross:
        del rivals["nrms-title"]
    if not levels:
        del rivals["naml"]
    return found + [
        Arm(name=name, recipe=recipe, options=options, tries=tries)
        for name, (recipe, options) in rivals.items()
    ]


def claims(metrics: tuple[str, ...], cross: bool, planted: bool = False) -> list[Claim]:
    """What is asked of the intervals, a family for each claim of the paper; cross: there are two
    views; planted: what drives a reader is known. V6 not worse than V4: then the second view is
    not shown to matter."""
    asked = {"C1-strong": C1_STRONG, "C1-weak": C1_WEAK, **({"C2": C2} if cross else {})}
    found = [
        Claim(a=a, b=b, metric=metric, family=family)
        for family, pairs in asked.items()
        for a, b in pairs
        for metric in metrics
    ]
    if planted:
        found += [
            Claim(a=a, b="P0", metric=metric, slice=driven_by(kind), family="planted")
            for a in ("P3", "X1")
            for kind in ("entity", "mixed", "topic")
            for metric in metrics
        ]
    same = [("X1", "P3"), *([("V6", "V4")] if cross else [])]
    return found + [
        Claim(a=a, b=b, metric=metric, kind="not worse") for a, b in same for metric in metrics
    ]


def weights_of(options: dict[str, Any], data: Prepared, width: int) -> int:
    """Trainable numbers of a model that act when it scores: those of the contrast do not."""
    return acting(_built(options, data, width))


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


def acting(model: Ranker) -> int:
    """Numbers of a model that learn and act when it scores."""
    left: set[int] = set()
    if isinstance(model, Perconet):
        only_contrast = [n for n in model.items.fields if n not in model.items.fused]
        unused = [model.heads] if model.heads is not None else []
        for name in only_contrast:
            unused += [model.items.projections[name], model.items.norms[name]]
        left = {id(p) for module in unused for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in left)


def flops(model: Ranker, data: Prepared) -> float:
    """Of a training step, forward and backward, by click: counted on one batch of 64 clicks with
    four negatives."""
    model.requires_grad_(True).train()
    if isinstance(model, Perconet) and model.heads is not None:
        model.bind_texts(text_groups(data.dataset.table("items", ["title", "abstract"])))
    collate = model.collator(data.histories, data.codec)
    loader = ImpressionLoader(data, collate, batch_size=64, seed=0, candidates="sampled")
    batch = loader.batch(0, 0)
    assert batch is not None
    # Only attention that is written out is counted, not a fused kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        total, weight = model.loss(batch)
        (total / weight).backward()
    return counted.get_total_flops() / len(batch)


def has_abstracts(data: Prepared) -> bool:
    """Whether any news has one."""
    column = data.dataset.table("items", ["abstract"])["abstract"]
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
