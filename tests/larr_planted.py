"""A planted rule: what the weather is called decides which cuisine is clicked."""

from functools import cache

import numpy as np
import pyarrow as pa
import torch

from raysys.data.batch import Batch
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import FIRST, ContextCodec, ContextFeature
from raysys.data.features import FeatureSpace, VocabularyField
from raysys.larr.config import LarrConfig
from raysys.larr.ranker import LarrDIN, LarrDINConfig, LarrFit
from raysys.larr.table import SceneTable
from raysys.larr.verbalise import Verbaliser
from raysys.llm.encoder import EncoderSpec, TextEncoder

# The last two are not met in training; each shares its words with one that is.
SEEN = ("heavy rain", "hot sunshine", "snow and ice", "strong wind", "thick fog")
HELD_OUT = {"a heavy rain shower": "heavy rain", "hot days full of sunshine": "hot sunshine"}
VALUES = (*SEEN, *HELD_OUT)
MEALS = ("lunch", "dinner")
CUISINES = tuple(f"cuisine-{n}" for n in range(len(SEEN)))
ITEMS = 40
CODEC = ContextCodec(
    features=(
        ContextFeature(name="weather", kind="categorical", values=VALUES),
        ContextFeature(name="meal", kind="categorical", values=MEALS),
    )
)
TRAINED = ContextCodec(
    features=(
        ContextFeature(name="weather", kind="categorical", values=SEEN),
        ContextFeature(name="meal", kind="categorical", values=MEALS),
    )
)


def options(**over: object) -> LarrConfig:
    return LarrConfig.model_validate(
        {
            "features": [
                {"kind": "context", "name": "weather", "contexts": ["weather"],
                 "template": "The weather: {weather}."},
                {"kind": "context", "name": "meal", "contexts": ["meal"],
                 "template": "It is {meal} time."},
                {"kind": "taste", "name": "taste", "source": "attribute:cuisine",
                 "template": "The user likes {value}."},
                {"kind": "recent", "name": "recent", "field": "name", "events": 3},
            ],
            "encoder": {"width": 16, "heads": 2, "head": 16, "dropout": 0.0},
            **over,
        }
    )  # fmt: skip


def catalogue() -> Catalogue:
    features = feature_space()
    items = pa.table(
        {
            "item_id": [f"i{n}" for n in range(ITEMS)],
            "attributes": pa.array(
                [[("cuisine", CUISINES[n % len(CUISINES)])] for n in range(ITEMS)],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )
    return Catalogue.build(items, features)


def feature_space() -> FeatureSpace:
    return FeatureSpace(
        items=(
            VocabularyField(source="item_id", values=tuple(f"i{n}" for n in range(ITEMS))),
            VocabularyField(source="attribute:cuisine", values=CUISINES),
        ),
        contexts=CODEC,
    )


@cache
def encoder() -> TextEncoder:
    return TextEncoder(EncoderSpec())


def table(config: LarrConfig) -> SceneTable:
    """Real sentence vectors of the planted values."""
    verbaliser = Verbaliser(config, {})
    told: dict[tuple[str, str], None] = {}
    for name, texts in zip(verbaliser.names, verbaliser.combinations(CODEC), strict=True):
        told |= {(name, text): None for text in texts if text is not None}
    tastes = [f"The user likes {cuisine}." for cuisine in CUISINES]
    told |= {("taste", text): None for text in tastes}
    keys = list(told)
    vectors = encoder()([text for _, text in keys])
    place = {key: row for row, key in enumerate(keys)}
    rng = np.random.default_rng(5)
    recent = rng.normal(size=(ITEMS, vectors.shape[1])).astype(np.float32)
    return SceneTable(
        names=[name for name, _ in keys],
        texts=[text for _, text in keys],
        vectors=vectors,
        taste={
            "taste": np.array([place["taste", tastes[n % len(CUISINES)]] for n in range(ITEMS)])
        },
        recent={"recent": recent / np.linalg.norm(recent, axis=1, keepdims=True)},
    )


def model(
    config: LarrConfig | None = None,
    *,
    stop_steps: int = 0,
    seed: int = 0,
    scene: bool = True,
    match: bool = True,
) -> LarrDIN:
    """An untrained ranker with a scene; match: its towers see candidate ∘ m too."""
    config = config or options()
    spec = EncoderSpec()
    fitted = LarrFit(
        options=config,
        trained=TRAINED,
        wordings={},
        encoder=spec,
        identity=spec.identity(),
        width=384,
        stop_steps=stop_steps,
    )
    torch.manual_seed(seed)
    settled = LarrDINConfig(
        larr=fitted,
        embedding_dim=8,
        hidden=(16,),
        attention_hidden=(8,),
        orders=False,
        match=match,
    )
    built = LarrDIN.from_config(settled, feature_space())
    built.bind(catalogue())
    if scene:
        built.scene.bind(table(config))
    return built


def batch(
    size: int, rng: np.random.Generator, weather: np.ndarray | None = None, candidates: int = 5
) -> Batch:
    """Each request clicks the one candidate of its weather's cuisine. The past says nothing."""
    if weather is None:
        weather = rng.integers(0, len(SEEN), size)
    width = len(CUISINES)
    shown = np.stack([rng.permutation(width)[:candidates] for _ in range(size)])
    shown = np.where((shown == weather[:, None]).any(1)[:, None], shown, weather[:, None])
    items = shown + width * rng.integers(0, ITEMS // width, shown.shape)
    past = rng.integers(0, ITEMS, (size, 4))
    context = np.stack([weather, rng.integers(0, len(MEALS), size)], 1) + FIRST
    return Batch(
        context=torch.from_numpy(context),
        history_items=torch.from_numpy(past + FIRST),
        history_mask=torch.ones(size, 4, dtype=torch.bool),
        history_context=torch.from_numpy(np.repeat(context[:, None], 4, 1)),
        history_behaviour=torch.zeros(size, 4, dtype=torch.int64),
        history_age_s=torch.zeros(size, 4),
        history_length=torch.full((size,), 4),
        candidates=torch.from_numpy(items + FIRST),
        candidate_mask=torch.ones(size, items.shape[1], dtype=torch.bool),
        clicks=torch.from_numpy((shown == weather[:, None]).astype(np.float32)),
    )


def train(built: LarrDIN, steps: int = 250, size: int = 64, seed: int = 0) -> LarrDIN:
    """By plain Adam."""
    rng = np.random.default_rng(seed)
    built.train()
    weights = [p for p in built.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=5e-3)
    for _ in range(steps):
        loss, weight = built.loss(batch(size, rng))
        optimiser.zero_grad()
        (loss / weight).backward()
        optimiser.step()
    return built.eval()


def hits(built: LarrDIN, weather: np.ndarray | None = None) -> float:
    """How often the item nearest to m, among all, has the weather's cuisine."""
    rng = np.random.default_rng(99)
    asked = batch(200, rng, weather)
    with torch.no_grad():
        m = torch.nn.functional.normalize(built.scene_vector(asked), dim=-1)
        rows = torch.arange(FIRST, FIRST + ITEMS)
        found = (m @ torch.nn.functional.normalize(built.items(rows), dim=-1).T).argmax(1)
    wanted = asked.context[:, 0] - FIRST
    return float((found % len(CUISINES) == wanted).float().mean())
