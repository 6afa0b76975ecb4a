"""An evaluation by two processes that talk over gloo, forked from one that has imported all."""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch.distributed
from accelerate import PartialState
from known_answers import Knowing
from reported import run_benchmark

from pixellm.checkpoint.fingerprint import fingerprint_model
from pixellm.engine.jobs import ProcessGroup
from pixellm.evaluation.evaluate import BenchmarkRun

NUM_PROCESSES = 2
LOADED = (PartialState, fingerprint_model)  # what processes import later; once is enough


def evaluate(folder: Path, number: int, port: int) -> None:
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",  # two processes can't share one GPU
        "WORLD_SIZE": str(NUM_PROCESSES),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    group = ProcessGroup.from_environment()
    assert (group.number, group.count) == (number, NUM_PROCESSES)
    assert torch.distributed.get_backend() == "gloo"
    run = BenchmarkRun("coco", "oracle", "val", folder / "data")
    predictor = Knowing(run.open())
    summary, _ = run_benchmark(run, folder / "run", lambda: predictor, batch_size=1, group=group)
    told = {"asked": predictor.num_asked, "scores": summary.to_dict()["groups"]}
    (folder / f"told-{number}.json").write_text(json.dumps(told))
    group.wait()
    torch.distributed.destroy_process_group()


def main(folder: Path) -> int:
    """Evaluate in a folder, which holds the data and gets the run; the worse exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(NUM_PROCESSES):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            evaluate(folder, number, port)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
