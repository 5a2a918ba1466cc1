"""How well embeddings agree: CLIP score, ranks among captions, and the cosines of a prior.

Shapes: N pictures, M captions, K distractors a picture, D embedding. Embeddings need not have
length 1.

Sources: CLIPScore = Hessel et al. 2021 (arXiv 2104.08718), AttnGAN = Xu et al. 2018 (arXiv
1711.10485), GLIDE = Nichol et al. 2021 (arXiv 2112.10741).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_features, check_pairs, check_two_sets, check_values

TIE = 1e-6  # cosines this close are equal: float32 embeddings hold no more


def clip_score(z_img: Tensor, z_txt: Tensor) -> Tensor:
    """cos(z_img, z_txt) of each pair, [N] float64 in [-1, 1].

    z_img, z_txt: [N, D]. Papers print 100 times the mean (GLIDE: the logit scale of CLIP).
    """
    z_img, z_txt = check_pairs(("z_img", "z_txt"), z_img, z_txt)
    return F.cosine_similarity(z_img, z_txt, dim=1)


def rescaled_clip_score(cosine: Tensor) -> Tensor:
    """w max(cos, 0) with w = 2.5, [N] in [0, 2.5]   (CLIPScore, section 3)."""
    return 2.5 * cosine.clamp(min=0)


def ranks_among(z_img: Tensor, z_txt: Tensor, own: Tensor, distractors: Tensor) -> Tensor:
    """How many of its distractors each picture fits at least as well as its own caption, [N] int.

    0 means that its own caption was found first; a tie counts against it, so that an encoder which
    gives all captions one embedding finds none.

    z_img: [N, D]. z_txt: [M, D] of all captions. own: [N], the row of z_txt that belongs to each
    picture. distractors: [N, K], rows of z_txt that do not. ValueError when a picture has its own
    caption among its distractors, or a number is no row.
    """
    z_img, z_txt = check_two_sets(("z_img", "z_txt"), z_img, z_txt)
    for name, rows, shape in (("own", own, [len(z_img)]), ("distractors", distractors, None)):
        fits = list(rows.shape) == shape if shape else rows.ndim == 2 and len(rows) == len(z_img)
        if not fits or rows.is_floating_point() or rows.dtype == torch.bool:
            wanted = "[N]" if shape else "[N, K]"
            raise ValueError(f"{name}: give row numbers {wanted}, not {tuple(rows.shape)}")
        if rows.numel() and not (0 <= int(rows.min()) and int(rows.max()) < len(z_txt)):
            raise ValueError(f"{name}: rows must lie in 0..{len(z_txt) - 1}")
    if (distractors == own[:, None]).any():
        raise ValueError("distractors: a picture's own caption is among them")
    scores = F.normalize(z_img, dim=1) @ F.normalize(z_txt, dim=1).T  # [N, M]
    rivals = scores.gather(1, distractors)  # [N, K]
    return (rivals >= scores.gather(1, own[:, None]) - TIE).sum(dim=1)


def recall_at(ranks: Tensor, k: int) -> float:
    """R@k: the share of pictures whose own caption is among the k best, in [0, 1].

    With 99 distractors R@1 is AttnGAN's R-precision. ranks: [N], as ranks_among gives them.
    """
    if k < 1:
        raise ValueError(f"k: give at least 1, not {k}")
    return float((check_values("ranks", ranks) < k).double().mean())


def prior_cosines(z_img_hat: Tensor, z_img: Tensor, z_txt: Tensor) -> dict[str, Tensor]:
    """Cosines that say whether a prior works, each [N] float64.

    z_img_hat: [N, D], the prior's embeddings. z_img: [N, D], of the true pictures. z_txt: [N, D].
    "image": cos(z_img_hat, z_img), which should be high. "text": cos(z_img_hat, z_txt), and
    "truth": cos(z_img, z_txt), which "text" should come near. "unrelated": cos(z_img_hat, z_img of
    the next row), which "image" must beat: an average picture gets it for nothing.
    """
    if len(z_img) < 2:
        raise ValueError(f"z_img: give at least 2 rows, not {len(z_img)}")
    return {
        "image": F.cosine_similarity(*check_pairs(("z_img_hat", "z_img"), z_img_hat, z_img)),
        "text": F.cosine_similarity(*check_pairs(("z_img_hat", "z_txt"), z_img_hat, z_txt)),
        "truth": clip_score(z_img, z_txt),
        "unrelated": F.cosine_similarity(z_img_hat.double(), z_img.double().roll(-1, dims=0)),
    }


def probabilities_among(z_img: Tensor, z_txt: Tensor, logit_scale: float) -> Tensor:
    """softmax over captions of logit_scale cos(z_img, z_txt), [N, M] float64: zero-shot classes.

    z_img: [N, D]. z_txt: [M, D]. logit_scale: exp of the CLIP's logit_scale parameter, 100 where
    training has reached its limit.
    """
    z_img, z_txt = check_two_sets(("z_img", "z_txt"), z_img, z_txt)
    if not logit_scale > 0:
        raise ValueError(f"logit_scale: give a number above 0, not {logit_scale}")
    return (logit_scale * F.normalize(z_img, dim=1) @ F.normalize(z_txt, dim=1).T).softmax(dim=1)


def chosen_among(z_img: Tensor, z_txt: Tensor) -> Tensor:
    """Which of its own candidates fits each picture best, [N] int; -1 where two fit alike.

    z_img: [N, D]. z_txt: [N, C, D], the candidates of each picture: "one apple", "two apples", ...
    """
    num, width = z_img.shape
    if z_txt.ndim != 3 or len(z_txt) != num or z_txt.shape[2] != width:
        raise ValueError(f"z_txt: give [{num}, C, {width}], not {tuple(z_txt.shape)}")
    check_features("z_img", z_img)
    check_features("z_txt", z_txt.flatten(0, 1))
    scores = F.cosine_similarity(z_img.double()[:, None], z_txt.double(), dim=2)  # [N, C]
    best, index = scores.max(dim=1)
    return index.where((scores >= best[:, None] - TIE).sum(dim=1) == 1, -1)
