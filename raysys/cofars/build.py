"""The selector that a config describes, over fitted contexts, attributes and features."""

from collections.abc import Sequence

from raysys.cofars.config import CofarsConfig
from raysys.cofars.encoder import ContextEncoder
from raysys.cofars.selector import CofarsSelector
from raysys.data.attributes import Attributes
from raysys.data.context_keys import ContextTable


def build_selector(
    config: CofarsConfig,
    table: ContextTable,
    attributes: Attributes,
    *,
    users: int,
    item_cardinalities: Sequence[int],
    vector_widths: dict[str, int] | None = None,
) -> CofarsSelector:
    """A fresh selector; `users` have vectors of their own."""
    options, gates, graph, loss = config.encoder, config.gates, config.graph, config.loss
    encoder = ContextEncoder(
        cardinalities=table.cardinalities,
        contexts=table.size,
        users=users,
        widths=attributes.widths,
        dim=options.dim,
        hidden=options.hidden,
        prototypes=options.prototypes,
        activation=options.activation,
        divergence=options.divergence,
        smoothing=options.smoothing,
        similarity=options.similarity,
        joint_only=options.joint_only,
        joint_dropout=options.joint_dropout,
        mean_user=options.cold_user == "mean",
        user_dropout=options.user_dropout,
        init_std=options.init_std,
    )
    return CofarsSelector(
        encoder,
        item_cardinalities,
        item_dim=config.item_dim,
        vector_widths=vector_widths,
        temperature=gates.temperature,
        calibrated=gates.calibrated,
        soft=gates.soft,
        fallback=gates.fallback,
        layers=graph.layers,
        attention=graph.attention,
        self_loops=graph.self_loops,
        residual=graph.residual,
        mse=loss.mse,
        ind=loss.ind,
        literal=loss.literal,
        raw=loss.raw,
        pairs=config.preferences.pairs,
    )
