"A budget that cannot be talked out of: verdicts, noise floors, and what happens at the limit."
import math

import numpy as np
import pytest

from tqcook import stats
from tqcook.stats import Blocks, Interval
from tqcook.verdict import Check, judge


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
