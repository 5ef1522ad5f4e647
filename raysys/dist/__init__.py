"""Work on Ray for code that must not know Ray: map over parts, run tasks, connect."""

from raysys.data.mapping import LocalMapper, Mapper
from raysys.dist.cluster import ensure_ray
from raysys.dist.mapper import RayMapper
from raysys.dist.tasks import run_tasks

__all__ = ["LocalMapper", "Mapper", "RayMapper", "ensure_ray", "run_tasks"]
