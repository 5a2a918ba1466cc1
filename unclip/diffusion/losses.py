"""Training losses, one equation each; every function returns one value a sample, [B] float32.

Average over the batch (and weigh the samples) in the caller. Images are [B, C, H, W] in [-1, 1],
embeddings [B, D]; t is integers [B] in 0..T-1.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239), IDDPM = Nichol & Dhariwal 2021 (arXiv
2102.09672), unCLIP = Ramesh et al. 2022 (arXiv 2204.06125), CLIP = Radford et al. 2021 (arXiv
2103.00020), min-SNR = Hang et al. 2023 (arXiv 2303.09556), PD = Salimans & Ho 2022 (arXiv
2202.00512), SR3 = Saharia et al. 2021 (arXiv 2104.07636).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .gaussian import (
    discretized_gaussian_log_likelihood,
    learned_log_variance,
    normal_kl,
    posterior_mean_log_variance,
    target_for,
    x_0_from_prediction,
)
from .schedule import NoiseSchedule, gather


def simple_loss(prediction: Tensor, target: Tensor, power: int = 2) -> Tensor:
    """L_simple = mean |error|^power over all but the batch, [B]   (DDPM eq. 14; unCLIP eq. 2).

    power 1 is SR3's other choice (eq. 6): its best prediction is the median, not the mean.
    ValueError when the shapes differ (broadcasting here is always a mistake).
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
        )
    return _mean_per_sample((prediction.float() - target.float()).abs() ** power)


def vlb_loss(
    schedule: NoiseSchedule,
    prediction: Tensor,
    fraction: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    kind: str = "eps",
    clip_x_0: bool = False,
) -> Tensor:
    """One term of the variational bound, in bits per dimension, [B]   (IDDPM eq. 4 to 7).

    t > 0: L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
    t = 0: -log p(x_0 | x_t), the discretised Gaussian of DDPM eq. 13
    p has the mean of DDPM eq. 7 at x_0_hat, from prediction of the kind given, and the variance
    of learned_log_variance(fraction). clip_x_0 clamps x_0_hat to [-1, 1] (for evaluation).
    """
    prediction, fraction = prediction.float(), fraction.float()
    x_0, x_t = x_0.float(), x_t.float()
    x_0_hat = x_0_from_prediction(schedule, kind, x_t, prediction, t)
    if clip_x_0:
        x_0_hat = x_0_hat.clamp(-1, 1)
    mean, log_variance = posterior_mean_log_variance(schedule, x_0, x_t, t)
    mean_hat, _ = posterior_mean_log_variance(schedule, x_0_hat, x_t, t)
    log_variance_hat = learned_log_variance(schedule, fraction, t)
    kl = normal_kl(mean, log_variance, mean_hat, log_variance_hat)
    nll = -discretized_gaussian_log_likelihood(x_0, mean_hat, log_variance_hat)
    at_start = (t == 0).reshape(-1, *[1] * (x_0.ndim - 1))
    return _mean_per_sample(torch.where(at_start, nll, kl)) / math.log(2)


def hybrid_loss(
    schedule: NoiseSchedule,
    output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    eps: Tensor,
    t: Tensor,
    vlb_weight: float = 0.001,
    kind: str = "eps",
) -> Tensor:
    """L_hybrid = L_simple + vlb_weight L_vlb, with no gradient to the mean in L_vlb, [B].

    IDDPM eq. 16. L_vlb is a sum over T timesteps, estimated by T times the term at t, so that
    the default weight adds T / 1000 of the term ("rescaled MSE" in the public code).
    output [B, 2C, ...] holds the prediction, of the kind given, and then the variance fraction.
    ValueError when output does not have twice the channels of x_0.
    """
    if output.shape != (x_0.shape[0], 2 * x_0.shape[1], *x_0.shape[2:]):
        raise ValueError(
            f"output must have twice the channels of x_0 {tuple(x_0.shape)}, "
            f"got {tuple(output.shape)}"
        )
    prediction, fraction = output.chunk(2, dim=1)
    simple = simple_loss(prediction, target_for(schedule, kind, x_0, eps, t))
    vlb = vlb_loss(schedule, prediction.detach(), fraction, x_0, x_t, t, kind)
    return simple + vlb_weight * schedule.num_steps * vlb


def prediction_loss(
    schedule: NoiseSchedule,
    kind: str,
    output: Tensor,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    max_weight: float = 400.0,
    power: int = 2,
) -> Tensor:
    """L_simple of eps or v; of x_0 the same as x_0_loss_as_v, [B]."""
    if kind == "x_0":
        return x_0_loss_as_v(schedule, output, x_0, t, max_weight, power)
    return simple_loss(output, target_for(schedule, kind, x_0, eps, t), power)


def x_0_loss_as_v(
    schedule: NoiseSchedule,
    x_0_hat: Tensor,
    x_0: Tensor,
    t: Tensor,
    max_weight: float = 400.0,
    power: int = 2,
) -> Tensor:
    """Error of an x_0 prediction, weighed as the error of the v that it implies, [B].

    |v_hat - v|^p = |x_0_hat - x_0|^p / sqrt(1 - abar_t)^p with p = power, because at a given x_t
    v = (sqrt(abar_t) x_t - x_0) / sqrt(1 - abar_t)   (PD section 4: for p = 2 the weight SNR + 1)
    The weight is capped at max_weight: 400 where the noise's standard deviation is below 0.05.
    """
    loss = simple_loss(x_0_hat, x_0, power)
    weight = (1 - schedule.alphas_cumprod).pow(-power / 2).clamp(max=max_weight)
    return gather(weight, t, loss) * loss


def min_snr_weight(
    schedule: NoiseSchedule, t: Tensor, gamma: float = 5.0, kind: str = "eps"
) -> Tensor:
    """Min-SNR-gamma weight [B] of the loss simple_loss of a network of the kind given.

    x_0: min(SNR, gamma); eps: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1)
    (min-SNR section 3.4). All three weigh the same error of x_0_hat alike.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    snr = schedule.snr(t)
    divisors = {"x_0": torch.ones_like(snr), "eps": snr, "v": snr + 1}
    if kind not in divisors:
        raise ValueError(f"kind must be one of eps, v, x_0, got {kind!r}")
    return snr.clamp(max=gamma) / divisors[kind]


def contrastive_loss(
    z_img: Tensor,
    z_txt: Tensor,
    logit_scale: Tensor | float,
    max_scale: float = 100.0,
    all_z_img: Tensor | None = None,
    all_z_txt: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """CLIP's symmetric cross entropy over all pairs of a batch, [B]   (CLIP figure 3).

    logits = min(logit_scale, max_scale) * cos(z_img_i, z_txt_j); the loss of sample i is half
    the cross entropy of its row and half that of its column, in nats, with pair i as the answer.
    z_img and z_txt are [B, D], normalised here. logit_scale is the multiplier itself, the exp
    of the logarithm that transformers' CLIPModel stores. Where they are a part of a larger batch,
    all_z_img and all_z_txt [N, D] hold the whole, and theirs are the rows from first on. In fp32
    whatever autocast says: a scale of 100 leaves bf16 no decimals. ValueError when shapes differ.
    """
    if z_img.ndim != 2 or z_img.shape != z_txt.shape:
        raise ValueError(
            f"z_img {tuple(z_img.shape)} and z_txt {tuple(z_txt.shape)} must both be [B, D]"
        )
    with torch.autocast(z_img.device.type, enabled=False):
        scale = torch.as_tensor(logit_scale, dtype=torch.float32, device=z_img.device)
        scale = scale.clamp(max=max_scale)
        z_img, z_txt = (F.normalize(z.float(), dim=-1) for z in (z_img, z_txt))
        all_z_img = z_img if all_z_img is None else F.normalize(all_z_img.float(), dim=-1)
        all_z_txt = z_txt if all_z_txt is None else F.normalize(all_z_txt.float(), dim=-1)
        labels = first + torch.arange(z_img.shape[0], device=z_img.device)
        by_image = F.cross_entropy(scale * z_img @ all_z_txt.T, labels, reduction="none")
        by_text = F.cross_entropy(scale * z_txt @ all_z_img.T, labels, reduction="none")
        return (by_image + by_text) / 2


def _mean_per_sample(values: Tensor) -> Tensor:
    """Mean over all dimensions but the first, [B]."""
    return values.flatten(1).mean(dim=1)
