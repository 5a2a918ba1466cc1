"""A decoder that needs few steps and no guidance, taught by one that needs many and two passes.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from unclip.diffusion.distillation import check_steps, student_times, teacher_jump
from unclip.diffusion.gaussian import eps_from_x_0, q_sample, x_0_from_prediction
from unclip.diffusion.guidance import guide
from unclip.diffusion.losses import prediction_loss
from unclip.models.clip import TextEncoding
from unclip.models.decoder import Decoder
from unclip_train.config import ConfigError, DecoderConfig
from unclip_train.decoder import DecoderStage
from unclip_train.draws import draw_noise_like, draw_timesteps, drop_captions
from unclip_train.previews import Sampling
from unclip_train.validation import generators_of
from unclip_train.weights import load_network


class DistillationStage:
    """One step of the student is distill.substeps guided DDIM steps of the teacher.

    Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2; the guided teacher is that of Meng et al.
    2023 (arXiv 2210.03142), section 3.1, at one scale. The student is sampled by "ddim" in
    distill.steps steps at guidance 1.

    Args:
        stage: the student's, whose data, conditions and previews serve.
        teacher: a decoder of the same kind.
    """

    name = "decoder"

    def __init__(self, stage: DecoderStage, teacher: Decoder):
        self.stage, self.network = stage, stage.network
        self.teacher = teacher.requires_grad_(False).eval()
        self.settings, self.schedule = stage.config.distill, stage.schedule
        self.times = student_times(self.schedule.num_steps, self.settings.steps)  # [N]

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Squared error of v or x_0, at the beginning of one of the student's steps."""
        drop_text = self.stage.config.drop_text
        captions = drop_captions(batch["caption"], drop_text, generators)
        step = draw_timesteps(len(self.times), generators, torch.device("cpu"))  # [B]
        return {"loss": self._errors(network, batch, captions, step, generators).mean()}

    def _errors(
        self,
        network: nn.Module,
        batch: dict,
        captions: list[str],
        step: Tensor,
        generators: list[torch.Generator],
    ) -> Tensor:
        """The loss [B] of the student's steps [B]."""
        x_0, z_img, text = self.stage.conditions(network, batch, captions)
        device = x_0.device
        ends = torch.cat([torch.tensor([-1]), self.times])
        t, t_end = ends[step + 1].to(device), ends[step].to(device)
        eps = draw_noise_like(x_0, generators)
        x_t = q_sample(self.schedule, x_0, t, eps)
        unguided = self.stage.clip.encode_text([""] * len(x_0))
        x_0_hat = teacher_jump(
            self.schedule,
            lambda x, now: self._guided_x_0(x, now, z_img, text, unguided),
            x_t,
            t,
            t_end,
            self.settings.substeps,
        )
        eps_hat = eps_from_x_0(self.schedule, x_t, x_0_hat, t)
        output = network(x_t, t, z_img, text, None, None).float()
        kind, weight = self.network.config.prediction, self.stage.config.max_loss_weight
        return prediction_loss(self.schedule, kind, output, x_0_hat, eps_hat, t, weight)

    def _guided_x_0(
        self, x_t: Tensor, t: Tensor, z_img: Tensor, text: TextEncoding, unguided: TextEncoding
    ) -> Tensor:
        """The teacher's x_0_hat under classifier-free guidance."""
        output = self.teacher.to(x_t.device)(x_t, t, z_img, text).float()
        if self.settings.guidance != 1:
            no_z_img = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device)
            output = guide(
                output,
                self.teacher(x_t, t, z_img, unguided, None, no_z_img).float(),
                self.settings.guidance,
            )
        return x_0_from_prediction(self.schedule, self.teacher.config.prediction, x_t, output, t)

    @torch.no_grad()
    def validate(self, network: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
        """How far the student's steps end from the teacher's, each step by itself."""
        sums: dict[str, list[float]] = {}
        for batch in batches:
            for number in range(len(self.times)):
                step = torch.full((len(batch["position"]),), number)
                error = self._errors(network, batch, batch["caption"], step, generators_of(batch))
                sums.setdefault(f"loss/step_{number}", []).append(float(error.mean()))
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def save(self, network: nn.Module, folder: Path) -> None:
        """A folder that Decoder.from_pretrained reads."""
        self.stage.save(network, folder)

    def preview(self, network: nn.Module) -> Image.Image:
        """As the decoder's, in the student's own number of steps."""
        return self.stage.preview(network, Sampling(self.settings.steps, guidance=1.0))


def make_stage(config: DecoderConfig, stage: DecoderStage) -> DistillationStage:
    """The decoder's stage with a teacher beside it.

    Raises:
        ConfigError: when student and teacher are of different kinds, or the steps do not fit.
    """
    teacher = load_network("decoder", config.distill.teacher, {}, "distill.teacher")
    for name in ("embedding_dim", "context", "size", "schedule", "num_train_timesteps"):
        ours, its = stage.network.config[name], teacher.config[name]
        if ours != its:
            raise ConfigError(f"distill.teacher: its {name} is {its}, the student's {ours}")
    for who, network in (("network", stage.network), ("distill.teacher", teacher)):
        made = network.config
        if made.prediction == "eps" or made.learned_variance or made.inpainting:
            raise ConfigError(
                f"{who}: distillation is of decoders with prediction v or x_0, learned_variance "
                "false and inpainting false"
            )
    try:
        check_steps(stage.schedule.num_steps, config.distill.steps, config.distill.substeps)
    except ValueError as error:
        raise ConfigError(f"distill.substeps: {error}") from error
    return DistillationStage(stage, teacher)
