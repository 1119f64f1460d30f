"""Which generator of `synthesis.py` becomes the default: the contest's rules, and what they say of a result.

    python -m benchmarks.far.contest                     reads results/synthesis_*.json, prints points, frontier, winner

The rules were fixed before the first idea was tried:

1.  Model: the bundled `faces` (32 pixels). Fields: cells and galaxies, from 200 and from 50 images (`FIELDS`).
    100 outputs of each generator in each field and draw, as they come: nothing is rejected by a guard.
2.  Three parts of every data set (`benchmarks/support/domains.py`): generators see *fit*; everything is decided on
    *choose*; *report* is read once, by the table of the page, when the default stands.
3.  Two faults. Copied area: the largest over the scales of 8, 16 and 24 of 32 pixels (`nearfar.metrics.copied_area`;
    real images have 0.05). Captured: the share taken for faces, faces in the domain's colors among them.
4.  One score: how far the outputs are on the way from real images to faces. Each of three distances (kernel, layout,
    bands), less that of the fitted images, over that of the model's own faces, less the same; averaged over distances
    and fields: 0 is as good as real images, 1 is as far as faces.
5.  Admitted is who has at most 0.10 of copied area and at most 0.10 captured, as the mean over the fields. Among the
    admitted the least score wins.
6.  If none is admitted, the frontier (nobody else has less of copied area and of the score, with at most 0.10
    captured) is told on the page, and the default is the point with the least copied area whose score is at most 1.25
    times that of the default before.
7.  Ideas are tried in the order of the issue, first on 200 images. Progress is a copied area that falls by 0.05 with a
    score within rule 6, or a score that falls by twice its standard error at no more copied area. After two ideas in a
    row without progress the contest ends.
"""

from __future__ import annotations

LIMIT, SLACK = 0.10, 1.25
FIELDS = (("cells", 200), ("galaxies", 200), ("cells", 50), ("galaxies", 50))
