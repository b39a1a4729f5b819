"""The voice detector beside the published program, on speech and on noise.

`pip install --no-deps silero-vad`; the speech is made by espeak-ng.
"""

import shutil
import subprocess
import wave

import jax
import numpy as np
import pytest

from examples import voice
import jaxdl as jd
from jaxdl import hub
from tests.hub.published import packaged

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def detector():
    packaged("silero-vad", "silero_vad/data/silero_vad_16k.safetensors")
    return voice.load()


def chance(detector, samples):
    model, params = detector
    return np.asarray(jax.jit(model)(params, voice.windows(samples)))[0]


def trained(theirs):
    """Our params of the published program's own weights."""
    names = {
        "stft.forward_basis_buffer": "stft_conv.weight",
        "decoder.rnn.": "lstm_cell.",
        "decoder.decoder.2.": "final_conv.",
    }
    names |= {f"encoder.{i}.reparam_conv.": f"conv{i + 1}." for i in range(4)}
    weights = {}
    for name, weight in theirs.state_dict().items():
        if name.startswith("_model."):
            name = name.removeprefix("_model.")
            for old, new in names.items():
                name = name.replace(old, new)
            weights[name] = weight.numpy()
    tensors = hub.of_arrays(weights)
    return hub.load_params(tensors, voice.RULES, jd.abstract(voice.VoiceDetector()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_the_published_program(detector):
    path = packaged("silero-vad", "silero_vad/data/silero_vad.jit")
    theirs = torch.jit.load(str(path))
    # Its weights are of another training than those in the safetensors file.
    model, params = detector[0], trained(theirs)
    time = np.arange(2 * voice.RATE) / voice.RATE
    sweep = np.sin(2 * np.pi * (120 + 300 * time) * time) * np.sin(20 * time) ** 2
    samples = (0.3 * sweep).astype(np.float32)
    pieces = np.pad(samples, (0, -len(samples) % 512)).reshape(-1, 512)
    with torch.no_grad():
        expected = [float(theirs(torch.tensor(p[None]), 16_000)) for p in pieces]
    ours = chance((model, params), samples)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_noise_is_no_speech_and_speech_is(detector, tmp_path):
    rng = np.random.default_rng(0)
    assert chance(detector, 0.1 * rng.normal(size=3 * voice.RATE)).max() < 0.5
    if shutil.which("espeak-ng") is None or shutil.which("sox") is None:
        pytest.skip("needs espeak-ng and sox to make speech")
    said, heard = tmp_path / "said.wav", tmp_path / "heard.wav"
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind."
    subprocess.run(["espeak-ng", "-w", said, text], check=True)
    # A second of silence before it and after.
    subprocess.run(["sox", said, "-r", "16000", heard, "pad", "1", "1"], check=True)
    with wave.open(str(heard)) as recording:
        assert recording.getframerate() == voice.RATE
    result = voice.main([str(heard), "--plot", str(tmp_path / "voice.png")])
    around = np.concatenate([result[:25], result[-20:]])
    assert np.mean(result[35:-35] > 0.5) > 0.8 and around.max() < 0.5
