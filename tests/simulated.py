"Values of tokens whose truth is known, as the notebook of `stats` makes them."
import math

import numpy as np


def simulate(windows, tokens=128, between=.05, phi=.6, tail=0., rng=None):
    "[windows, tokens]: neighbors correlate by `phi`; `between`: share of a window's variance; `tail`: log-normal."
    rng = rng or np.random.default_rng(0)
    e = rng.standard_normal((windows, tokens))
    z = e.copy()
    for t in range(1, tokens):
        z[:, t] = phi * z[:, t - 1] + math.sqrt(1 - phi**2) * e[:, t]
    z = math.sqrt(between) * rng.standard_normal((windows, 1)) + math.sqrt(1 - between) * z
    return np.exp(tail * z) if tail else z
