"""Principal components of CLIP embeddings: what is left of a picture with few of them.

Shapes: N pictures, D CLIP embedding, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = "principal components of CLIP embeddings"


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Directions in which CLIP embeddings differ most, the widest first   (unCLIP section 3.3).

    Attributes:
        mean: [D] of the embeddings.
        directions: [K, D], orthonormal.
        variances: [K] of the embeddings along the directions, descending.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    def fit(cls, z_img: Tensor) -> PrincipalComponents:
        """The min(N - 1, D) components of embeddings [N, D].

        Raises:
            ValueError: for fewer than two embeddings, or values that are not finite.
        """
        if not isinstance(z_img, Tensor) or z_img.ndim != 2 or len(z_img) < 2:
            raise ValueError("z_img: give a tensor [N, D] of at least two embeddings")
        if not torch.isfinite(z_img).all():
            raise ValueError("z_img: all values must be finite")
        z = z_img.double().cpu()
        mean = z.mean(dim=0)
        _, lengths, directions = torch.linalg.svd(z - mean, full_matrices=False)
        count = min(len(z) - 1, z.shape[1])  # N points span N - 1 dimensions
        variances = lengths**2 / (len(z) - 1)
        return cls(mean.float(), directions[:count].float(), variances[:count].float())

    @property
    def num_components(self) -> int:
        """K."""
        return len(self.directions)

    def project(self, z_img: Tensor, num_components: int) -> Tensor:
        """z_img [B, D] with the first k components alone: mean + (z_img - mean) V_k V_k^T.

        Raises:
            ValueError: for a number that is not from 0 to K, or embeddings of another length.
        """
        if isinstance(num_components, bool) or not isinstance(num_components, int):
            raise ValueError(f"num_components: give whole numbers, not {num_components!r}")
        if not 0 <= num_components <= self.num_components:
            raise ValueError(
                f"num_components: these are {self.num_components} components, not {num_components}"
            )
        if z_img.ndim != 2 or z_img.shape[1] != len(self.mean):
            raise ValueError(
                f"z_img: the shape must be [B, {len(self.mean)}], not {list(z_img.shape)}"
            )
        mean, v_k = self.mean.to(z_img), self.directions[:num_components].to(z_img)
        return mean + (z_img - mean) @ v_k.T @ v_k

    def explained(self, num_components: int) -> float:
        """The share of the embeddings' variance that lies along the first components."""
        return float(self.variances[:num_components].sum() / self.variances.sum())

    def save(self, path: str | Path) -> None:
        """Write them as one safetensors file."""
        tensors = {name: getattr(self, name) for name in ("mean", "directions", "variances")}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, path, metadata={"format": FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> PrincipalComponents:
        """Read what save() wrote.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"path: {path} does not exist")
        try:
            tensors = load_file(path)
            read = cls(*(tensors[name] for name in ("mean", "directions", "variances")))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"path: {path} holds no principal components ({error})") from None
        count, dim = read.directions.shape if read.directions.ndim == 2 else (0, 0)
        if not count or read.mean.shape != (dim,) or read.variances.shape != (count,):
            raise ValueError(f"path: {path} holds components of shapes that do not fit")
        return read
