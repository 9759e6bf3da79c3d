"""torchvision 0.28: every classification, segmentation and video model, and the backbone with FPN of every detector."""

from __future__ import annotations

from typing import Any

from benchmarks.coverage.suites.case import Case, declare_torchvision_ops, images

CLASSIFICATION = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
""".split()

SEGMENTATION = """
deeplabv3_mobilenet_v3_large deeplabv3_resnet101 deeplabv3_resnet50 fcn_resnet101 fcn_resnet50
lraspp_mobilenet_v3_large
""".split()

VIDEO = {
    "mc3_18": (8, 112, 112),
    "mvit_v1_b": (16, 224, 224),
    "mvit_v2_s": (16, 224, 224),
    "r2plus1d_18": (8, 112, 112),
    "r3d_18": (8, 112, 112),
    "s3d": (16, 224, 224),
    "swin3d_b": (8, 112, 112),
    "swin3d_s": (8, 112, 112),
    "swin3d_t": (8, 112, 112),
}
"""Name → frames, height, width: those of the weights, or fewer where the model allows it."""

DETECTION = """
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn
fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2
retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large
""".split()

BACKBONE = ".backbone"

SIZES = {"inception_v3": 299, "ssd300_vgg16.backbone": 300, "vit_h_14": 224}
"""Height and width where they are not 224."""


def names() -> list[str]:
    return [*CLASSIFICATION, *SEGMENTATION, *VIDEO, *(name + BACKBONE for name in DETECTION)]


def build(name: str) -> Case:
    declare_torchvision_ops()
    from torchvision import models

    if name.endswith(BACKBONE):
        detector: Any = models.get_model(name.removesuffix(BACKBONE), weights=None, weights_backbone=None)
        return Case(detector.backbone, _square(name))
    if name in SEGMENTATION:
        return Case(models.get_model(name, weights=None, weights_backbone=None), _square(name))
    if name in VIDEO:
        return Case(models.get_model(name, weights=None), images(3, *VIDEO[name]))
    extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return Case(models.get_model(name, weights=None, **extra), _square(name))


def _square(name: str) -> Any:
    size = SIZES.get(name, 224)
    return images(3, size, size)
