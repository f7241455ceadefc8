"Every figure of the library, drawn from made-up numbers: all that is written in it lies inside it."
import ast
from types import SimpleNamespace

import numpy as np
import pytest

from make_readme import ROOT

matplotlib = pytest.importorskip('matplotlib')
matplotlib.use('agg')
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tqcook import (
    attribution,
    bench,
    calibration,
    choice,
    compare,
    compile,
    formats,
    loadtest,
    paired,
    parity,
    profile,
    ranges,
    smoothing,
    sweep,
)
from tqcook.bench import Timing
from tqcook.roofline import Ceilings
from tqcook.stats import Blocks, Interval


def some(value):
    return Interval(value, .8 * value, 1.3 * value)


def speed():
    names = 'linears swapped in the Hugging Face model', 'first weights asked for before waiting'
    rungs = [Timing(n, s, 'none', 1, 512, 1 / 298, 1 / 370) for n in names for s in ('bf16', 'fp8')]
    return bench.Bench('a GPU', 3e12, '', ladder=rungs)


def groups(by, n):
    return attribution.Attribution(by, {f'{by} {i}': some(.001) for i in range(n)}, {}, some(.006), None, 32, 16384)


def report():
    kinds = 'q_proj', 'o_proj', 'gate_proj', 'down_proj', 'something_longer_in_proj'
    stats = [calibration.QuantizerStat(f'model.layers.{i}.mlp.{k}', 'input', 'e4m3', 10.**i, drift=.8)
             for k in kinds for i in range(6)]
    module = stats[0].module
    curve = np.linspace(.5, 1, 60).reshape(10, 6).T
    made = calibration.CalibrationReport('int8_sq', 'none', 'max', 10, 640, stats, measured_on='target text')
    made.curve = curve
    made.hists[module] = np.zeros(ranges.BINS)
    made.hists[module][len(ranges.bin_edges()) // 2:][:200] = 1
    return made, module


class Compared(dict):
    "What the figures of a `Comparison` ask it for."
    floor = {'kld_mean': Interval(1e-4, 1e-4, 1e-4), 'kind': 'rounding'}
    iid = stats = {'ppl_ratio': Interval(1.004, 1.003, 1.005)}
    unpaired_ratio = Interval(1.004, .92, 1.09)
    sharpness = 115.

    def blocks_of(self, mask):
        return Blocks(np.arange(400)[mask] // 8)


def compared():
    rng = np.random.default_rng(0)
    return Compared(confidence=rng.uniform(size=400), kld=rng.uniform(1e-4, 1e-2, size=400))


def table():
    names = ['1-63', '64-127', '128-255', '256-511', '512-1023']
    rows = [dict(group=n, ppl_ratio=1.01, ppl_ratio_ci95=[1.001, 1.02]) for n in names]
    return paired.Table('position in the window, tokens', rows)


def chosen():
    judged = lambda x: SimpleNamespace(stats=dict(kld_mean=some(x)), budget=dict(max_kld=.02),
                                       judged=SimpleNamespace(verdict='PASS', checks=[]))
    made = [choice.Candidate(s, bits, .5, ['a'] * 12, some(.003), quality=judged(bits / 1e3))
            for s, bits in (('int8_token', 8.25), ('fp8_rowwise', 8.02), ('int4_awq', 4.2))]
    return choice.Choice('bits', made, made[0], some(.005), 1.)


def built():
    sizes = dict(bf16=400, fp8=210, int8_token=213)
    return compile.Compilation([compile.Engine(s, None, 89, n * 10**6, n * 9 * 10**5, 0, {}, dict(builds=[1.]))
                                for s, n in sizes.items()])


def same():
    errors = {f'layers.{i}': 1e-3 for i in range(40)}
    return parity.Parity(errors, 40, .01, .1, .1, .1, None, None, None, 100, 'fp8', [], 'cpu')


def profiled():
    gpu = Ceilings('NVIDIA H100 80GB HBM3, 700 W', 3e12, dict(bf16=7e14, fp8=1.4e15), 2e-6, True)
    at = dict(kv='none', batch=1, context=512, measured=.004, predicted=.003, bound='memory', bytes=1.5e10,
              bandwidth_share=.9, rate_share=.1, kinds={}, calls=7)
    points = [profile.Point('shape:llama-3.1-8b', s, phase=p, ops=ops, dtype=d, **at)
              for s, d in (('none', 'bf16'), ('fp8', 'fp8')) for p, ops in (('decode', 1e10), ('prefill', 1e13))]
    return profile.Profile(gpu, points)


def smoothed():
    tried = [smoothing.Trial(s, a, some(.001), some(.001), None) for s in ('int8_sq', 'int8_token')
             for a in ('off', 'layerwise', 0., .5, 1.)]
    return smoothing.AlphaSweep(tried, None)


def swept():
    ratio = {'quality.ppl_ratio': 1.01, 'quality.ppl_ratio_ci95.low': 1., 'quality.ppl_ratio_ci95.high': 1.02}
    return sweep.Sweep('fp8', [ratio | dict(run=f'scheme=int8_token, model=demo, seed={n}') for n in range(12)])


LOAD = [dict(concurrency=c, itl=.005 * c, tokens_per_s=900. * c) for c in (1, 4, 64)]
FIGURES = {
    'attribution.plot': [lambda: groups('layer', 30).plot(), lambda: groups('kind', 7).plot()],
    'bench.plot': [lambda: speed().plot()],
    'calibration.plot': [lambda: report()[0].plot()],
    'calibration.plot_settling': [lambda: report()[0].plot_settling()],
    'calibration.plot_values': [lambda: calibration.CalibrationReport.plot_values(*report())],
    'choice.plot': [lambda: chosen().plot()],
    'compare.plot': [lambda: compare.Comparison.plot(compared())],
    'compare.plot_pairing': [lambda: compare.Comparison.plot_pairing(compared())],
    'compile.plot': [lambda: built().plot()],
    'formats.plot_formats': [formats.plot_formats],
    'loadtest.plot_load': [lambda: loadtest.plot_load(dict(BF16=LOAD, FP8=LOAD))],
    'paired.plot': [lambda: table().plot('512 tokens')],
    'parity.plot': [lambda: same().plot({'scales of another layer, on purpose': same()})],
    'profile.plot': [lambda: profile.plot(profiled())],
    'smoothing.plot': [lambda: smoothed().plot()],
    'sweep.plot_sweep': [lambda: sweep.plot_sweep(swept())],
}
DRAWN = [pytest.param(draw, id=name) for name, all_of in FIGURES.items() for draw in all_of]


def test_no_figure_is_left_out():
    found = []
    for path in (ROOT/'tqcook').glob('*.py'):
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        found += [f'{path.stem}.{f.name}' for f in functions if f.name.split('_')[0] == 'plot']
    assert sorted(found) == sorted(FIGURES)


def beyond(figure):
    "By how many pixels what is drawn reaches over each edge: left, bottom, right, top."
    canvas = FigureCanvasAgg(figure)  # a closed figure has lost its own
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer()).extents * figure.dpi
    return np.maximum(0, [-box[0], -box[1], box[2] - figure.bbox.width, box[3] - figure.bbox.height])


@pytest.mark.parametrize('draw', DRAWN)
def test_all_of_a_figure_lies_inside_it(draw):
    "As a file is saved; a notebook cuts figures to what is in them, and would not show it."
    drawn = draw()
    figure = getattr(drawn, 'figure', None) or drawn
    assert beyond(figure).max() < 1, beyond(figure)
    plt.close(figure)


def test_what_is_cut_off_is_found():
    "Negative control."
    figure, ax = plt.subplots(figsize=(2, 2), layout='constrained')
    assert beyond(figure).max() == 0
    ax.set_xlabel('a label that is far longer than this figure is wide')
    assert beyond(figure)[2] > 50
    plt.close(figure)
