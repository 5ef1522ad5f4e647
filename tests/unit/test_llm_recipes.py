"""The recipes llm/pretrain and llm/contrast end to end on a small city and a small model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from larr_city import City, open_city
from training_toy import toy_ray

from raysys.artifacts.run import load_run, verify_run
from raysys.errors import ArtifactError, ConfigError, DataError
from raysys.larr.embedding import EmbeddingModel
from raysys.larr.texts import SPECIAL_TOKENS
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.engine import Resources, embed
from raysys.llm.heads import Head
from raysys.llm.packing import Packed
from raysys.llm.special_tokens import special_token_ids
from raysys.options import resolve
from raysys.recipes.registry import recipe_of, run
from raysys.training import InProcessReporter, InterruptedRunError

SIZES = [
    "backbone={layers: 2, width: 32, heads: 1, vocab: 400}", "max_tokens=96", "row_tokens=96",
    "holdout=0.2",
]  # fmt: skip
STAGE_1 = [*SIZES, "batch_rows=6", "train.lr=0.02", "train.epochs=4", "train.warmup_steps=2"]
STAGE_2 = [
    *SIZES, "batch_size=12", "width=16", "chunk_tokens=384", "train.lr=0.01", "train.epochs=1",
    "train.max_steps=12", "cutoffs=[1, 5]", "questions=60",
]  # fmt: skip


class Stopper(InProcessReporter):
    """Asks to stop after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__(show=False)
        self.left = after

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def train(recipe: str, data: Path, out: Path, *options: str, **how: Any) -> dict[str, Any]:
    config = resolve(recipe_of(recipe), None, options, {"data": str(data)})
    return run(config, out, show_progress=False, **how).result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run of either stage, the second on the first."""
    folder = tmp_path_factory.mktemp("llm")
    City().write(folder / "data")
    train("llm/pretrain", folder / "data", folder / "one", *STAGE_1)
    spec = f"backbone=dir:{folder / 'one' / 'hf'}"
    train("llm/contrast", folder / "data", folder / "two", *STAGE_2, spec)
    return folder


def figures(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "metrics.json").read_text())


@pytest.mark.slow
def test_pretraining_tells_menus_of_unseen_places_better(made: Path) -> None:
    found = figures(made / "one")
    assert found["after"]["menu_perplexity"] < 0.5 * found["before"]["menu_perplexity"]
    assert found["held_out_places"] >= 2 and found["validation"]["menu_perplexity"] > 1
    assert found["after"] != found["validation"] and found["texts_cut"] == 0
    verify_run(made / "one")


def test_the_hf_folder_of_stage_1_is_plain(made: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "one" / "hf")
    model = AutoModelForCausalLM.from_pretrained(made / "one" / "hf")
    assert len(set(special_token_ids(tokenizer, list(SPECIAL_TOKENS)))) == len(SPECIAL_TOKENS)
    assert len(model.get_input_embeddings().weight) == len(tokenizer)


def test_contrastive_tuning_finds_more_than_the_model_before_it(made: Path) -> None:
    found = figures(made / "two")
    assert {"untuned-mean", "untuned-last"} == set(found["before"])
    # 20 to 45 questions each: few neighbours are left to be found among the five nearest.
    for name in ("uu/recall@5", "pp/recall@1", "up/recall@5"):
        assert found["after"][name] > found["before"]["untuned-last"][name]
    assert found["after"]["effective_rank"] > 2


def test_the_encoder_of_the_house_reads_run_hf_as_it_was_trained(made: Path) -> None:
    """End token, last-token pooling, head and length one, from the folder alone."""
    log = open_city(made / "data")
    texts = [log.places.text(row) for row in range(2, 8)] + ["<user><visits> x</user>" * 40]
    spec = EncoderSpec(backbone=f"dir:{made / 'two' / 'hf'}", pooling="last", max_tokens=96)
    encoder = TextEncoder(spec, device="cpu")
    vectors = encoder(texts)
    assert vectors.shape == (7, 16)
    ids, cut = encoder.tokens_of(texts)
    assert all(row[-1] == encoder.tokens_of.tokenizer.eos_token_id for row in ids)
    assert cut.tolist() == [False] * 6 + [True]
    head = Head.of(made / "two" / "hf")
    assert head is not None
    model = EmbeddingModel(encoder.model, head.load())  # type: ignore[arg-type]
    with torch.no_grad():
        again = torch.cat([model(Packed.of([row], [[0]], 0)) for row in ids]).numpy()
    np.testing.assert_allclose(again, vectors, atol=1e-5)


def test_sentence_transformers_reads_run_hf_alike(made: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["<poi><name> Red thai house 0</poi>", "<user><visits> x</user>" * 40]
    spec = EncoderSpec(backbone=f"dir:{made / 'two' / 'hf'}", pooling="last", max_tokens=96)
    theirs = sentence_transformers.SentenceTransformer(str(made / "two" / "hf"), device="cpu")
    ours = TextEncoder(spec, device="cpu")(texts)
    np.testing.assert_allclose(theirs.encode(texts), ours, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["llm/pretrain", "llm/contrast"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_stopped_and_resumed_is_bitwise_undisturbed(
    made: Path, tmp_path: Path, recipe: str, method: str
) -> None:
    options = [
        *(STAGE_1 if recipe == "llm/pretrain" else STAGE_2), "train.max_steps=4",
        f"tuning.method={method}", "tuning.lora={rank: 4, dropout: 0.1}", "chunk_tokens=192",
        "questions=10", "pool=10", "baselines=[]",
    ]  # fmt: skip
    if recipe == "llm/pretrain":
        options = options[:-4]
    whole = train(recipe, made / "data", tmp_path / "whole", *options)
    broken = tmp_path / "broken"
    for after in (1, 1):
        with pytest.raises(InterruptedRunError):
            train(recipe, made / "data", broken, *options, reporter=Stopper(after))
    resumed = train(recipe, made / "data", broken, *options)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["model_id"] == whole["model_id"]
    newest = max((broken / "checkpoints").glob("step-*")) / "model.safetensors"
    full = (broken / "hf" / "model.safetensors").stat().st_size
    assert (newest.stat().st_size < full) == (method == "lora")
    again = run(
        resolve(recipe_of(recipe), None, options, {"data": str(made / "data")}),
        broken,
        show_progress=False,
    )
    assert not again.ran and again.result == resumed


@pytest.mark.slow
def test_an_adapter_kept_apart_gives_the_vectors_of_the_merged_model(
    made: Path, tmp_path: Path
) -> None:
    options = [
        *STAGE_2, "train.max_steps=2", "tuning.method=lora", "tuning.lora.rank=4", "baselines=[]",
        "questions=10", f"backbone=dir:{made / 'one' / 'hf'}",
    ]  # fmt: skip
    vectors = []
    for save in ("merged", "adapter"):
        out = tmp_path / save
        train("llm/contrast", made / "data", out, *options, f"tuning.save={save}")
        adapter = str(out / "adapter") if save == "adapter" else None
        spec = EncoderSpec(
            backbone=f"dir:{out / 'hf'}", adapter=adapter, pooling="last", max_tokens=96
        )
        vectors.append(TextEncoder(spec, device="cpu")(["<poi><name> Red thai house</poi>"]))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "option", "words"),
    [
        ("llm/contrast", "train.accumulation=2", "chunk_tokens bounds memory"),
        ("llm/contrast", "weights={uu: 0, pp: 0, up: 0}", "nothing to learn"),
        ("llm/contrast", "baselines=[wheel:minlm]", "wheel:minilm"),
        ("llm/pretrain", "backbone=dir:/nowhere", "no such folder"),
        ("llm/pretrain", "max_tokens=1000", "beyond row_tokens"),
        ("llm/pretrain", "text.given=[menu]", "both in given and in told"),
        ("llm/pretrain", "backbone={width: 33}", "even multiple"),
        ("llm/pretrain", "cpt_los=full", "did you mean cpt_loss"),
    ],
)
def test_impossible_options_name_themselves_and_leave_nothing(
    made: Path, tmp_path: Path, recipe: str, option: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(recipe, made / "data", tmp_path / "run", option)
    assert not (tmp_path / "run").exists()


def test_positions_and_ranks_beyond_the_model_are_refused(made: Path, tmp_path: Path) -> None:
    small = ["backbone={layers: 1, width: 16, heads: 2, vocab: 300, positions: 64}"]
    with pytest.raises(ConfigError, match="max_tokens=128, but the backbone has 64 positions"):
        train("llm/pretrain", made / "data", tmp_path / "a", *small)
    lora = ["tuning.method=lora", "tuning.lora.rank=40"]
    with pytest.raises(ConfigError, match=r"rank=40 is beyond the model's width 32"):
        train("llm/pretrain", made / "data", tmp_path / "b", *STAGE_1, *lora)
    assert not list(tmp_path.iterdir())


def test_a_log_without_texts_or_pairs_says_so(tmp_path: Path) -> None:
    city = City()
    for item in city.items:
        for name in ("name", "text", "category", "brand", "price", "location"):
            item[name] = None
    city.write(tmp_path / "d")
    with pytest.raises(DataError, match="no item has a text"):
        train("llm/pretrain", tmp_path / "d", tmp_path / "r", *STAGE_1)
    silent = City()
    silent.events = []
    silent.impressions = silent.impressions[:1]
    silent.write(tmp_path / "e")
    with pytest.raises(DataError, match=r"0 training pairs of kind uu .*weights\.uu=0"):
        train("llm/contrast", tmp_path / "e", tmp_path / "r", *STAGE_2)
    assert not (tmp_path / "r").exists()


def test_a_language_model_is_no_ranker_and_damage_is_found(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds a language model.*dir:"):
        load_run(made / "one")
    copy = tmp_path / "copy"
    shutil.copytree(made / "two", copy)
    weights = copy / "hf" / "2_Dense" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"2_Dense/model\.safetensors: damaged"):
        verify_run(copy)


@pytest.mark.slow
def test_two_ray_workers_learn_what_one_process_learns(made: Path, tmp_path: Path) -> None:
    spec = f"backbone=dir:{made / 'one' / 'hf'}"
    options = [*STAGE_2, spec, "train.max_steps=3", "train.optimizer=sgd", "questions=20"]
    one = train("llm/contrast", made / "data", tmp_path / "here", *options, "baselines=[]")
    with toy_ray():
        for parallel in ("replicate", "fsdp"):
            two = train(
                "llm/contrast", made / "data", tmp_path / parallel, *options, "baselines=[]",
                "train.workers=2", f"train.parallel={parallel}",
            )  # fmt: skip
            assert two["step"] == 3
            assert two["validation"] == pytest.approx(one["validation"], abs=0.06)
            verify_run(tmp_path / parallel)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_reads_run_hf_with_its_head(made: Path) -> None:
    texts = ["<poi><name> Red thai house 0</poi>", "<user><visits> salmon nigiri</user>"]
    spec = EncoderSpec(backbone=f"dir:{made / 'two' / 'hf'}", pooling="last", max_tokens=96)
    ours = TextEncoder(spec, device="cpu")(texts)
    one = Resources(threads=1, kv_cache_gib=1)
    chunks = list(embed(spec, pa.array(texts), engine="vllm", resources=one))
    theirs = np.concatenate([chunk.values for chunk in chunks])
    assert ((theirs * ours).sum(1) > 0.9999).all()
