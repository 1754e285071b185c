"""Networks for images as small as CIFAR's, and generated images to train them on."""

from __future__ import annotations

from benchmarks.networks.collection import NETWORKS, TASKS, TrainedNetwork, trained_network
from benchmarks.networks.data import Images, load_images
from benchmarks.networks.resnet import ResNet, resnet20
from benchmarks.networks.trained import Trained, trained_resnet20
from benchmarks.networks.training import accuracy, fit
from benchmarks.networks.vgg import CIFAR_VGG16, LI_VGG16_A, Vgg, vgg16

__all__ = [
    "CIFAR_VGG16",
    "LI_VGG16_A",
    "NETWORKS",
    "TASKS",
    "Images",
    "ResNet",
    "Trained",
    "TrainedNetwork",
    "Vgg",
    "accuracy",
    "fit",
    "load_images",
    "resnet20",
    "trained_network",
    "trained_resnet20",
    "vgg16",
]
