"""Masks for one image and its prompts, with the calls and results of segment-anything's predictor.

Coordinates and masks are in pixels of the original image. As in segment-anything,
``set_torch_image`` and ``predict_torch`` take the model frame instead.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samadapt.errors import PromptError
from samadapt.sam.embed import to_tensor
from samadapt.sam.geometry import make_frame, resize_image, to_model_boxes, to_model_points
from samadapt.sam.model import Sam
from samadapt.sam.types import Frame, Prompts
from samadapt.system.arrays import Array

Masks = NDArray[np.bool_] | NDArray[np.float32]


class ImageTransform:
    """Places images and coordinates in the model's square; it is ``SamPredictor.transform``.

    For SAM's own weights it equals segment-anything's ``ResizeLongestSide``.

    Args:
        target_length: side of the square, in pixels.
        resize: how the weights expect images to be resized; see ``Preprocessing.resize``.
    """

    def __init__(
        self, target_length: int, resize: Literal["longest", "shrink", "squash"] = "longest"
    ) -> None:
        self.target_length = target_length
        self.resize = resize

    def frame(self, original_size: tuple[int, ...]) -> Frame:
        """Return the frame of an image of (h, w) pixels."""
        return make_frame((original_size[0], original_size[1]), self.target_length, self.resize)

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image (h, w, 3) uint8."""
        return resize_image(image, self.frame(image.shape[:2]))

    def apply_coords(self, coords: Array, original_size: tuple[int, ...]) -> Array:
        """Move points (..., 2), (x, y) pixels of an image (h, w), into the model frame."""
        return to_model_points(coords, self.frame(original_size))

    def apply_boxes(self, boxes: Array, original_size: tuple[int, ...]) -> Array:
        """Move boxes (..., 4), XYXY pixels of an image (h, w), into the model frame: (n, 4)."""
        return to_model_boxes(np.asarray(boxes).reshape(-1, 4), self.frame(original_size))


class SamPredictor:
    """Embeds an image once and then answers any number of prompts about it.

    Args:
        sam_model: the model; its weights decide how images are resized and normalised.

    Attributes:
        model: the model.
        transform: what ``set_image`` and ``predict`` apply to images and coordinates.
        is_image_set: whether an image is embedded.
        original_size: (h, w) of the image in pixels, or None.
        input_size: (h, w) of the image within the model's square in pixels, or None.
        features: the embedding of the image (1, c, g, g), or None.
    """

    def __init__(self, sam_model: Sam) -> None:
        self.model = sam_model
        self.transform = ImageTransform(sam_model.image_size, sam_model.preprocessing.resize)
        self.reset_image()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the image."""
        self.is_image_set = False
        self.features: Tensor | None = None
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Embed an image.

        Args:
            image: (h, w, 3) uint8.
            image_format: order of the channels, ``"RGB"`` or ``"BGR"``.

        Raises:
            PromptError: the image has another shape or type, or the format is unknown.
        """
        if image_format not in ("RGB", "BGR"):
            raise PromptError(f"image_format must be 'RGB' or 'BGR'; got {image_format!r}")
        check_image(image)
        rgb = image if image_format == "RGB" else image[..., ::-1]
        resized = to_tensor(rgb, self.transform.frame(image.shape[:2]))
        self.set_torch_image(resized[None].to(self.device), image.shape[:2])

    @torch.no_grad()
    def set_torch_image(
        self, transformed_image: Tensor, original_image_size: tuple[int, ...]
    ) -> None:
        """Embed an image that is already resized.

        Args:
            transformed_image: (1, 3, h, w) RGB of 0 to 255, resized by ``transform.apply_image``.
            original_image_size: (h, w) of the image before that, in pixels.

        Raises:
            PromptError: the image has another shape, or a size that does not follow from the
                original size.
        """
        if transformed_image.ndim != 4 or transformed_image.shape[:2] != (1, 3):
            raise PromptError(
                f"transformed_image must be (1, 3, h, w); got {tuple(transformed_image.shape)}"
            )
        frame = self.transform.frame(original_image_size)
        size = (transformed_image.shape[2], transformed_image.shape[3])
        if size != frame.resized:
            raise PromptError(
                f"an image of {frame.original} must be resized to {frame.resized} for this model "
                f"(h, w); got {size}"
            )
        self.reset_image()
        images = self.model.preprocess(transformed_image.to(self.device))
        self.features = self.model.encode(images)
        self.original_size, self.input_size = frame.original, frame.resized
        self.is_image_set = True

    def predict(
        self,
        point_coords: Array | None = None,
        point_labels: Array | None = None,
        box: Array | None = None,
        mask_input: Array | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Masks, NDArray[np.float32], NDArray[np.float32]]:
        """Predict the masks of one object from all its prompts.

        Args:
            point_coords: (n, 2), (x, y) in pixels of the original image.
            point_labels: (n,); 1 foreground, 0 background.
            box: (4,) XYXY in pixels of the original image.
            mask_input: (1, 4g, 4g) logits, the third value that an earlier call returned.
            multimask_output: return three masks, for ambiguous prompts such as one click, instead
                of one.
            return_logits: return the logits of the masks instead of booleans.

        Returns:
            Masks (c, h, w) for the original image; the IoU (c,) that the model estimates for them;
            low-resolution logits (c, 4g, 4g), which can be given back as ``mask_input``.

        Raises:
            RuntimeError: no image is set.
            PromptError: a prompt has a wrong shape.
        """
        points = labels = boxes = mask = None
        if (point_coords is None) != (point_labels is None):
            raise PromptError("point_coords and point_labels must be given together")
        size = self._frame().original
        if point_coords is not None:
            coords = np.asarray(point_coords, dtype=np.float64)
            if coords.ndim != 2 or coords.shape[1] != 2:
                raise PromptError(
                    f"point_coords must be (n, 2), (x, y) in pixels; got shape {coords.shape}"
                )
            points = self._tensor(self.transform.apply_coords(coords, size))[None]
            labels = torch.as_tensor(np.asarray(point_labels), device=self.device)[None].int()
        if box is not None:
            edges = np.asarray(box, dtype=np.float64)
            if edges.size != 4:
                raise PromptError(
                    f"box must be one box of 4 XYXY pixels; got shape {edges.shape}; "
                    "for several boxes use predict_torch"
                )
            boxes = self._tensor(self.transform.apply_boxes(edges, size))
        if mask_input is not None:
            mask = self._tensor(np.asarray(mask_input))[None]
        masks, iou, low_res = self.predict_torch(
            points, labels, boxes, mask, multimask_output, return_logits
        )
        return masks[0].cpu().numpy(), iou[0].cpu().numpy(), low_res[0].cpu().numpy()

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the masks of p objects from prompts in the model frame, on the model's device.

        Args:
            point_coords: (p, n, 2), (x, y) in pixels of the model frame.
            point_labels: (p, n); 1 foreground, 0 background, -1 padding.
            boxes: (p, 4) XYXY in pixels of the model frame.
            mask_input: (p, 1, 4g, 4g) logits, or (1, 1, 4g, 4g) for all objects.
            multimask_output: return three masks for each object instead of one.
            return_logits: return the logits of the masks instead of booleans.

        Returns:
            Masks (p, c, h, w) for the original image, IoU estimates (p, c) and low-resolution
            logits (p, c, 4g, 4g).

        Raises:
            RuntimeError: no image is set.
            PromptError: a prompt has a wrong shape.
        """
        frame = self._frame()
        low_res, iou = self.decode(point_coords, point_labels, boxes, mask_input, multimask_output)
        masks = self.model.postprocess(low_res[None], frame)[0]
        return masks if return_logits else masks > self.model.mask_threshold, iou, low_res

    def decode(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None,
        mask_input: Tensor | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the low-resolution logits and IoU estimates of ``predict_torch``."""
        embedding = self.get_image_embedding()
        if boxes is not None:
            boxes = boxes.reshape(-1, 4)
        if mask_input is not None:
            side = 4 * self.model.embedding_size
            if mask_input.ndim != 4 or mask_input.shape[1:] != (1, side, side):
                raise PromptError(
                    f"mask_input must be (p, 1, {side}, {side}) logits for this model; "
                    f"got {tuple(mask_input.shape)}"
                )
            first = point_coords if point_coords is not None else boxes
            if first is not None and mask_input.shape[0] == 1:
                mask_input = mask_input.expand(first.shape[0], -1, -1, -1)
        prompts = Prompts(
            points=_first_image(point_coords),
            point_labels=_first_image(point_labels),
            boxes=_first_image(boxes),
            masks=_first_image(mask_input),
        )
        output = self.model.decode(embedding, prompts, multimask=multimask_output)
        return output.logits[0], output.iou[0]

    def get_image_embedding(self) -> Tensor:
        """Return the embedding of the image (1, c, g, g).

        Raises:
            RuntimeError: no image is set.
        """
        if self.features is None:
            raise RuntimeError("no image is set; call set_image(image) first")
        return self.features

    def _frame(self) -> Frame:
        if self.original_size is None:
            raise RuntimeError("no image is set; call set_image(image) first")
        return self.transform.frame(self.original_size)

    def _tensor(self, values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def check_image(image: NDArray[np.uint8]) -> None:
    """Check that an image is an array (h, w, 3) of uint8.

    Raises:
        PromptError: it is not; the message says what was found.
    """
    got: object = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size:
            return
        got = f"{image.shape} of {image.dtype}"
    raise PromptError(f"image must be an array (h, w, 3) of uint8, 0 to 255; got {got}")


def _first_image(prompts: Tensor | None) -> Tensor | None:
    return None if prompts is None else prompts[None]
