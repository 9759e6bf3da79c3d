"""The coverage benchmark: which architectures can be captured, cut and proved, model by model.

Run `python -m benchmarks.coverage` in an environment with torchvision, timm, transformers and torch-pruning.
"""
