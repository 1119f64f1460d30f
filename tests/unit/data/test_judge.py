"""Who judges copies: a cross-fitted classifier against scikit-learn's own cross-validation, and a trained one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.data.judge import cross_fitted, deal, load_classifier, trained_judge
from nearfar.errors import UsageError
from nearfar.metrics.features import pixel_features

pytest.importorskip("sklearn", reason="the classifier comes from scikit-learn (the extra metrics)")


@pytest.fixture
def overlapping(tmp_path):
    """Two classes of noisy gray pictures that overlap; returns the folder, names and labels."""
    random, names = np.random.default_rng(0), []
    for label, level, count in (("dark", 115, 23), ("light", 135, 17)):
        (tmp_path / label).mkdir()
        for number in range(count):
            names.append(f"{label}/{number:02}.png")
            pixels = (level + random.normal(0, 12) + random.normal(0, 20, (4, 4))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / names[-1])
    return tmp_path, names, {name: (name.split("/")[0],) for name in names}


def test_originals_are_judged_as_scikit_learn_cross_validates_them(overlapping):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder, names, labels = overlapping
    judge = cross_fitted(pixel_features(4, 1), folder, names, labels)
    pixels = np.stack([np.asarray(Image.open(folder / name), float).ravel() for name in names]) / 127.5 - 1
    own = np.array([labels[name][0] for name in names])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    expected = cross_val_predict(model, pixels, own, cv=PredefinedSplit(deal(own.tolist())), method="predict_proba")
    right = expected[np.arange(40), (own == "light").astype(int)]
    assert [judge.own[name] for name in names] == pytest.approx(right.tolist(), abs=1e-4)
    assert f"cross-validated accuracy {(right > 0.5).mean():.3f} (n 40, always the largest class 0.575)" in judge.about
    assert 0.6 < (right > 0.5).mean() < 1


def test_a_copy_is_judged_by_a_classifier_that_has_not_seen_its_original(overlapping):
    folder, names, labels = overlapping
    judge = cross_fitted(pixel_features(4, 1), folder, names, labels)
    squares = torch.stack([torch.from_numpy(np.array(Image.open(folder / name))) for name in names])
    verdicts = judge.verdicts(squares[:, None].float() / 127.5 - 1, names, labels)
    assert [each["label_probability"] for each in verdicts] == pytest.approx(list(judge.own.values()), abs=1e-4)
    assert [each["label_agrees"] for each in verdicts] == [value > 0.5 for value in judge.own.values()]


def test_classes_are_spread_over_the_folds():
    folds = deal(["a"] * 10 + ["b"] * 3)
    assert sorted(folds[10:]) == [0, 1, 2]
    assert np.bincount(folds[:10]).tolist() == [4, 3, 3]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["a", "a", "b"], "needs two classes or more, two images each, got 2 classes, b with 1"),
        (["a", "a"], "got 1 classes"),
    ],
)
def test_too_little_to_learn_from_is_refused(labels, sentence):
    with pytest.raises(UsageError, match=sentence):
        deal(labels)


def test_an_image_with_two_labels_is_refused(overlapping):
    folder, names, labels = overlapping
    with pytest.raises(UsageError, match=r"one label for each image, and dark/00\.png has 2"):
        cross_fitted(pixel_features(4, 1), folder, names, labels | {"dark/00.png": ("dark", "light")})


def test_a_trained_classifier_comes_from_a_folder(overlapping, tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(**options, image_size=4, patch_size=2, id2label={0: "dark", 1: "light", 2: "red"})
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "vit")
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 4, "width": 4}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    _, names, labels = overlapping
    judge = trained_judge(tmp_path / "vit", names, labels)
    images = torch.rand(3, 3, 4, 4) * 2 - 1
    with torch.inference_mode():
        expected = network(pixel_values=images * 2).logits.softmax(1)  # ((x + 1) / 2 - 0.5) / 0.25
    assert torch.from_numpy(judge.probabilities(images, names[:3])).float().allclose(expected, atol=1e-5)
    assert (judge.size, judge.channels, judge.classes) == (4, 3, ["dark", "light", "red"])
    with pytest.raises(UsageError, match="does not know the label blue: dark, light, red"):
        trained_judge(tmp_path / "vit", ["a.png"], {"a.png": ("blue",)})


def test_no_code_of_a_classifiers_folder_is_run(tmp_path, monkeypatch):
    transformers, asked = pytest.importorskip("transformers"), {}
    loader = transformers.AutoModelForImageClassification
    monkeypatch.setattr(loader, "from_pretrained", lambda _, **options: asked.update(options) or torch.nn.Identity())
    (tmp_path / "config.json").write_text("{}")
    load_classifier(tmp_path)
    assert asked == {"local_files_only": True, "trust_remote_code": False}
