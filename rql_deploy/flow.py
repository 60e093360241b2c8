"""The fixed schedule of refinement steps that every exported graph and every engine follows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def flow_schedule(flow_steps: int) -> list[tuple[float, float]]:
    """(f, delta) of each of F refinement steps, in float32.

    Each delta is the float32 difference of neighbouring times k/F, not 1/F: so the last one equals 1 - f to
    the bit, and the last step's preview is the policy's action to the bit.
    """
    times = (np.arange(flow_steps + 1) / flow_steps).astype(np.float32)
    return [(float(f), float(following - f)) for f, following in pairwise(times)]
