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
    grid = sam.embedding_size
    vision = transformers.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=dims[::-1],
        backbone_feature_sizes=[[times * grid] * 2 for times in (4, 2, 1)],
        fpn_hidden_size=build.prompt_width,
    )
    prompt = transformers.Sam2PromptEncoderConfig(
        hidden_size=build.prompt_width,
        image_size=side,
        patch_size=build.stride,
        mask_input_channels=build.mask_channels,
    )
    decoder = transformers.Sam2MaskDecoderConfig(
        hidden_size=build.prompt_width,
        mlp_dim=build.decoder_mlp,
        num_hidden_layers=build.decoder_depth,
        num_attention_heads=build.decoder_heads,
        num_multimask_outputs=build.num_multimask,
        iou_head_hidden_dim=build.iou_width,
        # With one output a class there is no single mask to choose for.
        dynamic_multimask_via_stability=sam.mask_decoder.chooses_stable_mask,
    )
    return transformers.Sam2Config(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )


def sam2_processor(sam: Sam) -> Any:
    """Return transformers' ``Sam2Processor`` with the sizes and the scaling of the model."""
    import transformers

    side, low = sam.image_size, 4 * sam.embedding_size
    images = transformers.Sam2ImageProcessor(
        size={"height": side, "width": side},
        mask_size={"height": low, "width": low},
        # transformers scales pixels to [0, 1] first, and our means are of 0 to 255.
        image_mean=[value / 255 for value in sam.preprocessing.mean],
        image_std=[value / 255 for value in sam.preprocessing.std],
    )
    return transformers.Sam2Processor(images, target_size=side)
