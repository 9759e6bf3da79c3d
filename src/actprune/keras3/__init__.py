"""Keras 3 models on the torch backend: read as torch modules, rebuilt from their own configs.

Nothing here imports Keras before a Keras model is given.
"""
