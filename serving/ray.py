"""The server as a deployment of Ray Serve: the same application in each replica, behind its proxy.

Needs the extra ``pyattn[ray]``. Batches form within a replica.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ray import serve

from .asgi.app import Application, create_app
from .settings import Settings


def deployment(settings: Settings, **options: Any) -> serve.Application:
    """Return what ``ray.serve.run`` runs.

    Parameters
    ----------
    settings : Settings
        The model must be at this path on each node. `threads` defaults to 1 here, because replicas
        share their node; Ray reserves as many processors.
    **options
        Of ``ray.serve.deployment``, such as ``num_replicas``. ``max_ongoing_requests`` is
        `settings.max_pending` by default: Ray's own 5 would leave no requests to batch.
    """
    settings = dataclasses.replace(settings, threads=settings.threads or 1)

    def build() -> Application:
        return create_app(settings)

    defaults = {
        "name": "pyattn",
        "max_ongoing_requests": settings.max_pending,
        "ray_actor_options": {"num_cpus": settings.threads},
    }
    made = serve.deployment(serve.ingress(build)(), **{**defaults, **options})
    application: serve.Application = made.bind()
    return application
