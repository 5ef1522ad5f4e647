"""The engines' contract, on the transformers engine: one row in, one answer or error row out."""

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import llm_toys
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from raysys.cli.main import make_app
from raysys.errors import ArtifactError, ConfigError, DataError, RaysysError, ResumeError
from raysys.llm import answers as answers_module
from raysys.llm.adapters import merged_backbone
from raysys.llm.answers import answers, generate_rows
from raysys.llm.backbones import open_backbone
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.engine import GenerateSpec, choose, embed, generate
from raysys.llm.engine import local as local_engine
from raysys.llm.engine.generate import Answer
from raysys.llm.heads import Head
from raysys.llm.rows import PromptRows, read_prompts
from raysys.llm.texts import Unreadable, fault_of, printable

SCHEMA = {
    "type": "object",
    "properties": {"hot": {"type": "boolean"}, "kind": {"enum": ["soup", "bread"]}},
    "required": ["hot", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"dir:{llm_toys.causal(tmp_path_factory.mktemp('causal'))}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"dir:{llm_toys.encoder(tmp_path_factory.mktemp('encoder'))}"


def spec_of(causal: str, **more: object) -> GenerateSpec:
    return GenerateSpec(backbone=causal, max_prompt_tokens=24, max_new_tokens=12, **more)


def ask(spec: GenerateSpec, prompts: list, first_row: int = 0) -> list[Answer]:
    chunks = generate(spec, prompts, first_row=first_row, engine="transformers")
    return [answer for chunk in chunks for answer in chunk]


BAD = {
    "": "empty text",
    " \n": "empty text",
    "\x00\x07": "nothing but control characters",
    b"\xff": "not UTF-8",
    "\ud800": "not valid Unicode",
    None: "no text",
    7: "not a text but int",
    Unreadable("not JSON"): "not JSON",
}


@pytest.mark.parametrize("text", BAD)
def test_faults_in_words(text: object) -> None:
    assert BAD[text] in (fault_of(text) or "")


@given(st.text())
def test_printable_texts_are_in_nfc_and_lose_only_controls(text: str) -> None:
    clean = printable(text)
    composed = unicodedata.normalize("NFC", text)
    changed = [a for a, b in zip(composed, clean, strict=True) if a != b]
    assert all(ord(a) < 32 or 127 <= ord(a) < 160 for a in changed)
    assert printable(clean) == clean


def test_embed_gives_each_text_its_row_and_bad_ones_a_reason(encoder: str) -> None:
    spec = EncoderSpec(backbone=encoder, max_tokens=8)
    texts = ["red cat", "", "\x01", "the dog " * 20, "red\x00cat"]
    chunks = list(embed(spec, pa.array(texts), engine="transformers"))
    values = np.concatenate([chunk.values for chunk in chunks])
    assert [chunk.truncated for chunk in chunks] == [1]
    assert set(chunks[0].faults) == {1, 2}
    expected = TextEncoder(spec)(["red cat", "the dog " * 20])
    assert np.allclose(values[[0, 3]], expected, atol=1e-6)
    assert np.allclose(values[4], values[0], atol=1e-6)
    assert not values[[1, 2]].any()


def test_a_text_that_breaks_the_model_is_contained(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TextEncoder._forward

    def fragile(self: TextEncoder, ids: list[list[int]]) -> np.ndarray:
        if any(len(row) > 6 for row in ids):
            raise RuntimeError("no memory")
        return forward(self, ids)

    monkeypatch.setattr(TextEncoder, "_forward", fragile)
    spec = EncoderSpec(backbone=encoder, max_tokens=32)
    (chunk,) = embed(spec, pa.array(["red cat", "the " * 9, "dog"]), engine="transformers")
    assert chunk.faults == {1: "RuntimeError: no memory"}
    assert np.abs(chunk.values[[0, 2]]).max(1).min() > 0


def test_generate_one_answer_a_row_whatever_the_batch(causal: str) -> None:
    spec = spec_of(causal)
    prompts: list = ["the red cat", None, "a dog runs to the sea", b"the red cat", "", "x"]
    got = ask(spec, prompts)
    alone = [ask(spec, [prompt])[0] for prompt in prompts]
    assert got == alone
    assert [answer.error is None for answer in got] == [True, False, True, True, False, True]
    assert got[0] == got[3]
    for answer in got:
        assert (answer.text is None) != (answer.error is None)
        assert answer.new_tokens <= 12


def test_greedy_answer_is_the_models_own_best_token(causal: str) -> None:
    backbone = open_backbone(causal)
    tokenizer, model = backbone.tokenizer(), AutoModelForCausalLM.from_pretrained(backbone.path)
    ids = tokenizer("the red cat", return_tensors="pt")["input_ids"]
    begin = ids.shape[1]
    for _ in range(12):
        best = model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, best.view(1, 1)], 1)
        if int(best) == 0:
            break
    new = [token for token in ids[0, begin:].tolist() if token]
    assert ask(spec_of(causal), ["the red cat"])[0].text == tokenizer.decode(new)


def test_long_prompts_are_cut_and_counted(causal: str) -> None:
    got = ask(spec_of(causal), ["the " * 100, "the red cat"])
    assert [answer.truncated for answer in got] == [True, False]
    assert got[0].prompt_tokens == 24


def test_draws_depend_on_seed_and_row_only(causal: str) -> None:
    spec = spec_of(causal, temperature=1.0)
    prompts = ["the red cat"] * 4
    got = ask(spec, prompts)
    assert got == ask(spec, prompts)
    assert len({answer.text for answer in got}) > 1
    assert ask(spec, prompts[2:], first_row=2) == got[2:]
    assert ask(spec.model_copy(update={"seed": 1}), prompts) != got


@pytest.mark.slow
@settings(max_examples=5)
@given(st.integers(0, 100))
def test_answers_with_a_schema_parse_and_fit(causal: str, seed: int) -> None:
    spec = GenerateSpec(
        backbone=causal, max_prompt_tokens=24, max_new_tokens=60, temperature=2.0, seed=seed,
        json_schema=SCHEMA,
    )  # fmt: skip
    for answer in ask(spec, ["a", "the red cat"]):
        value = json.loads(answer.text or "")
        assert answer.finished
        assert value["hot"] in (True, False) and value["kind"] in ("soup", "bread")
        assert set(value) == {"hot", "kind"}


def test_json_that_was_cut_is_an_error_row(causal: str) -> None:
    spec = GenerateSpec(backbone=causal, max_prompt_tokens=24, max_new_tokens=3, json_schema=SCHEMA)
    (answer,) = ask(spec, ["the red cat"])
    assert answer.text is None and "cut at max_new_tokens" in (answer.error or "")


@pytest.mark.parametrize(
    ("schema", "message"),
    [({"type": "objct"}, "not a JSON schema"), ({"type": "string", "format": "x-y"}, "generated")],
)
def test_impossible_schemas_are_refused_before_the_job(schema: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateSpec(json_schema=schema)


def test_a_prompt_that_breaks_the_model_is_contained(
    causal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_all = local_engine.Writer._answers

    def fragile(self: object, prompts: list, numbers: list[int]) -> list[Answer]:
        if 1 in numbers:
            raise RuntimeError("no memory")
        return answer_all(self, prompts, numbers)

    monkeypatch.setattr(local_engine.Writer, "_answers", fragile)
    got = ask(spec_of(causal), ["a", "b", "c"])
    assert [answer.error for answer in got] == [None, "RuntimeError: no memory", None]


def test_impossible_jobs_are_refused(causal: str, encoder: str) -> None:
    for spec, message in (
        (GenerateSpec(backbone=encoder), "is an encoder"),
        (GenerateSpec(backbone=causal, max_prompt_tokens=250), "256 positions"),
    ):
        with pytest.raises(ConfigError, match=message):
            ask(spec, ["a"])


def test_engine_that_is_not_installed(causal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    backbone = open_backbone(causal)
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        choose("vllm", backbone, "embed", 10)
    assert choose("auto", backbone, "generate", 10**6) == "transformers"


# The job: parts, resume, other jobs, damage.


def job(causal: str, out: Path, prompts: list, **more: object) -> object:
    return generate_rows(
        PromptRows(prompts, [str(i) for i in range(len(prompts))]),
        out,
        spec_of(causal, temperature=1.0),
        engine="transformers",
        **more,
    )


def test_engine_that_dies_leaves_what_it_answered(
    causal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"the cat {i}" for i in range(10)]
    whole = job(causal, tmp_path / "whole", prompts)
    assert (whole.rows, whole.resumed, whole.llm_calls, whole.failed) == (10, 0, 10, 0)

    def dying(spec: GenerateSpec, given: list, **more: object):
        for chunk in generate(spec, given, **more):
            yield chunk[:4]
            raise RaysysError("engine vllm failed: it died")

    with monkeypatch.context() as patch:
        patch.setattr(answers_module, "generate", dying)
        with pytest.raises(RaysysError, match="it died"):
            job(causal, tmp_path / "killed", prompts)
    assert len(answers(tmp_path / "killed")) == 4
    resumed = job(causal, tmp_path / "killed", prompts)
    assert (resumed.resumed, resumed.llm_calls) == (4, 6)
    assert answers(tmp_path / "killed").equals(answers(tmp_path / "whole"))
    assert pq.read_table(tmp_path / "killed")["row"].to_pylist() == list(range(10))
    assert job(causal, tmp_path / "killed", prompts).llm_calls == 0


def test_another_job_in_the_same_folder_is_refused(causal: str, tmp_path: Path) -> None:
    job(causal, tmp_path / "out", ["a cat"])
    with pytest.raises(ResumeError, match="other rows, prompts"):
        job(causal, tmp_path / "out", ["a cat", "a dog"])


def test_a_missing_part_is_named(causal: str, tmp_path: Path) -> None:
    job(causal, tmp_path / "out", [f"cat {i}" for i in range(70)], seconds_per_part=0)
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert len(parts) == 2  # one of each chunk of 64 rows
    parts[0].unlink()
    with pytest.raises(DataError, match="rows 0 to 64 are missing"):
        answers(tmp_path / "out")


@pytest.mark.chaos
def test_killed_job_resumes_without_duplicate_or_gap(causal: str, tmp_path: Path) -> None:
    prompts = [{"prompt": f"the cat {i} runs"} for i in range(256)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, prompts)))
    code = (
        "import sys; from pathlib import Path; from raysys.llm.answers import generate_rows;"
        "from raysys.llm.engine import GenerateSpec; from raysys.llm.rows import read_prompts;"
        "spec = GenerateSpec(backbone=sys.argv[1], max_prompt_tokens=24, max_new_tokens=12);"
        "generate_rows(read_prompts(Path(sys.argv[2])), sys.argv[3], spec,"
        " engine='transformers', seconds_per_part=0)"
    )
    command = [sys.executable, "-c", code, causal, str(rows), str(tmp_path / "out")]
    process = subprocess.Popen(command)
    while process.poll() is None and not list((tmp_path / "out").glob("part-*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    committed = len(answers(tmp_path / "out"))
    assert 0 < committed < 256
    assert subprocess.run(command, check=False).returncode == 0
    assert answers(tmp_path / "out")["row"].to_pylist() == list(range(256))


# Rows from files.


def test_rows_of_json_lines_and_parquet(tmp_path: Path) -> None:
    lines = [b'{"name": "Tea", "n": 2}', b"\xff\xfe", b"nonsense", b'{"n": 3}', b"[1]"]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    rows = read_prompts(tmp_path / "rows.jsonl", template="{n} cups of {name}", id_column="n")
    assert rows.prompts[0] == "2 cups of Tea"
    assert [fault_of(prompt) for prompt in rows.prompts[1:]] == [
        "not UTF-8: invalid start byte at byte 0",
        "not JSON: Expecting value at character 0",
        "column name: no text",
        "no JSON object",
    ]
    assert rows.ids == ["2", None, None, "3", None]

    bad = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(np.array([0, 3, 5], "<i4")), pa.py_buffer(b"tea\xff\xfe")],
    )
    pq.write_table(pa.table({"prompt": bad}), tmp_path / "rows.parquet")
    prompts = read_prompts(tmp_path / "rows.parquet").prompts
    assert [fault_of(prompt) is None for prompt in prompts] == [True, False]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none.jsonl", {}, "no such file"),
        ("rows.csv", {}, ".parquet or .jsonl"),
        ("rows.jsonl", {"column": "text"}, "no column 'text'; there are n, prompt"),
        ("rows.jsonl", {"template": "no braces"}, "columns it words"),
        ("rows.jsonl", {"template": "{prompt!r}"}, "columns it words"),
        ("rows.jsonl", {"template": "{"}, "template"),
        ("bad.parquet", {}, "no Parquet file"),
    ],
)
def test_bad_files_and_templates(tmp_path: Path, name: str, options: dict, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "n": 1}')
    (tmp_path / "rows.csv").write_text("a")
    (tmp_path / "bad.parquet").write_text("a")
    with pytest.raises(RaysysError, match=message):
        read_prompts(tmp_path / name, **options)


def test_command(causal: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": ""}')
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    command = ["generate", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    command += ["--backbone", causal, "--schema", str(tmp_path / "schema.json"), "--json"]
    command += ["--max-prompt-tokens", "24", "--max-new-tokens", "60", "--temperature", "1"]
    result = CliRunner().invoke(make_app("generate"), command, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert (report["rows"], report["failed"], report["llm_calls"]) == (2, 1, 1)
    text = answers(tmp_path / "out")["text"].to_pylist()[0]
    assert set(json.loads(text)) == {"hot", "kind"}


# Adapters.


def adapter(base: str, out: Path, rank: int = 2) -> Path:
    model = AutoModelForCausalLM.from_pretrained(open_backbone(base).path)
    torch.manual_seed(rank)
    tuned = get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    tuned.save_pretrained(out)
    return out


def test_adapter_changes_vectors_as_peft_does(causal: str, tmp_path: Path) -> None:
    path = adapter(causal, tmp_path / "lora")
    plain = EncoderSpec(backbone=causal, pooling="last", max_tokens=16)
    tuned = plain.model_copy(update={"adapter": str(path)})
    assert plain.identity().adapter is None
    assert tuned.identity().adapter != plain.identity().adapter
    assert tuned.identity().weights == plain.identity().weights

    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(open_backbone(causal).path)
    model = PeftModel.from_pretrained(base, str(path))
    ids = open_backbone(causal).tokenizer()("the red cat", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        last = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    expected = (last / last.norm()).numpy()
    assert np.abs(TextEncoder(tuned)(["the red cat"])[0] - expected).max() < 1e-5
    assert np.abs(TextEncoder(plain)(["the red cat"])[0] - expected).max() > 1e-3


# Heads: the dense layers of a sentence-transformers folder.


def with_head(folder: Path, width: int = 32, out: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Adds one tanh layer to a model folder; its weight and bias."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(out, width)), rng.normal(size=out)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    steps = [
        dict(idx=i, name=str(i), path=path, type=f"sentence_transformers.models.{kind}")
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "2_Dense").mkdir()
    config = dict(in_features=width, out_features=out, activation_function="torch.nn.Tanh")
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    state = {"linear.weight": torch.tensor(weight), "linear.bias": torch.tensor(bias)}
    save_file(state, folder / "2_Dense" / "model.safetensors")
    return weight, bias


def test_head_is_applied_and_part_of_the_key(tmp_path: Path) -> None:
    folder = llm_toys.encoder(tmp_path / "model")
    plain = EncoderSpec(backbone=f"dir:{folder}", max_tokens=16, normalise=False)
    before, pooled = plain.identity(), TextEncoder(plain)(["red cat", "dog"])
    weight, bias = with_head(folder)
    assert plain.identity().head != before.head
    without = plain.model_copy(update={"head": False})
    assert without.identity() == before
    assert np.allclose(TextEncoder(without)(["red cat", "dog"]), pooled, atol=1e-6)

    encoder = TextEncoder(plain)
    assert encoder.width == 5
    expected = np.tanh(pooled @ weight.T + bias)
    assert np.abs(encoder(["red cat", "dog"]) - expected).max() < 1e-5
    unit = TextEncoder(plain.model_copy(update={"normalise": True}))(["dog"])
    assert np.allclose(unit[0], expected[1] / np.linalg.norm(expected[1]), atol=1e-5)

    head = Head.of(folder)
    assert head is not None
    names = {file.name for file in head.without().iterdir()}
    assert "model.safetensors" in names and "modules.json" not in names
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        plain.identity()


def test_adapter_for_another_base_is_refused(causal: str, encoder: str, tmp_path: Path) -> None:
    path = adapter(causal, tmp_path / "lora")
    for other in (f"dir:{llm_toys.causal(tmp_path / 'other', seed=1)}", encoder):
        with pytest.raises(ConfigError, match="was made for"):
            merged_backbone(open_backbone(other), path)
    config = path / "adapter_config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({**stated, "base_model_name_or_path": "elsewhere"}))
    with pytest.raises(ConfigError, match="does not fit"):
        merged_backbone(open_backbone(encoder), path)
    with pytest.raises(ConfigError, match="no such folder"):
        EncoderSpec(backbone=causal, adapter=str(tmp_path / "none")).identity()
