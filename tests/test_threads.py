"""What a process may use, and that nothing a user has set is overruled."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pixellm
from pixellm import threads

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def test_importing_the_package_bounds_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*threads.SPIN_SETTINGS, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import os, sys, pixellm; assert 'torch' not in sys.modules; "
        f"assert {threads.SPIN_SETTINGS}.items() <= os.environ.items()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loaded_small_model_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(threads, "_IS_OWN_PROCESS", True)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for name in THREAD_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    pixellm.load(device="cpu")
    assert asked == [1]


def test_a_program_that_loaded_torch_first_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert "torch" in sys.modules
    fresh = runpy.run_path(str(threads.__file__))
    assert fresh["choose_threads"](1000) is None
    environment: dict[str, str] = {}
    fresh["bound_spinning"](environment)
    assert not environment


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({}, set()),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT"}),
        ({"KMP_BLOCKTIME": "infinite"}, {"KMP_BLOCKTIME"}),
        ({"OMP_WAIT_POLICY": "active"}, set(threads.SPIN_SETTINGS)),
    ],
)
def test_a_users_own_setting_of_waiting_stays(
    settings: dict[str, str], left_out: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found = dict(settings)
    threads.bound_spinning(found)
    added = {n: v for n, v in threads.SPIN_SETTINGS.items() if n not in left_out}
    assert found == settings | added


def test_a_users_own_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IS_OWN_PROCESS", True)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert threads.choose_threads(1000) == 1
    assert threads.choose_threads(1000, 3) == 3
    assert threads.choose_threads(1000, 0) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose_threads(1000) is None
    assert threads.choose_threads(1000, 3) == 3


def test_threads_follow_the_size_and_leave_cores_to_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    assert threads.threads_that_pay(5_830_996) == 1
    assert threads.threads_that_pay(8_432_450) == 8
    assert threads.threads_that_pay(209_000_000) == 8
    assert threads.threads_that_pay(209_000_000, workers=3) == 5
    assert threads.threads_that_pay(209_000_000, workers=12) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/job/part\n", "sys/fs/cgroup/job/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "max 100000\n"}, 6),
        ({"proc/self/cgroup": "0::/host/x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "what is this\n"}, 6),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
    ],
)
def test_cores_are_those_bound_to_within_the_groups_quota(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")
    assert threads.usable_cores(tmp_path) == expected
