"""The graph: `serve_apps.app:build` is what Serve is told to import."""

# Serve reads the annotation of `build` to validate its argument; it would be a string, and no
# validation would happen, under `from __future__ import annotations`.

from typing import Any

import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_apps.config import APP, ServeConfig, most_values
from serve_apps.ctr import ctr
from serve_apps.edge import CONTROLLER
from serve_apps.gateway import gateway
from serve_apps.llm import llm
from serve_apps.news import news
from serve_apps.personas import personas
from serve_apps.scene import scene

# Beyond the gateway's own deadline; only a gateway that hangs meets it.
PROXY_GRACE_S = 2.0


def build(args: ServeConfig) -> serve.Application:
    """Bind gateway, rankers and what is beside them as configured."""
    encoder = _encoder(args)
    beside: dict[str, Any] = {}
    if args.fused and encoder is not None:
        beside["scene"] = encoder
    wishes = args.models.personas
    if wishes is not None:
        beside["personas"] = personas.options(
            ray_actor_options=dict(num_cpus=wishes.num_cpus), **_HEALTH
        ).bind(wishes.store)
    told = args.models.llm
    if told is not None:
        beside["llm"] = llm.options(
            num_replicas=told.replicas,
            ray_actor_options=dict(num_cpus=told.num_cpus),
            # One is answered, the others wait; a refusal comes from the gateway.
            max_ongoing_requests=told.in_flight * args.gateway.replicas,
            **_HEALTH,
        ).bind(told)
    if not args.fused:
        for family, model in args.models.served():
            deployment = {"ctr": ctr, "news": news}[family].options(
                num_replicas=model.replicas,
                ray_actor_options=dict(num_cpus=model.num_cpus),
                max_ongoing_requests=model.max_ongoing,
                **_HEALTH,
            )
            if family == "ctr":
                beside[family] = deployment.bind(model, encoder, most_values(args))
            else:
                beside[family] = deployment.bind(model, wishes)
    in_flight = args.limits.in_flight
    return gateway.options(
        num_replicas=args.gateway.replicas,
        ray_actor_options=dict(num_cpus=args.gateway_cpus),
        # Twice what it admits, so that a refusal comes from the gateway, at once and in JSON.
        max_ongoing_requests=2 * in_flight,
        max_queued_requests=in_flight,
        backpressure_config=dict(status_code=503, retry_after_s=1),
        **_HEALTH,
    ).bind(args, **beside)


def _encoder(args: ServeConfig) -> serve.Application | None:
    chosen, model = args.models.scene, args.models.ctr
    if chosen is None or model is None:
        return None
    return scene.options(
        num_replicas=chosen.replicas,
        ray_actor_options=dict(num_cpus=chosen.num_cpus),
        **_HEALTH,
    ).bind(chosen, model.run)


_HEALTH: dict[str, Any] = dict(health_check_period_s=5, graceful_shutdown_timeout_s=20)


def render(config: ServeConfig) -> str:
    """The YAML that `serve deploy` takes, for a cluster that runs already.

    Raises:
        pydantic.ValidationError: Serve's own schema refuses it.
    """
    document = dict(
        proxy_location="EveryNode",
        http_options=http_options(config),
        controller_options=CONTROLLER,
        logging_config=LOGGING,
        applications=[
            dict(
                name=APP,
                route_prefix="/",
                import_path="serve_apps.app:build",
                args=config.model_dump(mode="json"),
            )
        ],
    )
    ServeDeploySchema.model_validate(document)
    return yaml.safe_dump(document, sort_keys=False)


def http_options(config: ServeConfig) -> dict[str, Any]:
    """Options of Serve's HTTP proxy."""
    return dict(
        host=config.http.host,
        port=config.http.port,
        request_timeout_s=config.longest_s + PROXY_GRACE_S,
    )


LOGGING: dict[str, Any] = dict(log_level="WARNING", enable_access_log=False)
