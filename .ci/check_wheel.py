"""Check an installed wheel: segment a picture, and say which form attention has.

    python check_wheel.py [compiled|pytorch]

cibuildwheel runs it after each build (pyproject.toml), and tests/test_wheel.py in an environment
without a compiler. With an argument, attention must have that form.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import samadapt
from samadapt.sam.attention.kernels import describe_attention
from samadapt.sam.model import build_sam

torch.manual_seed(0)
sam = build_sam("lite_medsam", image_size=84).eval()
with torch.no_grad():
    for parameter in sam.parameters():
        parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
predictor = samadapt.SamPredictor(sam)
picture = np.full((60, 80, 3), 40, np.uint8)
picture[20:40, 30:60] = 200
predictor.set_image(picture)
masks, scores, logits = predictor.predict(box=np.array([28, 18, 62, 42]), return_logits=True)
form = describe_attention()
print(f"samadapt {samadapt.__version__} from {samadapt.__file__}")
print(f"attention {form}")
print(f"logits {float(np.abs(logits).mean()):.6f}")
if masks.shape[1:] != (60, 80) or not np.isfinite(logits).all():
    sys.exit(f"expected finite masks of 60 x 80 pixels; got {masks.shape}")
wanted = sys.argv[1] if len(sys.argv) > 1 else ""
if wanted and wanted not in form.lower():
    sys.exit(f"expected attention by {wanted}; it is {form}")
