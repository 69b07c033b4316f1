"""Small networks of every kind of layer, and the literal loop that the engines of `causal_graphs` are compared with."""

import copy

import torch
from torch import nn


class Plain(nn.Module):
    """Padding, stride, pooling, the flatten boundary, and linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2 = nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.ReLU(inplace=True)
        self.fc1, self.relu3, self.fc2 = nn.Linear(5 * 2 * 2, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.relu2(self.conv2(x))
        return self.fc2(self.relu3(self.fc1(x.view(x.size(0), -1))))


class Block(nn.Module):
    """A basic residual block whose skip connection can be edited: ``skip`` holds its weights."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.register_buffer("skip", torch.ones(1, outputs, 1, 1))

    def forward(self, x):
        identity = x * self.skip if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.block1, self.block2, self.block3 = Block(4, 4), Block(4, 6, stride=2), Block(6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.relu(self.stem(x)))))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Depthwise(nn.Module):
    """A ConvNeXt block: depthwise convolution, layer norm and linear layers over channels that stand last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.dw, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
        self.pw1, self.act, self.pw2 = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.head = nn.Linear(4, 3)
        self.register_buffer("skip", torch.ones(1, 4, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        y = self.pw2(self.act(self.pw1(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        x = x * self.skip + self.scale * y.permute(0, 3, 1, 2)
        return self.head(x.mean([2, 3]))


class Fire(nn.Module):
    """Two branches that are concatenated, one of them grouped, beside a skip connection into the concatenation."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.one, self.three = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect")
        self.classifier = nn.Conv2d(11, 3, 1)

    def forward(self, x):
        x = torch.relu(self.squeeze(x))
        x = torch.cat([torch.relu(self.one(x)), x, torch.relu(self.three(x))], 1)
        return self.classifier(x).mean((2, 3))


def make(kind, dtype=torch.float64, seed=0):
    """A network in eval mode with weights that leave nothing at its neutral value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval().to(dtype)


def images(n=4, channels=3, size=8, dtype=torch.float64, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_logits(model, link, cuts, amount, x):
    """[K, N, classes]: an edited copy of the model for every cut, an image at a time, as the method is told."""
    rows = []
    for sources, effects in cuts:
        edited = copy.deepcopy(model)
        with torch.no_grad():
            for i in sources:
                for e in effects:
                    edit(edited, link, i, e - link.offset, amount)
            rows.append(torch.cat([edited(image[None]) for image in x]))
    return torch.stack(rows)


def edit(model, link, i, j, amount):
    if link.kind == "identity":
        if i == j:
            owner = model if link.name == "add.skip" else model.get_submodule(link.name.removesuffix(".skip"))
            owner.skip[0, i] = amount
        return
    weight = model.get_submodule(link.name).weight
    if link.kind == "linear":
        weight[j].view(link.inputs, link.block)[i] = amount
        return
    groups = model.get_submodule(link.name).groups
    group, within = divmod(i, link.inputs // groups)
    if j // (link.outputs // groups) == group:
        weight[j, within] = amount
