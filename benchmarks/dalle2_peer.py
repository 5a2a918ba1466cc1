"""dalle2-pytorch at work, for the scripts beside it: run by the Python of its own environment.

It reads one line of JSON that says what to build, answers with the number of parameters, and then
works once for every line it reads, answering with the seconds that this took. It uses the library
as its README and its training scripts do: the trainers with their defaults, and DALLE2's forward.
"""

import json
import os
import sys
import time

import torch
from accelerate import Accelerator
from dalle2_pytorch import CLIP, DALLE2, Decoder, DiffusionPrior, DiffusionPriorNetwork, Unet
from dalle2_pytorch.trainer import DecoderTrainer, DiffusionPriorTrainer


def stored_text(spec: dict, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """z_txt [B, D] and text states [B, L, D] that are zero behind a caption's end."""
    z_txt = torch.randn(spec["batch_size"], spec["dim"], generator=generator)
    z_txt = torch.nn.functional.normalize(z_txt, dim=-1)
    states = torch.randn(spec["batch_size"], spec["context"], spec["dim"], generator=generator)
    lengths = torch.tensor(spec["lengths"])
    return z_txt, states * (torch.arange(spec["context"]) < lengths[:, None])[..., None]


def make_prior(spec: dict, clip: CLIP | None = None, steps: int | None = None) -> DiffusionPrior:
    """The diffusion prior of the README, of the depth asked for."""
    network = DiffusionPriorNetwork(
        dim=spec["dim"],
        depth=spec["depth"],
        dim_head=64,
        heads=spec["dim"] // 64,
        max_text_len=spec["context"],
        num_timesteps=1000,
    )
    where = {"clip": clip} if clip is not None else {"image_embed_dim": spec["dim"]}
    return DiffusionPrior(
        net=network,
        sample_timesteps=steps,
        text_cond_drop_prob=0.1,
        image_cond_drop_prob=0.1,
        **where,
    )


def make_unet(spec: dict, dim: int, dim_mults: list[int], with_text: bool) -> Unet:
    """A U-Net of the README."""
    text = {"text_embed_dim": spec["dim"], "cond_on_text_encodings": True} if with_text else {}
    return Unet(
        dim=dim,
        image_embed_dim=spec["dim"],
        cond_dim=spec["cond_dim"],
        channels=3,
        dim_mults=tuple(dim_mults),
        max_text_len=spec["context"],
        **text,
    )


def prior_update(spec: dict):
    """One update of the prior from stored embeddings, and the network."""
    prior = make_prior(spec)
    trainer = DiffusionPriorTrainer(
        prior, accelerator=Accelerator(mixed_precision=spec["precision"], cpu=True), lr=3e-4
    )
    generator = torch.Generator().manual_seed(0)
    z_txt, states = stored_text(spec, generator)
    z_img = torch.nn.functional.normalize(torch.randn(z_txt.shape, generator=generator), dim=-1)

    def update() -> None:  # z_img is scaled in place by each call, so that it gets a copy
        trainer(text_embed=z_txt, image_embed=z_img.clone(), text_encodings=states)
        trainer.update()

    return update, prior.net


def decoder_update(spec: dict):
    """One update of the decoder from pictures and stored embeddings, and the network."""
    unet = make_unet(spec, spec["unet_dim"], spec["dim_mults"], with_text=True)
    decoder = Decoder(unet=unet, image_sizes=(spec["size"],), timesteps=1000)
    trainer = DecoderTrainer(
        decoder, accelerator=Accelerator(mixed_precision=spec["precision"], cpu=True)
    )
    generator = torch.Generator().manual_seed(0)
    z_img, states = stored_text(spec, generator)
    pictures = torch.rand(spec["batch_size"], 3, spec["size"], spec["size"], generator=generator)

    def update() -> None:
        trainer(pictures, image_embed=z_img, text_encodings=states, unet_number=1)
        trainer.update(1)

    return update, decoder.unets[0]


def counted(network: torch.nn.Module, rows: dict[str, int], name: str) -> torch.nn.Module:
    """The network, whose forward adds the rows that it is given to those of its name."""
    forward = network.forward

    def count(x: torch.Tensor, *args, **kwargs):
        rows[name] = rows.get(name, 0) + len(x)
        return forward(x, *args, **kwargs)

    network.forward = count
    return network


def drawing(spec: dict):
    """Pictures of captions through DALLE2, and its networks; rows goes with the answers."""
    clip = CLIP(
        dim_text=spec["dim"],
        dim_image=spec["dim"],
        dim_latent=spec["dim"],
        num_text_tokens=49408,
        text_enc_depth=spec["text_depth"],
        text_seq_len=spec["context"],
        text_heads=spec["dim"] // 64,
        visual_enc_depth=1,
        visual_heads=spec["dim"] // 64,
    )
    # its DDIM takes one step less in the prior than it is asked for
    prior = make_prior(spec, clip, spec["steps"]["prior"] + 1)
    decoder = Decoder(
        unet=(
            make_unet(spec, spec["unet_dim"], spec["dim_mults"], with_text=True),
            make_unet(spec, spec["upsampler_dim"], spec["upsampler_mults"], with_text=False),
        ),
        image_sizes=(spec["size"], 4 * spec["size"]),
        clip=clip,
        sample_timesteps=(spec["steps"]["decoder"], spec["steps"]["upsampler"]),
    )
    model = DALLE2(prior=prior, decoder=decoder).eval()
    networks = {"prior": prior.net, "decoder": decoder.unets[0], "upsampler": decoder.unets[1]}
    for name, network in networks.items():
        counted(network, spec.setdefault("rows", {}), name)

    def draw() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=spec["precision"] == "bf16"):
            model(spec["captions"], cond_scale=(2.0, 1.0), prior_cond_scale=2.0)

    return draw, torch.nn.ModuleList(networks.values())


WORK = {"prior": prior_update, "decoder": decoder_update, "drawing": drawing}


def main() -> None:
    """Answer line by line; the library's own words go to the standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(spec["threads"])
    work, network = WORK[spec["work"]](spec)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    answers.write(json.dumps({"parameters": parameters, "torch": torch.__version__}) + "\n")
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            work()
        answer = {"seconds": time.perf_counter() - start, "rows": spec.get("rows")}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
