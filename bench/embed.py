"""Embedding speed of our engines beside sentence-transformers, and the calls that a table saves.

The same weights, texts, precision and threads; the engines take turns, and medians are compared.
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch

from bench.equal_data import planted_world
from bench.peers.environment import SENTENCE_TRANSFORMERS, peer_python
from raysys.data.dataset import Dataset
from raysys.errors import ConfigError, RaysysError
from raysys.llm.backbones import open_backbone
from raysys.llm.embed import embed_items, item_texts
from raysys.llm.encoder import EncoderSpec, TextEncoder, open_encoder
from raysys.llm.engine import Engine, GenerateSpec, Resources, choose, embed, generate
from raysys.llm.vectors import VectorTable

PEER_SCRIPT = Path(__file__).parent / "peers" / "st_encode.py"
NOTE = (
    "texts_per_s leaves out loading the model; for vLLM that is the time of a whole job less the "
    "time of a job of one text, which is start_seconds. cpu_seconds are of this process, its "
    "children and Ray's, per 1,000 texts: they hold where other work shares the cores."
)
Figures = dict[str, Any]


def run(
    data: str | None = None,
    field: str = "text",
    texts: int = 2000,
    backbone: str = "wheel:minilm",
    prompts: int = 0,
    new_tokens: int = 32,
    rounds: int = 3,
    threads: int = 2,
    max_tokens: int = 256,
    vllm: bool = True,
    requests: int = 1000,
    seed: int = 0,
) -> Figures:
    """Texts per second of a backbone in float32, and encoder calls per 1,000 requests.

    `data` is a data set folder with impressions, by default a planted world; its items' `field`
    gives the texts. `ratio_vs_sentence_transformers` is of the engine that `auto` chooses for
    this job; `vllm=false` leaves vLLM out. A decoder's vectors are those of the last token. With
    `prompts`, the decoder also answers so many of the texts, by each of our engines, with
    `new_tokens` each.

    Raises:
        ConfigError: prompts for a backbone that generates nothing; no impressions.
        RaysysError: an engine or the peer failed.
    """
    dataset = Dataset(data) if data else Dataset(planted_world(2000, 60, seed))
    causal = open_backbone(backbone).causal
    if prompts and not causal:
        raise ConfigError(f"bench embed: prompts={prompts}, but {backbone} generates nothing")
    pooling: Literal["last", "mean"] = "last" if causal else "mean"
    spec = EncoderSpec(backbone=backbone, pooling=pooling, max_tokens=max_tokens, dtype="float32")
    given = _texts(dataset, field, texts, seed)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        speeds = _speeds(spec, given, rounds, threads, vllm, Path(scratch))
        calls = _calls(dataset, field, requests, Path(scratch))
    asked = GenerateSpec(backbone=backbone, max_new_tokens=new_tokens, dtype="float32")
    generated = _generating(asked, given[:prompts], rounds, threads, vllm) if prompts else None
    median = {
        name: statistics.median(one["texts_per_s"] for one in found)
        for name, found in speeds["rounds"].items()
    }
    auto = choose("auto", open_encoder(spec), "embed", len(given))
    auto = auto if auto in median else "transformers"  # vLLM was left out
    peer = median["sentence_transformers"]
    return {
        "bench": "embed",
        "ratio_vs_sentence_transformers": median[auto] / peer,
        "engine": auto,
        "backbone": backbone,
        "ratio_of_each": {name: value / peer for name, value in median.items()},
        "texts_per_s": median,
        "llm_calls_per_1000_requests": calls,
        "smallest_cosine": speeds["smallest_cosine"],
        "start_seconds": speeds["start_seconds"],
        "rounds": speeds["rounds"],
        "generate": generated,
        "data": str(dataset.path.name),
        "texts": len(given),
        "tokens_per_text": speeds["tokens_per_text"],
        "threads": threads,
        "cpus": psutil.cpu_count(),
        "versions": speeds["versions"],
        "note": NOTE,
    }


def _texts(dataset: Dataset, field: str, count: int, seed: int) -> list[str]:
    """`count` distinct texts of the items, in a drawn order."""
    found = pc.unique(item_texts(dataset, field).drop_null()).to_pylist()
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[place] for place in order.tolist()]


def _speeds(
    spec: EncoderSpec, texts: list[str], rounds: int, threads: int, vllm: bool, scratch: Path
) -> Figures:
    """All engines in turns; every round lists what each needed for all texts."""
    encoder = TextEncoder(spec, device="cpu")
    ours = encoder(texts)
    tokens = encoder.tokens / len(texts)
    arrow = pa.array(texts)
    resources = Resources(threads=threads)

    def by_vllm(rows: pa.Array) -> None:
        faults = [chunk.faults for chunk in embed(spec, rows, engine="vllm", resources=resources)]
        if any(faults):
            raise RaysysError(f"bench embed: vLLM gave no vector for a text: {faults}")

    with _peer(spec, texts, threads, scratch) as peer:
        start = None
        if vllm:
            by_vllm(arrow[:1])  # starts Ray itself
            start = _timed(lambda: by_vllm(arrow[:1]))
        found: dict[str, list[Figures]] = {}
        for _ in range(rounds):
            timed = {
                "sentence_transformers": peer(),
                "transformers": _timed(lambda: encoder(texts)),
            }
            if start:
                whole = _timed(lambda: by_vllm(arrow))
                timed["vllm"] = {name: whole[name] - start[name] for name in whole}
            for name, figures in timed.items():
                found.setdefault(name, []).append(_per_text(figures, len(texts)))
    theirs = np.load(scratch / "vectors.npy")
    return {
        "rounds": found,
        "tokens_per_text": tokens,
        "smallest_cosine": float((ours * theirs).sum(1).min()),
        "start_seconds": start["seconds"] if start else None,
        "versions": {"sentence_transformers": peer.version, "torch": torch.__version__},
    }


def _generating(
    spec: GenerateSpec, prompts: list[str], rounds: int, threads: int, vllm: bool
) -> Figures:
    """New tokens per second of our engines in turns: of a whole job less one of one prompt."""
    resources = Resources(threads=threads)
    engines: list[Engine] = ["transformers", "vllm"] if vllm else ["transformers"]

    def job(engine: Engine, given: list[str]) -> tuple[int, float]:
        started = time.perf_counter()
        answers = [a for c in generate(spec, given, engine=engine, resources=resources) for a in c]
        return sum(answer.new_tokens for answer in answers), time.perf_counter() - started

    start = {engine: job(engine, prompts[:1]) for engine in engines}
    found: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            tokens, seconds = job(engine, prompts)
            found[engine].append((tokens - start[engine][0]) / (seconds - start[engine][1]))
    return {
        "tokens_per_s": {name: statistics.median(values) for name, values in found.items()},
        "start_seconds": {engine: seconds for engine, (_, seconds) in start.items()},
        "rounds": found,
        "prompts": len(prompts),
    }


class _Peer:
    """sentence-transformers in its own process, asked for one round at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.version = ""

    def __call__(self) -> Figures:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RaysysError("bench embed: sentence-transformers ended; its lines are above")
        figures = json.loads(line)
        self.version = figures.pop("version")
        return dict(figures)


@contextmanager
def _peer(spec: EncoderSpec, texts: list[str], threads: int, scratch: Path) -> Iterator[_Peer]:
    (scratch / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    folder = str(open_encoder(spec).path)
    given = [folder, str(scratch / "texts.json"), str(threads), str(spec.max_tokens), spec.pooling]
    python = peer_python(*SENTENCE_TRANSFORMERS)
    command = [str(python), str(PEER_SCRIPT), *given, str(scratch / "vectors.npy")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    try:
        yield _Peer(process)
    finally:
        process.kill()
        process.wait()


def _timed(work: Callable[[], object]) -> Figures:
    """Seconds on the clock and of all CPUs, of this process and its children."""
    cpu, started = _cpu_seconds(), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        # What ended children used is added to their parent's when it has waited for them.
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _per_text(figures: Figures, texts: int) -> Figures:
    return {
        "texts_per_s": texts / figures["seconds"],
        "cpu_seconds_per_1000": 1000 * figures["cpu_seconds"] / texts,
    }


def _calls(dataset: Dataset, field: str, requests: int, scratch: Path) -> Figures:
    """Encoder calls per 1,000 requests of the log, each of which ranks its candidates by their
    text: naive encodes them for every request, offline every distinct text once for the whole
    log; online counts the texts that encoders of this process are given while `requests` of them
    are looked up in the table."""
    calls = 0

    def count(texts: list[str]) -> np.ndarray:
        nonlocal calls
        calls += len(texts)
        return np.ones((len(texts), width), np.float32)

    spec = EncoderSpec()
    width = open_encoder(spec).width
    embed_items(dataset, scratch / "table", spec, (field,), encode=count)
    offline = calls
    table = VectorTable(scratch / "table")
    has_text = dict(
        zip(
            dataset.table("items", ["item_id"])["item_id"].to_pylist(),
            item_texts(dataset, field).is_valid().to_pylist(),
            strict=True,
        )
    )
    shown = naive = looked_up = 0
    before = TextEncoder.encoded
    for part in dataset.parts("impressions", ["candidates"]):
        for candidates in part["candidates"].to_pylist():
            shown += 1
            naive += sum(has_text.get(item, False) for item in candidates)
            if looked_up < requests:
                looked_up += 1
                table.bound("item", field, candidates)
    if not shown:
        raise ConfigError(f"{dataset.path}: it has no impressions; give a data set that has")
    return {
        "naive": 1000 * naive / shown,
        "offline": 1000 * offline / shown,
        "online": 1000 * (TextEncoder.encoded - before) / looked_up,
    }
