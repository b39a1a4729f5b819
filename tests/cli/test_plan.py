import json
from textwrap import dedent

import pytest

from jaxdl.cli.main import main

STEPS = """
    import jax
    import jax.numpy as jnp
    import jaxdl as jd
    from beside import LENGTH

    def one():
        return jnp.sin, (jax.ShapeDtypeStruct((LENGTH,), jnp.float32),)

    def spread(devices):
        mesh = jd.mesh(data=len(devices), devices=devices)
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        x = jax.ShapeDtypeStruct((LENGTH,), jnp.float32, sharding=sharding)
        return jnp.sum, (x,)

    def nothing():
        return 3
"""


@pytest.fixture
def steps(tmp_path):
    (tmp_path / "steps.py").write_text(dedent(STEPS))
    (tmp_path / "beside.py").write_text("LENGTH = 64\n")
    return tmp_path / "steps.py"


def test_a_function_of_a_file_is_planned(steps, capsys, tmp_path):
    files = ["--html", str(tmp_path / "p.html"), "--json", str(tmp_path / "p.json")]
    assert main(["plan", f"{steps}:one", "--target", "cpu", *files]) == 0
    assert "cpu: 1 device" in capsys.readouterr().out
    plain = json.loads((tmp_path / "p.json").read_text())
    assert plain["memory"]["arguments"] == {"x": 256}
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")


def test_a_function_that_wants_devices_gets_the_target_s(steps, capsys):
    assert main(["plan", f"{steps}:spread", "--target", "cpu:8"]) == 0
    assert "data=8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "target", "words"),
    [
        ("steps.py:on", "cpu", "did you mean 'one'"),
        ("steps.py:nothing", "cpu", r"expected it to return (step, args), got int"),
        ("missing.py:one", "cpu", "missing.py: expected a Python file"),
        ("steps", "cpu", "expected FILE:FUNCTION"),
        ("steps.py:one", "v5e", "expected cpu, cpu:8"),
    ],
)
def test_what_is_amiss_is_said(steps, capsys, function, target, words):
    status = main(["plan", str(steps.parent / function), "--target", target])
    assert status == 2
    assert words in capsys.readouterr().err


def test_what_does_not_fit_has_the_status_1(steps, monkeypatch):
    monkeypatch.setattr("jaxdl.planning.report.Report.fits", False)
    assert main(["plan", f"{steps}:one", "--target", "cpu"]) == 1
