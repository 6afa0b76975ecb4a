"""Several servers behind one address, on a Ray cluster.

    pip install 'pixellm[serve]' 'ray[serve]'
    serve run --app-dir examples ray_serve:app

starts two replicas of nano on this machine, at http://127.0.0.1:8000, with the routes and the page
of `pixellm serve`. Each replica has an engine of its own with a running batch, and Ray sends a
request to the one that has fewer. Where there are GPUs each replica takes its own:

    serve run --app-dir examples ray_serve:app model=DIR replicas=4 gpus=1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve


def app(options: Mapping[str, str]) -> serve.Application:
    """The deployment; ``options`` are the words NAME=VALUE behind it on the command line."""
    model = options.get("model", "nano")
    replicas, gpus = int(options.get("replicas", 2)), float(options.get("gpus", 0))

    def build_server() -> Any:
        """Load the model, where the replica runs."""
        import pixellm
        from pixellm.serving.app import create_app

        return create_app(pixellm.load(model), model)

    # The server itself says 429 where its queue is full; Ray must let it.
    deployment = serve.deployment(
        name="pixellm",
        num_replicas=replicas,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
    )
    return deployment(serve.ingress(build_server)()).bind()
