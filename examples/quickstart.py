"""The example of the README: a small residual network to int8, with its report and its error layer by layer."""

import torch
from torch import nn

import fxq


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(x.mean((2, 3))).softmax(1)


torch.manual_seed(0)
model = Net().eval()
loader = [torch.randn(8, 3, 32, 32) for _ in range(8)]

int8 = fxq.compile(model, calibration=loader, diagrams="diagrams")
print(fxq.report(int8))
print(fxq.compare(model, int8, loader))
