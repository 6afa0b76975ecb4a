"""Training runs in processes forked from one that has imported everything: one, two, killed ones.

Run as a script: `forked_runs.py FOLDER` writes FOLDER/distributed and FOLDER/killed; two more
processes evaluate, in FOLDER/evaluated.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked_evaluation
import peft as peft  # in every child otherwise
import torch
from test_training_real_model import Squares, real_config
from tiny_training import TinyRun, tiny_config

from pixellm.training import stream, trainer
from pixellm.training.config import RunConfig, parse_config
from pixellm.types import Sample

KILLS = (3, 10, 14, 7, 11, 16, 8, 12, 15, 5)
"""At which point of each attempt its process dies."""


class SparseSquares(Squares):
    """Every third image has no target, so that a process may have none to decode."""

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        dialogues = super().__getitem__(index)
        return dialogues[1:] if index % 3 == 1 else dialogues


class LongQuestions(SparseSquares):
    """Every fifth image is asked about at too great a length to fit, so that a process may have
    nothing at all."""

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        dialogues = super().__getitem__(index)
        if index % 5 != 3:
            return dialogues
        (turn,) = dialogues[0].turns
        long = replace(turn, question="Which of them? " * 100)
        return (replace(dialogues[0], turns=(long, turn)),)


def fork(work: Callable[[], None]) -> int:
    """Runs `work` in a child; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if status:
            import traceback

            traceback.print_exc()
        os._exit(status)


def wait_for(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def joint_config(folder: Path, batch_size: int, accumulation: int, **changes: Any) -> RunConfig:
    """Three joint steps over four images each, the encoder frozen as in the large recipes.

    One decoder layer a scale: to place a list of sharded weights takes the square of its length.
    """
    raw = real_config(folder).model_dump(mode="json")
    raw["model"]["settings"]["decoder_layers"] = 1
    joint = raw["stages"][1] | {
        "steps": 3,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "freeze": ["*vision_tower"],
        "loss": {"text": 1, "mask": 2, "dice": 0.5, "patch_class": 0.1},
    }
    raw |= {
        "data": [{"name": "sparse"}],
        "stages": [joint],
        "ema_decay": 0.0,
        "checkpoint": {"every_steps": 2, "keep_last": 9},
    }
    return parse_config({**raw, **changes})


def two_processes(work: Callable[[], None]) -> None:
    """`work` on two processes that see each other through gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def on_rank(rank: int) -> Callable[[], None]:
        def run() -> None:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
            }
            work()
            torch.distributed.destroy_process_group()

        return run

    codes = wait_for([fork(on_rank(rank)) for rank in (0, 1)])
    assert codes == [0, 0], codes


def shard_on_cpu(precision: str = "no") -> None:
    """Lets accelerate shard with FSDP2 on CPUs, which its launcher offers for accelerators only."""
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    AcceleratorState._reset_state()  # the precision may differ from that of a run before
    state = Accelerator(cpu=True, mixed_precision=precision).state
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )


def answer_in_parts(model: Any, processor: Any, settings: Any) -> dict[str, float]:
    """An evaluation that calls parts of the model by themselves, as an engine does."""
    pixels = torch.zeros(1, 3, 32, 32)
    encoded, _ = model.model.encode_images(pixels, torch.ones(1, 32, 32, dtype=torch.bool))
    ids = torch.tensor([[model.config.image_token_id] * encoded.tokens.shape[1] + [1, 3]])
    logits = model.lm_head(model.model(ids, encoded.tokens).last_hidden_state)
    return {"giou": float(logits.float().mean())}


def run_distributed(folder: Path) -> None:
    stream.DATASETS["sparse"] = "forked_runs:SparseSquares"
    stream.DATASETS["long"] = "forked_runs:LongQuestions"

    def train(name: str, *sizes: int, resume: Any = False, **changes: Any) -> None:
        config = joint_config(folder / name, *sizes, **changes)
        trainer.train(config, resume=resume, evaluate=answer_in_parts)

    long = {"data": [{"name": "long"}]}
    lora = {"lora": {"rank": 2, "dropout": 0.0}}

    def sharded() -> None:
        """One after the other in the same processes, which learn once where shards go."""
        shard_on_cpu()
        train("sharded", 1, 2, evaluation={"every_steps": 3})
        train("sharded_lora", 2, 1, **lora)
        copy = folder / "resumed" / "run"
        if os.environ["RANK"] == "0":
            shutil.copytree(folder / "sharded" / "run", copy)
        torch.distributed.barrier()
        train("resumed", 1, 2, resume=copy / "checkpoints" / "step_00000002")
        shard_on_cpu("bf16")
        train("sharded_bf16", 1, 2, precision="bf16")

    def one() -> None:
        train("one", 4, 1)
        train("one_lora", 4, 1, **lora)
        train("one_long", 4, 1, **long)

    def two() -> None:
        train("two", 1, 2)
        train("two_long", 1, 2, **long)
        group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
        seconds = group.options._timeout.total_seconds()
        (folder / f"wait_{os.environ['RANK']}.txt").write_text(str(seconds))

    assert wait_for([fork(one)]) == [0]
    two_processes(two)
    two_processes(sharded)
    assert wait_for([fork(lambda: train("one_bf16", 4, 1, precision="bf16"))]) == [0]


class Mortal(TinyRun):
    """Notes the data and the loss of every step that it makes."""

    def _step(self, module: Any, batches: list[Any]) -> None:
        super()._step(module, batches)
        entry = {
            "step": self.state.step,
            "samples": [name for batch in batches for name in batch["sample_ids"]],
            "loss": float(self.meter.sums["total"]),
        }
        with (self.folder / "order.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def die_at(count: int, deaths: Path) -> Callable[[str], None]:
    """A point of the run; at the `count`-th the process is killed."""
    seen = 0

    def point(name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            with deaths.open("a") as file:
                file.write(name + "\n")
            os.kill(os.getpid(), signal.SIGKILL)

    return point


def watch(owner: Any, name: str, point: Callable[[str], None]) -> None:
    """Makes a point before and after every call of a function."""
    original = getattr(owner, name)

    def watched(*args: Any, **options: Any) -> Any:
        point(f"before {name}")
        result = original(*args, **options)
        point(f"after {name}")
        return result

    setattr(owner, name, watched)


def run_killed(folder: Path) -> None:
    stream.DATASETS["tiny"] = "tiny_training:TinyDataset"
    trainer.Run = Mortal  # type: ignore[misc]
    assert wait_for([fork(lambda: trainer.train(tiny_config(folder / "whole")))]) == [0]

    def attempt(count: int) -> Callable[[], None]:
        def run() -> None:
            point = die_at(count, folder / "deaths.txt")
            for owner, name in ((torch, "save"), (Path, "replace"), (shutil, "rmtree")):
                watch(owner, name, point)
            config = tiny_config(folder / "killed")
            trainer.train(config, resume=True, on_event=lambda event: point(event.kind))

        return run

    for count in KILLS:
        assert wait_for([fork(attempt(count))]) == [-signal.SIGKILL]
    assert wait_for([fork(attempt(10**9))]) == [0]


if __name__ == "__main__":
    sys.modules["forked_runs"] = sys.modules["__main__"]
    torch.set_num_threads(1)
    gc.freeze()  # runs look for garbage; what was imported is none
    run_distributed(Path(sys.argv[1]) / "distributed")
    run_killed(Path(sys.argv[1]) / "killed")
    sys.exit(forked_evaluation.main(Path(sys.argv[1]) / "evaluated"))
