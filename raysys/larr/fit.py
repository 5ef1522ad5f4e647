"""What is known before any weight is learned: which texts there are, and their frozen vectors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raysys.data.contexts import ContextCodec
from raysys.data.features import text_column
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.larr.config import LarrConfig, RecentItems, TasteSentence
from raysys.larr.ranker import SCENES, LarrDIN, LarrFit
from raysys.larr.table import Ints, SceneTable, random_units
from raysys.larr.unfrozen import LearnedSentences
from raysys.larr.verbalise import Verbaliser, Wordings, declared_wordings, joint_codes
from raysys.llm.embed import embed_items, encoder_card, fill, item_texts, keys_of_texts
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.keys import Keys, VectorIdentity
from raysys.llm.parts import HEADER, TableHeader
from raysys.llm.vectors import VectorTable
from raysys.llm.writer import TableWriter

_DRAWN = 4096  # requests whose scenes the placebo deals out
_SEED = {"random_vectors": 1, "permuted_texts": 2, "shuffled_requests": 3}


def wide_codec(data: Prepared, trained: ContextCodec) -> ContextCodec:
    """The features of `trained` with all values of the data set: those that are declared, or
    occur anywhere in the logs, as a nightly job would find them. Which values have IDs, training
    days alone decide."""
    place = {feature.name: feature for feature in data.codec.features}
    return ContextCodec(features=tuple(place[name] for name in trained.names))


def sentences(
    data: Prepared, config: LarrConfig, codec: ContextCodec, wordings: Wordings
) -> tuple[list[str], list[str], list[str]]:
    """Distinct (feature, template id, text) to be looked up: every value of a context feature
    that has a sentence of its own, combinations that occur, values of items.

    Raises:
        ConfigError: a context feature or item field that the data do not have.
    """
    verbaliser = Verbaliser(config, wordings)
    told: dict[tuple[str, str], str] = {}
    combined = verbaliser.combinations(codec)
    occurring = codec.translator(data.codec)(data.impressions.context)
    columns = verbaliser.columns(codec)
    for name, template, texts, places in zip(
        verbaliser.names, verbaliser.template_ids, combined, columns, strict=True
    ):
        sizes = [codec.features[column].cardinality for column in places]
        rows = np.unique(joint_codes(occurring, places, sizes))
        if len(places) == 1:
            rows = np.arange(sizes[0])
        for row in rows.tolist():
            if texts[row] is not None:
                told[name, str(texts[row])] = template
    items = data.dataset.table("items")
    for taste in (f for f in config.features if isinstance(f, TasteSentence)):
        for text in _item_sentences(items, taste).drop_null().unique().to_pylist():
            told[taste.name, text] = taste.template_id
    return [n for n, _ in told], list(told.values()), [t for _, t in told]


def scene_keys(identity: VectorIdentity, templates: list[str], texts: list[str]) -> Keys:
    """Keys [N, 2] of sentences: the same text by another template, version or model has another."""
    out = np.zeros((len(texts), 2), np.uint64)
    for template in dict.fromkeys(templates):
        mine = np.flatnonzero([t == template for t in templates])
        of = _told_by(identity, template)
        out[mine] = keys_of_texts(of, pa.array([texts[i] for i in mine], pa.string()))
    return out


def _told_by(identity: VectorIdentity, template: str) -> VectorIdentity:
    """That of a feature's sentences, which the encoder's own wording is put around."""
    return identity.model_copy(update={"template": f"{identity.template}+{template}"})


def encode_scene(
    data: Prepared,
    config: LarrConfig,
    spec: EncoderSpec,
    codec: ContextCodec,
    table: Path,
    encode: Callable[[list[str]], npt.NDArray[np.float32]] | None = None,
) -> int:
    """Fill the vector table with what it lacks of the scene, and bind values to it; returns how
    many texts were encoded.

    Raises:
        ConfigError: see `sentences`; an impossible encoder.
        DataError: another writer at work, or a table of another width.
    """
    recent = tuple(dict.fromkeys(f.field for f in config.features if isinstance(f, RecentItems)))
    told = declared_wordings(data.dataset.table("contexts"), config.wordings)
    names, templates, texts = sentences(data, config, codec, told)
    identity = spec.identity()
    keys = scene_keys(identity, templates, texts)
    card = encoder_card(spec, identity)
    # Trainings side by side may read one table, but only one process may write it.
    if _filled(data, table, keys, recent, card):
        return 0
    encoded = 0
    if recent:
        encoded = embed_items(data.dataset, table, spec, recent, encode=encode).llm_calls
    engine = encode or TextEncoder(spec)
    owners = pa.array(texts, pa.string())
    with TableWriter(table, TableHeader(width=card["width"])) as writer:
        encoded += fill(writer, keys, owners, engine, label="scene")
        for name in dict.fromkeys(names):
            mine = np.flatnonzero([n == name for n in names])
            present = np.ones(len(mine), bool)
            of = _told_by(identity, templates[mine[0]])
            bound = owners.take(pa.array(mine))
            writer.bind("context", name, bound, keys[mine], present, card, of)
    return encoded


def _filled(
    data: Prepared, path: Path, keys: Keys, recent: tuple[str, ...], card: dict[str, Any]
) -> bool:
    """Whether the table has all keys, and all items are bound to vectors of this encoder."""
    if not (path / HEADER).is_file():
        return False
    table = VectorTable(path)
    if table.width != card["width"] or (table.rows(keys) < 0).any():
        return False
    encoders = table.encoders()
    for field in recent:
        if encoders.get(("item", field)) != card:
            return False
        told = item_texts(data.dataset, field).is_valid().to_numpy(zero_copy_only=False)
        if not (table.bound("item", field, data.item_ids) != 0).any(1)[told].all():
            return False
    return True


def read_scene(
    data: Prepared, config: LarrConfig, spec: EncoderSpec, codec: ContextCodec, table: Path
) -> tuple[SceneTable, Wordings]:
    """The scene's vectors out of the vector table, as the run keeps them; placebos are dealt here.

    Raises:
        ConfigError: see `sentences`; a text that the table lacks.
    """
    told = declared_wordings(data.dataset.table("contexts"), config.wordings)
    names, templates, texts = sentences(data, config, codec, told)
    vectors = VectorTable(table)
    keys = scene_keys(spec.identity(), templates, texts)
    lost = np.flatnonzero(vectors.rows(keys) < 0)
    if len(lost):
        raise ConfigError(f"{table}: no vector for the scene text {texts[lost[0]]!r}; train again")
    items = data.dataset.table("items")
    place = {key: row for row, key in enumerate(zip(names, texts, strict=True))}
    taste = {
        f.name: np.array(
            [place.get((f.name, t), -1) for t in _item_sentences(items, f).to_pylist()], np.int64
        )
        for f in config.features
        if isinstance(f, TasteSentence)
    }
    made_by = spec.identity()
    recent = {
        f.name: vectors.bound("item", f.field, data.item_ids, made_by)
        for f in config.features
        if isinstance(f, RecentItems)
    }
    found = SceneTable(names, texts, vectors.get(keys), taste, recent)
    return _placebo(found, config, data, codec), told


def _item_sentences(items: pa.Table, taste: TasteSentence) -> pa.Array:
    """The sentence [N] of each item's value; null where it has none."""
    values = text_column(items, taste.source).to_pylist()
    told = [None if value is None else taste.template.format(value=value) for value in values]
    return pa.array(told, pa.string())


def _placebo(
    table: SceneTable, config: LarrConfig, data: Prepared, codec: ContextCodec
) -> SceneTable:
    """What the fair test puts in the place of the vectors; the table itself without a placebo."""
    if config.placebo is None:
        return table
    seed = config.placebo_seed * len(_SEED) + _SEED[config.placebo]
    if config.placebo == "shuffled_requests":
        context, items = _drawn(data, config, codec, np.random.default_rng(seed))
        return replace(table, drawn_context=context, drawn_items=items)
    width = table.vectors.shape[1]
    if config.placebo == "random_vectors":
        # Items without a text keep none.
        recent = {
            name: random_units(len(v), width, seed + 100 + n) * (v != 0).any(1, keepdims=True)
            for n, (name, v) in enumerate(table.recent.items())
        }
        return replace(table, vectors=random_units(len(table.vectors), width, seed), recent=recent)
    rng = np.random.default_rng(seed)
    vectors, names = table.vectors.copy(), np.array(table.names)
    for name in np.unique(names):
        mine = np.flatnonzero(names == name)
        vectors[mine] = table.vectors[_moved(rng, mine)]
    recent = {name: v[_moved(rng, np.arange(len(v)))] for name, v in table.recent.items()}
    return replace(table, vectors=vectors, recent=recent)


def _moved(rng: np.random.Generator, rows: Ints) -> Ints:
    """The rows in an order in which, of two or more, none is where it was."""
    # Along one random cycle.
    order = rng.permutation(len(rows))
    out = np.empty_like(rows)
    out[order] = rows[np.roll(order, 1)]
    return out


def _drawn(
    data: Prepared, config: LarrConfig, codec: ContextCodec, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Contexts [S, F] and newest items [S, L] of requests drawn from training."""
    log = data.impressions
    train = log.of("train")
    chosen = np.sort(rng.permutation(train)[:_DRAWN])
    context = codec.translator(data.codec)(log.context[chosen])
    length = max(
        (f.events for f in config.features if isinstance(f, TasteSentence | RecentItems)), default=1
    )
    return context, data.histories.window(log.start[chosen], log.end[chosen], length).items


def scene_items(data: Prepared, codec: ContextCodec, count: int, seed: int) -> Ints:
    """Up to `count` items clicked in each scene of the training days [SCENES, count], 0 behind
    the last, drawn where there are more. Rows are those of `LarrDIN`."""
    log = data.impressions
    train = log.of("train")
    flat = log.rows(train)
    owner = np.repeat(train, log.offsets[train + 1] - log.offsets[train])
    clicked = log.click[flat] > 0
    context = codec.translator(data.codec)(log.context[owner[clicked]])
    sizes = [feature.cardinality for feature in codec.features]
    scene = joint_codes(context, range(len(sizes)), sizes) % SCENES
    order = np.random.default_rng(seed).permutation(len(scene))
    order = order[np.argsort(scene[order], kind="stable")]
    scene, items = scene[order], log.item[flat[clicked]][order]
    start = np.searchsorted(scene, scene, side="left")
    place = np.arange(len(scene)) - start
    out = np.zeros((SCENES, count), np.int64)
    kept = place < count
    out[scene[kept], place[kept]] = items[kept]
    return out


def bind_scene(
    model: LarrDIN, table: SceneTable, data: Prepared, fitted: LarrFit, codec: ContextCodec
) -> None:
    """Give a fresh model its vectors, or what learns them, and what its alignment compares with."""
    config = fitted.options
    model.scene.bind(table)
    if not config.frozen:
        model.scene.learn(LearnedSentences(fitted.encoder, table.texts))
    alignment = config.alignment
    if alignment.target == "scene_mean" and alignment.weight:
        rows = scene_items(data, codec, alignment.scene_items, seed=0)
        model.scene_items = torch.from_numpy(rows)
