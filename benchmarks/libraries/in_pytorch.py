"""In PyTorch, eager: modules, autograd and torch.optim, images channels first."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from benchmarks import work as given
from benchmarks.work import Program, Work
from jaxdl.core import tree


def train(
    model: nn.Module, loss_fn: Callable, batch: Any, optimizer: torch.optim.Optimizer
) -> Program:
    def step(carry, batch):
        x, target = batch
        optimizer.zero_grad()
        loss = loss_fn(model(x), target)
        loss.backward()
        optimizer.step()
        return carry, loss.detach()

    return Program(step, None, tuple(map(torch.tensor, batch)))


def load(model: nn.Module, weights: dict) -> None:
    """Gives a model the weights: our names and layouts become PyTorch's."""
    state = {}
    for path, leaf in tree.flatten(weights).items():
        *parents, name = path.split("/")
        name = name if name == "bias" else "weight"
        state[".".join([*parents, name])] = torch.tensor(features_first(leaf, path))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not set(missing) - dict(model.named_buffers()).keys()


def features_first(leaf: np.ndarray, path: str) -> np.ndarray:
    """[in, out] -> [out, in], [height, width, in, out] -> [out, in, height, width]."""
    if path.endswith("kernel"):
        leaf = np.moveaxis(leaf, (-1, -2), (0, 1))
    return np.ascontiguousarray(leaf)


def mlp(work: Work) -> Program:
    layers: list[nn.Module] = []
    for before, after in zip(work.config, work.config[1:], strict=False):
        layers += [nn.Linear(before, after), nn.Tanh()]
    model = nn.Sequential(*layers)
    load(model, {str(2 * int(name)): p for name, p in work.weights.items()})
    optimizer = torch.optim.SGD(model.parameters(), given.LEARNING_RATE)
    return train(model, F.mse_loss, work.batch, optimizer)


class ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = None
        if before != after:
            project = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(after))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class ResNet(nn.Module):
    def __init__(self, config: given.ResNetConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        stages: dict[str, list[nn.Module]] = {}
        for path, before, after, stride in config.blocks():
            stage, _ = path.split("/")
            stages.setdefault(stage, []).append(ResidualBlock(before, after, stride))
        for stage, blocks in stages.items():
            self.add_module(stage, nn.Sequential(*blocks))
        self.stages = list(stages)
        self.fc = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(x.mean((2, 3)))


def resnet(work: Work) -> Program:
    model = ResNet(work.config).train()
    load(model, work.weights)
    images, labels = work.batch
    batch = (np.moveaxis(images, -1, 1).copy(), labels.astype(np.int64))
    optimizer = torch.optim.SGD(
        model.parameters(), given.LEARNING_RATE, momentum=given.MOMENTUM
    )
    return train(model, F.cross_entropy, batch, optimizer)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(heads.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.attn_norm, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        dim, heads = config.dim, config.num_heads
        self.embed = nn.Embedding(config.vocab_size, dim)
        self.position = nn.Embedding(config.seq_len, dim)
        self.blocks = nn.Sequential(
            *(TransformerBlock(dim, heads) for _ in range(config.num_layers))
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens):
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x)) @ self.embed.weight.T


def gpt(work: Work) -> Program:
    model = GPT(work.config)
    blocks = given.unstack(work.weights["blocks"])
    numbered = {str(index): block for index, block in enumerate(blocks)}
    load(model, {**work.weights, "blocks": numbered})
    optimizer = torch.optim.AdamW(
        model.parameters(), given.LEARNING_RATE, weight_decay=given.WEIGHT_DECAY
    )

    def loss_fn(logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    tokens, labels = (part.astype(np.int64) for part in work.batch)
    return train(model, loss_fn, (tokens, labels), optimizer)
