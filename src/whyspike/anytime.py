"""A test that may be looked at after every pair, and stopped at any time, without losing its error rate.

Runs of a script from scratch are dear, so they are made a few at a time and one stops as soon as the answer is there.
A permutation test that is looked at again and again finds something sooner or later. Here each pair is a bet instead:
where a change does no more than its placebo, the sign of a paired difference is as likely minus as plus, so that a
player who stakes a share of what he has on "plus" neither wins nor loses on average, whatever came before. By Ville's
inequality (1939; Ramdas, Grünwald, Vovk & Shafer, Statistical Science 38, 2023, section 2) what he has exceeds 1 / p
times what he began with, at any time, in at most a share p of all cases. The p-value is one over the most that he had.

Stakes are mixed: half of the money goes to a player who stakes it all, and so finds what never fails in the fewest
pairs, the other half to one who stakes half of it, and survives a pair that fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STAKES = (1.0, 0.5)


def anytime_p(differences: Sequence[float] | np.ndarray) -> float:
    """One-sided p-value of positive differences in the order in which they came, valid however one stopped.

    Args:
        differences: [K]. Equal values (0) are no bet; infinite ones count by their sign.

    Returns:
        p in (0, 1]. With K positive differences and no other it is 2 / (2**K + 1.5**K): .0071 for 8.

    Raises:
        ValueError: a difference is nan.
    """
    signs = np.sign(np.asarray(differences, dtype=np.float64).ravel())
    if np.isnan(signs).any():
        raise ValueError("nan among the differences; numbers are needed")
    if not len(signs):
        return 1.0
    wealth = sum(np.cumprod(1.0 + stake * signs) for stake in STAKES) / len(STAKES)
    return float(min(1.0, 1.0 / max(1.0, float(np.max(wealth)))))
