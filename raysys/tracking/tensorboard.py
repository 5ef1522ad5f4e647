"""A mirror of metrics.jsonl for TensorBoard."""

import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from raysys.errors import ArtifactError
from raysys.tracking.metrics_log import METRICS_LOG, curves, read_records


def mirror(run: Path) -> Path:
    """Write RUN/tensorboard/ anew from RUN/metrics.jsonl; returns the folder.

    Raises:
        ArtifactError: the run has no training log, or a damaged one.
    """
    log = run / METRICS_LOG
    if not log.is_file():
        raise ArtifactError(f"{log}: missing: no training was logged here")
    found = curves(read_records(log))
    folder = run / "tensorboard"
    # A mirror of a resumed run must not keep the points that the log no longer has.
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for name, curve in found.items():
            for step, value in zip(curve.step, curve.value, strict=True):
                writer.add_scalar(name, value, step)
    return folder
