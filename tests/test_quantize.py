"""Quantizing against plain ModelOpt, exporting, and everything that must be refused."""
import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tqcook import data, export, models, quantize, schemes, smoothing
from tqcook.core import CookError

PLAIN = dict(
    fp8='FP8_DEFAULT_CFG',
    int8_sq='INT8_SMOOTHQUANT_CFG',
    int8_wo='INT8_WEIGHT_ONLY_CFG',
    fp8_rowwise='FP8_PER_CHANNEL_PER_TOKEN_CFG',
)


def text(n=8, length=48, seed=0):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(windows=[rng.integers(0, 4096, length) for _ in range(n)])


@pytest.fixture(scope='module')
def llama():
    return models.tiny('llama')


def plain(loaded, scheme, corpus):
    "ModelOpt as its documentation has it."
    import modelopt.torch.quantization as mtq
    m = copy.deepcopy(loaded.model)
    with models.quiet(prints=True):
        return mtq.quantize(
            m, getattr(mtq, PLAIN[scheme]), lambda m: [m(torch.from_numpy(w)[None]) for w in corpus.windows]
        )


def ranges(model):
    return {n: (q._amax.float(), q._amax.dtype) for n, q in model.named_modules() if hasattr(q, '_amax')}


def same_ranges(a, b, ulps=2):
    "Weights equal, activations within `ulps` BF16 units in the last place; the names that differ."
    bad = []
    for n in a.keys() | b.keys():
        if n not in a or n not in b or a[n][0].shape != b[n][0].shape or a[n][1] != b[n][1]:
            bad.append(n)
            continue
        x, y = a[n][0], b[n][0]
        ulp = 2. ** (torch.floor(torch.log2(y.clamp(min=1e-30))) - 7)
        if not (torch.equal(x, y) if 'weight_quantizer' in n else bool(((x - y).abs() <= ulps * ulp).all())):
            bad.append(n)
    return bad


@pytest.mark.parametrize('arch', ['llama', 'qwen2', 'phi3', 'mixtral', 'gemma2'])
def test_fp8_ranges_are_those_of_plain_modelopt(arch):
    m, c = models.tiny(arch), text()
    q = quantize.quantize(m, c, 'fp8', keep_apart=True, progress=False)
    a, b = ranges(q.loaded.model), ranges(plain(m, 'fp8', c))
    assert len(a) > 10 and not same_ranges(a, b)
    other = ranges(plain(m, 'fp8', text(2, 8, seed=4)))  # negative control: another text gives other ranges
    assert same_ranges(a, other)


@pytest.mark.parametrize('scheme', ['fp8', 'int8_wo', 'fp8_rowwise'])
def test_the_exported_file_is_the_one_plain_modelopt_writes(llama, scheme, tmp_path):
    from modelopt.torch.export import export_hf_checkpoint
    c = text()
    out = export.export(quantize.quantize(llama, c, scheme, keep_apart=True, progress=False), tmp_path/'ours')
    with models.quiet(prints=True):
        export_hf_checkpoint(plain(llama, scheme, c), export_dir=tmp_path/'theirs')
    a, b = load_file(out/'model.safetensors'), load_file(tmp_path/'theirs'/'model.safetensors')
    assert a.keys() == b.keys()
    for n in a:
        assert a[n].dtype == b[n].dtype
        if n.endswith('input_scale'):
            assert abs(float(a[n]) / float(b[n]) - 1) < 2 * 2.**-7
        elif f'{n}_scale' not in a:
            assert torch.allclose(a[n].float(), b[n].float(), rtol=1e-6), n
        else: # ModelOpt divides BF16 weights in BF16 and so rounds twice: some codes land one step beside
            x, y = a[n].float(), b[n].float()
            step = torch.maximum(x.abs() / 8, torch.tensor(2.**-9)) if scheme.startswith('fp8') else 1
            assert ((x - y).abs() <= step).all() and (x != y).float().mean() < .05, n
    qa, qb = (json.loads((d/'hf_quant_config.json').read_text())['quantization'] for d in (out, tmp_path/'theirs'))
    qb['exclude_modules'].remove('model.embed_tokens') # a table, which no engine quantizes anyway
    assert qa == qb


@pytest.mark.parametrize('scheme', schemes.SCHEMES)
def test_codes_are_rounded_once(llama, scheme, tmp_path):
    "What the file holds is what was judged: float32 division of the weight, to the nearest code, no second rounding."
    from tqcook import formats
    q = quantize.quantize(llama, text(4), scheme, progress=False)
    simulated = {
        n: (x.weight.float(), x.weight_quantizer(x.weight).float()) for n, x in models.linears(q.loaded.model).items()
    }
    t = load_file(export.export(q, tmp_path/'x')/'model.safetensors')
    for n, (w, fake) in simulated.items():
        leaves = {k.removeprefix(n + '.'): v for k, v in t.items() if k.rpartition('.')[0] == n}
        stored = formats.dequantize(scheme, leaves)
        assert ((stored - fake).abs() <= 2.**-8 * fake.abs() + 1e-12).all(), n
        scales = {k: v for k, v in leaves.items() if 'weight_scale' in k}
        direct = formats.dequantize(scheme, formats.quantize(scheme, w, scales))
        apart = direct != stored # only exact ties may fall to the other side
        assert apart.float().mean() < 0.05, n
        assert ((w - (direct + stored) / 2).abs()[apart] <= 1e-5 * w.abs()[apart]).all(), n


def test_nvfp4_shares_its_second_scale_as_loaders_want_it(llama, tmp_path):
    "q, k, v and gate, up are one product in an engine, which asserts one scale; left apart, the check says so."
    from tqcook import contract
    told = {}
    for apart in (False, True):
        q = quantize.quantize(llama, text(4), 'nvfp4', keep_apart=apart, progress=False)
        path = export.export(q, tmp_path/f'{apart}')
        told[apart] = contract.check(path, device='b200').codes
        t = load_file(path/'model.safetensors')
        second = {n.rpartition('.')[0]: float(s) for n, s in t.items() if n.endswith('weight_scale_2')}
        three = {second[f'model.layers.1.self_attn.{leaf}_proj'] for leaf in 'qkv'}
        assert len(three) == (3 if apart else 1)
    assert 'fused-scales-differ' in told[True] and 'fused-scales-differ' not in told[False]


def test_smoothquant_is_scored_as_it_will_be_written(llama, tmp_path):
    q = quantize.quantize(llama, text(16), 'int8_sq', alpha=.5, progress=False)
    m = q.loaded.model
    attention, mlp = m.model.layers[0].self_attn, m.model.layers[0].mlp
    for group in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
        first, *rest = (x.input_quantizer for x in group)
        assert all(torch.equal(first.pre_quant_scale, r.pre_quant_scale) and first.amax == r.amax for r in rest)
    simulated = {n: (x.input_quantizer._amax.float(), x.input_quantizer.pre_quant_scale.float())
                 for n, x in models.linears(m).items()}
    t = load_file(export.export(q, tmp_path/'sq')/'model.safetensors')
    for n, (amax, pre) in simulated.items():
        assert float(t[f'{n}.input_scale']) == pytest.approx(float(amax) / 127, rel=1e-6)
        assert torch.equal(t[f'{n}.pre_quant_scale'].float(), pre)
        top = q.ranges.channel[f'{n}.input_quantizer'].float()
        assert float(amax) == pytest.approx(float((top * pre).max()), rel=1e-6) # the exact maximum, not a bound
    flat = quantize.quantize(llama, text(16), 'int8_sq', alpha=1., progress=False) # negative control
    other = flat.loaded.model.model.layers[0].self_attn.q_proj.input_quantizer.pre_quant_scale
    assert not torch.equal(attention.q_proj.input_quantizer.pre_quant_scale, other)


def test_int8_token_folds_what_it_can_and_says_the_rest(llama, tmp_path):
    q = quantize.quantize(llama, text(16), 'int8_token', progress=False)
    assert q.alpha == .5 and q.report.facts['unsmoothed'] == [f'model.layers.{i}.self_attn.o_proj' for i in (0, 1)]
    assert not any(x.pre_quant_scale is not None for x in quantize.quantizers(q.loaded.model).values())
    off = quantize.quantize(llama, text(16), 'int8_token', alpha='off', progress=False).loaded.model
    with quantize.transparent(q.loaded.model), torch.no_grad(): # smoothing alone changes nothing but the last bits
        a, b = llama.model(torch.arange(32)[None]).logits.float(), q.loaded.model(torch.arange(32)[None]).logits.float()
    assert (a - b).norm() / a.norm() < .02
    gain = lambda layers: layers[0].input_layernorm.weight
    assert not torch.equal(gain(off.model.layers), gain(q.loaded.model.model.layers))
    t = load_file(export.export(q, tmp_path/'x')/'model.safetensors')
    name = 'model.layers.0.mlp.down_proj'
    assert t[f'{name}.weight'].dtype == torch.int8 and list(t[f'{name}.weight_scale'].shape) == [128, 1]
    assert not any(n.endswith(('input_scale', 'pre_quant_scale')) for n in t)
    assert not (tmp_path/'x'/'hf_quant_config.json').exists()
    c = json.loads((tmp_path/'x'/'config.json').read_text())['quantization_config']
    weights = dict(num_bits=8, type='int', symmetric=True, strategy='channel', dynamic=False)
    assert c == dict(quant_method='compressed-tensors', format='int-quantized', quantization_status='compressed',
                     ignore=['lm_head'], config_groups=dict(group_0=dict(targets=['Linear'], weights=weights,
                     input_activations=weights | dict(strategy='token', dynamic=True))))


def test_fused_layers_share_one_weight_scale(llama, tmp_path):
    q, apart = (quantize.quantize(llama, text(4), 'fp8', keep_apart=k, progress=False) for k in (False, True))
    t, u = (load_file(export.export(x, tmp_path/str(i))/'model.safetensors') for i, x in enumerate((q, apart)))
    for group in ('self_attn.q_proj self_attn.k_proj self_attn.v_proj', 'mlp.gate_proj mlp.up_proj'):
        names = [f'model.layers.0.{n}.weight_scale' for n in group.split()]
        assert len({float(t[n]) for n in names}) == 1 and float(t[names[0]]) == max(float(u[n]) for n in names)
        assert len({float(u[n]) for n in names}) > 1


def test_fake_quantization_needs_no_compiled_extension(llama, monkeypatch):
    from modelopt.torch.quantization import extensions
    def never(*a, **kw):
        raise AssertionError('a CUDA extension would be compiled')
    for f in ('get_cuda_ext', 'get_cuda_ext_fp8', 'get_cuda_ext_mx'):
        monkeypatch.setattr(extensions, f, never)
    import modelopt.torch.quantization.tensor_quant as tq
    for f in ('get_cuda_ext', 'get_cuda_ext_fp8', 'get_cuda_ext_mx', 'fake_quant_impl', 'scaled_e4m3_impl'):
        monkeypatch.setattr(tq, f, never)
    for s in ('fp8', 'int8_sq', 'int8_wo', 'fp8_rowwise', 'fp8_block', 'int4_awq'):
        q = quantize.quantize(llama, text(2), s, kv='fp8', progress=False)
        with torch.no_grad():
            assert torch.isfinite(q.loaded.model(torch.zeros(1, 8, dtype=torch.long)).logits).all()


def test_the_callers_model_is_left_alone_unless_asked(llama):
    before = {n: p.clone() for n, p in llama.model.named_parameters()}
    q = quantize.quantize(llama, text(2), 'int8_sq', progress=False)
    assert llama.kind == 'hf' and q.loaded.kind == 'fake_quant' and q.loaded.scheme == 'int8_sq'
    assert all(torch.equal(p, before[n]) for n, p in llama.model.named_parameters())
    assert not any('quantizer' in n for n, _ in llama.model.named_modules())
    m = models.tiny('llama')
    q = quantize.quantize(m, text(2), 'fp8', copy=False, progress=False)
    # the weights were lent, the object was not
    assert q.loaded.model is m.model and m.kind == 'hf' and q.loaded is not m
    with pytest.raises(CookError, match='quantized already'):
        quantize.quantize(m, text(2), 'fp8', progress=False)


def test_layer_norms_are_not_quantized():
    for arch in ('gpt2', 'opt'):
        q = quantize.quantize(models.tiny(arch), text(2), 'fp8', progress=False)
        assert not any('ln_' in s.module or 'norm' in s.module for s in q.report.stats)
        assert q.modules == len(models.linears(q.loaded.model))


def test_exclude_leaves_layers_in_bf16(llama, tmp_path):
    q = quantize.quantize(llama, text(2), 'fp8', exclude=['*.down_proj', 'model.layers.0'], progress=False)
    assert q.modules == 6
    out = export.export(q, tmp_path/'x')
    t = load_file(out/'model.safetensors')
    names = [f'self_attn.{x}_proj' for x in 'qkvo'] + ['mlp.gate_proj', 'mlp.up_proj']
    eight_bits = {n for n, v in t.items() if v.dtype == torch.float8_e4m3fn}
    assert eight_bits == {f'model.layers.1.{n}.weight' for n in names}
    told = json.loads((out/'hf_quant_config.json').read_text())['quantization']
    assert any('layers.0' in e for e in told['exclude_modules'])


@pytest.mark.parametrize('algorithm', ['percentile', 'mse'])
def test_rules_reach_the_quantizers(llama, algorithm):
    c = text(16)
    top, low = (
        quantize.quantize(llama, c, 'int8_sq', alpha='off', algorithm=a, percentile=99.0, target=c, progress=False)
        for a in ('max', algorithm)
    )
    a, b = ({s.module: s.amax for s in q.report.inputs()} for q in (top, low))
    assert all(b[n] <= a[n] for n in a) and any(b[n] < .9 * a[n] for n in a)
    if algorithm == 'percentile':
        assert .002 < max(s.saturation for s in low.report.inputs()) < .05


def test_alpha_sweep_runs_the_text_once_and_shows_the_default(monkeypatch):
    m = models.load('demo')
    cal = data.calibration('code-train', m.tokenizer, 6, 64)
    judge = data.corpus('code', m.tokenizer, 64, max_windows=4)
    runs, real = [], quantize._observe
    monkeypatch.setattr(quantize, '_observe', lambda *a: (runs.append(a[3]), real(*a))[1])
    s = smoothing.sweep_alpha(m, cal, judge, alphas=[.5], progress=False)
    assert runs == [True, False] # once channel by channel, and once for the static row without smoothing
    assert [(t.scheme, t.alpha) for t in s.trials] == [
        *(('int8_sq', a) for a in (1., .5, 'layerwise', 'off')), *(('int8_token', a) for a in (.5, 'layerwise', 'off'))]
    assert s.row('int8_sq', 1.).difference.value == 0
    for scheme, best in s.best.items():
        assert best.kld.value == min(t.kld.value for t in s.trials if t.scheme == scheme and t.alpha != 'off')
    assert json.dumps(s.to_dict()) and 'default' in s._repr_markdown_() and s.plot().axes
    fresh = quantize.quantize(m, cal, 'int8_sq', alpha=.5, progress=False)
    cached = quantize.quantize(m, cal, 'int8_sq', alpha=.5, ranges=s.ranges, progress=False)
    assert not same_ranges(ranges(fresh.loaded.model), ranges(cached.loaded.model), 0)


def test_alpha_is_chosen_on_held_out_windows_of_one_text():
    m = models.load('demo')
    cal = data.calibration('code-train', m.tokenizer, 10, 48)
    s = smoothing.choose_alpha(m, cal, 'int8_sq', [.5, .7], progress=False)
    rows = {t.alpha: t.kld.value for t in s.trials}
    assert rows.keys() == {1., 'layerwise', 'off', .5, .7}
    assert rows[s.best['int8_sq'].alpha] == min(v for a, v in rows.items() if a != 'off')
    q = quantize.quantize(m, cal, 'int8_sq', alpha=s.best['int8_sq'].alpha, progress=False)
    assert not any('alpha' in w for w in q.report.warnings)
    with pytest.raises(CookError, match='at least 10'):
        smoothing.choose_alpha(m, data.calibration('code-train', m.tokenizer, 9, 48))
    with pytest.raises(CookError, match='alphas is 2'):
        smoothing.sweep_alpha(None, None, None, [.5, 2])


def test_ranges_of_another_run_are_checked(llama):
    plain, other = (
        quantize.quantize(llama, text(2), 'fp8', progress=False),
        quantize.quantize(models.tiny('gpt2'), text(2), 'fp8', progress=False),
    )
    with pytest.raises(CookError, match='without channels'):
        quantize.quantize(llama, text(2), 'int8_sq', ranges=plain.ranges, progress=False)
    with pytest.raises(CookError, match='another model'):
        quantize.quantize(llama, text(2), 'fp8', ranges=other.ranges, progress=False)
    report = quantize.quantize(llama, text(2), 'int8_sq', progress=False).report
    assert any('alpha 1 was not compared' in w for w in report.warnings)


@pytest.mark.parametrize(
    'arch, exact',
    [
        ('llama', True),
        ('qwen3', True),
        ('phi3', True),
        ('opt', True),
        ('gpt2', True),
        ('gemma2', False),
        ('gemma3', False),
    ],
)
def test_injected_outliers_change_nothing_that_is_computed(arch, exact):
    m = models.tiny(arch)
    w = smoothing.inject_outliers(m)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        a, b = m.model(ids).logits, w.model(ids).logits
    assert torch.equal(a, b) if exact else (a - b).float().norm() / a.float().norm() < .03
    q, r = (quantize.quantize(x, text(2), 'int8_sq', alpha='off', progress=False).report for x in (m, w))
    assert max(s.amax for s in r.inputs()) > 8 * max(s.amax for s in q.inputs())
    assert 'injected' in w.name and w.notes['injected']['factor'] == 64


def test_smoothing_repairs_what_outliers_break():
    from tqcook import compare
    m = smoothing.inject_outliers(models.load('demo'))
    cal, ev = data.calibration('code-train', m.tokenizer, 12, 128), data.corpus('code', m.tokenizer, 128, max_windows=6)
    kld = lambda **kw: (
        compare.compare(
            m, quantize.quantize(m, cal, progress=False, **kw).loaded, ev, noise_floor='none', progress=False
        )
        .stats['kld_mean']
        .value
    )
    broken, repaired = kld(scheme='int8_sq', alpha='off'), kld(scheme='int8_sq', alpha=.7)
    assert broken > .3 and repaired < .1 * broken


# exporting

def test_export_is_whole_or_absent(llama, tmp_path, monkeypatch):
    import huggingface_hub
    q = quantize.quantize(llama, text(2), 'fp8', progress=False)
    for error in (KeyboardInterrupt, RuntimeError):
        def broken(tensors, out, **kw):
            (out/'config.json').write_text('{')
            raise error('pulled the plug')
        monkeypatch.setattr(huggingface_hub, 'save_torch_state_dict', broken)
        with pytest.raises(error):
            export.export(q, tmp_path/'out')
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
    assert (export.export(q, tmp_path/'out')/'model.safetensors').exists()
    with torch.no_grad(): # writing left the model as it was
        assert torch.isfinite(q.loaded.model(torch.zeros(1, 2, dtype=torch.long)).logits).all()


def test_the_legacy_layout_consumes_the_model(tmp_path):
    q = quantize.quantize(models.tiny('qwen2'), text(2), 'int8_sq', progress=False)
    export.export(q, tmp_path/'out', layout='trtllm_legacy')
    with pytest.raises(CookError, match='quantize again'):
        q.loaded.model(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(CookError, match='quantize again'):
        export.export(q, tmp_path/'again')
    assert q.loaded.kind == 'exported'


def _tampered(t, k):
    "Ways in which a file can break its promise."
    name = 'model.layers.0.self_attn.q_proj'
    yield name, t | {f'{name}.weight': t[f'{name}.weight'].flip(0)}
    yield name, {n: v for n, v in t.items() if n != f'{name}.weight_scale'}
    yield name, t | {f'{name}.weight': t[f'{name}.weight'].float().bfloat16()}
    yield 'model.layers.0.mlp.experts.0.w1', t | {'model.layers.0.mlp.experts.0.w1.weight': t[f'{name}.weight'].clone()}
    yield 'model.norm.weight', {n: v for n, v in t.items() if n != 'model.norm.weight'}
    yield 'lm_head', t | {'lm_head.weight': t['lm_head.weight'] + 1}


@pytest.mark.parametrize('k', range(6))
def test_a_directory_that_breaks_its_promise_is_refused(llama, tmp_path, k):
    from safetensors.torch import save_file
    q = quantize.quantize(llama, text(2), 'fp8', progress=False)
    out = export.export(q, tmp_path/'x')
    export.read_back(q, out, 'hf')
    name, t = [*_tampered(load_file(out/'model.safetensors'), k)][k]
    save_file(t, out/'model.safetensors')
    with pytest.raises(CookError, match=name.replace('.', r'\.')):
        export.read_back(q, out, 'hf')


def test_export_into_a_folder_that_cannot_be_written(llama, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(CookError):
        export.export(quantize.quantize(llama, text(2), 'fp8', progress=False), tmp_path/'file'/'out')


def test_a_model_that_was_never_saved_exports(tmp_path):
    m = models.tiny('llama')
    m.model.config.architectures = None
    out = export.export(quantize.quantize(m, text(2), 'fp8', progress=False), tmp_path/'out')
    assert json.loads((out/'config.json').read_text())['architectures'] == ['LlamaForCausalLM']


@pytest.mark.parametrize('scheme', ['fp8', 'fp8_rowwise', 'fp8_block', 'int8_sq', 'int8_wo', 'int4_awq'])
def test_every_scheme_writes_what_the_contract_wants(llama, scheme, tmp_path):
    from tqcook import checkpoint, contract, passport
    base = models.tiny('llama', num_key_value_heads=4) if scheme == 'fp8_block' else llama # whole blocks when fused
    out = export.export(
        quantize.quantize(base, text(4), scheme, kv='fp8' if scheme == 'fp8' else 'none', progress=False),
        tmp_path / scheme,
    )
    c = checkpoint.Checkpoint.open(out)
    assert c.scheme == scheme and {'README.md', 'passport.json', 'tokenizer.json', 'hf_quant_config.json'} <= {
        p.name for p in out.iterdir()
    }
    assert c.kv == ('fp8' if scheme == 'fp8' else 'none')
    errors = [str(f) for f in contract.check(out).errors]
    assert not errors or scheme == 'int8_sq', errors
    if scheme == 'fp8_block': # vLLM reads ModelOpt's four dimensions and nothing else
        assert all(len(t.shape) == 4 for n, t in c.tensors.items() if n.endswith('weight_scale'))
    assert passport.verify(out).ok
    assert 'Random weights' in (out/'README.md').read_text()


def test_a_checkpoint_of_several_files(llama, tmp_path, monkeypatch):
    from tqcook import checkpoint, contract, passport
    monkeypatch.setattr(export, 'SHARD', '200KB')
    out = export.export(
        quantize.quantize(models.tiny('llama', num_key_value_heads=4), None, 'fp8_block', progress=False),
        tmp_path/'many',
    )
    c = checkpoint.Checkpoint.open(out)
    assert len(list(out.glob('*.safetensors'))) > 3 and not contract.check(out).errors and passport.verify(out).ok
    assert all(len(t.shape) == 4 for n, t in c.tensors.items() if n.endswith('weight_scale'))


@pytest.mark.parametrize('arch', ['llama', 'qwen2'])
def test_legacy_layout(arch, tmp_path):
    q = quantize.quantize(models.tiny(arch), text(4), 'int8_sq', alpha=.5, progress=False)
    out = export.export(q, tmp_path/'legacy', layout='trtllm_legacy')
    c = json.loads((out/'config.json').read_text())
    assert c['quantization']['quant_algo'] == 'W8A8_SQ_PER_CHANNEL' and c['mapping']['world_size'] == 1
    t = load_file(out/'rank0.safetensors')
    assert t['transformer.layers.0.attention.qkv.weight'].dtype == torch.int8
    assert t['transformer.layers.1.mlp.proj.prequant_scaling_factor'].shape == (256,)
    q = quantize.quantize(models.tiny(arch), text(4), 'int8_token', progress=False)
    codes = q.loaded.model.model.layers[1].mlp.down_proj
    fake = codes.weight_quantizer(codes.weight).float()
    out = export.export(q, tmp_path/'token', engine_for='trtllm')
    c = json.loads((out/'config.json').read_text())
    assert c['quantization']['quant_algo'] == 'W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN'
    t, proj = load_file(out/'rank0.safetensors'), 'transformer.layers.1.mlp.proj'
    assert t[f'{proj}.per_channel_scale'].shape == (1, 128) and (t[f'{proj}.smoother'] == 1).all()
    w = t[f'{proj}.weight'].float() * t[f'{proj}.per_channel_scale'].T
    assert (w - fake).abs().max() <= 1.01 * t[f'{proj}.per_channel_scale'].max()
    assert not any('activation' in n or 'prequant' in n for n in t)


# refusals

@pytest.mark.parametrize('kw, said', [
    (dict(scheme='fp9'), r"scheme is 'fp9'; expected a scheme.*did you mean 'fp8'"),
    (dict(algorithm='maximum'), r"did you mean 'max'"),
    (dict(kv='int8'), 'none, fp8'),
    (dict(alpha=.5), 'int8_sq and int8_token'),
    (dict(scheme='int8_sq', alpha=1.2), '0 to 1'),
    (dict(scheme='int8_sq', alpha=-.1), '0 to 1'),
    (dict(scheme='int8_sq', alpha='of'), 'expected off, layerwise or 0.0'),
    (dict(scheme='int8_sq', algorithm='mse'), "alpha 'off'"),
    (dict(scheme='fp8_rowwise', algorithm='mse'), 'static ranges'),
    (dict(algorithm='percentile', percentile=0), 'more than 0'),
    (dict(algorithm='percentile', percentile=100.5), 'at most 100'),
    (dict(scheme='int8_sq', alpha='auto'), 'expected off, layerwise or'),
    (dict(scheme='int8_token', alpha=True), '0 to 1'),
    (dict(exclude=['*']), 'not all of them'),
    (dict(exclude='*.down_proj'), 'a list of patterns'),
    (dict(exclude=['*.nosuch']), 'matches no linear layer'),
])
def test_options_that_make_no_sense_are_refused(llama, kw, said):
    with pytest.raises(CookError, match=said):
        quantize.quantize(llama, text(2), progress=False, **kw)


@pytest.mark.parametrize(
    'corpus, said',
    [
        (None, 'no samples'),
        (SimpleNamespace(windows=[]), 'no samples'),
        (SimpleNamespace(windows=[np.array([], int)]), 'window 0 has 0 tokens'),
        (SimpleNamespace(windows=[np.ones(9999, int)]), '9999 tokens, expected 1 to 512'),
        (
            SimpleNamespace(windows=[np.array([1, 2]), np.array([3, 4096])]),
            "window 1 has token 4096, beyond the model's vocabulary of 4096",
        ),
    ],
)
def test_text_that_cannot_be_used_is_refused(llama, corpus, said):
    with pytest.raises(CookError, match=said):
        quantize.quantize(llama, corpus, 'fp8', progress=False)


def test_schemes_without_calibration_need_no_text(llama):
    for s in ('int8_wo', 'fp8_rowwise', 'fp8_block'):
        assert quantize.quantize(llama, None, s, progress=False).report.samples == 0


def test_a_damaged_weight_is_named():
    m = models.tiny('llama')
    m.model.model.layers[1].mlp.up_proj.weight[3, 4] = float('nan')
    with pytest.raises(CookError, match=r'model\.layers\.1\.mlp\.up_proj\.weight has 1 value'):
        quantize.quantize(m, text(2), 'fp8', progress=False)


def test_a_width_that_the_group_does_not_divide_is_named():
    m = models.tiny('llama', hidden_size=96, num_attention_heads=4)
    with pytest.raises(CookError, match=r'q_proj has 96 inputs, which 128 does not divide'):
        quantize.quantize(m, text(2), 'int4_awq', progress=False)


def test_a_model_without_linear_layers_is_refused():
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.config = torch.nn.Embedding(16, 8), SimpleNamespace(vocab_size=16)
        def get_output_embeddings(self):
            return None
    with pytest.raises(CookError, match='Head has no linear layers'):
        quantize.preflight(models.Loaded(Head(), None, 'none', device=models.tiny('llama').device), 'fp8')


def test_int8_for_the_pytorch_backend_is_refused_with_the_way_out(llama, tmp_path):
    q = quantize.quantize(llama, text(2), 'int8_sq', progress=False)
    with pytest.raises(CookError, match="layout='trtllm_legacy'"):
        export.export(q, tmp_path/'x', backend='pytorch')
    with pytest.raises(CookError, match="did you mean 'trtllm_legacy'"):
        export.export(q, tmp_path/'x', layout='trtllm-legacy')
    assert not q.exported and not list(tmp_path.iterdir())  # refused before anything was touched


def test_outliers_refuse_what_would_round():
    with pytest.raises(CookError, match='power of two'):
        smoothing.inject_outliers(models.tiny('llama'), factor=50)
    with pytest.raises(CookError, match='share is 0'):
        smoothing.inject_outliers(models.tiny('llama'), share=0)


def test_an_offloaded_model_is_calibrated(tmp_path):
    "A model larger than the device: accelerate moves layers in and out."
    pytest.importorskip('accelerate')
    from accelerate import dispatch_model
    m, c = models.tiny('llama'), text(4)
    whole = ranges(quantize.quantize(m, c, 'fp8', progress=False).loaded.model)
    m.model = dispatch_model(
        m.model,
        {
            'model.embed_tokens': 'cpu',
            'model.layers.0': 'cpu',
            'model.layers.1': 'disk',
            'model.norm': 'cpu',
            'model.rotary_emb': 'cpu',
            'lm_head': 'cpu',
        },
        main_device='cpu',
        offload_dir=str(tmp_path/'off'),
        force_hooks=True,
    )
    with pytest.raises(CookError, match='copy=False'):
        quantize.quantize(m, c, 'fp8', progress=False)
    q = quantize.quantize(m, c, 'fp8', copy=False, progress=False)
    assert not same_ranges(ranges(q.loaded.model), whole)
    assert (export.export(q, tmp_path/'x')/'model.safetensors').exists()
