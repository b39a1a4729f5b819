import jax
import numpy as np
import pytest

from jaxdl import nn
from tests.nn.against_torch import compare, normal, torch, weights_of

SEQ, IN, HIDDEN = 5, 3, 4
LENGTHS = np.array([3, 5, 1])
X = normal(len(LENGTHS), SEQ, IN)

KINDS = pytest.mark.parametrize("kind", ["tanh", "relu", "LSTM", "GRU"])


def our_cell(kind, features=IN):
    if kind == "tanh":
        return nn.RNNCell(features, HIDDEN)
    if kind == "relu":
        return nn.RNNCell(features, HIDDEN, jax.nn.relu)
    return getattr(nn, f"{kind}Cell")(features, HIDDEN)


def their(kind, cell=False, **options):
    if kind in ("tanh", "relu"):
        kind, options = "RNN", {"nonlinearity": kind, **options}
    if cell:
        return getattr(torch.nn, f"{kind}Cell")(IN, HIDDEN, **options)
    return getattr(torch.nn, kind)(IN, HIDDEN, batch_first=True, **options)


def convert(weights, suffix=""):
    """Our cell's params of the weights that end in this suffix."""
    ends = {"input": "ih", "recurrent": "hh"}
    return {
        name: {
            "kernel": weights[f"weight_{end}{suffix}"].T,
            "bias": weights[f"bias_{end}{suffix}"],
        }
        for name, end in ends.items()
    }


def first_layer(weights):
    return convert(weights, "_l0")


def directions(weights, layer=0):
    back = convert(weights, f"_l{layer}_reverse")
    return {"forward": convert(weights, f"_l{layer}"), "backward": back}


def starts(kind, *lead):
    """Where to start: (h,), or (h, c) of an LSTM."""
    shape = (*lead, len(LENGTHS), HIDDEN)
    return tuple(normal(*shape, seed=i) for i in range(1 + (kind == "LSTM")))


def carry_of(given):
    return given[0] if len(given) == 1 else tuple(given)


def packed(module, x, *carry):
    """Runs PyTorch's layer on sequences of these lengths: outputs and last carry."""
    sequences = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    y, last = module(sequences, *carry)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=SEQ)
    return y, last


def last_of(carry, index):
    """One layer and direction of PyTorch's carry, [layers, batch, hidden] each."""
    if isinstance(carry, tuple):
        return tuple(part[index] for part in carry)
    return carry[index]


@KINDS
def test_a_cell_takes_pytorch_s_step(kind):
    cell, theirs = our_cell(kind), their(kind, cell=True)

    def ours(params, x, *carry):
        return cell(params, x, carry_of(carry))[1]

    compare(
        ours, lambda x, *carry: theirs(x, carry_of(carry)), weights_of(theirs),
        convert, (X[:, 0], *starts(kind)),
    )  # fmt: skip


@KINDS
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_outputs_and_the_last_carry_from_a_first_carry_are_pytorch_s(kind, lengths):
    layer, theirs = nn.Recurrent(our_cell(kind)), their(kind)

    def ours(params, x, *carry):
        return layer.run(params, x, carry_of(carry), lengths=lengths)

    def run(x, *carry):
        carry = carry_of([part[None] for part in carry])
        call = theirs if lengths is None else lambda *args: packed(theirs, *args)
        y, last = call(x, carry)
        return y, last_of(last, 0)

    compare(ours, run, weights_of(theirs), first_layer, (X, *starts(kind)))


@pytest.mark.parametrize("kind", ["tanh", "LSTM"])
def test_without_a_carry_it_starts_from_zeros_as_pytorch_does(kind):
    layer, theirs = nn.Recurrent(our_cell(kind)), their(kind)
    compare(layer, lambda x: theirs(x)[0], weights_of(theirs), first_layer, (X,))


@pytest.mark.parametrize("kind", ["tanh", "GRU"])
def test_reverse_is_pytorch_s_on_the_sequence_turned_round(kind):
    layer, theirs = nn.Recurrent(our_cell(kind), reverse=True), their(kind)

    def turned(x):
        y, last = theirs(x.flip(1))
        return y.flip(1), last_of(last, 0)

    compare(layer.run, turned, weights_of(theirs), first_layer, (X,))


@pytest.mark.parametrize("kind", ["tanh", "LSTM", "GRU"])
def test_reverse_with_lengths_starts_at_each_end_as_pytorch_s_backward_half(kind):
    layer, theirs = nn.Recurrent(our_cell(kind), True), their(kind, bidirectional=True)
    weights = {n: w for n, w in weights_of(theirs).items() if n.endswith("reverse")}

    def ours(params, x):
        return layer.run(params, x, lengths=LENGTHS)

    def half(x):
        y, last = packed(theirs, x)
        return y[..., HIDDEN:], last_of(last, 1)

    compare(ours, half, weights, lambda w: convert(w, "_l0_reverse"), (X,))


def both(kind, features=IN):
    cell = our_cell(kind, features)
    return nn.Bidirectional(nn.Recurrent(cell), nn.Recurrent(cell, reverse=True))


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [("tanh", LENGTHS), ("LSTM", None), ("GRU", LENGTHS)],
    ids=["tanh-lengths", "LSTM-whole", "GRU-lengths"],
)
def test_bidirectional_is_pytorch_s(kind, lengths):
    layer, theirs = both(kind), their(kind, bidirectional=True)

    def ours(params, x):
        return layer(params, x, lengths=lengths)

    def run(x):
        return (theirs(x) if lengths is None else packed(theirs, x))[0]

    compare(ours, run, weights_of(theirs), directions, (X,))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_two_layers_in_a_row_are_pytorch_s_num_layers(kind):
    layers = [nn.Recurrent(our_cell(kind, size)) for size in (IN, HIDDEN)]
    ours, theirs = nn.Sequential(layers), their(kind, num_layers=2)

    def layered(weights):
        return {str(i): convert(weights, f"_l{i}") for i in range(2)}

    compare(ours, lambda x: theirs(x)[0], weights_of(theirs), layered, (X,))


def test_two_bidirectional_layers_with_lengths_are_pytorch_s():
    kind = "LSTM"
    layer = nn.Sequential([both(kind, size) for size in (IN, 2 * HIDDEN)])
    theirs = their(kind, num_layers=2, bidirectional=True)

    def ours(params, x):
        return layer(params, x, lengths=LENGTHS)

    def layered(weights):
        return {str(i): directions(weights, i) for i in range(2)}

    compare(ours, lambda x: packed(theirs, x)[0], weights_of(theirs), layered, (X,))
