"""A module that stores one matrix, whatever it trains, so that peft sees the A or B of a LoRA."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class MatrixLayer(nn.Module):
    """A module whose state dict holds only ``weight``, which follows from what it trains.

    A subclass defines the property ``weight`` and its inverse, ``load_weight``.
    """

    @property
    def weight(self) -> Tensor:
        """The matrix."""
        raise NotImplementedError

    def load_weight(self, weight: Tensor) -> None:
        """Load the parameters and buffers from a matrix that has the shape of ``weight``."""
        raise NotImplementedError

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key, expected = f"{prefix}weight", tuple(self.weight.shape)
        if key not in state_dict:
            missing_keys.append(key)
        elif tuple(state_dict[key].shape) != expected:
            error_msgs.append(f"{key}: expected {expected}; got {tuple(state_dict[key].shape)}")
        else:
            self.load_weight(state_dict[key])
        # torch's own method, which this one replaces, would report unexpected names.
        if strict:
            own = {f"{prefix}{name}" for name in (*self._parameters, *self._buffers)}
            unexpected_keys.extend(
                name for name in state_dict if name.startswith(prefix) and name not in {key, *own}
            )
