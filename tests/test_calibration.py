"""What calibration notices: ranges, experts, outliers of text, memory that runs out."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tqcook import models, quantize
from tqcook.calibration import text_facts, token_divergence
from tqcook.core import CookError
from tqcook.ranges import BINS, Range, RangeRecorder, bin_edges, choose_amax, log_histogram, run_windows, settled


def text(n=8, length=48, seed=0, low=0, high=4096):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(windows=[rng.integers(low, high, length) for _ in range(n)])


@pytest.fixture(scope='module')
def llama():
    return models.tiny('llama')


def test_histogram_places_every_value_in_its_bin():
    x = torch.from_numpy(10. ** np.random.default_rng(0).uniform(-12, 12, 5000)).float()
    edges, h = bin_edges(), log_histogram(x, 10**6).numpy()
    assert np.array_equal(h, np.histogram(x.numpy(), edges)[0]) and h.sum() == 5000
    assert log_histogram(torch.zeros(10))[0] == 10 and len(edges) == BINS + 1


def test_ranges_do_not_depend_on_batches(llama):
    c = text(6)
    tables = []
    for bs in (1, 4, 6):
        with RangeRecorder(models.linears(llama.model), 6) as rec:
            info = run_windows(llama.model, c.windows, rec, bs, progress=False)
        tables.append(np.stack([rec.per_sample(n)[np.argsort(info['order'])] for n in rec.table]))
    for t in tables[1:]:
        assert np.allclose(t, tables[0], rtol=2 * 2.**-8)


def test_shared_inputs_are_reduced_once(llama):
    calls = []
    with RangeRecorder(models.linears(llama.model), 4) as rec:
        reduce = rec._reduce
        rec._reduce = lambda n, x: (calls.append(n), reduce(n, x))
        run_windows(llama.model, text(4).windows, rec, 4, progress=False)
    assert len(calls) == 8 and {rec.owner[n].rsplit('.', 1)[1] for n in rec.table} == {
        'q_proj',
        'o_proj',
        'gate_proj',
        'down_proj',
    }


def test_out_of_memory_halves_the_batch_and_is_said_once(llama, monkeypatch):
    seen = []
    c = text(8)
    whole = quantize.quantize(llama, c, 'fp8', progress=False)
    def scarce(*a, input_ids=None, **kw):
        seen.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError('CUDA out of memory (pretended)')
        return type(llama.model.model).forward(llama.model.model, input_ids=input_ids, **kw)
    monkeypatch.setattr(llama.model.model, 'forward', scarce, raising=False)
    with pytest.warns(UserWarning, match='out of memory') as w:
        q = quantize.quantize(llama, c, 'fp8', progress=False, copy=False, batch_size=8)
    monkeypatch.undo()
    assert len([x for x in w if 'out of memory' in str(x.message)]) == 1
    assert seen[:2] == [8, 4]
    assert q.report.facts['batch_size'] == 2
    a, b = ({s.module: s.amax for s in r.report.inputs()} for r in (whole, q))
    assert a.keys() == b.keys() and all(abs(a[k] - b[k]) <= 2 * 2.**-7 * a[k] for k in a)
    llama.model = models.tiny('llama').model


def test_other_errors_are_not_taken_for_memory(llama, monkeypatch):
    m = models.tiny('llama')
    monkeypatch.setattr(
        m.model.model, 'forward', lambda **kw: (_ for _ in ()).throw(RuntimeError('shapes do not match')), raising=False
    )
    with pytest.raises(RuntimeError, match='shapes do not match'):
        run_windows(m.model, text(4).windows, progress=False)


def test_clipping_on_other_text_is_counted_exactly(llama):
    lins, c = models.linears(llama.model), text(4, seed=5)
    judged = {n: Range(torch.tensor(1.), 'int8') for n in lins}
    inputs = {}
    hs = [
        m.register_forward_pre_hook(lambda m, a, n=n: inputs.setdefault(n, []).append(a[0].float()))
        for n, m in lins.items()
    ]
    with RangeRecorder(lins, 4, histogram=False, ranges=judged) as clip:
        run_windows(llama.model, c.windows, clip, 2, progress=False)
    for h in hs:
        h.remove()
    for n in lins:
        x = torch.cat([v.flatten() for v in inputs[n]]).abs()
        over, gone, top = clip.shares(n)
        assert over == pytest.approx(float((x > 1).double().mean()), abs=1e-9) and top == float(x.max())
        assert gone == pytest.approx(float(((x > 0) & (x <= .5 / 127)).sum() / (x > 0).sum()), abs=1e-6)


@pytest.mark.parametrize('dtype', ['int8', 'e4m3'])
def test_what_vanishes_is_counted_as_it_is_rounded(dtype):
    "In BF16 too, where limits rounded to BF16 counted up to 0.0009 of the values wrong, and a histogram 0.009."
    from tqcook.formats import round_to
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        x = (torch.randn(20_000, generator=g) * torch.randn(20_000, generator=g).mul(2).exp()).bfloat16()
        amax = x.abs().max().float() * (.37 if seed % 2 else 1)
        live, over, gone = Range(amax, dtype).count(x).tolist()
        rounded = round_to(x.float().numpy(), dtype, float(amax))
        assert gone == ((rounded == 0) & (x != 0).numpy()).sum() and over == int((x.abs().float() > amax).sum())
        assert live == int((x != 0).sum()) and gone > 100


def test_idle_experts_are_named():
    m = models.tiny('mixtral')
    q = quantize.quantize(m, SimpleNamespace(windows=[np.array([5, 6])]), 'fp8', progress=False)
    assert q.report.facts['experts_idle'] > 0
    assert any('never saw a calibration token' in w and 'experts' in w for w in q.report.warnings)
    full = quantize.quantize(m, text(8), 'fp8', progress=False)
    assert full.report.facts['experts_idle'] == 0
    per_layer = [s.tokens for s in full.report.stats if 'layers.0' in s.module and 'experts.down_proj.' in s.module]
    assert sum(per_layer) == 8 * 48 * 2  # every token goes to two experts


def test_a_dead_layer_and_a_rare_sample_are_named(llama):
    m = models.tiny('llama')
    m.model.model.layers[1].post_attention_layernorm.weight.zero_()
    q = quantize.quantize(m, text(16), 'fp8', progress=False)
    assert any('amax 0' in w and 'model.layers.1.mlp' in w for w in q.report.warnings)
    n, _ = settled([[1.] * 64, [1.] * 63 + [9.]])
    assert n[0] == 1 and n[1] > 40


def test_infinite_activations_name_layer_and_sample():
    m = models.tiny('llama', dtype='float16')
    m.model.model.embed_tokens.weight[77] = 60000.
    m.model.model.layers[0].input_layernorm.weight.fill_(60000.)
    c = text(4, high=70)
    c.windows[2][3] = 77
    with pytest.raises(CookError, match=r'model\.layers\.0\.\S+ is not finite in calibration sample \d'):
        quantize.quantize(m, c, 'fp8', progress=False)


@pytest.mark.parametrize('corpus, said', [
    (SimpleNamespace(windows=[np.array([1])]), 'only 1 tokens'),
    (SimpleNamespace(windows=[np.tile([3, 4, 5], 60)] * 3), 'over and over'),
    (SimpleNamespace(windows=[np.arange(64)] * 2), 'repeat another'),
])
def test_poor_text_is_named(corpus, said):
    assert any(said in w for w in text_facts(corpus)[1])


def test_binary_junk_is_named():
    tok = models.demo_tokenizer()
    junk = tok(bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8)).decode('latin-1'))['input_ids']
    fine = tok('def f(x):\n    return x\n' * 200)['input_ids']
    w = lambda ids: text_facts(SimpleNamespace(windows=[np.array(ids)]), tok)[1]
    assert any('binary data' in x for x in w(junk)) and not any('binary data' in x for x in w(fine))


def test_leak_and_text_of_another_kind_are_noticed_and_good_text_is_not():
    rng = np.random.default_rng(0)
    kind = lambda shift: SimpleNamespace(windows=[(rng.zipf(1.5, 256) + shift) % 4096 for _ in range(24)])
    a, b, c = kind(0), kind(0), kind(7)
    facts, warn = text_facts(a, target=b)
    assert not warn and facts['leak_share'] < .01
    assert any('stand in the calibration text' in w for w in text_facts(a, target=a)[1])
    assert any('of another kind' in w for w in text_facts(a, target=c)[1])
    div, expected = token_divergence(a.windows, b.windows)
    assert abs(div - expected) < .08


def test_chat_form_must_match():
    a, b = text(8), text(8, seed=1)
    b.chat = True
    assert any('chat template' in w for w in text_facts(a, target=b)[1])
    assert not any('chat template' in w for w in text_facts(a, target=a)[1])


def test_rules_leave_ranges_within_what_was_seen():
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    x[0] = 60.
    h, top = log_histogram(x, 10**6).numpy(), 60.
    for dtype in ('int8', 'e4m3'):
        for rule in ('percentile', 'mse'):
            assert 0 < choose_amax(h, top, rule, dtype) <= top
    from modelopt.torch.quantization.tensor_quant import _tensor_quant
    cand = np.linspace(2, 60, 200)  # squared error of a fine search, ModelOpt's own rounding
    err = [float((_tensor_quant(x, torch.tensor(c)) - x).square().mean()) for c in cand]
    mine = choose_amax(h, top, 'mse', 'int8')
    assert float((_tensor_quant(x, torch.tensor(mine)) - x).square().mean()) <= 1.1 * min(err)


def test_report_is_plain_data(llama):
    import json
    r = quantize.quantize(llama, text(16), 'fp8', target=text(4, seed=9), progress=False).report
    d = json.loads(json.dumps(r.to_dict(), allow_nan=False))
    assert {
        'saturation_max',
        'underflow_max',
        'converged_at_samples',
        'leak_share',
        'warnings',
        'amax',
    } <= d.keys() and d['measured_on'] == 'target text'
    for fig in (r.plot(), r.plot_settling(), r.plot_values(next(iter(r.hists)))):
        assert fig.axes
    assert 'clipped' in r._repr_markdown_()
