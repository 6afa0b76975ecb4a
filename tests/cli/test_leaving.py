"""The command line starts and leaves without work that nobody needs."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def test_what_lives_at_the_end_is_not_searched_for_garbage() -> None:
    program = (
        "import atexit, gc, sys; from pixellm.cli.main import main; "
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000)); "
        "sys.argv = ['pixellm', 'version']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize("over", [True, False])
def test_a_command_that_is_over_takes_nothing_apart_once_all_handlers_are_done(over: bool) -> None:
    program = (
        "import atexit, sys\n"
        "from pixellm.cli.console import end_at_once, tell_over\n"
        "class Kept:\n"
        "    def __del__(self): sys.__stdout__.write('taken apart\\n')\n"
        "kept = Kept()\n"
        "atexit.register(end_at_once)\n"
        "atexit.register(print, 'handler')\n"
        f"if {over}: tell_over()\n"
        "sys.stdout.write('said, ')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["said, handler", *(["taken apart"] * (not over))]


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ("from pixellm.__main__ import run; run()", 0),
        ("import runpy; runpy.run_module('pixellm', run_name='__main__')", 3),
    ],
)
def test_only_a_process_of_its_own_ends_with_the_command(run: str, code: int) -> None:
    program = (
        "import sys; from pixellm.cli.console import tell_over\n"
        "sys.argv = ['pixellm', 'version']; tell_over()\n"
        f"try: {run}\n"
        "except SystemExit: sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("pixellm ")


def test_torchs_library_is_loaded_before_torch_and_torch_works_with_it() -> None:
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None
    names = {file.name for file in Path(torch.origin).parent.glob("lib/libtorch_*.so")}
    builds = {f"libtorch_{kind}.so" for kind in ("cuda", "hip", "xpu")}
    if not Path("/proc/self/maps").exists() or "libtorch_cpu.so" not in names or names & builds:
        pytest.skip("a build of torch for GPUs, or another system")
    program = (
        "import sys; from pathlib import Path; from pixellm.cli import console\n"
        "console._load_torch_library()\n"
        "print('libtorch_cpu.so' in Path('/proc/self/maps').read_text(), 'torch' in sys.modules)\n"
        "import torch; print(torch.ones(3).sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True False", "3.0"], done.stderr
