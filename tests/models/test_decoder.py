"""The decoder: every condition enters, padding does not, both text encoders work."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unclip import Decoder, UnCLIPTextProjModel
from unclip.models.decoder import Context, known_part

TINY = dict(
    embedding_dim=32, context=12, size=16, channels=(32, 32), num_blocks=1,
    attention_levels=(False, True), head_dim=16, context_dim=32, dropout=0.0,
)  # fmt: skip
GLIDE = dict(text_encoder=dict(vocab_size=50, context=12, width=24, num_layers=1, num_heads=2))


@pytest.fixture(params=["karlo", "glide"])
def decoder(request, shaken):
    torch.manual_seed(0)
    return shaken(Decoder(**TINY, **(GLIDE if request.param == "glide" else {})))


def run(decoder, text, z_img=None, t=500, x_t=None):
    batch_size = len(text.z_txt)
    if x_t is None:
        x_t = torch.linspace(-1, 1, 3 * 256).view(1, 3, 16, 16).expand(batch_size, -1, -1, -1)
    z_img = torch.ones(batch_size, 32) if z_img is None else z_img
    with torch.no_grad():
        return decoder(x_t, torch.full((batch_size,), t), z_img, text)


def test_every_condition_matters(decoder, text):
    base = text(8)
    out = run(decoder, base)
    assert out.shape == (1, 6, 16, 16)
    assert not torch.allclose(out, run(decoder, base, t=100), atol=1e-3)
    assert not torch.allclose(out, run(decoder, base, z_img=-torch.ones(1, 32)), atol=1e-3)
    assert not torch.allclose(out, run(decoder, base, z_img=decoder.null_z_img(1)), atol=1e-3)
    assert not torch.allclose(out, run(decoder, text(8, seed=1)), atol=1e-3)


def test_the_null_embedding_stands_where_it_is_told_to(decoder, text):
    x_t, t, z_img = torch.zeros(2, 3, 16, 16), torch.full((2,), 500), torch.ones(2, 32)
    with torch.no_grad():
        one_without = decoder(x_t, t, z_img, text(8, 8), no_z_img=torch.tensor([True, False]))
        z_img[0] = decoder.null_z_img(1)[0]
        assert torch.equal(one_without, decoder(x_t, t, z_img, text(8, 8)))


def test_gradient_checkpointing_changes_no_gradient(text):
    decoder = Decoder(**TINY, text_encoder={"vocab_size": 50, "context": 12, "width": 32,
                                            "num_layers": 2, "num_heads": 2})  # fmt: skip
    inputs = torch.randn(1, 3, 16, 16), torch.tensor([500]), torch.ones(1, 32), text(8)

    def gradients():
        decoder.zero_grad()
        decoder(*inputs).square().mean().backward()
        return {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}

    plain = gradients()
    decoder.enable_gradient_checkpointing()
    assert decoder.text_transformer.gradient_checkpointing
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, plain[name], atol=1e-6, rtol=1e-4), name


def test_padding_does_not_matter(decoder, text):
    one = text(5)
    states, tokens = one.text_states.clone(), one.tokens.clone()
    states[:, 5:], tokens[:, 5:] = 100.0, 49
    other = one._replace(text_states=states, tokens=tokens)
    assert torch.allclose(run(decoder, one), run(decoder, other), atol=1e-4)


@torch.no_grad()
def test_a_context_is_read_once(decoder, text):
    """Its tokens that pad in every caption are left out; what comes out is the same."""
    captions, z_img, context = text(5, 2), torch.ones(2, 32), Context()
    for t in (900, 5):
        x_t = torch.randn(2, 3, 16, 16)
        expected = decoder(x_t, torch.tensor([t, t]), z_img, captions)
        found = decoder(x_t, torch.tensor([t, t]), z_img, captions, context=context)
        assert torch.allclose(found, expected, atol=1e-5)
    assert context.tokens.shape[1] == 4 + 5 and len(context.keys_and_values) == 4
    # Whatever is given beside it is not looked at.
    blind = decoder(x_t, torch.tensor([5, 5]), z_img * torch.nan, text(1, 1), context=context)
    assert torch.equal(blind, found)
    decoder.unet.set_attention_slice(1)  # the library's slices know nothing of ours
    sliced = decoder(x_t, torch.tensor([5, 5]), z_img, captions, context=Context())
    assert torch.allclose(sliced, expected, atol=1e-5)


@torch.no_grad()
def test_deep_levels_may_be_kept_for_the_next_steps(text, shaken):
    """Where nothing has changed they are exact; where it has, every third call runs them again."""
    decoder, captions, z_img = shaken(Decoder(**TINY)), text(5), torch.ones(1, 32)
    x_t, other = torch.randn(2, 1, 3, 16, 16)
    early, late = torch.tensor([700]), torch.tensor([300])
    context = Context(reuse=3)
    exact = decoder(x_t, early, z_img, captions)
    for _ in range(3):
        found = decoder(x_t, early, z_img, captions, context=context)
        assert torch.allclose(found, exact, atol=1e-5)
    exact = decoder(other, late, z_img, captions)
    with FlopCounterMode(display=False) as whole:
        found = decoder(other, late, z_img, captions, context=context)
    assert torch.allclose(found, exact, atol=1e-5)
    with FlopCounterMode(display=False) as outer:
        found = decoder(x_t, early, z_img, captions, context=context)
    assert not torch.allclose(found, decoder(x_t, early, z_img, captions), atol=1e-4)
    assert outer.get_total_flops() < 0.8 * whole.get_total_flops()


@torch.no_grad()
def test_a_pass_that_keeps_its_deep_levels_is_the_library_s(text, shaken):
    """To the bit, with two levels below the first, captions that pad, and sliced attention."""
    deep = {"size": 32, "channels": (32, 32, 64), "attention_levels": (False, True, True)}
    decoder = shaken(Decoder(**{**TINY, **deep}))
    given = torch.randn(2, 3, 32, 32), torch.tensor([500, 20]), torch.ones(2, 32), text(5, 9)
    for _ in range(2):
        found = decoder(*given, context=Context(reuse=2))
        assert torch.equal(found, decoder(*given, context=Context()))
        decoder.unet.set_attention_slice(1)


def test_threads_keep_the_deep_levels_of_their_own_pass(text, shaken):
    decoder = shaken(Decoder(**TINY))

    def kept(number: int) -> torch.Tensor:
        context, x_t = Context(reuse=2), torch.full((1, 3, 16, 16), number / 2)
        with torch.no_grad():
            decoder(x_t, torch.tensor([500]), torch.ones(1, 32), text(5), context=context)
        return context.from_below

    alone = [kept(number) for number in range(2)]
    meeting = threading.Barrier(2, timeout=60)  # in the middle of their passes

    def meet(*_) -> None:
        meeting.wait()

    decoder.unet.mid_block.register_forward_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(kept, range(2)))
    assert not torch.allclose(*alone, atol=1e-3)
    for expected, found in zip(alone, together, strict=True):
        assert torch.equal(found, expected)


def test_a_picture_does_not_depend_on_its_batch(decoder, text):
    both = text(5, 9)
    assert torch.allclose(run(decoder, both)[1:], run(decoder, both.select(slice(1, 2))), atol=1e-4)


def test_stem_keeps_the_size(text, shaken):
    decoder = shaken(
        Decoder(**{**TINY, "size": 32}, stem=2, prediction="v", learned_variance=False)
    )
    x_t = torch.randn(1, 3, 32, 32)
    assert run(decoder, text(4), x_t=x_t).shape == (1, 3, 32, 32)


@pytest.fixture
def hole():
    """A picture and a mask of its left half."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    return torch.rand(1, 3, 16, 16) * 2 - 1, mask


@pytest.mark.parametrize("stem", [1, 2])
def test_inpainting_begins_where_the_plain_decoder_is(stem, text, shaken, hole):
    """With the new weights at zero it is the plain one, whatever is known; trained, it is not."""
    plain = shaken(Decoder(**{**TINY, "size": 16 * stem}, stem=stem))
    hole = [half.repeat(1, 1, stem, stem) for half in hole]
    inpainter = Decoder.for_inpainting(plain)
    assert inpainter.config.inpainting and inpainter.unet.conv_in.in_channels == 7 * stem**2
    inputs = torch.randn_like(hole[0]), torch.tensor([500]), torch.ones(1, 32), text(6)
    with torch.no_grad():
        expected = plain(*inputs)
        for known in (None, known_part(*hole)):
            got = inpainter(*inputs, known)
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
        inpainter.unet.conv_in.weight[:, 3 * stem**2 :] += 0.1
        changed = inpainter(*inputs, known_part(*hole))
    assert (changed - expected).abs().mean() > 1e-3
    with pytest.raises(ValueError, match="^decoder"):
        Decoder.for_inpainting(inpainter)
    with pytest.raises(ValueError, match="^known"):
        plain(*inputs, known_part(*hole))


def test_the_new_weights_of_inpainting_are_zero_and_learn(text, hole):
    inpainter = Decoder(**TINY, inpainting=True)
    new = inpainter.unet.conv_in.weight[:, 3:]
    assert not new.any() and inpainter.unet.conv_in.weight[:, :3].abs().min() > 0
    t, z_img = torch.tensor([500]), torch.ones(1, 32)
    torch.nn.init.normal_(inpainter.unet.conv_out.weight, std=0.1)
    inpainter(torch.randn(1, 3, 16, 16), t, z_img, text(6), known_part(*hole)).mean().backward()
    assert inpainter.unet.conv_in.weight.grad[:, 3:].abs().amin() > 0


def test_what_is_painted_is_hidden_from_the_network(hole):
    x_0, mask = hole
    known = known_part(x_0, mask)
    assert known.shape == (1, 4, 16, 16)
    assert not known[..., :8][:, :3].any() and torch.equal(known[:, :3, :, 8:], x_0[..., 8:])
    assert torch.equal(known[:, 3:], mask)


def test_save_and_load(decoder, text, tmp_path):
    decoder.save_pretrained(tmp_path, max_shard_size="50KB")
    loaded = Decoder.from_pretrained(tmp_path).eval()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.allclose(run(loaded, text(6)), run(decoder, text(6)), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prediction": "x"}, "^prediction"),
        ({"prediction": "x_0", "learned_variance": True}, "^learned_variance"),
        ({"head_dim": 20}, "head_dim"),
        ({"size": 18}, None),
        ({"size": 15}, "size"),
        ({"attention_levels": (True,)}, "attention_levels"),
        ({"context": 60}, "context"),  # 64 tokens beside the 64 cells of an 8 x 8 grid
    ],
)
def test_arguments_that_do_not_fit_are_named(change, named):
    if named is None:
        Decoder(**{**TINY, **change})
        return
    with pytest.raises(ValueError, match=named):
        Decoder(**{**TINY, **change})


def test_text_proj_equals_the_library_s():
    """Names, shapes and result are those that Karlo's weights were made for."""
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel as Reference

    sizes = dict(clip_embeddings_dim=8, time_embed_dim=16, cross_attention_dim=12)
    ours, reference = UnCLIPTextProjModel(**sizes), Reference(**sizes)
    reference.load_state_dict(ours.state_dict())
    z_img, z_txt, states = torch.randn(2, 8), torch.randn(2, 8), torch.randn(2, 5, 8)
    expected = reference(
        image_embeddings=z_img,
        prompt_embeds=z_txt,
        text_encoder_hidden_states=states,
        do_classifier_free_guidance=False,
    )
    for one, other in zip(ours(z_img, z_txt, states), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert UnCLIPTextProjModel.__module__ == "unclip"


def test_karlo_size():
    """Karlo's decoder fits by construction; 885 M parameters and 716 tensors in the U-Net."""
    with torch.device("meta"):
        decoder = Decoder()
    assert sum(p.numel() for p in decoder.unet.parameters()) == pytest.approx(885e6, rel=0.005)
    assert len(decoder.unet.state_dict()) == 716
