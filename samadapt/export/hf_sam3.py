"""The parts of ``to=hf`` for SAM 3: a ``Sam3TrackerModel`` of transformers and its processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


def sam3_model(sam: Sam) -> Any:
    """Return transformers' ``Sam3TrackerModel`` with the weights of a model without an adapter."""
    import transformers

    from samadapt.sam.weights.sam3_names import sam3_to_hugging_face

    model = transformers.Sam3TrackerModel(sam3_configuration(sam))
    # Strict: each of their weights gets one of ours.
    model.load_state_dict(sam3_to_hugging_face(sam.state_dict(), model.state_dict()))
    return model


def sam3_configuration(sam: Sam) -> Any:
    """Return transformers' ``Sam3TrackerConfig`` for a model.

    The neck has three levels. Meta's has a fourth one, which the tracker does not use, and with it
    ``Sam3TrackerModel`` would add the embedding of a missing memory to that one.
    """
    import transformers

    build, side = sam.build, sam.image_size
    trunk = transformers.Sam3ViTConfig(
        hidden_size=build.embed_dim,
        intermediate_size=int(build.mlp_ratio * build.embed_dim),
        num_hidden_layers=build.depth,
        num_attention_heads=build.num_heads,
        image_size=side,
        patch_size=build.patch_size,
        window_size=build.window,
        global_attn_indexes=list(build.global_blocks),
        pretrain_image_size=build.position_side * build.patch_size,
    )
    grid = sam.embedding_size
    vision = transformers.Sam3VisionConfig(
        backbone_config=trunk,
        backbone_feature_sizes=[[times * grid] * 2 for times in (4, 2, 1)],
        scale_factors=[4.0, 2.0, 1.0],
        fpn_hidden_size=build.prompt_width,
    )
    prompt = transformers.Sam3TrackerPromptEncoderConfig(
        hidden_size=build.prompt_width,
        image_size=side,
        patch_size=build.patch_size,
        mask_input_channels=build.mask_channels,
    )
    decoder = transformers.Sam3TrackerMaskDecoderConfig(
        hidden_size=build.prompt_width,
        mlp_dim=build.decoder_mlp,
        num_hidden_layers=build.decoder_depth,
        num_attention_heads=build.decoder_heads,
        num_multimask_outputs=build.num_multimask,
        iou_head_hidden_dim=build.iou_width,
        # With one output a class there is no single mask to choose for.
        dynamic_multimask_via_stability=sam.mask_decoder.chooses_stable_mask,
    )
    return transformers.Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )


def sam3_processor(sam: Sam) -> Any:
    """Return transformers' ``Sam3TrackerProcessor`` with the sizes and the scaling of the model."""
    import transformers

    side, low = sam.image_size, 4 * sam.embedding_size
    images = transformers.Sam3ImageProcessor(
        size={"height": side, "width": side},
        mask_size={"height": low, "width": low},
        # transformers scales pixels to [0, 1] first, and our means are of 0 to 255.
        image_mean=[value / 255 for value in sam.preprocessing.mean],
        image_std=[value / 255 for value in sam.preprocessing.std],
    )
    return transformers.Sam3TrackerProcessor(images, target_size=side)
