"""Finds speech in a recording: silero-vad's published weights in layers of ours.

A convolution makes a spectrum of each 32 ms; four more convolutions and an LSTM say how
likely it is speech. The weights come from PyPI:

    pip install --no-deps silero-vad
    python examples/voice.py recording.wav

The recording is 16 kHz, 16 bit, one channel. Without one it listens to noise.
"""

import argparse
import importlib.metadata
from pathlib import Path
import wave

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

import jaxdl as jd
from jaxdl import hub, nn

RATE, WINDOW, CONTEXT = 16_000, 512, 64


class VoiceDetector(jd.Module):
    """The chance of speech in each window: [batch, windows, 576] -> [batch, windows].

    A window of 512 samples comes with the 64 before it.
    """

    spectrum: nn.Conv = nn.Conv(1, 258, (256,), 128, "VALID", bias=False)
    conv1: nn.Conv = nn.Conv(129, 128, (3,), padding=1)
    conv2: nn.Conv = nn.Conv(128, 64, (3,), 2, padding=1)
    conv3: nn.Conv = nn.Conv(64, 64, (3,), 2, padding=1)
    conv4: nn.Conv = nn.Conv(64, 128, (3,), padding=1)
    lstm: nn.Recurrent = nn.Recurrent(nn.LSTMCell(128, 128))
    out: nn.Conv = nn.Conv(128, 1, (1,))

    def __call__(self, params, x):
        batch, windows, _ = x.shape
        x = jnp.pad(x, [(0, 0), (0, 0), (0, 64)], mode="reflect")
        x = self.spectrum(params["spectrum"], x[..., None])
        x = jnp.hypot(x[..., :129], x[..., 129:])
        for name in ("conv1", "conv2", "conv3", "conv4"):
            x = jax.nn.relu(getattr(self, name)(params[name], x))
        x = self.lstm(params["lstm"], x.reshape(batch, windows, 128))
        return jax.nn.sigmoid(self.out(params["out"], jax.nn.relu(x)))[..., 0]


# The published names, and where they are here.
RULES = (
    hub.Rule("stft_conv.weight", "spectrum/kernel", hub.conv),
    *(
        rule
        for name in ("conv1", "conv2", "conv3", "conv4")
        for rule in (
            hub.Rule(f"{name}.weight", f"{name}/kernel", hub.conv),
            hub.Rule(f"{name}.bias", f"{name}/bias"),
        )
    ),
    hub.Rule("lstm_cell.weight_ih", "lstm/input/kernel", hub.transpose),
    hub.Rule("lstm_cell.bias_ih", "lstm/input/bias"),
    hub.Rule("lstm_cell.weight_hh", "lstm/recurrent/kernel", hub.transpose),
    hub.Rule("lstm_cell.bias_hh", "lstm/recurrent/bias"),
    hub.Rule("final_conv.weight", "out/kernel", hub.conv),
    hub.Rule("final_conv.bias", "out/bias"),
)


def load() -> tuple[VoiceDetector, dict]:
    """The detector and its published weights."""
    package = importlib.metadata.distribution("silero-vad")
    file = package.locate_file("silero_vad/data/silero_vad_16k.safetensors")
    model = VoiceDetector()
    tensors = hub.open_tensors(str(file))
    return model, hub.load_params(tensors, RULES, jd.abstract(model))


def windows(samples: np.ndarray) -> np.ndarray:
    """Samples [n] as windows with what came before each: [1, windows, 576]."""
    whole = np.pad(samples, (CONTEXT, -len(samples) % WINDOW))
    number = (len(whole) - CONTEXT) // WINDOW
    starts = WINDOW * np.arange(number)[:, None]
    return whole[starts + np.arange(CONTEXT + WINDOW)][None].astype(np.float32)


def read(file: Path) -> np.ndarray:
    """The samples of a recording, in [-1, 1)."""
    with wave.open(str(file)) as recording:
        form = recording.getnchannels(), recording.getsampwidth()
        if form != (1, 2) or recording.getframerate() != RATE:
            raise SystemExit(f"{file}: expected 16 kHz, 16 bit, one channel")
        data = recording.readframes(recording.getnframes())
    return np.frombuffer(data, "<i2") / 32768.0


def main(arguments: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recording", nargs="?", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("voice.png"))
    given = parser.parse_args(arguments)

    noise = 0.1 * np.random.default_rng(0).normal(size=3 * RATE)
    samples = noise if given.recording is None else read(given.recording)
    model, params = load()
    chance = np.asarray(jax.jit(model)(params, windows(samples)))[0]

    seconds = WINDOW / RATE
    console = Console()
    speech = chance > 0.5
    edges = np.flatnonzero(np.diff(np.pad(speech, 1).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        console.print(f"speech from {start * seconds:.2f} to {stop * seconds:.2f} s")
    console.print(f"{speech.mean():.0%} of {len(chance) * seconds:.1f} s is speech")

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(9, 4))
    above.plot(np.arange(len(samples)) / RATE, samples, linewidth=0.4)
    above.set_ylabel("sound")
    below.fill_between(np.arange(len(chance)) * seconds, chance, step="post", alpha=0.6)
    below.set(ylabel="chance of speech", xlabel="seconds", ylim=(0, 1))
    figure.tight_layout()
    figure.savefig(given.plot, dpi=120)
    plt.close(figure)
    console.print(f"plotted in {given.plot}")
    return chance


if __name__ == "__main__":
    main()
