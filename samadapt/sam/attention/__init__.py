"""Attention over a grid of image tokens: one layer, and five backends that compute the same.

- ``layer`` is the module of SAM's image encoder.
- ``reference`` is the textbook form, which the tests compare the other backends with.
- ``fused`` (PyTorch's kernel with a mask of all scores), ``folded`` (PyTorch's flash kernels, for
  CUDA), ``tiled`` (a few scores at a time) and ``compiled`` (C) are fast.
- ``dispatch`` chooses the backend; ``windows`` and ``position`` are what the backends share.
"""
