"checkpoint.check: good checkpoints give their expected findings and no other, each broken one its own."
import contextlib
import json
import time

import numpy as np
import pytest

import broken
from tqcook import card, export, passport
from tqcook.checkpoint import Checkpoint
from tqcook.contract import check, check_schema
from tqcook.core import CookError
from tqcook.findings import rules

FUSED = {'fused-requantized'}
EXPECTED = {  # scheme: findings on a GPU that runs it
    'fp8': set(),
    'fp8+kv': set(),
    'fp8_rowwise': set(),
    'fp8_block': {'activations-too'},
    'int8_sq': {'algo-unsupported'},
    'int8_wo': {'undocumented'},
    'int4_awq': set(),
    'nvfp4': set(),
    'none': {'not-quantized'},
}

def _device(scheme):
    return 'b200' if scheme == 'nvfp4' else 'h100'

@pytest.mark.parametrize('name', EXPECTED)
def test_good_checkpoints_give_exactly_their_expected_findings(name, tmp_path):
    scheme, _, kv = name.partition('+')
    d = broken.write(broken.good(scheme, kv='FP8' if kv else None), tmp_path/'c')
    for deep in (False, True):
        assert set(check(d, device=_device(scheme), deep=deep).codes) == EXPECTED[name]

def test_int8_smoothquant_is_one_error_that_points_to_the_legacy_layout(tmp_path):
    found = check(broken.write(broken.good('int8_sq'), tmp_path/'c'))
    assert len(found.errors) == 1 and found.errors[0].code == 'algo-unsupported'
    assert 'trtllm_legacy' in found.errors[0].remedy and '1.2.1' in found.errors[0].remedy
    assert check(broken.write(broken.legacy(), tmp_path/'l')).codes == []

def test_sharded_compressed_and_legacy_good_ones(tmp_path):
    for i, c in enumerate((broken.sharded(), broken.compressed(), broken.legacy())):
        assert check(broken.write(c, tmp_path/str(i)), deep=True).codes == [], i

@pytest.fixture(scope='module')
def baseline(tmp_path_factory):
    "Findings of the unbroken checkpoint that a case starts from."
    seen = {}
    def codes(make, deep):
        if (make, deep) not in seen:
            seen[make, deep] = set(check(broken.write(make(), tmp_path_factory.mktemp('good')/'c'), deep=deep).codes)
        return seen[make, deep]
    return codes

@pytest.mark.parametrize('name', broken.CASES)
def test_each_broken_checkpoint_gives_its_own_finding(name, baseline, tmp_path):
    case = broken.CASES[name]
    before = baseline(case['make'], case['kw'].get('deep', False))
    c = case['make']()
    case['break_'](c)
    found = check(broken.write(c, tmp_path/'bad'), **case['kw'])
    assert case['code'] in found.codes, str(found)
    assert set(found.codes) - before - case['also'] == {case['code']}, str(found)
    f = next(f for f in found if f.code == case['code'])
    assert f.level in (rules()[f.code]["level"], "warning") and f.found
    if f.level == 'error':
        assert f.remedy and (f.consequence or f.expected)
    if case['where']:
        assert case['where'] in (f.file, f.tensor), f
    assert found.ok == (not any(x.level == 'error' for x in found))

def test_every_rule_has_a_checkpoint_that_breaks_it():
    "A rule that no test can trigger is not a check. The passport's rules have their own tests."
    from pathlib import Path
    passport = set(list(rules())[list(rules()).index('no-passport'):])
    # in the tests above and below
    elsewhere = {'engine', 'not-quantized', 'algo-unsupported', 'undocumented', 'activations-too'}
    missing = set(rules()) - passport - elsewhere - {c['code'] for c in broken.CASES.values()}
    assert not missing and len(broken.CASES) >= 30, missing
    text = (Path(__file__).parent/'test_passport.py').read_text()
    assert not {r for r in passport if r not in text}

@pytest.mark.parametrize('name', ['gptq', 'gigabyte_header', 'nan_scale', 'second_shard_missing', 'nvfp4_on_hopper'])
def test_json_follows_its_schema(name, tmp_path):
    import jsonschema
    case, c = broken.CASES[name], broken.CASES[name]['make']()
    case['break_'](c)
    report = json.loads(json.dumps(check(broken.write(c, tmp_path/'c'), **case['kw']).to_dict()))
    jsonschema.validate(report, check_schema())
    jsonschema.validate(
        json.loads(json.dumps(check(broken.write(broken.good(), tmp_path/'g')).to_dict())), check_schema()
    )
    for wrong in (dict(report, ok='yes'), {k: v for k, v in report.items() if k != 'findings'},
                  dict(report, findings=[dict(report['findings'][0], level='fatal')])):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, check_schema())

def test_what_does_not_exist_is_an_error_not_a_finding(tmp_path):
    with pytest.raises(CookError, match='no such directory'):
        check(tmp_path/'nothing')
    (tmp_path/'m.gguf').write_bytes(b'GGUF')
    assert check(tmp_path/'m.gguf').codes == ['gguf']
    d = broken.write(broken.good(), tmp_path/'c')
    for kw in (dict(trtllm='newest'), dict(device='h1000'), dict(backend='onnx')):
        with pytest.raises(CookError):
            check(d, **kw)

def test_make_portable_mends_what_transformers_5_writes(tmp_path):
    c = broken.good()
    broken.rotary_base_under_its_new_name_only(c)
    broken.tokenizer_of_transformers_5(c)
    c['json']['tokenizer_config.json']['extra_special_tokens'] = ['<|a|>']
    d = broken.write(c, tmp_path/'c')
    assert set(check(d).codes) == {'rope-spelling', 'tokenizer-class'}
    assert export.make_portable(d) == ['config.json', 'tokenizer_config.json'] and export.make_portable(d) == []
    assert check(d).codes == []
    t = json.loads((d/'tokenizer_config.json').read_text())
    assert t == dict(tokenizer_class='PreTrainedTokenizerFast', additional_special_tokens=['<|a|>'])

def test_make_portable_gives_the_legacy_layout_its_rotary_base(tmp_path):
    c = broken.legacy()
    broken.legacy_without_rotary_base(c)
    d, config = (
        broken.write(c, tmp_path/'c'),
        dict(rope_parameters=dict(rope_type='llama3', rope_theta=500000.0, factor=8.0)),
    )
    assert check(d).codes == ['rotary-base'] and export.make_portable(d) == []
    assert export.make_portable(d, config) == ['config.json']
    assert check(d).codes == []
    assert export.make_portable(d, config) == []
    got = json.loads((d/'config.json').read_text())
    assert got['rotary_base'] == 500000.0 and got['rotary_scaling'] == dict(rope_type='llama3', factor=8.0)

def sparse(d, layers=32, target=8_000_000_000):
    "An FP8 checkpoint of 8 GB: headers and scales are real, weights are holes that cost no disk."
    h, f, kv, v = 4096, 14336, 1024, 128256
    shapes = {
        'self_attn.q_proj': (h, h),
        'self_attn.k_proj': (kv, h),
        'self_attn.v_proj': (kv, h),
        'self_attn.o_proj': (h, h),
        'mlp.gate_proj': (f, h),
        'mlp.up_proj': (f, h),
        'mlp.down_proj': (h, f),
    }
    head, scales, at = {}, [], 0
    def add(k, dtype, shape, nbytes):
        nonlocal at
        head[k] = dict(dtype=dtype, shape=list(shape), data_offsets=[at, at + nbytes])
        at += nbytes
        if dtype == 'F32':
            scales.append(at - 4)
    add('model.embed_tokens.weight', 'BF16', (v, h), 2 * v * h)
    add('lm_head.weight', 'BF16', (v, h), 2 * v * h)
    for layer in range(layers):
        for m, (o, i) in shapes.items():
            add(f'model.layers.{layer}.{m}.weight', 'F8_E4M3', (o, i), o * i)
            for s in ('weight_scale', 'input_scale'):
                add(f'model.layers.{layer}.{m}.{s}', 'F32', (), 4)
    raw = json.dumps(head).encode()
    d.mkdir()
    with open(d/'model.safetensors', 'wb') as file:
        file.write(len(raw).to_bytes(8, 'little') + raw)
        for s in scales:
            file.seek(8 + len(raw) + s)
            file.write(np.float32(1e-3).tobytes())
        file.truncate(8 + len(raw) + at)
    c = broken.good()
    cfg = c['json']['config.json'] | dict(
        hidden_size=h,
        intermediate_size=f,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        num_hidden_layers=layers,
        vocab_size=v,
    )
    for n, x in (c['json'] | {'config.json': cfg}).items():
        (d/n).write_text(json.dumps(x))
    assert at > target, at
    return d

def test_eight_gigabytes_are_checked_within_a_second(tmp_path):
    d = sparse(tmp_path/'c')
    t = time.perf_counter()
    found = check(d, device='h200')
    seconds = time.perf_counter() - t
    assert found.codes == [] and found.about['tensors'] > 300 and found.about['bytes'] > 8e9
    assert seconds < 1, seconds
    print(f"checked {found.about['tensors']} tensors, {found.about['bytes'] / 1e9:.1f} GB in {seconds:.3f} s")

def test_random_damage_never_escapes_as_a_traceback(tmp_path):
    "Flip bytes in headers and configs: findings or a CookError, nothing else."
    d, rng = broken.write(broken.good('nvfp4'), tmp_path/'c'), np.random.default_rng(0)
    for name in (broken.ONE, 'config.json', 'hf_quant_config.json', 'tokenizer_config.json'):
        good = (d/name).read_bytes()
        n = 8 + int.from_bytes(good[:8], 'little') if name == broken.ONE else len(good)
        for _ in range(60):
            b = bytearray(good)
            for i in rng.integers(0, min(n, 4000), 3):
                b[i] = rng.integers(0, 256) if rng.random() < .5 else rng.choice(list(b'0123456789"[]{},:nulltrue'))
            (d/name).write_bytes(b)
            check(d, deep=bool(rng.integers(2)))
        (d/name).write_bytes(good)

ODD = [None, 0, -1, 1.5, '', 'x', [], {}, True, [None], {'a': 1}, 10**30, float('inf')]

def _places(x, at=()):
    "Every place inside a JSON value, as a path of keys."
    for k in (x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ()):
        yield (*at, k)
        yield from _places(x[k], (*at, k))

@pytest.mark.parametrize(
    'make', [broken.good, broken.of('nvfp4'), broken.of('int4_awq'), broken.sharded, broken.compressed, broken.legacy]
)
def test_values_of_any_type_never_escape_as_a_traceback(make, tmp_path):
    "One value of one JSON file becomes something else, or goes."
    import random
    d, r = broken.write(make(), tmp_path/'c'), random.Random(0)
    passport.write_passport(d, scheme='fp8', model=dict(name='x'), calibration=dict(samples=1), parallel=dict(tp=1))
    for f in [p for p in d.iterdir() if p.suffix == '.json']:
        good = f.read_text()
        for i in range(25):
            x = json.loads(good)
            *way, last = r.choice(list(_places(x)))
            inside = x
            for k in way:
                inside = inside[k]
            if i % 5:
                inside[last] = r.choice(ODD)
            else:
                del inside[last]
            f.write_text(json.dumps(x))
            str(check(d, device='h100', trtllm=r.choice(['1.0', '1.2.1', '1.4.0rc1']), deep=i % 7 == 0, passport=True))
            with contextlib.suppress(CookError):
                card.model_card(d)
        f.write_text(good)

def test_bytes_of_the_exported_demonstration_model(demo_fp8, demo_int8_sq, demo_int8_wo):
    "What `costs` counts from the config is what really lies in the file: within 1 %."
    from tqcook import costs, shapes
    for path, scheme in (demo_fp8, 'fp8'), (demo_int8_sq, 'int8_sq'), (demo_int8_wo, 'int8_wo'):
        c = Checkpoint.open(path)
        s = shapes.shape_of(path)
        counted = costs.linear_bytes(s, scheme) + 2 * (s.total - s.linear)
        assert c.nbytes == pytest.approx(counted, rel=.01), scheme


def test_the_exported_demonstration_model(demo_fp8, demo_int8_sq, demo_int8_wo):
    "What quantize.export writes gives the findings of its scheme (FP8's q/k/v scales differ: ModelOpt leaves them)."
    assert set(check(demo_fp8, device='h100', deep=True).codes) - FUSED == EXPECTED['fp8']
    assert set(check(demo_int8_sq, deep=True).codes) == EXPECTED['int8_sq']
    assert set(check(demo_int8_wo, deep=True).codes) == EXPECTED['int8_wo']

def test_other_tools_good_checkpoints(tmp_path):
    c = broken.good('fp8_block')  # DeepSeek's way: weight_scale_inv, config in config.json alone
    t = c['st'][broken.ONE]
    for k in [k for k in t if k.endswith('weight_scale')]:
        d, x = t.pop(k)
        t[k + '_inv'] = d, x[:, 0, :, 0]
    del c['json']['hf_quant_config.json']
    c['json']['config.json']['quantization_config'] = dict(quant_method='fp8', weight_block_size=[128, 128])
    d = broken.write(c, tmp_path/'deepseek')
    assert check(d, device='h100', deep=True).codes == [] and Checkpoint.open(d).scheme == 'fp8_block'
    w = broken.weights()[broken.UP]
    assert np.linalg.norm(Checkpoint.open(d).dequantize(broken.UP) - w) < .03 * np.linalg.norm(w)

def test_mixed_precision_from_a_side_file(tmp_path):
    "Two schemes in one checkpoint; the layers' formats stand in quant_cfg.json."
    c, other = broken.good('nvfp4'), broken.good('fp8')['st'][broken.ONE]
    t = c['st'][broken.ONE]
    for k in [k for k in t if '.self_attn.' in k]:
        del t[k]
    t |= {k: v for k, v in other.items() if '.self_attn.' in k}
    layers = {
        m: dict(quant_algo='FP8') if '.self_attn.' in m else dict(quant_algo='NVFP4', group_size=16)
        for m in broken.weights()
    }
    c['json']['hf_quant_config.json']['quantization']['quant_algo'] = 'MIXED_PRECISION'
    c['json']['quant_cfg.json'] = dict(quant_algo='MIXED_PRECISION', quantized_layers=layers)
    d = broken.write(c, tmp_path/'c')
    assert set(check(d, device='b200', deep=True).codes) == set()
    assert check(d, device='h100').codes == ['device-unsupported']
    layers[broken.UP] = dict(quant_algo='FP8')
    c['json']['quant_cfg.json'] = dict(quantized_layers=layers)
    assert 'fused-mixed' in check(broken.write(c, tmp_path/'d')).codes

def test_passport_joins_the_check(tmp_path):
    d = broken.write(broken.good(), tmp_path/'c')
    assert check(d, passport=True).codes == ['no-passport', 'not-evaluated']
    passport.write_passport(d, scheme='fp8')
    assert check(d, passport=True).codes == ['not-evaluated']
    (d/'tokenizer.json').write_text((d/'tokenizer.json').read_text().replace('1.0', '2.0'))
    assert check(d, passport=True).codes == ['file-changed', 'not-evaluated']

def _command(*args):
    import subprocess
    import sys
    return subprocess.run([sys.executable, '-m', 'tqcook', 'check', *map(str, args)], capture_output=True, text=True)

def test_the_command(tmp_path):
    "tqcook check: exit 0 without errors, 10 with; --json follows its schema."
    import jsonschema
    good, bad = broken.write(broken.good(), tmp_path/'good'), broken.write(broken.good('int8_sq'), tmp_path/'bad')
    done = _command(good, '--gpu', 'h100')
    assert done.returncode == 0 and 'no-passport' in done.stdout and 'H100' in done.stdout, done
    done = _command(bad, '--json')
    report = json.loads(done.stdout)
    assert done.returncode == 10 and report['ok'] is False and report['counts']['error'] == 1, done
    jsonschema.validate(report, check_schema())
    done = _command(tmp_path/'nothing')
    assert done.returncode in (1, 2) and 'no such directory' in done.stderr and 'Traceback' not in done.stderr

@pytest.mark.parametrize(
    'scheme,kv', [('fp8', 'fp8'), ('fp8_rowwise', 'none'), ('fp8_block', 'none'), ('int4_awq', 'none')]
)
def test_what_quantize_writes_in_the_other_schemes(scheme, kv, tmp_path):
    pytest.importorskip('modelopt')
    from tqcook import data, export, models, quantize
    demo = models.load('demo', device='cpu')
    calib = data.calibration('code-train', demo.tokenizer, samples=2, length=64)
    d = export.export(quantize.quantize(demo, calib, scheme, kv=kv, progress=False), tmp_path/'c')
    found = check(d, device='h100', deep=True, passport=True)
    expected = EXPECTED[f'{scheme}+kv' if kv == 'fp8' else scheme] | {'not-evaluated'}
    assert set(found.codes) - FUSED == expected, str(found)
    if scheme != 'int4_awq':  # AWQ moves scales between layers before it rounds
        w, m = Checkpoint.open(models.demo_path()), 'model.layers.0.mlp.up_proj'
        w = w.array(f'{m}.weight')
        assert np.linalg.norm(Checkpoint.open(d).dequantize(m) - w) < .03 * np.linalg.norm(w)

def test_what_modelopt_writes_for_nvfp4(tmp_path):
    "A real export of a tiny model with random weights (this room's other NVFP4 files are written by its tests)."
    torch, mtq = pytest.importorskip('torch'), pytest.importorskip('modelopt.torch.quantization')
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=broken.VOCAB,
        hidden_size=broken.H,
        intermediate_size=broken.F,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        architectures=['LlamaForCausalLM'],
        rope_parameters=dict(rope_type='default', rope_theta=500000.0),
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    m = 'model.layers.1.mlp.down_proj'
    w, ids = model.get_submodule(m).weight.detach().float().numpy().copy(), torch.randint(0, broken.VOCAB, (2, 32))
    mtq.quantize(model, mtq.NVFP4_DEFAULT_CFG, lambda model: model(ids))
    export_hf_checkpoint(model, export_dir=tmp_path)
    # no room of ours has touched it
    assert set(check(tmp_path, device='b200', deep=True).codes) == {'rope-spelling', 'tokenizer-missing'}
    assert export.make_portable(tmp_path) == ['config.json']
    c = Checkpoint.open(tmp_path)
    assert c.scheme == 'nvfp4' and check(tmp_path, device='b200').codes == ['tokenizer-missing']
    assert .05 < np.linalg.norm(c.dequantize(m) - w) / np.linalg.norm(w) < .11  # what four bits cost a Gaussian weight

def _codes(c, path, **kw):
    return check(broken.write(c, path), **kw).codes

def test_engines_that_take_a_directory(tmp_path):
    "What loads where, as read in the sources of the three engines and seen in vLLM."
    flat = broken.good('fp8_block')
    for k, (d, x) in list(flat['st'][broken.ONE].items()):
        if k.endswith('weight_scale'):
            flat['st'][broken.ONE][k] = d, x[:, 0, :, 0]
    column = broken.compressed()
    for k, (d, x) in list(column['st'][broken.ONE].items()):
        if k.endswith('weight_scale'):
            column['st'][broken.ONE][k] = d, x[:, None]
    for name, c, kw, takes in (
        ('fp8', broken.good('fp8'), {}, 'trtllm vllm sglang'),
        ('rowwise', broken.good('fp8_rowwise'), {}, 'trtllm vllm'),
        ('four dimensions', broken.good('fp8_block'), {}, 'trtllm vllm'),
        ('two dimensions', flat, {}, 'trtllm'),
        ('deepseek', broken.deepseek(), {}, 'trtllm vllm sglang'),
        ('nvfp4', broken.good('nvfp4'), {}, 'trtllm vllm sglang'),
        ('int8', broken.good('int8_sq'), {}, ''),
        ('legacy', broken.legacy(), {}, 'trtllm'),
        ('int8 per token', broken.compressed('int'), {}, 'vllm sglang'),
        ('rowwise, column', column, {}, 'vllm sglang'),
        ('rowwise, column, later', column, dict(trtllm='1.4.0rc1'), 'trtllm vllm sglang'),
        ('packed int8', broken.packed(8), {}, 'vllm sglang'),
        ('packed int4', broken.packed(4), {}, 'vllm sglang'),
    ):
        found = check(broken.write(c, tmp_path/name), **kw)
        engines = found.about['engines']
        assert [e for e, why in engines.items() if not why] == takes.split(), (name, engines)
        assert all(why == '' or len(why) > 20 for why in engines.values())

def test_compressed_tensors_of_every_kind_is_good(tmp_path):
    for i, (c, scheme) in enumerate((
        (broken.compressed('int'), 'int8_token'), (broken.compressed(), 'fp8_rowwise'),
        (broken.packed(8), 'int8_wo'), (broken.packed(4), 'int4_awq'),
    )):
        found = check(broken.write(c, tmp_path/str(i)), deep=True)
        assert found.codes == [] and found.about['scheme'] == scheme, str(found)
        assert found.about['layout'] == 'compressed-tensors' and found.about['engine'] == 'vllm'

def test_what_later_versions_read(tmp_path):
    "Each was an error or passed in silence, whatever the version."
    new = dict(trtllm='1.4.0rc1')
    flat = broken.good()
    flat['json']['hf_quant_config.json'] = dict(
        quant_method='modelopt', quant_algo='FP8', ignore=['lm_head', 'model.layers.0.mlp.down_proj'],
        kv_cache_scheme=dict(num_bits=8, type='float'), producer=dict(name='modelopt'))
    t, m = flat['st'][broken.ONE], 'model.layers.0.mlp.down_proj'
    for leaf in ('weight_scale', 'input_scale'):
        del t[f'{m}.{leaf}']
    t[f'{m}.weight'] = broken.bf16(broken.weights()[m])
    found = check(broken.write(flat, tmp_path/'flat'), **new)
    assert found.codes == [] and found.about['kv'] == 'fp8'

    def excluding(pattern):
        c = broken.good()
        c['json']['hf_quant_config.json']['quantization']['exclude_modules'].append(pattern)
        for leaf in ('weight_scale', 'input_scale'):
            del c['st'][broken.ONE][f'{m}.{leaf}']
        c['st'][broken.ONE][f'{m}.weight'] = broken.bf16(broken.weights()[m])
        return c
    for i, pattern in enumerate((f're:{m}$', f'{m}.*')):
        assert _codes(excluding(pattern), tmp_path/f'new {i}', **new) == []
        assert 'bf16-not-excluded' in _codes(excluding(pattern), tmp_path/f'old {i}')

    for i, text in enumerate(('none', 'null', '')):
        c = broken.good()
        c['json']['hf_quant_config.json']['quantization']['kv_cache_quant_algo'] = text
        assert _codes(c, tmp_path/f'kv {i}', **new) == []
    capitals = broken.good('fp8_block')
    capitals['json']['hf_quant_config.json']['quantization']['quant_algo'] = 'FP8_PB_WO'
    assert _codes(capitals, tmp_path/'capitals', **new) == ['activations-too']
    bias = broken.good('int8_wo')
    bias['st'][broken.ONE][f'{broken.UP}.bias'] = broken.bf16(np.zeros(broken.F))
    assert _codes(bias, tmp_path/'bias', trtllm='1.3.0rc5') == ['undocumented']
    hopper = check(broken.write(broken.good('nvfp4'), tmp_path/'hopper'), device='h100', **new)
    assert hopper.codes == ['undocumented'] and 'marlin' in hopper.items[0].consequence
    awq = broken.good('nvfp4')
    awq['json']['hf_quant_config.json']['quantization'] |= dict(quant_algo='NVFP4_AWQ', pre_quant_scale=True)
    assert _codes(awq, tmp_path/'awq') == []  # ModelOpt folds the factors of these; none is missing
    kv = broken.good('nvfp4')
    kv['json']['hf_quant_config.json']['quantization']['kv_cache_quant_algo'] = 'NVFP4'
    found = check(broken.write(kv, tmp_path/'kv'))
    assert found.codes == ['kv-scale-missing'] and found.ok

def test_fused_names_in_the_exclusions_are_names(tmp_path):
    c = broken.good()
    c['json']['hf_quant_config.json']['quantization']['exclude_modules'].append('model.layers.0.self_attn.qkv_proj')
    for n in ('q_proj', 'k_proj', 'v_proj'):
        m = f'model.layers.0.self_attn.{n}'
        for leaf in ('weight_scale', 'input_scale'):
            del c['st'][broken.ONE][f'{m}.{leaf}']
        c['st'][broken.ONE][f'{m}.weight'] = broken.bf16(broken.weights()[m])
    assert _codes(c, tmp_path/'c') == []

def test_hostile_directories_end_in_time(tmp_path):
    "Neither a pipe nor a number of shards holds the reader."
    start = time.perf_counter()
    for name in ('a_pipe_as_config', 'one_of_99999999_shards', 'a_hundred_thousand_brackets', 'a_link_to_itself'):
        c = broken.CASES[name]['make']()
        broken.CASES[name]['break_'](c)
        assert not check(broken.write(c, tmp_path/name)).ok
    assert time.perf_counter() - start < 10

def test_a_weight_that_the_model_has_no_place_for_is_listed(tmp_path):
    c = broken.good()
    c['st'][broken.ONE]['model.layers.0.mlp.extra.weight'] = broken.bf16(np.ones((4, 4)))
    (found,) = check(broken.write(c, tmp_path/'c'), device='h100').warnings
    assert (found.code, found.tensor) == ('stray-tensor', 'model.layers.0.mlp.extra')

@pytest.mark.parametrize('scheme, layout, takes', [
    ('int8_token', 'compressed-tensors', 'vllm sglang'), ('int8_wo', 'compressed-tensors', 'vllm sglang'),
    ('int4_awq', 'compressed-tensors', 'vllm sglang'), ('fp8_rowwise', 'compressed-tensors', 'vllm sglang'),
    ('fp8_block', 'deepseek', 'trtllm vllm sglang'), ('fp8_block', 'hf', 'trtllm vllm'),
    ('int8_token', 'trtllm_legacy', 'trtllm')])
def test_what_export_writes_in_every_layout(scheme, layout, takes, tmp_path):
    "Check finds nothing wrong and says who takes it; the weights come back."
    pytest.importorskip('modelopt')
    from tqcook import data, models, quantize
    demo, folded = models.load('demo', device='cpu'), layout != 'hf' and scheme in ('int8_token', 'int4_awq')
    calib = data.calibration('code-train', demo.tokenizer, samples=2, length=64)
    made = quantize.quantize(demo, calib, scheme, progress=False, **({'folded': True} if folded else {}))
    d = export.export(made, tmp_path/'c', layout=layout)
    found = check(d, deep=True)
    assert found.ok and not found.warnings, str(found)
    assert [e for e, why in found.about['engines'].items() if not why] == takes.split()
    assert found.about['layout'] == layout and found.about['scheme'] == scheme
    if not folded and layout != 'trtllm_legacy':
        w, m = Checkpoint.open(models.demo_path()), 'model.layers.0.mlp.up_proj'
        w = w.array(f'{m}.weight')
        assert np.linalg.norm(Checkpoint.open(d).dequantize(m) - w) < .03 * np.linalg.norm(w)
