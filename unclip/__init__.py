"""unCLIP (DALL-E 2): a caption becomes a CLIP embedding, a picture's embedding, and a picture.

Public names are loaded when they are first asked for, so that importing the package costs nothing.
Folders in Karlo's layout name the library "unclip" and ask it for UnCLIPTextProjModel and for the
base class ModelMixin; both are therefore part of this namespace.
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("unclip")

_HOME = {
    "CLIP": "unclip.models.clip",
    "TextEncoding": "unclip.models.clip",
    "Prior": "unclip.models.prior",
    "LaionPrior": "unclip.models.laion_prior",
    "Decoder": "unclip.models.decoder",
    "TextTransformer": "unclip.models.text_encoder",
    "Upsampler": "unclip.models.upsampler",
    "UnCLIPTextProjModel": "unclip.models.text_proj",
    "StageSettings": "unclip.pipeline.settings",
    "Interrupted": "unclip.pipeline.call",
    "UnCLIPPipeline": "unclip.pipeline.pipeline",
    "PrincipalComponents": "unclip.pipeline.principal_components",
    "ModelMixin": "diffusers",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'unclip' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
