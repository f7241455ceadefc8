"Intervals that hold what they promise, power, and exact tests."

import math

import numpy as np
import pytest

from simulated import simulate
from tqcook import stats
from tqcook.core import CookError
from tqcook.stats import Blocks

CORPORA = 500


def blocks_of(a):
    return Blocks(np.repeat(np.arange(len(a)), a.shape[1]))


def coverage(windows, interval, truth, seed=11, **sim):
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(CORPORA):
        a = simulate(windows, rng=rng, **sim)
        i = interval(a.ravel(), blocks_of(a))
        hits += i.lo <= truth <= i.hi
    return hits / CORPORA


NORMAL_90 = 1.2815515594
CASES = {
    'signed mean': (lambda x, b: stats.mean(x, b), 0.0, {}),
    'ratio exp(mean)': (lambda x, b: stats.mean(x, b).map(math.exp), 1.0, {}),
    'difference of exp': (
        lambda x, b: stats.delta(
            [x, 2 * x], lambda p, q: math.exp(q) - math.exp(p), lambda p, q: (-math.exp(p), math.exp(q)), b
        ),
        0.0,
        {},
    ),
    'skewed mean (KL-like)': (lambda x, b: stats.mean(x, b, skewed=True), math.exp(0.5), dict(tail=1.0)),
    'heavy mean (KL-like)': (
        lambda x, b: stats.mean(x, b, skewed=True),
        math.exp(1.5**2 / 2),
        dict(tail=1.5, between=0.02, tokens=256),
    ),
    'share': (lambda x, b: stats.share(x < NORMAL_90, b), 0.9, {}),
    'median': (lambda x, b: stats.quantile(x, 0.5, b), 0.0, {}),
    '90 % quantile': (lambda x, b: stats.quantile(x, 0.9, b), NORMAL_90, {}),
    '99 % quantile': (lambda x, b: stats.quantile(x, 0.99, b), math.exp(2.3263478740), dict(tail=1.0)),
}


@pytest.mark.parametrize('windows', [8, 16, 64])
@pytest.mark.parametrize('case', CASES)
def test_block_intervals_cover(case, windows):
    f, truth, sim = CASES[case]
    assert 0.92 <= coverage(windows, f, truth, **sim) <= 0.98


@pytest.mark.parametrize('windows', [8, 16, 64])
def test_independent_tokens_do_not_cover(windows):
    "The negative control: the interval that everyone prints is far too narrow."
    assert coverage(windows, lambda x, b: stats.mean_iid(x), 0.0) < 0.75


def test_unequal_blocks():
    "Windows of very different length: the ratio estimator still covers, and weighs tokens, not windows."
    rng, hits = np.random.default_rng(5), 0
    for _ in range(CORPORA):
        n = rng.integers(20, 200, 24)
        ids = np.repeat(np.arange(24), n)
        x = rng.standard_normal(24)[ids] * 0.4 + rng.standard_normal(len(ids))
        i = stats.mean(x, Blocks(ids))
        assert i.value == pytest.approx(x.mean())
        hits += i.lo <= 0 <= i.hi
    assert 0.92 <= hits / CORPORA <= 0.98


def test_identical_gives_exactly_nothing():
    b = Blocks(np.repeat(np.arange(10), 7))
    r = stats.mean(np.zeros(70), b).map(math.exp)
    assert (r.value, r.lo, r.hi) == (1.0, 1.0, 1.0)
    k = stats.mean(np.zeros(70), b, skewed=True)
    assert (k.value, k.lo, k.hi) == (0.0, 0.0, 0.0)
    q = stats.quantile(np.zeros(70), 0.99, b)
    assert (q.value, q.lo, q.hi) == (0.0, 0.0, 0.0)


def test_one_block_has_no_interval():
    b = Blocks(np.zeros(50))
    for i in (stats.mean(np.arange(50.0), b), stats.share(np.ones(50), b), stats.quantile(np.arange(50.0), 0.5, b)):
        assert not i.known and i.ci == [None, None]


def test_t_quantile_equals_scipy():
    from scipy.stats import norm, t

    for p in (0.025, 0.8, 0.95, 0.975):
        assert stats.t_quantile(p, math.inf) == pytest.approx(norm.ppf(p), abs=1e-12)
        for df in (3, 7, 63):
            assert stats.t_quantile(p, df) == pytest.approx(t.ppf(p, df), rel=1e-9)


@pytest.mark.parametrize('lost,gained', [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (40, 61), (150, 100)])
def test_mcnemar_equals_scipy(lost, gained):
    from scipy.stats import binomtest

    n = lost + gained
    two, one = (binomtest(lost, n).pvalue, binomtest(lost, n, alternative='greater').pvalue) if n else (1.0, 1.0)
    assert stats.mcnemar(lost, gained) == pytest.approx(two, rel=1e-9)
    assert stats.mcnemar(lost, gained, 'worse') == pytest.approx(one, rel=1e-9)


def test_clopper_pearson_equals_scipy():
    from scipy.stats import binomtest

    for k, n in ((0, 20), (3, 20), (20, 20), (981, 1000)):
        ci = binomtest(k, n).proportion_ci(0.95)
        assert stats._clopper_pearson(k / n, n, 0.95) == pytest.approx((ci.low, ci.high), abs=1e-9)


# ---- documents


def nested(rng, sizes, share):
    "Windows whose documents share part of their variance: (values, windows, documents), true mean 0."
    doc = np.repeat(np.arange(len(sizes)), sizes)
    x = math.sqrt(share) * rng.standard_normal(len(sizes))[doc] + math.sqrt(1 - share) * rng.standard_normal(len(doc))
    return x, np.arange(len(doc)), doc


def lognormal(total, n):
    "Sizes of n documents that hold `total` windows."

    def draw(rng):
        p = rng.lognormal(0, 1, n)
        return np.maximum(1, (total * p / p.sum()).round().astype(int))

    return draw


def pareto(rng):
    return np.maximum(1, (rng.pareto(1.1, 20) * 3).round().astype(int)).clip(max=400)


SIZES = {
    '232 windows of 18 documents': lognormal(232, 18),
    '60 windows of 70': lognormal(60, 70),
    '200 windows of 70': lognormal(200, 70),
    '18 equal ones': lambda rng: [13] * 18,
    'one huge one among ten': lambda rng: [90] + [10] * 9,
    'Pareto sizes': pareto,
}


def documents_cover(sizes, share, corpora, blocks=stats.Blocks):
    rng, hits = np.random.default_rng(21), 0
    for _ in range(corpora):
        x, window, doc = nested(rng, sizes(rng), share)
        i = stats.mean(x, blocks(window, doc))
        hits += i.lo <= 0 <= i.hi
    return hits / corpora


@pytest.mark.parametrize('share', [0.2, 0.5])
@pytest.mark.parametrize('case', SIZES)
def test_documents_that_differ_are_covered(case, share):
    assert 0.92 <= documents_cover(SIZES[case], share, CORPORA) <= 0.985  # 500 corpora tell two points


@pytest.mark.slow
@pytest.mark.parametrize('share', [0.05, 0.2, 0.5])
@pytest.mark.parametrize('case', SIZES)
def test_documents_that_differ_are_covered_in_2000(case, share):
    assert 0.92 <= documents_cover(SIZES[case], share, 2000) <= 0.985


def test_windows_alone_do_not_cover():
    "The negative control: what these documents do to windows taken as independent."
    windows_only = lambda window, doc: stats.Blocks(window)
    assert documents_cover(SIZES['one huge one among ten'], 0.5, CORPORA, windows_only) < 0.6
    assert documents_cover(SIZES['232 windows of 18 documents'], 0.5, CORPORA, windows_only) < 0.6


def test_effective_blocks():
    "Windows where documents do not matter, documents where they decide."
    rng = np.random.default_rng(0)
    sizes = [90] + [10] * 9
    means = lambda share: np.mean(
        [stats.mean(x, Blocks(w, d)).n for x, w, d in (nested(rng, sizes, share) for _ in range(50))]
    )
    assert means(0) > 60 and means(0.98) == pytest.approx(180**2 / (90**2 + 900), rel=0.1)
    x = rng.standard_normal(40)
    assert stats.mean(x, Blocks(np.arange(40))).n == pytest.approx(40)
    assert stats.mean(x, Blocks(np.r_[np.zeros(21), np.arange(1, 20)])).n == pytest.approx(40**2 / (21**2 + 19))


def test_documents_do_not_move_the_estimate():
    rng = np.random.default_rng(3)
    x, window, doc = nested(rng, [90] + [10] * 9, 0.5)
    assert stats.mean(x, Blocks(window, doc)).value == pytest.approx(x.mean())
    constant = np.repeat(rng.standard_normal(10), [90] + [10] * 9)  # nothing moves within a document
    i = stats.mean(constant, Blocks(window, doc))
    assert i.value == pytest.approx(constant.mean()) and i.known and i.n < 8


# ---- power


def shown(rng, windows, change, corpora, spread=1.0):
    "Share of corpora whose two-sided 95 % interval lies above zero when the true mean is `change`."
    x = change + spread * rng.standard_normal((corpora, windows))
    se = x.std(1, ddof=1) / math.sqrt(windows)
    return float((x.mean(1) > stats.t_quantile(0.975, windows - 1) * se).mean())


@pytest.mark.parametrize('windows', [8, 16, 64])
def test_stated_power_is_what_happens(windows):
    "From pilots of so many windows: their smallest detectable change, and the windows that a change needs."
    rng = np.random.default_rng(5)
    same, more = [], []
    for _ in range(150):
        pilot = rng.standard_normal(windows)
        se = pilot.std(ddof=1) / math.sqrt(windows)
        same.append(shown(rng, windows, stats.min_detectable(se, windows), 40))
        n = stats.blocks_needed(se, windows, 0.2)
        more.append(shown(rng, n, 0.2, 40))
    assert np.mean(same) == pytest.approx(0.8, abs=0.035) and np.mean(more) == pytest.approx(0.8, abs=0.035)


@pytest.mark.slow
@pytest.mark.parametrize('windows', [8, 16, 64])
def test_stated_power_of_2000_comparisons(windows):
    "The same with windows of tokens, through the intervals of `mean`."
    rng, hits = np.random.default_rng(6), 0
    for _ in range(2000):
        pilot, again = (simulate(windows, 64, rng=rng) for _ in range(2))
        change = stats.min_detectable(stats.mean(pilot.ravel(), blocks_of(pilot)).se, windows)
        hits += stats.mean(again.ravel() + change, blocks_of(again)).lo > 0
    assert hits / 2000 == pytest.approx(0.8, abs=0.03)


def test_no_change_is_shown_in_one_corpus_of_forty():
    rng = np.random.default_rng(2)
    false = [shown(rng, n, 0.0, 4000) for n in (8, 64)]
    assert false == pytest.approx([0.025, 0.025], abs=0.008)


def test_chance_needs_blocks():
    assert stats.chance(1.0, 1, 8) == 0 and math.isnan(stats.min_detectable(0.1, 1))
    assert stats.chance(0.5, 64, 8) < stats.chance(0.5, 64, 64) < stats.chance(0.5, 64, math.inf)
    for n in (2, 9, 100):
        assert stats.blocks_needed(0.5, n, 1.001 * stats.min_detectable(0.5, n)) == n
    with pytest.raises(CookError, match='positive'):
        stats.blocks_needed(0.1, 8, 0)


@pytest.mark.parametrize('windows', [8, 16, 64])
def test_what_would_settle_it_settles_it(windows):
    "Truth anywhere near the limit: four in five pilots that straddle it are settled by the windows they ask for."
    rng, settled, asked = np.random.default_rng(7), [], {}
    for _ in range(8000):
        gap = rng.uniform(-1, 1) * 4 / math.sqrt(windows)
        pilot = gap + rng.standard_normal(windows)
        m, se = pilot.mean(), pilot.std(ddof=1) / math.sqrt(windows)
        if abs(m) > stats.t_quantile(0.975, windows - 1) * se:
            continue
        gaps = round(abs(m) / se, 2)
        if gaps not in asked:
            asked[gaps] = stats.blocks_to_part(gaps, 1.0, windows)
        n = asked[gaps]
        mean = gap + rng.standard_normal() / math.sqrt(n)
        sd = math.sqrt(rng.chisquare(n - 1) / (n - 1))
        settled.append(abs(mean) > stats.t_quantile(0.975, n - 1) * sd / math.sqrt(n))
    assert np.mean(settled) == pytest.approx(0.8, abs=0.035) and len(settled) > 2000


def test_paired_task_test_is_sharper_than_the_published_suite():
    assert 100 * stats.detectable_accuracy(4096, 0.05) <= 0.9
