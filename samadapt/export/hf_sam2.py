"""The parts of ``to=hf`` for SAM 2: a ``Sam2Model`` of transformers and its processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


def sam2_model(sam: Sam) -> Any:
    """Return transformers' ``Sam2Model`` with the weights of a model, which carries no adapter."""
    import transformers

    from samadapt.sam.weights.sam2_names import to_hugging_face

    model = transformers.Sam2Model(sam2_configuration(sam))
    # Strict: each of their weights gets one of ours.
    model.load_state_dict(to_hugging_face(sam.state_dict(), model.state_dict()))
    return model


def sam2_configuration(sam: Sam) -> Any:
    """Return transformers' ``Sam2Config`` for a model."""
    import transformers

    build, side = sam.build, sam.image_size
    dims, table = list(build.stage_dims), [build.position_side] * 2
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=dims[0],
        num_attention_heads=build.stage_heads[0],
        image_size=[side, side],
        window_positional_embedding_background_size=table,
        blocks_per_stage=list(build.stage_depths),
        embed_dim_per_stage=dims,
        num_attention_heads_per_stage=list(build.stage_heads),
        window_size_per_stage=list(build.stage_windows),
        global_attention_blocks=list(build.global_blocks),
        mlp_ratio=build.mlp_ratio,
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=trunk, backbone_channel_list=dims[::-1], **neck_fields(sam)
    )
    return transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(**prompt_fields(sam)),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(**decoder_fields(sam)),
    )


def sam2_processor(sam: Sam) -> Any:
    """Return transformers' ``Sam2Processor`` with the sizes and the scaling of the model."""
    import transformers

    images = transformers.Sam2ImageProcessor(**image_fields(sam))
    return transformers.Sam2Processor(images, target_size=sam.image_size)


def neck_fields(sam: Sam) -> dict[str, Any]:
    """Return the fields of the three maps that the neck makes, the finest one first."""
    grid = sam.embedding_size
    return {
        "backbone_feature_sizes": [[times * grid] * 2 for times in (4, 2, 1)],
        "fpn_hidden_size": sam.build.prompt_width,
    }


def prompt_fields(sam: Sam) -> dict[str, Any]:
    """Return the fields of transformers' prompt encoder, of SAM 2 and of SAM 3."""
    return {
        "hidden_size": sam.build.prompt_width,
        "image_size": sam.image_size,
        "patch_size": sam.image_size // sam.embedding_size,
        "mask_input_channels": sam.build.mask_channels,
    }


def decoder_fields(sam: Sam) -> dict[str, Any]:
    """Return the fields of transformers' mask decoder, of SAM 2 and of SAM 3."""
    build = sam.build
    return {
        "hidden_size": build.prompt_width,
        "mlp_dim": build.decoder_mlp,
        "num_hidden_layers": build.decoder_depth,
        "num_attention_heads": build.decoder_heads,
        "num_multimask_outputs": build.num_multimask,
        "iou_head_hidden_dim": build.iou_width,
        # With one output a class there is no single mask to choose for.
        "dynamic_multimask_via_stability": sam.mask_decoder.chooses_stable_mask,
    }


def image_fields(sam: Sam) -> dict[str, Any]:
    """Return the fields of transformers' image processor, of SAM 2 and of SAM 3."""
    side, low = sam.image_size, 4 * sam.embedding_size
    return {
        "size": {"height": side, "width": side},
        "mask_size": {"height": low, "width": low},
        # transformers scales pixels to [0, 1] first, and our means are of 0 to 255.
        "image_mean": [value / 255 for value in sam.preprocessing.mean],
        "image_std": [value / 255 for value in sam.preprocessing.std],
    }
