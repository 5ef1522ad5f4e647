"""What every ranker owes: scores that depend on the request alone, and gradients everywhere."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from raysys.artifacts.ranker import Ranker
from raysys.ctr.dcnv2 import DCNv2, DCNv2Config
from raysys.ctr.din import DIN, DINConfig
from raysys.ctr.finalmlp import BilinearFusion, FinalMLP, FinalMLPConfig
from raysys.ctr.retrievers.config import RetrieverConfig
from raysys.ctr.retrievers.selectors import ByContext, RandomEvents
from raysys.data.batch import Batch
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import ContextCodec, ContextFeature
from raysys.data.features import FeatureSpace, HashField
from raysys.data.histories import Histories
from raysys.data.schema import BEHAVIOURS
from raysys.errors import ConfigError
from raysys.news.entities import EntityFit, EntityTable
from raysys.news.kred import KRED, KREDConfig
from raysys.news.lstur import LSTUR
from raysys.news.naml import NAML
from raysys.news.nrms import NRMS, NRMSConfig
from raysys.news.views import ViewConfig

ITEMS = 12
FEATURES = FeatureSpace(
    items=(HashField(source="item_id", buckets=20), HashField(source="brand", buckets=3)),
    contexts=ContextCodec(
        features=(
            ContextFeature(name="meal", kind="categorical", values=("lunch", "dinner")),
            ContextFeature(name="degrees", kind="numeric", edges=(0.0, 10.0)),
        )
    ),
    vectors={"title": 5, "text": 3},
)
CONTEXT = FEATURES.context_cardinalities
# Every arm that changes the ranker, each with fewer places than the history has events.
RETRIEVERS: dict[str, dict[str, object]] = {
    "sim-hard": dict(k=2, category="brand"),
    "sim-soft": dict(k=2, width=3),
    "eta": dict(k=2, bits=16),
    "sdim": dict(hashes=8, group=1),
    "twin": dict(k=2, width=3),
    "twin-shared": dict(kind="twin", k=2, width=3, stage_two="shared"),
}


def din(**options: object) -> DIN:
    small = dict(
        embedding_dim=4, vector_dim=4, hidden=(8,), attention_hidden=(8,), init_std=0.5, orders=True
    )
    return DIN.from_config(DINConfig.model_validate(small | options), FEATURES)


BUILD: dict[str, Callable[[], Ranker]] = {
    "din": din,
    "din-softmax": lambda: DIN.from_config(
        DINConfig(
            embedding_dim=4, vector_dim=4, hidden=(8,), attention_hidden=(8, 4), init_std=0.5,
            attention_softmax=True, attention_activation="dice", activation="prelu",
            orders=False, behaviours=False,
        ),
        FEATURES,
    ),
    "dcnv2": lambda: DCNv2.from_config(
        DCNv2Config(
            embedding_dim=4, vector_dim=4, hidden=(8,), cross_layers=2, init_std=0.5, orders=True
        ),
        FEATURES,
    ),
    "finalmlp": lambda: FinalMLP.from_config(
        FinalMLPConfig(
            embedding_dim=4, vector_dim=4, hidden=(8,), gate_hidden=(6,), heads=2, init_std=0.5,
            orders=True,
        ),
        FEATURES,
    ),
    "nrms": lambda: NRMS.from_config(NRMSConfig(width=8, heads=2, query=4), FEATURES),
    "naml": lambda: NAML.from_config(ViewConfig(width=8, query=4), FEATURES),
    "lstur": lambda: LSTUR.from_config(ViewConfig(width=8, query=4), FEATURES),
    "kred": lambda: KRED.from_config(
        KREDConfig(
            width=8, attention=4,
            fitted=EntityFit(entities=5, entity_width=3, types=("O",), frozen_steps=0),
        ),
        FEATURES,
    ),
} | {
    f"din-{kind}": lambda kind=kind, more=more: din(retriever={"kind": kind} | more)
    for kind, more in RETRIEVERS.items()
}  # fmt: skip


def entities() -> EntityTable:
    """Every second item names one or two of five entities."""
    rng = np.random.default_rng(0)
    news = rng.integers(1, 6, (2 + ITEMS, 2)) * (np.arange(2 + ITEMS)[:, None] % 2)
    news[:2] = 0
    vectors = rng.normal(size=(6, 3)).astype(np.float32)
    vectors[::2] = 0
    return EntityTable(
        ids=[f"Q{n}" for n in range(5)],
        labels=["x"] * 5,
        types=["O"] * 5,
        idf=np.ones(6, np.float32),
        vectors=vectors,
        news=news,
        confidence=(news > 0).astype(np.float32),
    )


def ranker(name: str, *, frozen: bool = True) -> Ranker:
    torch.manual_seed(0)
    model = BUILD[name]()
    codes = torch.randint(1, 5, (2 + ITEMS, 2))
    codes[0], codes[1] = 0, 1
    vectors = {field: torch.randn(2 + ITEMS, width) for field, width in FEATURES.vectors.items()}
    for values in vectors.values():
        values[:2] = 0
    ids = pa.array([f"i{row}" for row in range(ITEMS)])
    arrays = {field: values.numpy() for field, values in vectors.items()}
    model.bind(Catalogue(ids, codes.numpy().astype(np.int32), arrays))
    if isinstance(model, KRED):
        model.bind_entities(entities())
    if frozen:
        model.freeze()
    return model


def batch(
    seed: int, size: int = 3, length: int = 4, candidates: int = 5, *, empty: bool = True
) -> Batch:
    """Random requests; the history of the first is empty unless told, lists are ragged."""
    rng = np.random.default_rng(seed)
    past = rng.integers(0 if empty else 1, length, size, endpoint=True)
    past[0] = 0 if empty else length
    shown = rng.integers(1, candidates, size, endpoint=True)
    real = np.arange(length) < past[:, None]
    listed = np.arange(candidates) < shown[:, None]
    clicks = listed & (np.arange(candidates) == 0)
    arrays = dict(
        context=rng.integers(0, CONTEXT, (size, 2)),
        history_items=rng.integers(1, ITEMS + 2, (size, length)) * real,
        history_mask=real,
        history_context=rng.integers(0, CONTEXT, (size, length, 2)) * real[..., None],
        history_behaviour=rng.integers(0, len(BEHAVIOURS), (size, length)) * real,
        history_age_s=(rng.random((size, length)) * 1e5 * real).astype(np.float32),
        history_length=past,
        candidates=rng.integers(1, ITEMS + 2, (size, candidates)) * listed,
        candidate_mask=listed,
        clicks=clicks.astype(np.float32),
        orders=(clicks & (rng.random((size, 1)) < 0.5)).astype(np.float32),
    )
    return Batch(**{name: torch.from_numpy(values) for name, values in arrays.items()})


def padded(plain: Batch, history: int, candidates: int) -> Batch:
    wide = {"history_items", "history_mask", "history_behaviour", "history_age_s"}
    listed = {"candidates", "candidate_mask", "clicks", "orders"}
    pad = torch.nn.functional.pad
    changed = {}
    for name, values in vars(plain).items():
        if name in wide:
            values = pad(values, (0, history))
        elif name == "history_context":
            values = pad(values, (0, 0, 0, history))
        elif name in listed:
            values = pad(values, (0, candidates))
        changed[name] = values
    return Batch(**changed)


def same(got: object, expected: object, mask: torch.Tensor) -> None:
    for one, other in zip(got, expected, strict=True):  # type: ignore[call-overload]
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one[mask], other[mask], rtol=1e-5, atol=1e-6)


every = pytest.mark.parametrize("name", list(BUILD))


@every
@given(seed=st.integers(0, 1000), history=st.integers(0, 3), more=st.integers(0, 3))
@settings(max_examples=10)
def test_padding_changes_no_score(name: str, seed: int, history: int, more: int) -> None:
    model, plain = ranker(name), batch(seed)
    wide = padded(plain, history, more)
    got = [None if v is None else v[:, :5] for v in model(wide)]
    same(got, model(plain), plain.candidate_mask)
    weights = model.event_weights(wide)
    torch.testing.assert_close(weights[:, :5, :4], model.event_weights(plain), rtol=1e-5, atol=1e-6)
    assert not weights[:, :, 4:].any()


@every
@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_other_requests_change_no_score(name: str, seed: int) -> None:
    model, plain = ranker(name), batch(seed)
    whole = model(plain)
    for row in range(len(plain)):
        alone = model(plain.slice(row, row + 1))
        part = [None if v is None else v[row : row + 1] for v in whole]
        same(alone, part, plain.candidate_mask[row : row + 1])


@every
@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_candidates_are_scored_in_any_order(name: str, seed: int) -> None:
    model, plain = ranker(name), batch(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(5))
    listed = ("candidates", "candidate_mask", "clicks", "orders")
    changed = {n: getattr(plain, n)[:, order] for n in listed}
    turned = Batch(**(vars(plain) | changed))
    expected = [None if v is None else v[:, order] for v in model(plain)]
    same(model(turned), expected, turned.candidate_mask)


@every
def test_an_empty_history_gives_finite_scores_and_gradients(name: str) -> None:
    model = ranker(name, frozen=False)
    plain = batch(0).slice(0, 1)
    assert not plain.history_mask.any()
    loss, _ = model.loss(plain)
    loss.backward()
    assert torch.isfinite(model(plain).score[plain.candidate_mask]).all()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


@every
def test_the_gradient_reaches_every_weight(name: str) -> None:
    model = ranker(name, frozen=False)
    plain = batch(1, size=16, empty=False)
    loss, weight = model.loss(plain)
    assert weight > 0
    loss.backward()
    learned = {n: p.grad for n, p in model.named_parameters() if p.numel()}
    unreached = [n for n, gradient in learned.items() if gradient is None or not gradient.any()]
    assert unreached == []


@every
def test_the_history_matters(name: str) -> None:
    model, plain = ranker(name), batch(2, empty=False)
    other = Batch(**(vars(plain) | {"history_items": plain.history_items.roll(1, 0)}))
    assert not torch.allclose(model(plain).score, model(other).score)


@every
def test_a_padded_candidate_carries_no_loss(name: str) -> None:
    model, plain = ranker(name, frozen=False).eval(), batch(3)
    loss, weight = model.loss(plain)
    more, same_weight = model.loss(padded(plain, 2, 2))
    torch.testing.assert_close(more, loss, rtol=1e-5, atol=1e-5)
    assert weight == same_weight


@pytest.mark.parametrize("name", ["din", "din-eta", "dcnv2", "finalmlp"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_an_order_is_never_likelier_than_its_click(name: str, seed: int) -> None:
    _, click, order = ranker(name)(batch(seed))
    assert click is not None
    assert order is not None
    assert (order <= click).all()


def test_order_heads_are_there_only_where_orders_are_learned() -> None:
    assert ranker("din-softmax")(batch(0)).p_order is None
    assert ranker("nrms")(batch(0)).p_click is None


@pytest.mark.parametrize("name", ["nrms", "naml", "kred"])
def test_event_weights_of_news_rankers_add_up_to_the_score(name: str) -> None:
    model, plain = ranker(name), batch(4)
    torch.testing.assert_close(
        model.event_weights(plain).sum(-1), model(plain).score, rtol=1e-5, atol=1e-5
    )


def test_din_tells_situations_apart() -> None:
    """The same candidate and events in another context, or as other behaviours, score otherwise."""
    model, plain = ranker("din"), batch(5, empty=False)
    asked = Batch(**(vars(plain) | {"context": (plain.context + 1) % 4}))
    lived = Batch(**(vars(plain) | {"history_context": (plain.history_context + 1) % 4}))
    done = Batch(**(vars(plain) | {"history_behaviour": (plain.history_behaviour + 1) % 15}))
    scores = [model(b).score for b in (plain, asked, lived, done)]
    assert all(not torch.allclose(scores[0], other) for other in scores[1:])


def test_nrms_needs_vectors() -> None:
    bare = FEATURES.model_copy(update={"vectors": {}})
    with pytest.raises(ConfigError, match="needs text vectors"):
        NRMS.from_config(NRMSConfig(), bare)


def test_arms_differ_in_nothing_but_the_retriever() -> None:
    """All other weights begin alike, and recent and full are plain DIN with other lengths."""
    plain = ranker("din", frozen=False).state_dict()
    for kind in RETRIEVERS:
        arm = ranker(f"din-{kind}", frozen=False).state_dict()
        own = {name for name in arm if name.startswith(("retriever.", "first_stage."))}
        gone = {name for name in plain if name.startswith("attention.")}
        gone = gone if kind in ("sdim", "twin") else set()
        assert set(arm) - own == set(plain) - gone
        assert all(arm[name].equal(plain[name]) for name in set(arm) - own)
    for retriever, length in (({"kind": "recent", "k": 7}, 7), ({"kind": "full", "window": 9}, 9)):
        arm = din(retriever=retriever)
        assert arm.history_length == length
        assert arm.retriever is arm.first_stage is None
        collator = arm.collator(Histories.empty(FEATURES.contexts), FEATURES.contexts)
        assert (collator.length, collator.selector) == (length, None)


@pytest.mark.parametrize(
    ("retriever", "kind"),
    [
        (dict(kind="random", seed=3), RandomEvents),
        (dict(kind="exact", contexts=["degrees"], least=2), ByContext),
        (dict(kind="permuted", seed=4), ByContext),
    ],
)
def test_selectors_come_with_the_collator_one_for_each_place(
    retriever: dict[str, object], kind: type
) -> None:
    model = din(retriever=retriever | {"k": 11})
    past = Histories.empty(FEATURES.contexts)
    one, other = (model.collator(past, FEATURES.contexts).selector for _ in range(2))
    assert type(one) is type(other) is kind
    assert one is not other
    assert one.count == 11
    expected = {
        "random": {"seed": 3},
        "permuted": {"shuffle": 4, "least": None},
        "exact": {"least": 2, "strict": False},
    }
    assert expected[str(retriever["kind"])].items() <= vars(one).items()
    if retriever["kind"] == "exact":
        assert one.table.codec.names == one.table.drop == ("degrees",)


def test_the_search_is_learned_from_a_loss_of_its_own() -> None:
    """With the towers cut off, clicks still teach the projections of the first stage."""
    for kind in ("sim-soft", "twin-shared"):
        model, plain = ranker(f"din-{kind}", frozen=False), batch(1, size=16, empty=False)
        whole = model.loss(plain)[0]
        towers = model.cost(*model.logits(plain), plain)[0]
        searched = [p for n, p in model.named_parameters() if n.startswith("retriever.")]
        gradients = torch.autograd.grad(whole - towers, searched)
        assert all(g.any() for g in gradients)
        assert whole > towers
        assert all(g is None for g in torch.autograd.grad(towers, searched, allow_unused=True))


def test_twins_search_is_learned_from_the_loss_of_the_ranker() -> None:
    model, plain = ranker("din-twin", frozen=False), batch(1, size=16, empty=False)
    assert model.attention is model.first_stage is None
    towers = model.cost(*model.logits(plain), plain)[0]
    assert model.loss(plain)[0].equal(towers)
    searched = [p for n, p in model.named_parameters() if n.startswith("retriever.")]
    assert len(searched) == 5
    assert all(g.any() for g in torch.autograd.grad(towers, searched))


def test_retrievers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="no item field category:0; it has item_id, brand"):
        din(retriever={"kind": "sim-hard"})
    with pytest.raises(ConfigError, match="unknown context features weather; known: meal, degrees"):
        din(retriever={"kind": "exact", "contexts": ["weather"]})
    with pytest.raises(ConfigError, match="back-off drops meal, which the contexts do not hold"):
        din(retriever={"kind": "exact", "contexts": ["degrees"], "drop": ["meal"]})
    counted = {"kind": "counted-js", "attributes": {"fields": [{"source": "brand"}]}}
    with pytest.raises(ConfigError, match="counted-js is fitted on training events first"):
        din(retriever=counted)
    check: TypeAdapter[object] = TypeAdapter(RetrieverConfig)
    wrong = (
        dict(kind="eta", window=10_001), dict(kind="sdim", hashes=7), dict(kind="sdim", k=3),
        dict(kind="exact", strict=True, least=2), dict(kind="counted-js"),
    )  # fmt: skip
    for options in wrong:
        with pytest.raises(ValidationError):
            check.validate_python(options)
    with pytest.raises(ValidationError, match="multiple of heads=4"):
        FinalMLPConfig(hidden=(8, 6))


def test_finalmlp_by_hand() -> None:
    """Two gated streams and their bilinear fusion, one candidate at a time."""
    model, plain = ranker("finalmlp"), batch(6)
    assert isinstance(model, FinalMLP)
    click = model.logits(plain)[0]
    for b, c in np.ndindex(3, 5):
        row = plain.slice(b, b + 1)
        candidate = model.candidate_vectors(row)[0, c]
        past = model.event_vectors(row)[0][row.history_mask[0]]
        pooled = past.mean(0) if len(past) else torch.zeros(model.event_width)
        user = torch.cat([pooled, model.request_vectors(row)[0]])
        e = torch.cat([candidate, user])
        one = model.streams[0](2 * torch.sigmoid(model.gates[0](user)) * e)
        other = model.streams[1](2 * torch.sigmoid(model.gates[1](candidate)) * e)
        fusion = model.fusions[0]
        assert isinstance(fusion, BilinearFusion)
        weight, bias = fusion.linear.weight[0], fusion.linear.bias[0]
        expected = bias + weight[:8] @ one + weight[8:] @ other
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            expected = expected + one[part] @ fusion.bilinear[head] @ other[part]
        torch.testing.assert_close(click[b, c], expected, rtol=1e-4, atol=1e-5)
