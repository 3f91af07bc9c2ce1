"""Comparisons of two variants that stay valid however often they are looked at.

All of them rest on e-processes: numbers that start at 1 and do not grow on average while a hypothesis holds, so that
they reach 1/alpha at *any* look with a probability of at most alpha (Ville, 1939). A confidence sequence is the set of
values whose hypotheses have not been refuted that way. Nothing here needs more than the standard library: the mixtures
are finite sums, and the one special function is the logarithm of gamma, which `math` has.

**Counts of rare events** (`CountComparison`: errors, answers slower than a bound). In window w the canary answers
`n` requests with `x` events, the stable variant `m` with `s`. For a ratio r of risks let
`a = r (n + m) / (r n + m)` and `b = (n + m) / (r n + m)`. Since 1 + z <= e^z, and n (a - 1) + m (b - 1) = 0,

    E[a^x b^s] <= exp(n p (a - 1) + m q (b - 1)) = exp(n (a - 1) (p - q))

for the mean risks p and q of both in this window, whatever they are. So `a^x b^s exp(-n (a - 1) d)` has a mean of at
most 1 while p - q <= d (for r > 1) or p - q >= d (for r < 1), and its product over windows is an e-process. It is exact
at every sample size, needs no knowledge of q, and holds when load and risk change between windows, when the weight of
the canary changes, and when windows are of any length; where p - q itself moves, what is refuted is that it was on that
side of d all the time. At d = 0 it is the likelihood ratio of the conditional test of two Poisson means (Przyborowski
and Wilenski, 1940): of all events, which share is the canary's? The ratios r are mixed with fixed weights (the method
of mixtures: Robbins, 1970). For events that are not rare the bound 1 + z <= e^z takes the variance for larger than it
is, by 1 / (1 - p): nothing for errors, a third for events of 25 %.

Considered and left, with figures in `docs/statistics.md`: the asymptotic sequence below is later on rare errors, and
promises nothing at small counts; the plug-in e-variable of two samples (Turner, Ly and Grünwald, 2024) is as exact and
as fast on small harms, but has to learn from a batch before it bets, so it is later on large ones.

It assumes that requests are answered independently of each other once their windows and variants are given.

**Means** (`MeanComparison`: losses, mean latency). No exact test exists without a bound on the values, so this one is
asymptotic: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Annals of Statistics, 2024, "Time-uniform central limit
theory and asymptotic confidence sequences"), the Gaussian mixture boundary. It assumes finite variance (a little more
than two moments) and a minimum sample; skewed values need a larger one.

**Shares of the split** (`CountComparison` with the asked shares as exposures, or `multinomial_log_evidence`): Lindon
and Malek (NeurIPS 2022, "Anytime-valid inference for multinomial count data").
"""

import math
from collections.abc import Sequence
from operator import mul

from pydantic import BaseModel, ConfigDict, Field

TILTS = tuple(0.025 * 2.0**k for k in range(8))
"""Logarithms of the ratios of risk that are mixed, either way: from 2.5 % up to a factor of 25.

Growth falls off with the square of the distance to the best ratio; steps of two lose 17 % of it at worst.
"""
TILT_WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.2, 0.15, 0.1, 0.05)
"""More on what rollouts meet: ratios between 1.2 and 2.2."""
NEAR_ENOUGH = 0.01
"""Of the logarithm of the evidence, when bounds are sought."""
MOST_STEPS = 8
_LOG_WEIGHTS = tuple(math.log(weight) for weight in TILT_WEIGHTS)
_UP = tuple((math.exp(tilt), tilt, math.expm1(tilt)) for tilt in TILTS)
"""Each ratio with its logarithm and its distance from 1."""
_DOWN = tuple((math.exp(-tilt), -tilt, -math.expm1(-tilt)) for tilt in TILTS)
_NONE = (0.0,) * len(TILTS)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Document):
    """The values that are not refuted, both ends included."""

    lower: float
    upper: float


class Moments(_Document):
    """Count, sum and sum of squares of some values: all that means and variances need, and they add up."""

    count: int = Field(default=0, ge=0)
    total: float = 0.0
    squares: float = Field(default=0.0, ge=0.0)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Moments":
        """Count these values."""
        return cls(count=len(values), total=math.fsum(values), squares=math.fsum(value * value for value in values))

    @property
    def mean(self) -> float:
        """Return the mean; zero without values."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Return the variance of the sample (with n - 1); zero for fewer than two values."""
        if self.count < 2:
            return 0.0
        return max(self.squares - self.total * self.mean, 0.0) / (self.count - 1)

    def merged(self, other: "Moments") -> "Moments":
        """Return both together."""
        return Moments.model_construct(
            count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares
        )

    def without(self, earlier: "Moments") -> "Moments":
        """Return what came since `earlier`, a former state of the same sums.

        Raises:
            pydantic.ValidationError: `earlier` counted more: it is no former state of these sums.
        """
        return Moments(
            count=self.count - earlier.count,
            total=self.total - earlier.total,
            squares=max(self.squares - earlier.squares, 0.0),
        )


class CountComparison(_Document):
    """What the windows so far say of the difference between the canary's rate of events and the stable variant's.

    `up` and `down` are the logarithms of the products of `a^x b^s` for ratios above and below 1 (see the module),
    `up_price` and `down_price` the sums of `n |a - 1|`. `weight` and `weighted` give the estimate of Mantel and
    Haenszel (for differences: Greenland and Robins, 1985), which compares within windows only.
    """

    up: tuple[float, ...] = _NONE
    down: tuple[float, ...] = _NONE
    up_price: tuple[float, ...] = _NONE
    down_price: tuple[float, ...] = _NONE
    weight: float = 0.0
    weighted: float = 0.0

    def plus(
        self, canary_events: float, canary_exposure: float, stable_events: float, stable_exposure: float
    ) -> "CountComparison":
        """Return the comparison with one more window. One in which only one of both was asked says nothing.

        Exposures are numbers of requests. Those of the canary may be multiplied by a ratio of risks, then "no
        difference" means "this ratio".
        """
        if canary_exposure <= 0 or stable_exposure <= 0:
            return self
        window = (canary_events, canary_exposure, stable_events, stable_exposure)
        up, up_price = _tilted(self.up, self.up_price, _UP, window)
        down, down_price = _tilted(self.down, self.down_price, _DOWN, window)
        both = canary_exposure + stable_exposure
        difference = canary_events * stable_exposure - stable_events * canary_exposure
        return CountComparison.model_construct(
            up=up,
            down=down,
            up_price=up_price,
            down_price=down_price,
            weight=self.weight + canary_exposure * stable_exposure / both,
            weighted=self.weighted + difference / both,
        )

    @property
    def difference(self) -> float | None:
        """Return the estimate of the difference, canary minus stable, or None without windows of both."""
        return self.weighted / self.weight if self.weight else None

    def log_evidence_above(self, difference: float) -> float:
        """Return the logarithm of the e-process against "the canary's rate is higher by at most `difference`"."""
        return _mixed(self.up, self.up_price, difference)[0]

    def log_evidence_below(self, difference: float) -> float:
        """Return the logarithm of the e-process against "the canary's rate is higher by at least `difference`"."""
        return _mixed(self.down, self.down_price, -difference)[0]

    def interval(self, side_alpha: float) -> Interval:
        """Return the confidence sequence of the difference at this look; each side errs with at most `side_alpha`."""
        return Interval(
            lower=max(_refuted_up_to(self.up, self.up_price, side_alpha), -1.0),
            upper=min(-_refuted_up_to(self.down, self.down_price, side_alpha), 1.0),
        )


def rate_interval(events: int, exposure: int, side_alpha: float) -> Interval:
    """Return the confidence sequence of one rate; the same e-process with a stable variant that is known.

    With `m` growing beyond all bounds `a` becomes r, and the e-process `r^x exp(-n (r - 1) p)`: the mixture of Poisson
    likelihood ratios. Each side errs with at most `side_alpha`.
    """
    if exposure <= 0:
        return Interval(lower=0.0, upper=1.0)
    up = tuple(events * tilt for tilt in TILTS)
    up_price = tuple(exposure * math.expm1(tilt) for tilt in TILTS)
    down = tuple(-events * tilt for tilt in TILTS)
    down_price = tuple(-exposure * math.expm1(-tilt) for tilt in TILTS)
    return Interval(
        lower=max(_refuted_up_to(up, up_price, side_alpha), 0.0),
        upper=min(-_refuted_up_to(down, down_price, side_alpha), 1.0),
    )


class MeanComparison(_Document):
    """What the windows so far say of the difference between the canary's mean and the stable variant's.

    Windows are weighted by `u = n m / (n + m)`; `weight` is the sum of u, the levels are sums of u times a mean, the
    spreads sums of u^2 / n and u^2 / m. What came of one variant alone waits for the other.
    """

    canary: Moments = Moments()
    stable: Moments = Moments()
    waiting_canary: Moments = Moments()
    waiting_stable: Moments = Moments()
    weight: float = 0.0
    canary_level: float = 0.0
    stable_level: float = 0.0
    canary_spread: float = 0.0
    stable_spread: float = 0.0

    def plus(self, canary: Moments, stable: Moments) -> "MeanComparison":
        """Return the comparison with one more window."""
        canary = self.waiting_canary.merged(canary)
        stable = self.waiting_stable.merged(stable)
        n, m = canary.count, stable.count
        if not n or not m:
            return self.model_copy(update={"waiting_canary": canary, "waiting_stable": stable})
        u = n * m / (n + m)
        return MeanComparison.model_construct(
            canary=self.canary.merged(canary),
            stable=self.stable.merged(stable),
            waiting_canary=Moments(),
            waiting_stable=Moments(),
            weight=self.weight + u,
            canary_level=self.canary_level + u * canary.mean,
            stable_level=self.stable_level + u * stable.mean,
            canary_spread=self.canary_spread + u * u / n,
            stable_spread=self.stable_spread + u * u / m,
        )

    def difference(self, ratio: float = 1.0) -> float | None:
        """Return the estimate of the canary's mean minus `ratio` times the stable one's; None without windows."""
        return (self.canary_level - ratio * self.stable_level) / self.weight if self.weight else None

    def interval(self, side_alpha: float, *, ratio: float = 1.0, intended: float) -> Interval:
        """Return the asymptotic confidence sequence of `difference(ratio)` at this look.

        The Gaussian mixture boundary of Waudby-Smith et al. (2024; see the module) with t = `weight`: the estimate plus
        or minus `s sqrt(2 (t k + 1) / (t k) log(sqrt(t k + 1) / alpha))`, s its standard error, alpha = 2 `side_alpha`,
        and k = (-2 log alpha + log(1 - 2 log alpha)) / `intended`, their approximation of what is tightest at
        t = `intended`. While all values of both variants are the same, nothing is known: the interval is infinite.

        The larger of both variances stands for both. Of a skewed value a small sample with a low mean has a low
        variance too; with its own it would be called better too often (in simulations up to 4 % instead of 1.2 %). So
        it may be one variant alone that has any, such as the only one with a wrong class: k events in n values are
        then about sqrt(k) standard errors away from none. Where neither has any (one is always right, one always
        wrong), that of both together stands for it. The variances are those of all windows together: too large rather
        than too small when levels move between windows.
        """
        difference = self.difference(ratio)
        variance = max(self.canary.variance, ratio * ratio * self.stable.variance)
        variance = variance or ratio * ratio * self.canary.merged(self.stable).variance
        if difference is None or not variance:
            return Interval(lower=-math.inf, upper=math.inf)
        standard_error = math.sqrt(variance * (self.canary_spread + self.stable_spread)) / self.weight
        half = standard_error * mixture_boundary(self.weight, 2 * side_alpha, intended=intended)
        return Interval(lower=difference - half, upper=difference + half)


def mixture_boundary(t: float, alpha: float, *, intended: float) -> float:
    """Return how many standard errors wide the Gaussian mixture boundary is on each side after t of `intended`."""
    k = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / intended
    return math.sqrt(2 * (t * k + 1) / (t * k) * math.log(math.sqrt(t * k + 1) / alpha))


def multinomial_log_evidence(counts: Sequence[int], shares: Sequence[float], *, concentration: float = 100.0) -> float:
    """Return the logarithm of the e-process against "each assignment falls on the variants with these shares".

    The Dirichlet mixture of Lindon and Malek (2022), centred on the shares: the ratio of the Dirichlet-multinomial
    likelihood of the sequence to its likelihood under the shares. For a split that never changes.
    """
    prior = [concentration * share for share in shares]
    mixed = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    mixed += sum(math.lgamma(a + n) - math.lgamma(a) for a, n in zip(prior, counts, strict=True))
    return mixed - sum(n * math.log(share) for n, share in zip(counts, shares, strict=True) if n)


def split_log_evidence(split: CountComparison) -> float:
    """Return the logarithm of the e-process against "the split is as asked", either way.

    Each window is to be added with its assignments as events and the asked shares as exposures; then `a^x b^s` is the
    binomial likelihood ratio itself. Unlike `multinomial_log_evidence` it lets the shares change between windows.
    """
    up, down = split.log_evidence_above(0.0), split.log_evidence_below(0.0)
    highest = max(up, down)
    return highest + math.log((math.exp(up - highest) + math.exp(down - highest)) / 2)


def p_value(log_evidence: float) -> float:
    """Return the p-value that is valid at every look: the inverse of the e-process (Ville, 1939), at most 1."""
    return math.exp(-max(log_evidence, 0.0))


def _tilted(
    sums: tuple[float, ...],
    prices: tuple[float, ...],
    ratios: tuple[tuple[float, float, float], ...],
    window: tuple[float, float, float, float],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Add one window to the logarithms of `a^x b^s` and to the prices `n |a - 1|`, for each ratio."""
    x, n, s, m = window
    events, both, product = x + s, n + m, n * m
    scaled = [ratio * n + m for ratio, _, _ in ratios]
    new_prices = [old + product * away / d for old, (_, _, away), d in zip(prices, ratios, scaled, strict=True)]
    if not events:
        return sums, tuple(new_prices)
    start = events * math.log(both)
    new_sums = [
        old + x * log_ratio + start - events * math.log(d)
        for old, (_, log_ratio, _), d in zip(sums, ratios, scaled, strict=True)
    ]
    return tuple(new_sums), tuple(new_prices)


def _mixed(sums: Sequence[float], prices: Sequence[float], d: float) -> tuple[float, float]:
    """Return the logarithm of the mixture of exp(sum - price d), and how fast it falls with d."""
    exponents = [w + a - b * d for w, a, b in zip(_LOG_WEIGHTS, sums, prices, strict=True)]
    highest = max(exponents)
    parts = [math.exp(exponent - highest) for exponent in exponents]
    whole = sum(parts)
    return highest + math.log(whole), sum(map(mul, parts, prices)) / whole


def _refuted_up_to(sums: Sequence[float], prices: Sequence[float], side_alpha: float) -> float:
    """Return the d up to which the mixture of exp(sum - price d) is at least 1/side_alpha; minus infinity if nowhere.

    The mixture's logarithm falls and is convex, so Newton's steps from the left never pass the solution: wherever they
    end, the bound is on the safe side.
    """
    goal = -math.log(side_alpha)
    lines = zip(_LOG_WEIGHTS, sums, prices, strict=True)
    d = max(((w + a - goal) / b for w, a, b in lines if b > 0), default=-math.inf)
    if d == -math.inf:
        return d
    for _ in range(MOST_STEPS):
        level, slope = _mixed(sums, prices, d)
        d += (level - goal) / slope
        if level - goal < NEAR_ENOUGH:
            break
    return d
