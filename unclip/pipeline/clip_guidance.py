"""CLIP guidance: a decoder led by the gradient of CLIP's score of what it is about to draw.

Shapes: B pictures, D CLIP embedding, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.diffusion.gaussian import eps_from_x_0, target_for, x_0_from_prediction
from unclip.diffusion.guidance import lead
from unclip.diffusion.prediction import Predict
from unclip.diffusion.schedule import gather, make_schedule
from unclip.models.clip import CLIP
from unclip.pipeline.stages import Stage

LOGIT_SCALE = 100.0  # CLIP's own, at which GLIDE's scales are meant


def clip_guided(stage: Stage, predict: Predict, clip: CLIP, z_txt: Tensor, scale: float) -> Predict:
    """A prediction whose x_0_hat is led towards captions z_txt [B, D]; see guidance.lead.

    clip sees x_0_hat, not x_t as GLIDE's (which was trained on noise), so any CLIP will do.
    """
    config = stage.network.config
    kind = config.get("prediction", "eps")
    schedule = make_schedule(config.schedule, config.num_train_timesteps)

    def score(x_0: Tensor) -> Tensor:
        z_img = clip.encode_image(x_0.to(z_txt.device))
        return LOGIT_SCALE * F.cosine_similarity(z_img, z_txt)  # [B]

    def guided_predict(x_t: Tensor, t: Tensor) -> Tensor:
        output = predict(x_t, t)
        own, *variance = output.chunk(2, dim=1) if stage.learned_variance else (output,)
        x_0_hat = x_0_from_prediction(schedule, kind, x_t, own, t).clamp(-1, 1)
        abar = gather(schedule.alphas_cumprod, t, x_t)
        x_0_hat = lead(x_0_hat, gradient(score, x_0_hat).to(x_t), abar, scale)
        eps_hat = eps_from_x_0(schedule, x_t, x_0_hat, t)
        led = target_for(schedule, kind, x_0_hat, eps_hat, t)
        return torch.cat([led, *variance], dim=1)

    return guided_predict


def gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d score / d x [B, ...], each sample's own."""
    with torch.enable_grad():
        x = x.detach().float().requires_grad_()
        return torch.autograd.grad(score(x).sum(), x)[0]
