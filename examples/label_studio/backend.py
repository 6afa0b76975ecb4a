"""A machine-learning backend for Label Studio: pre-annotations by pixellm, as brush or polygons.

    pip install 'pixellm[serve]'
    LABEL_STUDIO_URL=http://127.0.0.1:8080 LABEL_STUDIO_API_KEY=... python backend.py --port 9090

Then add http://127.0.0.1:9090 under Settings, Model of a project. The labels of its configuration
are asked for one by one, "Segment every cup."; what an annotator types into a text area of the
configuration is asked instead, and a mask goes to the label that its phrase ends with, else to the
first. BrushLabels get run lengths, PolygonLabels a polygon for each part. Images are fetched from
Label Studio alone.

Formats: Label Studio's predictions, and the routes that its ML backends answer (health, setup,
predict, webhook).
"""

from __future__ import annotations

import argparse
import os
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pixellm.data.questions import plain_instances_question
from pixellm.export import Categories, LabelledObject, brush_rle
from pixellm.image_files import load_embedded
from pixellm.masks import encode_mask
from pixellm.polygons import border_polygons
from pixellm.types import Request, Segment

MOST_BYTES = 64 << 20
"""Of an image."""

OpenImage = Callable[[str], Image.Image]


@dataclass(frozen=True)
class Controls:
    """What a labelling configuration asks for.

    Attributes:
        kind: "brushlabels" or "polygonlabels".
        name: of the labels' tag.
        image: name of the image's tag.
        field: of a task's data that holds the image.
        labels: in order.
        prompts: names of text areas that an annotator may type a question into.
    """

    kind: str
    name: str
    image: str
    field: str
    labels: tuple[str, ...]
    prompts: tuple[str, ...]


def read_controls(config: str) -> Controls:
    """The labels and the image of a configuration.

    Raises:
        ValueError: no labels for a brush or polygons, or no image for them.
    """
    root = ElementTree.fromstring(config)
    images = {one.get("name"): one.get("value", "") for one in root.iter("Image")}
    for kind in ("BrushLabels", "PolygonLabels"):
        for tag in root.iter(kind):
            target = tag.get("toName", "")
            if target in images:
                return Controls(
                    kind.lower(),
                    tag.get("name", ""),
                    target,
                    images[target].lstrip("$"),
                    tuple(one.get("value", "") for one in tag.iter("Label")),
                    tuple(one.get("name", "") for one in root.iter("TextArea")),
                )
    raise ValueError("The labelling configuration has no BrushLabels or PolygonLabels of an Image.")


def predict_tasks(
    engine: Any,
    tasks: Sequence[Mapping[str, Any]],
    config: str,
    context: Mapping[str, Any] | None,
    open_image: OpenImage,
    version: str,
) -> list[dict[str, Any]]:
    """A prediction of Label Studio for each task.

    Args:
        engine: answers batches of requests.
        tasks: as Label Studio sends them.
        config: the labelling configuration.
        context: what an annotator has just drawn or typed; None where nobody has.
        open_image: the image of an address in a task's data.
        version: of the model, as the predictions tell it.

    Raises:
        ValueError: the configuration has nothing that can be drawn.
    """
    controls = read_controls(config)
    prompt = _typed(controls, context)
    asked = {plain_instances_question(label): label for label in controls.labels}
    categories = Categories(list(controls.labels), True, {} if prompt else asked)
    predictions = []
    for task in tasks:
        image = np.asarray(open_image(str(task["data"][controls.field])))
        questions = [prompt] if prompt else list(asked)
        answers = engine.predict_batch([Request(image, question) for question in questions])
        results, scores = [], []
        for answer in answers:
            for segment in answer.segments:
                found = categories.find(answer.question, segment.label)
                if segment.mask.any() and (found is not None or prompt):
                    results += _results(segment, controls, found or 0)
                    scores.append(segment.score)
        score = float(np.mean(scores)) if scores else 0.0
        predictions.append({"result": results, "score": score, "model_version": version})
    return predictions


def _typed(controls: Controls, context: Mapping[str, Any] | None) -> str:
    """What an annotator typed into a text area; "" where nobody did."""
    for result in (context or {}).get("result", ()):
        if result.get("from_name") in controls.prompts:
            text = result.get("value", {}).get("text", "")
            return (" ".join(text) if isinstance(text, list) else str(text)).strip()
    return ""


def _results(segment: Segment, controls: Controls, label: int) -> list[dict[str, Any]]:
    """A mask as a brush stroke, or as a polygon for each part."""
    height, width = segment.mask.shape
    common = {
        "type": controls.kind,
        "from_name": controls.name,
        "to_name": controls.image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": segment.score,
    }
    named = {controls.kind: [controls.labels[label]]}
    if controls.kind == "brushlabels":
        one = LabelledObject(label, segment.label, segment.score, encode_mask(segment.mask))
        return [{**common, "value": {"format": "rle", "rle": brush_rle(one.mask), **named}}]
    shares = [polygon / (width, height) * 100 for polygon in border_polygons(segment.mask)]
    return [{**common, "value": {"points": s.tolist(), "closed": True, **named}} for s in shares]


class LabelStudioImages:
    """Fetches images of tasks from one Label Studio, and from nowhere else.

    Args:
        url: of Label Studio.
        key: of its API.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Token {key}"} if key else {}

    def __call__(self, address: str) -> Image.Image:
        """The image of an address in a task.

        Raises:
            ValueError: it lies elsewhere, is too large, or no image.
            OSError: Label Studio can't be reached, or refuses.
        """
        whole = urllib.parse.urljoin(f"{self.url}/", address)
        ours, theirs = urllib.parse.urlsplit(self.url), urllib.parse.urlsplit(whole)
        if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
            raise ValueError(f"{whole} is no address of {self.url}; keep images in Label Studio.")
        opener = urllib.request.build_opener(_NoRedirect)
        request = urllib.request.Request(whole, headers=self._headers)
        with opener.open(request, timeout=60) as answer:
            content: bytes = answer.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"{whole} is larger than {MOST_BYTES >> 20} MB.")
        return load_embedded(content, whole)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to Label Studio and nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none."""


def make_app(engine: Any, open_image: OpenImage, version: str) -> Any:
    """The routes of a backend."""
    from fastapi import Body, FastAPI, HTTPException

    app = FastAPI(title="pixellm for Label Studio")
    told = {"status": "UP", "model_class": "pixellm", "model_version": version}

    @app.get("/")
    @app.get("/health")
    def health() -> dict[str, str]:
        return told

    @app.post("/setup")
    def setup(values: dict[str, Any] = Body(...)) -> dict[str, str]:  # noqa: B008
        if values.get("schema"):
            checked(lambda: read_controls(values["schema"]))
        return {"model_version": version}

    @app.post("/predict")
    def predict(values: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        context = (values.get("params") or {}).get("context")
        config = values.get("label_config") or ""
        tasks = values.get("tasks") or []
        results = checked(
            lambda: predict_tasks(engine, tasks, config, context, open_image, version)
        )
        return {"results": results}

    @app.post("/webhook", status_code=201)
    def webhook(values: dict[str, Any] = Body(...)) -> dict[str, str]:  # noqa: B008
        return {"status": "nothing is trained here"}

    def checked(work: Callable[[], Any]) -> Any:
        """Tell what a caller can mend."""
        try:
            return work()
        except (ValueError, OSError, KeyError, ElementTree.ParseError) as error:
            raise HTTPException(422, str(error)) from error

    return app


def main() -> None:
    """Serve on this machine."""
    import uvicorn

    import pixellm

    parser = argparse.ArgumentParser(description="Pre-annotations for Label Studio.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    options = parser.parse_args()
    url = os.environ.get("LABEL_STUDIO_URL", "http://127.0.0.1:8080")
    images = LabelStudioImages(url, os.environ.get("LABEL_STUDIO_API_KEY", ""))
    app = make_app(pixellm.load(options.model), images, f"pixellm-{options.model}")
    uvicorn.run(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
