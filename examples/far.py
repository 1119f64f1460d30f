"""New images of a domain that the model never saw: fitted to a few, drawn, judged. Writes far.png.

python examples/far.py [IMAGE ...]
"""

import sys
import warnings
from pathlib import Path

from PIL import Image
from skimage import data

import nearfar

SIDE, STEP = 96, 40


def textures() -> list[Image.Image]:
    """Squares cut from a photograph of gravel that comes with scikit-image."""
    gravel = Image.fromarray(data.gravel())
    places = [(x, y) for y in range(0, 400, STEP) for x in range(0, 400, STEP)][:40]
    return [gravel.crop((x, y, x + SIDE, y + SIDE)) for x, y in places]


def main(paths: list[str], count: int = 16, steps: int = 20, few: int = 40) -> list[str]:
    warnings.simplefilter("ignore", nearfar.ModelWarning)
    model = nearfar.load_model()
    images = [Image.open(path) for path in paths] or textures()[:few]
    domain = nearfar.Domain.fit(model, images, steps=steps)
    print(domain)
    new = nearfar.synthesize(model, domain, count, seed=1)
    verdicts = [judgment.verdict for judgment in domain.guards.judge(model, new.images)]
    print(new, {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})
    Path("far.png").write_bytes(new._repr_png_())
    return verdicts


if __name__ == "__main__":
    main(sys.argv[1:])
