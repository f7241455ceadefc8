"A budget that cannot be talked out of: verdicts, noise floors, and what happens at the limit."
import math

import numpy as np
import pytest

from simulated import simulate
from tqcook import stats
from tqcook.stats import Blocks, Interval
from tqcook.verdict import Check, judge, looks


def near(value, half=.001, n=16):
    return Interval(value, value - half, value + half, half / 2, n)


def test_verdicts():
    inside, undecided, outside = (Check('r', near(v), 1.01) for v in (1.002, 1.0095, 1.02))
    assert judge([inside], 16).verdict == 'PASS'
    few = judge([inside], 7)
    assert few.verdict == 'INCONCLUSIVE' and 'effective blocks' in few.reasons[0] and few.settle == pytest.approx(8 / 7)
    v = judge([inside, undecided], 16)
    assert v.verdict == 'INCONCLUSIVE' and v.settle > 1
    assert judge([inside, undecided, outside], 16).verdict == 'FAIL'
    assert judge([inside], 16, nonfinite=1e-4).verdict == 'FAIL'
    assert judge([Check('r', Interval(1., math.nan, math.nan), 1.01)], 1).verdict == 'INCONCLUSIVE'
    assert Check('top', Interval(.97, .96, .98, n=16), .985, side='min').state == 'outside'


@pytest.mark.parametrize('floor', [near(1.07, .01), Interval(1.002, .99, 9., n=2)])
def test_a_noisy_floor_excuses_nothing(floor):
    "The limit stays at the budget; a floor that reaches over it makes the answer INCONCLUSIVE, with the reason."
    for value in (1.002, 1.05):
        v = judge([Check('ppl ratio', near(value), 1.01, floor=floor)], 16)
        assert v.verdict == 'INCONCLUSIVE' and 'noise floor of ppl ratio' in v.reasons[0] and '1.01' in v.reasons[0]
    assert judge([Check('ppl ratio', near(10.), 1.01, floor=floor)], 16).verdict == 'FAIL'  # beyond all noise


def test_windows_that_a_noisy_floor_takes():
    wide, beyond = Interval(1.002, .99, 1.014, n=4), near(1.07)
    times = judge([Check('r', near(1.002), 1.01, floor=wide)], 16).settle
    assert 1 < times < 100
    assert math.isnan(judge([Check('r', near(1.002), 1.01, floor=beyond)], 16).settle)  # no text helps
    quiet = near(1.0002, .0001)
    assert judge([Check('r', near(1.002), 1.01, floor=quiet)], 16).verdict == 'PASS'
    assert judge([Check('r', near(1.02), 1.01, floor=quiet)], 16).verdict == 'FAIL'


def test_the_floor_of_a_share():
    low = Interval(.97, .96, .98, n=16)
    assert Check('top', low, .985, 'min', floor=Interval(.96, .955, .965, n=8)).state == 'undecided'
    assert Check('top', low, .95, 'min', floor=Interval(.99, .98, 1., n=8)).state == 'inside'


def passes_at_the_budget(comparisons, floor_windows, floor_spread):
    "Share of comparisons with PASS where the true ratio is the budget, beside a noise floor of any size."
    rng, limit, passed = np.random.default_rng(8), math.log(1.01), 0
    for _ in range(comparisons):
        ids = Blocks(np.arange(32))
        ratio = stats.mean(limit + .01 * rng.standard_normal(32), ids).map(math.exp)
        noise = floor_spread * rng.standard_normal(floor_windows)
        floor = stats.mean(noise, Blocks(np.arange(floor_windows))).map(math.exp)
        passed += judge([Check('ppl ratio', ratio, 1.01, floor=floor)], 32).verdict == 'PASS'
    return passed / comparisons


@pytest.mark.parametrize('floor', [(4, 1e-4), (2, .05), (8, .07)])
def test_a_change_at_the_budget_rarely_passes(floor):
    assert passes_at_the_budget(300, *floor) <= .045  # 300 comparisons tell a point and a half


@pytest.mark.slow
@pytest.mark.parametrize('floor', [(4, 1e-4), (2, .05), (8, .07), (4, .001)])
def test_a_change_at_the_budget_passes_in_one_of_forty(floor):
    assert passes_at_the_budget(2000, *floor) <= .03


def sequential(draw, steps, windows=48, n=2000):
    "Shares of comparisons of a true change at the budget, 1, that pass and that fail; t intervals of all at once."
    x = np.stack([draw(np.random.default_rng(k), windows) for k in range(n)])
    ended = np.zeros(n, int)
    for end, level in steps:
        m = x[:, :end].mean(1)
        far = stats.t_quantile(.5 + level / 2, end - 1) * x[:, :end].std(1, ddof=1) / math.sqrt(end)
        ended = np.where(ended == 0, np.where(m + far <= 1, 1, np.where(m - far > 1, -1, 0)), ended)
    return float((ended == 1).mean()), float((ended == -1).mean())


def normal(rng, n):
    return rng.normal(1, .3, n)


def test_five_looks_err_no_more_than_one_does():
    "2,000 comparisons of a change that is the budget exactly; without the correction the rate is exceeded."
    passed, failed = sequential(normal, looks(48))
    assert 0 < passed <= .025 and 0 < failed <= .025
    peeking = sequential(normal, [(end, .95) for end, _ in looks(48)])
    assert min(peeking) > .05
    assert sum(1 - level for _, level in looks(48)) == pytest.approx(.05)  # Bonferroni, whatever the looks share


def real(x, steps):
    "The verdict and the look as `compare` comes to them."
    for end, level in steps:
        i = stats.mean(x[:end], Blocks(np.arange(end)), level)
        found = judge([Check('x', i, 1.)], i.n).verdict
        if found != 'INCONCLUSIVE':
            break
    return found, end


def test_the_simulation_decides_as_the_verdict_does():
    steps = looks(48)
    ends = [real(normal(np.random.default_rng(k), 48), steps)[0] for k in range(150)]
    assert sequential(normal, steps, n=150) == (ends.count('PASS') / 150, ends.count('FAIL') / 150)


def test_a_clear_case_ends_at_the_first_look_and_few_windows_have_few_looks():
    assert real(normal(np.random.default_rng(0), 48) - .5, looks(48)) == ('PASS', 10)
    assert real(normal(np.random.default_rng(0), 48) + .5, looks(48)) == ('FAIL', 10)
    for n in range(1, 100):
        steps = looks(n)
        assert steps[-1] == (n, .975) and len(steps) <= 5 and sum(1 - level for _, level in steps) <= .05 + 1e-9
        assert all(end >= 8 for end, _ in steps[:-1]) and [e for e, _ in steps] == sorted({e for e, _ in steps})


@pytest.mark.slow
@pytest.mark.parametrize('tail', [.5, .8])
def test_looks_at_a_heavy_tail_err_no_more_than_one_interval_of_95_does(tail):
    "A skewed statistic with few windows misses its level by itself; the looks must not add to that."
    def rates(steps):
        out = []
        for k in range(2000):
            x = simulate(48, 1, 0, 0, tail, np.random.default_rng(k))[:, 0] / math.exp(tail**2 / 2)
            for end, level in steps:
                i = stats.mean(x[:end], Blocks(np.arange(end)), level, skewed=True)
                found = judge([Check('x', i, 1.)], i.n).verdict
                if found != 'INCONCLUSIVE':
                    break
            out.append(found)
        return out.count('PASS') / 2000
    assert rates(looks(48)) <= rates([(48, .95)]) + .005 < rates([(end, .95) for end, _ in looks(48)])
