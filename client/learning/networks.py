"""The networks: image classifiers for 1 or 3 channels, any number of classes, 8x8 images and more.

Each ends in one linear layer, `classifier`, whose input is what `features` returns. Activations and
pools are modules, one for each place, so that hooks can watch them.

Shapes: B images, C channels, H rows, W columns, F features, K classes.
"""

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor, nn
from torch.nn import functional

from client.torchvision_shim import import_torchvision


class Sizes(Protocol):
    """What a network is built from (see `client.learning.images.ImageTask`)."""

    net: str
    num_classes: int
    channels: int
    image_size: int
    width: int
    depth: int


class Classifier(nn.Module):
    """A body that turns images into features, and a linear layer on top of it.

    Args:
        body: Module from images (B, C, H, W) to features (B, F).
        num_features: F.
        num_classes: K.
    """

    def __init__(self, body: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(num_features, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last linear layer, (B, F)."""
        return cast(Tensor, self.body(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (B, K)."""
        return cast(Tensor, self.classifier(self.features(images)))


def convnet(spec: Sizes) -> Classifier:
    """Return [conv 3x3, InstanceNorm, ReLU, average pool 2] x depth, then the linear layer.

    The norm is written as a GroupNorm with one channel a group: the same formula and parameters as
    InstanceNorm2d(affine=True), faster on a CPU, forward and backward, once and twice. A norm of
    a 1x1 map would return its bias whatever the image, so only the last block may pool to 1x1.

    Source: Gidaris and Komodakis 2018, https://arxiv.org/abs/1804.09458; Dhasade et al. 2024
    (QuickDrop), section 4.1, with width 128 and depth 3.
    """
    layers: list[nn.Module] = []
    channels, size = spec.channels, spec.image_size
    for block in range(spec.depth):
        layers += [
            nn.Conv2d(channels, spec.width, kernel_size=3, padding=1),
            nn.GroupNorm(spec.width, spec.width),
            nn.ReLU(),
        ]
        channels = spec.width
        if size // 2 >= (1 if block == spec.depth - 1 else 2):
            layers.append(nn.AvgPool2d(2))
            size //= 2
    body = nn.Sequential(*layers, nn.Flatten())
    return Classifier(body, spec.width * size * size, spec.num_classes)


def lenet(spec: Sizes) -> Classifier:
    """Return LeNet-5 with ReLU and max pooling: convolutions 5x5 of 6 and 16 filters, 120, 84.

    Images of 28x28 are padded to the paper's 32x32, smaller ones likewise; maps smaller
    than 8x8 are padded before the second convolution too.

    Source: LeCun et al. 1998, https://doi.org/10.1109/5.726791
    """
    first_padding = 2 if spec.image_size < 32 else 0
    size = (spec.image_size - 4 + 2 * first_padding) // 2
    second_padding = 2 if size < 8 else 0
    size = (size - 4 + 2 * second_padding) // 2
    body = nn.Sequential(
        nn.Conv2d(spec.channels, 6, kernel_size=5, padding=first_padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5, padding=second_padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * size * size, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    )
    return Classifier(body, 84, spec.num_classes)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the input.

    Where the shape changes, the shortcut takes every second pixel and fills new channels with zeros
    (option A of He et al., section 4.2: no parameters).
    """

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_outputs)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.num_new = num_outputs - num_inputs

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride), rounded up, for (B, inputs, H, W)."""
        shortcut = maps[:, :, :: self.stride, :: self.stride]
        if self.num_new:
            before = self.num_new // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.num_new - before))
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(maps)))))
        return cast(Tensor, self.relu2(residual + shortcut))


def cifar_resnet(spec: Sizes) -> Classifier:
    """Return the residual network for 32x32 images with 8, 20, 32, 44 or 56 layers: 6n + 2.

    Three stages of n blocks with 16, 32 and 64 filters; the second and third halve the map.

    Source: He et al. 2016, section 4.2, https://arxiv.org/abs/1512.03385
    """
    blocks_per_stage = (int(spec.net.removeprefix("resnet")) - 2) // 6
    layers: list[nn.Module] = [
        nn.Conv2d(spec.channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    num_inputs = 16
    for num_outputs in (16, 32, 64):
        for block in range(blocks_per_stage):
            stride = 2 if block == 0 and num_outputs > 16 else 1
            layers.append(ResidualBlock(num_inputs, num_outputs, stride))
            num_inputs = num_outputs
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, 64, spec.num_classes)


_VGG_STAGES = {  # filters of the convolutions between two pools: configurations A, B, D, E
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


def vgg(spec: Sizes) -> Classifier:
    """Return VGG with BatchNorm and, as usual for small images, one linear layer instead of three.

    A global average pool ends the convolutions. Only the last of the five pools may
    leave a 1x1 map: BatchNorm cannot train on one image of one pixel.

    Source: Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556
    """
    layers: list[nn.Module] = []
    channels, size = spec.channels, spec.image_size
    stages = _VGG_STAGES[spec.net]
    for stage, filters in enumerate(stages):
        for num_outputs in filters:
            layers += [
                nn.Conv2d(channels, num_outputs, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(num_outputs),
                nn.ReLU(),
            ]
            channels = num_outputs
        if size // 2 >= (1 if stage == len(stages) - 1 else 2):
            layers.append(nn.MaxPool2d(2))
            size //= 2
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, channels, spec.num_classes)


def resnet18(spec: Sizes) -> Classifier:
    """Return torchvision's ResNet-18, without its weights for ImageNet.

    Made for large images: 32x32 and smaller ones are 1x1 in the last stage, where BatchNorm refuses
    to train on a batch of one.

    Source: He et al. 2016, https://arxiv.org/abs/1512.03385
    """
    body = import_torchvision("models").resnet18(weights=None)
    num_features = body.fc.in_features
    body.fc = nn.Identity()
    if spec.channels != 3:
        body.conv1 = nn.Conv2d(spec.channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return Classifier(body, num_features, spec.num_classes)


BUILDERS: dict[str, Callable[[Sizes], Classifier]] = {
    "convnet": convnet,
    "lenet": lenet,
    **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet44", "resnet56"), cifar_resnet),
    **dict.fromkeys(_VGG_STAGES, vgg),
    "resnet18": resnet18,
}

NAMES: tuple[str, ...] = tuple(BUILDERS)
WITHOUT_BATCHNORM: tuple[str, ...] = ("convnet", "lenet")  # what can be trained under noise
