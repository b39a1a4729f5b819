import jax
import pytest

from jaxdl.cli import doctor, main


def test_a_machine_that_is_well_gets_a_table_and_no_alarm(capsys):
    assert main.main(["doctor", "--seconds", "0.1"]) == 0
    said = capsys.readouterr().out
    for word in ("versions", "devices", "memory", "donation", "matmul", "attention"):
        assert word in said
    assert "bad" not in said
    assert "no accelerator" in said or jax.default_backend() != "cpu"


def test_packages_that_do_not_belong_together_are_bad(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"jax": "0.10.2", "jaxlib": "0.9.0"}.get)
    finding = doctor.versions()
    assert finding.verdict == doctor.BAD
    assert "install them together" in finding.advice


def test_a_tpu_that_is_not_used_is_bad(monkeypatch):
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: path == "/dev/accel0")
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert "pip install" in doctor.libtpu().advice
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    if jax.default_backend() != "tpu":
        assert "Another process may hold the TPU" in doctor.libtpu().advice


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(monkeypatch):
    def broken():
        raise RuntimeError("no clock")

    monkeypatch.setattr(doctor, "cache", broken)
    findings = {each.what: each for each in doctor.diagnose(seconds=0.01)}
    assert findings["broken"].found == "RuntimeError: no clock"
    assert findings["broken"].verdict == doctor.BAD
    assert "attention" in findings


@pytest.mark.parametrize("off", [0.1, float("nan")])
def test_attention_that_is_wrong_is_bad(monkeypatch, off):
    right = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **k: right(*a, **k) + off
    )
    assert doctor.attention(seconds=0.01).verdict == doctor.BAD
