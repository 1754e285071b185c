"""The ways that PyTorch has to write an operation, for tests that run over all of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Spelling = nn.Module | Callable[..., Any]


class Calls(nn.Module):
    """Applies ``spelling`` to its inputs."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, *values: Tensor) -> Any:
        return self.spelling(*values)


IMAGE = torch.randn(2, 4, 6, 6)

#: For each operation the ways to write it; the first decides what the others must be read as.
UNARY: dict[str, tuple[Spelling, ...]] = {
    "relu": (F.relu, nn.ReLU(), torch.relu, lambda x: x.relu(), lambda x: F.relu(input=x, inplace=False)),
    "relu6": (F.relu6, nn.ReLU6(), lambda x: F.relu6(x, False)),
    "hardswish": (F.hardswish, nn.Hardswish()),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid()),
    "silu": (F.silu, nn.SiLU()),
    "mish": (F.mish, nn.Mish()),
    "sigmoid": (torch.sigmoid, nn.Sigmoid(), F.sigmoid, lambda x: x.sigmoid(), torch.special.expit),
    "tanh": (torch.tanh, nn.Tanh(), F.tanh, lambda x: x.tanh()),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 2.0), nn.Hardtanh(0.0, 2.0),
                 lambda x: F.hardtanh(x, max_val=2.0, min_val=0.0)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, negative_slope=0.2)),
    "elu": (lambda x: F.elu(x, 0.5), nn.ELU(0.5)),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
    "softplus": (lambda x: F.softplus(x, 2.0), nn.Softplus(2.0), lambda x: F.softplus(x, beta=2.0, threshold=20.0)),
    "softmax": (lambda x: F.softmax(x, 1), nn.Softmax(1), lambda x: torch.softmax(x, dim=1), lambda x: x.softmax(1)),
    "log_softmax": (lambda x: F.log_softmax(x, dim=1), nn.LogSoftmax(1), lambda x: x.log_softmax(dim=1)),
    "clamp": (lambda x: torch.clamp(x, 0, 6), lambda x: x.clamp(min=0, max=6), lambda x: torch.clip(x, 0, 6)),
    "neg": (torch.neg, operator.neg, lambda x: -x, lambda x: x.neg()),
    "abs": (torch.abs, abs, lambda x: x.abs()),
    "add": (lambda x: x + 2, lambda x: 2 + x, lambda x: torch.add(x, 2), lambda x: x.add(2, alpha=1)),
    "sub": (lambda x: x - 2, lambda x: torch.sub(x, other=2), lambda x: x.sub(2)),
    "mul": (lambda x: x * 2, lambda x: 2 * x, lambda x: torch.mul(x, 2)),
    "div": (lambda x: x / 2, lambda x: torch.div(x, 2), lambda x: x.div(2, rounding_mode=None)),
    "mean": (lambda x: torch.mean(x, (2, 3)), lambda x: x.mean([2, 3]), lambda x: x.mean(dim=(2, 3), keepdim=False),
             lambda x: torch.mean(x, axis=(2, 3))),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), nn.MaxPool2d(2), lambda x: torch.max_pool2d(x, (2, 2)),
                   lambda x: F.max_pool2d(x, [2, 2], stride=2), nn.MaxPool2d((2, 2), stride=2)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, kernel_size=[2], stride=2)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), nn.AdaptiveAvgPool2d((1, 1))),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (2, None)), nn.AdaptiveMaxPool2d((2, None))),
    "flatten": (lambda x: torch.flatten(x, 1), nn.Flatten(), lambda x: x.flatten(start_dim=1)),
    "unflatten": (lambda x: torch.unflatten(x, 1, (2, 2)), nn.Unflatten(1, (2, 2)), lambda x: x.unflatten(1, [2, 2])),
    "reshape": (lambda x: torch.reshape(x, (2, -1)), lambda x: x.view(2, -1), lambda x: x.reshape([2, -1]),
                lambda x: x.view(size=(2, -1))),
    "permute": (lambda x: torch.permute(x, (0, 2, 3, 1)), lambda x: x.permute(0, 2, 3, 1),
                lambda x: x.permute(dims=[0, 2, 3, 1])),
    "transpose": (lambda x: torch.transpose(x, 1, 2), lambda x: x.transpose(1, 2), lambda x: torch.swapaxes(x, 1, 2),
                  lambda x: x.swapaxes(1, 2), lambda x: x.swapdims(1, 2)),
    "squeeze": (lambda x: torch.squeeze(x, 1), lambda x: x.squeeze(dim=1)),
    "unsqueeze": (lambda x: torch.unsqueeze(x, 1), lambda x: x.unsqueeze(1)),
    "contiguous": (lambda x: x.contiguous(), lambda x: x.contiguous(memory_format=torch.contiguous_format)),
    "cat": (lambda x: torch.cat([x, x], 1), lambda x: torch.concat((x, x), dim=1),
            lambda x: torch.concatenate([x, x], axis=1)),
    "stack": (lambda x: torch.stack([x, x]), lambda x: torch.stack((x, x), dim=0)),
    "split": (lambda x: torch.split(x, 2, 1), lambda x: x.split(2, dim=1), lambda x: x.split(split_size=2, dim=1)),
    "chunk": (lambda x: torch.chunk(x, 2, dim=1), lambda x: x.chunk(2, 1)),
    "unbind": (lambda x: torch.unbind(x, 1), lambda x: x.unbind(dim=1)),
    "getitem": (lambda x: x[:, 0], lambda x: operator.getitem(x, (slice(None), 0))),
    "pad": (lambda x: F.pad(x, (1, 1, 1, 1)), nn.ZeroPad2d(1), lambda x: F.pad(x, [1] * 4, "constant", 0),
            nn.ConstantPad2d(1, 0)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), nn.PixelShuffle(2)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), nn.ChannelShuffle(2)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True),
                    nn.UpsamplingBilinear2d(scale_factor=2.0),
                    nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True)),
    "dropout": (lambda x: F.dropout(x, 0.2, True), nn.Dropout(0.2), lambda x: torch.dropout(x, 0.2, True)),
    "dropout2d": (lambda x: F.dropout2d(x, 0.2, True), nn.Dropout2d(0.2)),
}  # fmt: skip

BINARY: dict[str, tuple[Callable[[Any, Any], Any], ...]] = {
    "add": (operator.add, torch.add, lambda x, y: x.add(y), lambda x, y: torch.add(input=x, other=y, alpha=1)),
    "sub": (operator.sub, torch.sub, lambda x, y: x.sub(y)),
    "mul": (operator.mul, torch.mul, lambda x, y: x.mul(y)),
    "div": (operator.truediv, torch.div, lambda x, y: x.div(y)),
    "matmul": (operator.matmul, torch.matmul, operator.imatmul, lambda x, y: x.matmul(y)),
}

IN_PLACE: dict[str, tuple[Spelling, ...]] = {
    "relu": (F.relu_, nn.ReLU(inplace=True), torch.relu_, lambda x: x.relu_(), lambda x: F.relu(x, inplace=True)),
    "relu6": (nn.ReLU6(inplace=True), lambda x: F.relu6(x, True)),
    "silu": (nn.SiLU(inplace=True), lambda x: F.silu(x, inplace=True)),
    "hardswish": (nn.Hardswish(inplace=True), lambda x: F.hardswish(x, True)),
    "hardtanh": (F.hardtanh_, nn.Hardtanh(inplace=True), lambda x: F.hardtanh(x, inplace=True)),
    "leaky_relu": (F.leaky_relu_, nn.LeakyReLU(inplace=True)),
    "elu": (F.elu_, nn.ELU(inplace=True)),
    "sigmoid": (torch.sigmoid_, lambda x: x.sigmoid_()),
    "add": (lambda x: x.add_(1), lambda x: operator.iadd(x, 1)),
    "mul": (lambda x: x.mul_(2), lambda x: operator.imul(x, 2)),
    "div": (lambda x: x.div_(2), lambda x: operator.itruediv(x, 2)),
    "clamp": (lambda x: x.clamp_(0, 1), lambda x: x.clip_(min=0, max=1)),
    "dropout": (nn.Dropout(inplace=True), lambda x: F.dropout(x, inplace=True)),
}
