"""Copies of the images of a PyTorch data set, made once and kept, beside the originals in a data loader.

python examples/augment_training.py
"""

import tempfile

import torch
from skimage import data
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import nearfar


def main(count: int = 32, copies: int = 2, steps: int = 20) -> int:
    model = nearfar.load_model()
    faces = torch.tensor(data.lfw_subset()[:count]).float()
    labels = (torch.arange(count) < count // 2).long()
    images = [torch.nn.functional.interpolate(face[None, None], model.image.size)[0] for face in faces]
    base = TensorDataset(torch.stack(images).expand(-1, model.image.channels, -1, -1), labels)
    with tempfile.TemporaryDirectory() as cache:
        near = nearfar.NearDataset(base, model, cache=cache, copies=copies, strength=(0.1, 0.3), steps=steps)
        print(near, "made", near.fill())
        loader = DataLoader(ConcatDataset([base, near]), batch_size=16, shuffle=True)
        seen = sum(len(batch_labels) for _, batch_labels in loader)
    print(f"{seen} images a round, {count} of them original")
    return seen


if __name__ == "__main__":
    main()
