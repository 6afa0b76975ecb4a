"""What a training run is: one YAML file, parsed strictly into frozen, documented settings.

Every key of a recipe is a field below, with its meaning under it. Unknown keys fail and name the
nearest known one. It imports no torch: a recipe is checked before any model or data is touched.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from pixellm.checkpoint.parts import LoraShape, Section
from pixellm.files import STANDARD, read_input
from pixellm.training.dotted_keys import apply_override


class DataSource(Section):
    """One data set of the mixture."""

    name: str
    """Which data set: a key of `pixellm.training.stream.DATASETS`."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the samples, relative to the other sources."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Passed to the data set's constructor by name."""


class LossWeights(Section):
    """What each loss counts for in a stage; a loss of weight 0 is not computed where possible."""

    text: float = Field(default=1.0, ge=0)
    """Cross-entropy of the answers' text, per label token."""
    mask: float = Field(default=2.0, ge=0)
    """Mask cross-entropy with refinement weights (PAPER.md 3), per target."""
    dice: float = Field(default=0.5, ge=0)
    """DICE loss, per target."""
    patch_class: float = Field(default=0.0, ge=0)
    """Soft class of every cell of the deepest feature map, per annotated pixel."""
    patch_box: float = Field(default=0.0, ge=0)
    """How far the instance in a cell of the deepest feature map reaches to either side, in cells;
    per pixel that shows one. Puts position and size of instances into the cells."""
    feature_class: float = Field(default=0.0, ge=0)
    """Soft class of every cell of the decoder's features, at every scale; per annotated pixel."""
    target_class: float = Field(default=0.0, ge=0)
    """Class of every target embedding, read by the classifiers of `feature_class`, so that
    embeddings and features come to mean the same; per target."""
    absent: float = Field(default=0.0, ge=0)
    """Mask cross-entropy of targets looked for in the next image of the micro-batch, where that
    shows nothing of their class: the mask must stay empty. Per target; teaches masks to tell by
    their score what is not there. Only for data that annotate all they show: what they leave out
    would be taught to be absent."""
    region: float = Field(default=0.0, ge=0)
    """How each instance that the encoder finds is drawn, whatever is asked: cross-entropy and DICE
    in its window, per instance. For models with evidence, see PixelLMConfig."""
    choice: float = Field(default=0.0, ge=0)
    """Which of the instances found belong to a target: cross-entropy over these, per target."""

    @property
    def needs_objects(self) -> bool:
        """Whether batches must carry the masks of everything that is annotated."""
        return self.region > 0 or self.choice > 0

    @property
    def needs_classes(self) -> bool:
        """Whether the data must name its classes."""
        return any(
            getattr(self, name) > 0
            for name in ("patch_class", "patch_box", "feature_class", "target_class", "absent")
        )

    @property
    def encoder_only(self) -> bool:
        """Whether the language model is not needed: vision tower, neck and heads are enough."""
        weights = (self.text, self.mask, self.dice, self.target_class, self.absent, self.choice)
        return not any(weights)


class ParameterRule(Section):
    """How the parameters whose names match are trained; the first rule that matches counts."""

    pattern: str
    """Shell pattern over parameter names (`*` spans dots); it also matches a module's name."""
    learning_rate: float = Field(default=1.0, ge=0)
    """Multiple of the stage's learning rate."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Replaces the optimizer's weight decay; matrices only, vectors never decay."""
    frozen: bool = False
    """Leave these parameters as they are."""


AveragingFactor = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """The optimizer; defaults are the paper's (PAPER.md 3)."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon` moves the matrices named by `muon_patterns` with Muon and all else with AdamW."""
    betas: tuple[AveragingFactor, AveragingFactor] = (0.9, 0.95)
    """AdamW's averaging factors."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's denominator term."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this total norm."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's momentum."""
    muon_patterns: tuple[str, ...] = ("*language_model*.layers.*", "*decoder*")
    """Two-dimensional weights under these names are Muon's where `kind` is `muon`."""
    rules: tuple[ParameterRule, ...] = ()
    """Exceptions by parameter name."""


class Stage(Section):
    """A stretch of the run with its own losses, sizes and schedule, and a fresh optimizer."""

    name: str
    """For the log."""
    steps: int = Field(gt=0)
    """Optimizer steps."""
    batch_size: int = Field(gt=0)
    """Images per micro-batch and process."""
    accumulation: int = Field(default=1, gt=0)
    """Micro-batches per optimizer step."""
    loss: LossWeights = LossWeights()
    """Weights of the losses. Where all but patch_class, patch_box and feature_class are 0, only the
    vision tower runs, and for feature_class the projection into the decoder."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises linearly."""
    decay_fraction: float = Field(default=1.0, ge=0, le=1)
    """Last share of the stage over which the rate falls linearly to 0; 1 falls from the start."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter or module names that stay as they are during this stage."""
    data_args: dict[str, Any] = Field(default_factory=dict)
    """Replace or add constructor arguments of every data source during this stage."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Plan to end within this time: the decay is brought forward, and begins after a twentieth of
    it at the earliest. Not reproducible to the bit."""

    @model_validator(mode="after")
    def _absent_has_other_images(self) -> Self:
        if self.loss.absent > 0 and self.batch_size < 2:
            raise ValueError(
                "loss.absent looks for targets in another image of the micro-batch; it needs a "
                "batch_size of at least 2"
            )
        return self


class CollateConfig(Section):
    """How samples become rows of tokens and masks."""

    mask_size: PositiveInt | Literal["original"] = 448
    """Pixels along the long side of an image at which its masks are compared, or `original`: each
    at its own size, as the release does. Smaller than the canvas, fine and tiny masks are lost."""
    class_map_size: int = Field(default=96, gt=0)
    """Side of the square grid over the canvas that tells the auxiliary losses what is where."""
    max_length: int = Field(default=2048, gt=0)
    """Longest row in tokens; dialogues are cut at a turn boundary."""
    max_text_length: int | None = Field(default=None, gt=0)
    """Longest dialogue in tokens of text, the image not counted; None for the row's limit alone.
    A row holds the image once and several dialogues about it."""


class CheckpointConfig(Section):
    """When the run is saved."""

    every_steps: int = Field(default=500, gt=0)
    """Steps between checkpoints; one is always written at the end of a stage."""
    keep_last: int = Field(default=2, gt=0)
    """Older checkpoints are removed."""
    merged: bool = False
    """Write whole models where the run trains adapters; otherwise adapters alone are written,
    with the name of the model that they belong to."""


ValidationScore = Literal[
    "giou",
    "ciou",
    "set_accuracy",
    "giou_targets",
    "ciou_targets",
    "set_accuracy_targets",
    "named_set_accuracy",
    "precision",
    "recall",
    "n_acc",
    "t_acc",
    "text_accuracy",
]
"""What an evaluation during a run reports, by the names of every benchmark's report."""


class EvaluationConfig(Section):
    """Evaluation during the run, by free generation; the best weights are kept in `best`."""

    every_steps: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 for none."""
    data: DataSource | None = None
    """The data set to ask about; None draws scenes."""
    num_scenes: int = Field(default=100, gt=0)
    """Images looked at each time."""
    split: str = "val"
    """Split of the scenes, where `data` is none."""
    max_new_tokens: int = Field(default=96, gt=0)
    """Longest answer; early in a run answers may not end by themselves."""
    best_by: ValidationScore = "giou"
    """The score whose highest value so far marks the best weights."""


class RunConfig(Section):
    """One training run."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the run folder inside `output_dir`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds initial weights and dropout; data sources take theirs from `args`."""
    output_dir: Path = Path("runs")
    """Where run folders live."""
    model: dict[str, Any]
    """Either `checkpoint: DIR_OR_ID`, or a new model's parts (see `pixellm.checkpoint.parts`).
    Beside a checkpoint, `vision_weights` may name pretrained weights that its encoder starts over
    from, `min_mask_score` sets the limit of the new weights (0 if not given; adapters keep their
    base's), `target_refinement_alpha` replaces the model's (1 in converted released weights, which
    leaves target refinement out), and `sizes` may hold the same parts, for a dry run where it is
    not at hand."""
    lora: LoraShape | None = None
    """Train adapters in place of the language model's weights."""
    token_rows: Literal["all", "added", "none"] | None = None
    """Rows of token table and head that train: "added" moves the codebook's and the other added
    tokens' alone. None is "added" with `lora` and "all" without."""
    quantize: Literal["nf4"] | None = None
    """Hold the language model's weights in 4 bits (QLoRA), as `--quantize nf4` does in commands;
    needs `lora` and an NVIDIA GPU."""
    gradient_checkpointing: bool = False
    """Compute the language model's activations twice instead of keeping them."""
    data: tuple[DataSource, ...] = Field(min_length=1)
    """The mixture."""
    collate: CollateConfig = CollateConfig()
    """Sizes of a batch."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """In the order in which they run."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Shared by all stages."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When the run is evaluated."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Exponential average of the weights, saved as the result in place of the last; 0 for none."""
    channels_last: bool = False
    """Memory layout of the vision tower; often faster for convolutions."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast type. Weights that train are float32; with `lora`, bf16 also holds those that never
    train in 16 bits."""
    threads: int | None = Field(default=None, gt=0, le=1024)
    """CPU threads of the main process; None takes as many as pay for the model's size, of the
    cores that the process may use and the workers leave."""
    num_workers: int = Field(default=0, ge=0, le=1024)
    """Processes that prepare data, per training process."""
    log_every: int = Field(default=10, gt=0)
    """Steps that one line of the log averages over."""
    vocabulary_samples: int = Field(default=2000, gt=0)
    """Samples whose text a new model's tokenizer is trained on."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where figures also go, beside the JSONL log."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_no_truth_value(cls, value: object) -> object:
        """YAML reads a bare ``no`` as false."""
        return "no" if value is False else value

    @model_validator(mode="after")
    def _model_keys_are_known(self) -> Self:
        if "checkpoint" not in self.model:
            return self
        changes = {"vision_weights", "min_mask_score"}
        known = {"checkpoint", "sizes", "target_refinement_alpha", *changes}
        if unknown := sorted(self.model.keys() - known):
            raise ValueError(
                f"model.checkpoint brings its own {', '.join(unknown)}; only vision_weights, "
                "min_mask_score, target_refinement_alpha and sizes stand beside it"
            )
        alpha = self.model.get("target_refinement_alpha", 1)
        if not isinstance(alpha, int | float) or not alpha >= 1:
            raise ValueError(f"model.target_refinement_alpha is {alpha!r}; it must be at least 1")
        limit = self.model.get("min_mask_score", 0)
        if not isinstance(limit, int | float) or not 0 <= limit <= 1:
            raise ValueError(f"model.min_mask_score is {limit!r}; it must lie in 0 to 1")
        source = self.model.get("vision_weights")
        if "vision_weights" in self.model and not (source and isinstance(source, str)):
            raise ValueError("model.vision_weights names a directory, a hub id or a package")
        if self.has_adapters and (changed := sorted(changes & self.model.keys())):
            raise ValueError(
                f"model.{changed[0]} changes the model that adapters stand on; train that "
                "without `lora` and with `token_rows: all` first"
            )
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.quantize is not None:
            if self.lora is None or "checkpoint" not in self.model:
                raise ValueError("quantize needs `lora` and a `model.checkpoint` to quantize")
            if self.precision != "bf16":
                raise ValueError("quantize computes in bf16; set `precision: bf16`")
            if self.checkpoint.merged:
                raise ValueError(
                    "a quantized model cannot be written whole; leave checkpoint.merged out and "
                    "use `pixellm merge` afterwards"
                )
        return self

    @model_validator(mode="after")
    def _stage_names_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need different names, these are {names}")
        return self

    @property
    def rows_that_train(self) -> Literal["all", "added", "none"]:
        """`token_rows`, its default resolved."""
        return self.token_rows or ("all" if self.lora is None else "added")

    @property
    def has_adapters(self) -> bool:
        """Whether part of the model lies under adapters and never moves."""
        return self.lora is not None or self.rows_that_train == "added"

    @property
    def run_folder(self) -> Path:
        """Where everything the run writes goes."""
        return self.output_dir / self.name

    def to_yaml(self) -> str:
        """The complete settings, defaults included, as a recipe that parses to the same run."""
        import yaml

        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the bundled recipes, by name; those that are compared lie in folders of theirs."""


def find_recipes(name: Path | str) -> list[Path]:
    """The recipes that a name stands for: a file, the files of a folder, or bundled ones.

    Where no file or folder is called so, ``nano``, ``ablation`` or ``ablation/base`` are bundled,
    with ``recipes/`` before and ``.yaml`` behind or without. A FileNotFoundError names what is
    near.
    """
    here = Path(name)
    if str(here) == STANDARD:
        return [here]
    bundled = here.relative_to("recipes") if here.parts[:1] == ("recipes",) else here
    places = [here]
    if bundled.name and not here.is_absolute() and ".." not in bundled.parts:
        places += [RECIPES / bundled.with_suffix(".yaml"), RECIPES / bundled]
    for place in places:
        if place.is_file() or place.is_fifo():
            return [place]
        if place.is_dir() and (recipes := sorted(place.glob("*.yaml"))):
            return recipes
    known = [str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml")]
    wanted = str(bundled).removesuffix(bundled.suffix)
    near = difflib.get_close_matches(wanted, known, n=3)
    bundled_names = sorted(name for name in known if "/" not in name)
    raise FileNotFoundError(
        f"No recipe at {name}; pass the path of a YAML file, or the name of a bundled recipe: "
        f"{', '.join(near or bundled_names)}."
    )


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a recipe.

    Args:
        path: YAML file, "-" for standard input, or a bundled recipe's name, see
            :func:`find_recipes`.
        overrides: `a.b=value` with the value in YAML; list items by index (`stages.0.steps=5`).

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: a name of several recipes, not YAML, an unknown key, a value of the wrong kind,
            or a bad override.
    """
    import yaml

    found = find_recipes(path)
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {len(found)} recipes; name one of them, such as {found[0].stem}."
        )
    (path,) = found
    try:
        raw = yaml.safe_load(read_input(path).decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a mapping of settings at its top level.")
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, source=str(path))


def parse_config(raw: Mapping[str, Any], source: str = "The configuration") -> RunConfig:
    """Check plain nested settings; `source` names them in messages."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{source}: {_describe(error.errors()[0])}") from error


def _describe(error: ErrorDetails) -> str:
    """One sentence for one broken rule."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"key {where!r} is missing."
    message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    return f"{where}: {message}." if where else f"{message}."


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at a location such as ("stages", 0, "loss")."""
    section: Any = RunConfig
    for part in location:
        if isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_in(annotation: Any) -> Any:
    """The Section class inside an annotation such as `tuple[Stage, ...]`."""
    if typing.get_origin(annotation) in (tuple, types.UnionType):
        return next(
            inner
            for inner in map(_section_in, typing.get_args(annotation))
            if isinstance(inner, type) and issubclass(inner, Section)
        )
    return annotation
