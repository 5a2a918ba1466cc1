"""Networks of both sides beside dalle2-pytorch: the peer's of its README, ours within 5 %."""

from __future__ import annotations

PEER = "dalle2-pytorch"
CONTEXT = 77

# dim: of the embeddings and the text states. ours: decoder and upsampler by the side's name, which
# tells their stems: on cells of p x p pixels the same parameters take fewer operations.
SIZES = {
    "full": {
        "dim": 512,
        "peer": {
            **{"depth": 6, "text_depth": 6, "cond_dim": 128, "size": 64},
            **{"unet_dim": 64, "dim_mults": [1, 2, 4, 8]},
            **{"upsampler_dim": 16, "upsampler_mults": [1, 2, 4, 8, 16]},
        },
        "prior": {"num_layers": 7, "num_heads": 8, "head_dim": 64},
        "decoder": {"num_blocks": 1, "head_dim": 32, "context_dim": 128, "size": 64},
        "ours": {
            "ours, stem 1": (
                {"channels": (64, 128, 256, 512), "attention_levels": (False, False, True, True)},
                {"channels": (32, 64, 128, 256), "num_blocks": 2},
            ),
            "ours, stems 2 and 4": (
                {
                    "stem": 2,
                    "channels": (128, 256, 512),
                    "attention_levels": (False, True, True),
                },
                {"stem": 4, "channels": (96, 160, 224), "num_blocks": 2, "prediction": "x_0"},
            ),
            "ours, stems 4 and 4": (
                {"stem": 4, "channels": (256, 480), "attention_levels": (True, True)},
                {"stem": 4, "channels": (96, 160, 224), "num_blocks": 2, "prediction": "x_0"},
            ),
        },
    },
    "tiny": {
        "dim": 64,
        "peer": {
            **{"depth": 2, "text_depth": 1, "cond_dim": 32, "size": 16},
            **{"unet_dim": 16, "dim_mults": [1, 2], "upsampler_dim": 16, "upsampler_mults": [1, 2]},
        },
        "prior": {"num_layers": 2, "num_heads": 1, "head_dim": 64},
        "decoder": {"num_blocks": 1, "head_dim": 16, "context_dim": 32, "size": 16},
        "ours": {
            "ours, stem 1": (
                {"channels": (32, 32), "attention_levels": (False, True)},
                {"channels": (32, 32), "num_blocks": 1},
            ),
        },
    },
}
