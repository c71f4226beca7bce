"""Chest X-rays, normal or with pneumonia, and torchvision's ResNet-18 with BatchNorm."""

import torch
from torch import Tensor, nn

from client.task import Task
from client.torchvision_shim import import_torchvision


class ChestXray(Task):
    """Its data are what `Task.data` reads: `npz:chest.npz`, or a site's own file."""

    input_shape = (1, 28, 28)  # grey
    input_dtype = torch.uint8
    class_names = ("normal", "pneumonia")

    def network(self) -> nn.Module:
        network = import_torchvision("models").resnet18(num_classes=len(self.class_names))
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)  # grey
        return network

    def transform(self, inputs: Tensor) -> Tensor:
        return (inputs.float() / 255 - 0.5) / 0.25
