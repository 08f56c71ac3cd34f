"""A sequential test on a random sample without replacement: does a candidate cost less than the tolerance?

Image by image the candidate is compared with the reference: 1 if only the reference is right, -1 if only the candidate
is, else 0. Their mean over all training images is the drop. Two gamblers bet against "the drop is the tolerance", one
on more and one on less. Each one's capital is a martingale if the drop is just that, so the probability that it ever
grows to 1/error is at most error (Ville), however often one looks. Several stakes at once adapt to how often images
flip.

Betting for means of bounded variables, also without replacement: Waudby-Smith and Ramdas, arXiv 2010.09686. It needs
fewer images than the empirical Bernstein bound, and unlike McNemar's test has a tolerance and allows for looking often.
"""

import math

import torch
from torch import Tensor

# Fractions of the largest stake that cannot go bankrupt.
_STAKES = 0.9 * 0.5 ** torch.arange(10, dtype=torch.float64)[:, None]
_EDGE = 1e-9


class Race:
    """The comparison of one candidate. tolerance: as a fraction of images. error: probability of a wrong verdict."""

    def __init__(self, population: int, tolerance: float, error: float) -> None:
        self._population, self._tolerance, self._threshold = population, tolerance, math.log(1 / error)
        self._log_capital = {side: torch.zeros(len(_STAKES), dtype=torch.float64) for side in (1, -1)}
        self.seen = 0
        self.lost = 0

    @property
    def drop(self) -> float:
        """The mean so far, a fraction of images."""
        return self.lost / max(self.seen, 1)

    def add(self, flips: Tensor) -> bool | None:
        """Compare further images, int64 [k] of -1, 0, 1. True: less than the tolerance; False: not; None: open."""
        flips = flips.double()
        before = torch.arange(len(flips)) + self.seen
        lost_before = self.lost + flips.cumsum(0) - flips
        # What the mean of the images still to come would be if the drop were just the tolerance.
        fair = (self._population * self._tolerance - lost_before) / (self._population - before)
        # At the edge, and beyond it within a batch, images are certain and nothing is staked.
        open_bet = fair.abs() < 1 - _EDGE
        for side, capital in self._log_capital.items():
            stakes = torch.where(open_bet, _STAKES / (1 + side * fair), 0)
            capital += torch.log1p(side * stakes * (flips - fair)).sum(1)
        self.seen += len(flips)
        self.lost += int(flips.sum())
        return self._verdict()

    def log_capital(self, side: int) -> float:
        """Of the gambler who bets on a larger (1) or smaller (-1) drop than the tolerance; 0 at the start."""
        return float(self._log_capital[side].logsumexp(0)) - math.log(len(_STAKES))

    def _verdict(self) -> bool | None:
        allowed, left = self._population * self._tolerance, self._population - self.seen
        if self.lost + left < allowed:
            return True
        if self.lost - left >= allowed:
            return False
        if self.log_capital(1) >= self._threshold:
            return False
        if self.log_capital(-1) >= self._threshold:
            return True
        return None
