"""Near images of photographs: PIL images in, PIL images of the same sizes out. Writes near.png.

python examples/near.py [PHOTOGRAPH ...]
"""

import sys

from PIL import Image
from skimage import data

import nearfar

FACE = (166, 67, 284, 185)
"""Of the astronaut: as large and as high in the square as the bundled models know faces."""


def main(paths: list[str], steps: int = 20) -> list[Image.Image]:
    model = nearfar.load_model()
    print(model)
    photographs = [Image.open(path) for path in paths] or [Image.fromarray(data.astronaut()).crop(FACE)]
    strengths = [0.1, 0.2, 0.35, 0.5, 0.7]
    strip = [photographs[0]] * len(strengths)
    near = nearfar.local_sample(model, strip, strength=strengths, steps=steps)  # one batch, five levels
    width, height = near[0].size
    sheet = Image.new("RGB", (width * (1 + len(near)), height))
    for place, image in enumerate([photographs[0], *near]):
        sheet.paste(image.convert("RGB"), (place * width, 0))
    sheet.save("near.png")
    return near


if __name__ == "__main__":
    main(sys.argv[1:])
