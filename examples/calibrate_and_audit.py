"""A folder of photographs, made near at rising strength and attacked: where few enough are found again.

That is a calibration by hand; `nearfar calibrate` does it on a sample, with bounds that hold for other images, too.

python examples/calibrate_and_audit.py [PHOTOS OUT]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

import nearfar

STRENGTHS = (0.2, 0.5)
LIMIT = 0.2
"""Share of the outputs that may lead back to their originals."""


def photographs(folder: Path, count: int) -> Path:
    """Gray faces that come with scikit-image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, face in enumerate(data.lfw_subset()[:count]):
        Image.fromarray((face * 255).round().astype(np.uint8)).save(folder / f"face-{number:03}.png")
    return folder


def main(source: Path, out: Path, steps: int = 20) -> dict[float, float]:
    model = nearfar.load_model()
    found = {}
    for strength in STRENGTHS:
        near = out / f"strength-{strength:g}"
        outcome = nearfar.anonymize_folder(model, source, near, strength=strength, steps=steps)
        print(f"strength {strength:g}: {outcome.done} done, {len(outcome.failed)} failed")
        audit = nearfar.audit_folders(source, near, model=model)
        attacks = [figure for figures in audit.sections.values() for figure in figures]
        attack = next(figure for figure in attacks if figure.name.startswith("re-identified, own original, rank 1"))
        print(f"  {attack.name}: {attack.value:.2f}, chance {attack.chance:.2f}, n {attack.count}")
        found[strength] = attack.value
    enough = next((strength for strength, value in found.items() if value <= LIMIT), None)
    print(f"at most {LIMIT:g} found: {'at none of these' if enough is None else f'from strength {enough:g}'}")
    return found


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*(given or [photographs(Path("photos"), 40), Path("audited")]))
