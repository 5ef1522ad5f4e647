"""Language models over many rows: `embed` and `generate`, each by vLLM on Ray or transformers.

Whatever the engine, one row in gives exactly one row out, in order: an answer, or the words why
there is none. One bad row never ends a job.
"""

from raysys.llm.engine.choice import Engine, Resources, choose
from raysys.llm.engine.embed import Vectors, embed
from raysys.llm.engine.generate import Answers, GenerateSpec, generate

__all__ = [
    "Answers",
    "Engine",
    "GenerateSpec",
    "Resources",
    "Vectors",
    "choose",
    "embed",
    "generate",
]
