"""Embeddings of drawings that are shown again and again are worked out once."""

import torch

from unclip import CLIP
from unclip_train.conditions import PlainEmbeddings, image_embeddings
from unclip_train.data.dataset import DrawingDataset
from unclip_train.data.loader import collate, to_unit_range

CPU = torch.device("cpu")


def test_kept_embeddings_are_those_of_the_pictures(drawings_folder, tiny_clip, monkeypatch):
    clip = CLIP.from_pretrained(tiny_clip)
    dataset = DrawingDataset(drawings_folder, 16, plain_share=0.5)
    kept, encoded = PlainEmbeddings(clip, dataset), []
    encode = clip.encode_image
    monkeypatch.setattr(clip, "encode_image", lambda x: encoded.append(len(x)) or encode(x))
    batch = collate([dataset[position] for position in range(24)])
    num_plain = sum(name != "" for name in batch["plain"])
    assert 4 < num_plain < 20
    wanted = encode(to_unit_range(batch["image"], CPU))
    found = image_embeddings(clip, batch, CPU, kept)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert encoded == [15, 24 - num_plain]  # all 15 drawings are one group
    again = image_embeddings(clip, batch, CPU, kept)
    assert torch.equal(again, found) and encoded[2:] == [24 - num_plain]


def test_an_embedding_does_not_depend_on_the_batch(drawings_folder, tiny_clip):
    clip = CLIP.from_pretrained(tiny_clip)
    dataset = DrawingDataset(drawings_folder, 16, plain_share=1.0)
    whole = collate([dataset[position] for position in range(15)])
    first = image_embeddings(clip, whole, CPU, PlainEmbeddings(clip, dataset))
    for row in (3, 11):
        single = collate([dataset[row]])
        assert torch.equal(
            image_embeddings(clip, single, CPU, PlainEmbeddings(clip, dataset))[0], first[row]
        )


def test_held_out_drawings_are_not_taken_for_others(drawings_folder, tiny_clip):
    clip = CLIP.from_pretrained(tiny_clip)
    kept = PlainEmbeddings(clip, DrawingDataset(drawings_folder, 16, plain_share=1.0))
    held_out = DrawingDataset(drawings_folder, 16, plain_share=1.0, held_out=True)
    batch = collate([held_out[0]])
    assert batch["plain"] == ["noto/black-ring"]
    wanted = clip.encode_image(to_unit_range(batch["image"], CPU))
    assert torch.equal(image_embeddings(clip, batch, CPU, kept), wanted)
