"""What a recipe hands to the loop: a task (model and loss) and a loader (data by position)."""

from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from raysys.training.world import World

Batch = TypeVar("Batch")
BatchIn = TypeVar("BatchIn", contravariant=True)
BatchOut = TypeVar("BatchOut", covariant=True)


class Task(Protocol[BatchIn]):
    """A model and its loss. May also be a `Validated` task."""

    model: nn.Module

    def loss(self, batch: BatchIn) -> tuple[Tensor, Tensor]:
        """Loss of one micro batch.

        Returns:
            Sum of the losses over the rows (scalar, with gradient) and the number of rows, or
            the sum of their weights (scalar). Sums, not means: the loop adds both over micro
            batches and workers and divides once, so that the gradient of a global batch does
            not depend on how it was cut.
        """
        ...


@runtime_checkable
class Validated(Protocol):
    """A task that can be measured on a time-cut validation part."""

    def validate(self, world: World) -> dict[str, float]:
        """Metrics on the validation part; called at each epoch end in eval mode, no gradients.

        Every worker is called. Score the rows of `world.rows(n)` only and put the parts
        together with `world.gather`, so that workers share the work and the metric is computed
        over all rows. The loop then takes rank 0's answer everywhere: decisions made from it
        (early stopping, best checkpoint) cannot differ between workers.
        """
        ...


@runtime_checkable
class Shrinking(Protocol):
    """A task whose model becomes smaller while it is trained."""

    def observe(self, scale: float) -> None:
        """The gradients of a whole step are in the parameters, summed over all workers; times
        `scale` they are those of the mean loss. They are not clipped yet."""

    def shrink(self, step: int, steps: int) -> Mapping[str, Mapping[int, Tensor]] | None:
        """After `step` of `steps` updates: make the model smaller, or give None.

        Returns, for each parameter of the model that changed, its new rows by dimension: indices
        into the old ones. The loop slices what the optimiser knows of them alike. Must be the same
        on all workers.
        """
        ...

    def reshape(self, stored: Mapping[str, Tensor]) -> None:
        """Bring the model to the shapes of a checkpoint's model state, before it is loaded."""


class Loader(Protocol[BatchOut]):
    """Batches by position, never by iteration: this is what makes resumption exact."""

    steps_per_epoch: int

    def batch(self, epoch: int, step: int, part: int, parts: int) -> BatchOut | None:
        """Part `part` of `parts` of the global batch of (epoch, step), or None if it is empty.

        Must be a pure function of its arguments and of the loader's own seed; it runs in a
        thread and must not draw from the global random generators. The parts of one step are
        disjoint and together are the global batch, whatever `parts` is: workers and gradient
        accumulation are both only a matter of `parts`.
        """
        ...
