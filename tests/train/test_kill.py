"""Killed, told to leave, out of disk: the resumed run is the one never stopped.

The processes are real, and so are the signals and the full disk.
"""

import os
from pathlib import Path
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxdl.train import Checkpoints, JsonLines
from tests.train import job

ROOT = Path(__file__).parents[2]
STEPS = 14
# Long enough for a kill to hit the middle of steps and of saves.
SLOW = 0.02


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    job.main(directory, STEPS)
    return dict(np.load(directory / "final.npz"))


def start(directory, steps=STEPS, seconds=SLOW, size=0):
    arguments = [directory, steps, seconds, size]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train.job", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Waits for the end; returns the exit status and what was said on stderr."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def records(directory):
    log = JsonLines(directory.parent / f"{directory.name}.jsonl")
    return log.read() if log.path.exists() else []


def wait_for(process, directory, step):
    """Returns when the log has reached the step, or the process has ended."""
    while process.poll() is None:
        if any(record["step"] >= step for record in records(directory)):
            return
        time.sleep(0.002)


def assert_never_stopped(directory, uninterrupted, steps=STEPS):
    final = dict(np.load(directory / "final.npz"))
    assert final.keys() == uninterrupted.keys()
    for path, expected in uninterrupted.items():
        np.testing.assert_array_equal(final[path], expected, err_msg=path)
    assert [r["step"] for r in records(directory)] == list(range(1, steps + 1))


def kill_at(directory, step, after=0.0, steps=STEPS):
    process = start(directory, steps)
    wait_for(process, directory, step)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return finish(process)[0]


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, uninterrupted):
    directory = tmp_path / "run"
    # The seed of the times differs in every test run, and is printed when it fails.
    seed = random.randrange(2**32)
    print(f"{seed=}")
    times = random.Random(seed)
    status = kill_at(directory, times.randrange(4, 12), times.uniform(0, 0.05))
    assert status == -signal.SIGKILL
    assert finish(start(directory, seconds=0)) == (0, "")
    assert_never_stopped(directory, uninterrupted)


def test_sigterm_saves_says_so_and_exits_143(tmp_path, uninterrupted):
    directory = tmp_path / "run"
    process = start(directory)
    wait_for(process, directory, 4)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    last = records(directory)[-1]["step"]
    assert status == 143 and last < STEPS
    assert f"SIGTERM: stopped after step {last}, saved in {directory}" in said
    assert Checkpoints(directory / "checkpoints", every=3).latest() == last
    assert not (directory / "final.npz").exists()

    assert finish(start(directory, seconds=0)) == (0, "")
    assert_never_stopped(directory, uninterrupted)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux has prlimit")
def test_a_file_that_cannot_be_written_is_an_error_and_earlier_checkpoints_stay(
    tmp_path,
):
    directory = tmp_path / "run"
    size = 2**18
    assert finish(start(directory, steps=3, size=size))[0] == 0
    checkpoints = Checkpoints(directory / "checkpoints", every=3)
    assert checkpoints.latest() == 3

    process = start(directory, size=size)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**19, 2**19))
    status, said = finish(process)
    assert status == 1
    assert "CheckpointError: " in said and "the latest is of step 3" in said
    assert checkpoints.latest() == 3 and checkpoints.problems(3) == []

    assert finish(start(directory, steps=6, size=size))[0] == 0
    assert checkpoints.latest() == 6


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, where the system lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room(small_disk):
    directory = small_disk / "run"
    size = 2**18
    assert finish(start(directory, steps=3, size=size))[0] == 0
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 2**19))

    status, said = finish(start(directory, size=size))
    checkpoints = Checkpoints(directory / "checkpoints", every=3)
    assert status == 1
    assert "CheckpointError: " in said and "the latest is of step 3" in said
    assert checkpoints.latest() == 3 and checkpoints.problems(3) == []

    ballast.unlink()
    assert finish(start(directory, steps=6, size=size))[0] == 0
    assert checkpoints.latest() == 6
    assert [r["step"] for r in records(directory)] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("series", range(3))
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    tmp_path, uninterrupted, series
):
    directory = tmp_path / "run"
    seed = random.randrange(2**32)
    print(f"{seed=}")
    times = random.Random(seed)
    reached = 0
    for _ in range(6):
        reached = min(reached + times.randrange(1, 4), STEPS)
        kill_at(directory, reached, times.uniform(0, 0.1))
    assert finish(start(directory, seconds=0)) == (0, "")
    assert_never_stopped(directory, uninterrupted)
