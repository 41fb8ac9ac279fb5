"""The parts of ``to=hf`` for SAM 3: a ``Sam3TrackerModel`` of transformers and its processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samadapt.export.hf_sam2 import decoder_fields, image_fields, neck_fields, prompt_fields

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
    vision = transformers.Sam3VisionConfig(
        backbone_config=trunk, scale_factors=[4.0, 2.0, 1.0], **neck_fields(sam)
    )
    return transformers.Sam3TrackerConfig(
        vision_config=vision,
        prompt_encoder_config=transformers.Sam3TrackerPromptEncoderConfig(**prompt_fields(sam)),
        mask_decoder_config=transformers.Sam3TrackerMaskDecoderConfig(**decoder_fields(sam)),
    )


def sam3_processor(sam: Sam) -> Any:
    """Return transformers' ``Sam3TrackerProcessor`` with the sizes and the scaling of the model."""
    import transformers

    images = transformers.Sam3ImageProcessor(**image_fields(sam))
    return transformers.Sam3TrackerProcessor(images, target_size=sam.image_size)
