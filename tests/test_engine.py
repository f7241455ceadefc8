"The engine against independent arithmetic, against ModelOpt's own, and against engines that are wrong on purpose."
import copy, json, math, shutil, time
import numpy as np, pytest, torch
from tqcook import formats, linears, parity, runtime, models, export, quantize
from tqcook.checkpoint import Checkpoint
from tqcook.formats import code_values
from tqcook.core import CookError
from tqcook.device import Device

SIZE = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=2)
SCHEMES = ['fp8', 'fp8_rowwise', 'fp8_block', 'int8_sq', 'int8_wo', 'int4_awq']
rel = lambda a, b: float((a.double() - b.double()).norm() / b.double().norm())

def tokens(n=2, length=64, seed=1): return torch.randint(0, 4096, (n, length), generator=torch.Generator().manual_seed(seed))

class Windows:
    "The little of a Corpus that calibration needs."
    def __init__(self, n=4, length=64): self.windows = [w.numpy() for w in tokens(n, length, seed=5)]

def cook(out, arch='llama', scheme='fp8', kv='none', **over):
    "A tiny random model taken through quantize and export -> (directory, base, logits of the fake-quantized model)."
    base = models.tiny(arch, **(SIZE | over if arch == 'llama' else over))
    q = quantize.quantize(base, Windows(), scheme, kv=kv, progress=False)
    with torch.no_grad(): fake = q.loaded.model(tokens()).logits.float()
    return export.export(q, out), base, fake

@pytest.fixture(scope='module')
def cooked(tmp_path_factory):
    "scheme -> (directory, base, fake-quantized logits), made once each."
    made = {}
    def get(scheme, kv='none'):
        if (scheme, kv) not in made: made[scheme, kv] = cook(tmp_path_factory.mktemp('cooked')/f'{scheme}-{kv}', scheme=scheme, kv=kv)
        return made[scheme, kv]
    return get

# --- numbers ---------------------------------------------------------------------------------------------------------

def nearest_e4m3(x):
    "Round to nearest, ties to even, by searching the table of all values."
    grid = np.unique(code_values('e4m3')[~np.isnan(code_values('e4m3'))])
    code = {float(v): b for b, v in enumerate(code_values('e4m3')) if b < 127}
    out = []
    for v in np.asarray(x, np.float64).clip(-448, 448):
        d = np.abs(grid - v); best = grid[d == d.min()]
        out.append(min(best, key=lambda g: code[abs(float(g))] & 1))
    return np.array(out, np.float32)

def test_e4m3_rounds_to_nearest_even_and_saturates():
    x = torch.cat([torch.randn(500, generator=torch.Generator().manual_seed(0)) * 30, torch.tensor([0., 17., 19., 2**-10, 3 * 2**-10, 1e-5, 448., 449., 464., 465., 1e6, -1e6])])
    assert np.array_equal(formats.quantize_e4m3(x, 1.).float().numpy(), nearest_e4m3(x.numpy()))

@pytest.mark.parametrize('m,k,n', [(1, 16, 16), (3, 48, 80), (130, 256, 64), (5, 10, 7)])
@pytest.mark.parametrize('rowwise', [False, True])
def test_fp8_mm(m, k, n, rowwise):
    g = torch.Generator().manual_seed(0)
    a, w = (torch.randn(*s, generator=g).to(torch.float8_e4m3fn) for s in ((m, k), (n, k)))
    sa, sw = (torch.rand(m, 1, generator=g), torch.rand(n, generator=g)) if rowwise else (torch.tensor(.3), torch.tensor(.7))
    bias = torch.randn(n, generator=g).bfloat16()
    want = (a.double() * sa.double()) @ (w.double() * (sw.double()[:, None] if rowwise else sw.double())).T + bias.double()
    assert rel(linears.fp8_mm(a, w, sa, sw, bias), want) < 3e-3

@pytest.mark.parametrize('m,k,n', [(1, 8, 8), (17, 100, 33), (64, 4096, 24)])
def test_int8_mm_is_exact(m, k, n):
    g = torch.Generator().manual_seed(0)
    a, w = (torch.randint(-128, 128, s, generator=g, dtype=torch.int8) for s in ((m, k), (n, k)))
    assert torch.equal(linears.int8_mm(a, w).long(), a.long() @ w.long().T)

def test_a_token_of_zeros_is_zero_not_nan():
    x = torch.zeros(3, 32).bfloat16(); x[1] = 1
    w8 = torch.ones(16, 32, dtype=torch.int8)
    for y in (linears.int8_linear(x, w8, torch.ones(16)), linears.fp8_rowwise_linear(x, w8.float().to(torch.float8_e4m3fn), torch.ones(16)),
              linears.fp8_linear(torch.zeros_like(x), w8.float().to(torch.float8_e4m3fn), torch.tensor(1.))):
        assert torch.isfinite(y).all() and (y[0] == 0).all()

def test_int8_dynamic_scale_follows_smoothing():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, 64, generator=g).bfloat16(), torch.randn(32, 64, generator=g)
    x[:, 3] *= 100
    smooth = 1 / x.float().abs().amax(0).sqrt()
    ws = w / smooth
    s = ws.abs().amax(1) / 127
    y = linears.int8_linear(x, (ws / s[:, None]).round().to(torch.int8), s, None, smooth)
    assert rel(y, x.double() @ w.double().T) < .02

# --- stored formats, against ModelOpt's own packing --------------------------------------------------------------------

def test_int4_unpacks_what_modelopt_packs():
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8
    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(0)); s = w.reshape(32, 2, 128).abs().amax(-1) / 7
    want = (w.reshape(32, 2, 128) / s[..., None]).round().clamp(-8, 7) * s[..., None]
    assert torch.equal(formats.dequantize('int4_awq', dict(weight=pack_int4_in_uint8(w, s, 128), weight_scale=s)), want.reshape(32, 256))

def test_nvfp4_unpacks_what_modelopt_packs():
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    w = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    q, scale, scale2 = NVFP4QTensor.quantize(w.clone(), 16)
    want = q.dequantize(dtype=torch.float32, scale=scale, double_scale=scale2, block_sizes={-1: 16})
    got = formats.dequantize('nvfp4', dict(weight=q._quantized_data, weight_scale=scale, weight_scale_2=scale2))
    assert torch.allclose(got, want, rtol=1e-6) and .05 < rel(got, w) < .15

def test_block_scales_on_ragged_edges():
    w = torch.ones(200, 130).to(torch.float8_e4m3fn)
    got = formats.dequantize('fp8_block', dict(weight=w, weight_scale=torch.tensor([[1., 2.], [3., 4.]]).reshape(2, 1, 2, 1)))
    assert got[127, 127] == 1 and got[0, 129] == 2 and got[199, 0] == 3 and got[128, 128] == 4
    with pytest.raises(CookError, match='block scales'): formats.dequantize('fp8_block', dict(weight=w, weight_scale=torch.ones(3, 2)))

@pytest.mark.parametrize('scheme', SCHEMES)
def test_file_holds_the_weights_that_went_in(cooked, scheme):
    "The dequantized file against the base model's weights: the format's own rounding and no more."
    path, base, _ = cooked(scheme)
    ck, w = Checkpoint.open(path), dict(base.model.named_modules())
    bound = dict(int4_awq=.15, int8_sq=.015, int8_wo=.012).get(scheme, .035)
    for s in runtime.plan(ck, runtime.skeleton(ck.config)):
        t = {k: ck.read(f'{s.source}.{k}') for k in ck.modules[s.source]}
        got = formats.dequantize(s.layout, t)
        if 'pre_quant_scale' in t: got = got * t['pre_quant_scale'].float() # the input is multiplied by it, so the weight was divided
        elif scheme == 'int4_awq': continue # q, k, v, gate, up: the factor went into the norm before them
        assert rel(got, w[s.target].weight) < bound, s.source

# --- loading -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('scheme', SCHEMES)
def test_load(cooked, scheme):
    path, base, fake = cooked(scheme)
    e = runtime.load(path, device='cpu')
    assert (e.kind, e.scheme, e.notes['linears']) == ('engine', scheme, len(models.linears(base.model)))
    assert models.linears(e.model) == {} # none was left behind
    w = e.model.model.layers[0].mlp.up_proj.weight.dtype
    assert w == dict(fp8=torch.float8_e4m3fn, fp8_rowwise=torch.float8_e4m3fn, int8_sq=torch.int8, int8_wo=torch.int8).get(scheme, torch.bfloat16)
    d = runtime.describe(e).to_dict()
    assert [f['linears'] for f in d['formats']] == [14]
    assert ('dequantized' in d['formats'][0]['kernel']) == (scheme in ('fp8_block', 'int4_awq'))

@pytest.mark.parametrize('scheme', ['fp8', 'int8_sq'])
def test_stored_weights_stay_small(cooked, scheme):
    path, base, _ = cooked(scheme)
    linear = sum(m.weight.numel() for m in models.linears(base.model).values())
    assert runtime.load(path, device='cpu').nbytes < base.nbytes - .95 * linear # one byte less for each weight, a few scales more

@pytest.mark.parametrize('scheme', [s for s in SCHEMES if s != 'fp8_block']) # ModelOpt's export gives q, k and v one amax where each is a single block, as here
def test_reference_is_near_the_fake_quantized_model(cooked, scheme):
    "The export comparison: what was calibrated and what lies in the file differ by less than the scheme costs."
    path, base, fake = cooked(scheme)
    ref = runtime.load(path, device='cpu', kernels='reference')
    with torch.no_grad(): r, b = ref.model(tokens()).logits.float(), base.model(tokens()).logits.float()
    assert ref.kind == 'dequantized' and rel(r, fake) < .95 * rel(r, b)

def test_excluded_linears_stay_as_they_were(tmp_path):
    base = models.tiny('llama', **SIZE)
    path = export.export(quantize.quantize(base, Windows(), 'fp8', exclude=('*.down_proj',), progress=False), tmp_path/'x')
    e = runtime.load(path, device='cpu')
    assert e.notes['linears'] == 12 and list(models.linears(e.model)) == [f'model.layers.{i}.mlp.down_proj' for i in (0, 1)]
    assert torch.equal(e.model.model.layers[0].mlp.down_proj.weight, base.model.model.layers[0].mlp.down_proj.weight)
    p = parity.parity(path, tokens(), base, e)
    assert p.passed and p.expected == 12, p.failures

def test_nvfp4_runs_on_dequantized_weights(cooked, tmp_path):
    "ModelOpt cannot calibrate NVFP4 on a CPU, so this file is packed by its tensor class from a BF16 model."
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    path, base, _ = cooked('fp8')
    def pack(t, c):
        for n, m in models.linears(base.model).items():
            q, s, s2 = NVFP4QTensor.quantize(m.weight.detach().float().clone(), 16)
            t.update({f'{n}.weight': q._quantized_data, f'{n}.weight_scale': s, f'{n}.weight_scale_2': s2.reshape(())})
    d = _edit(path, tmp_path/'nv', pack)
    q = json.loads((d/'hf_quant_config.json').read_text()); q['quantization'] |= dict(quant_algo='NVFP4', group_size=16)
    (d/'hf_quant_config.json').write_text(json.dumps(q))
    p = parity.parity(d, tokens(), base, device='cpu')
    assert p.passed and p.scheme == 'nvfp4' and .05 < p.cost < .6, p.failures
    assert 'dequantized' in runtime.describe(runtime.load(d, device='cpu'))._repr_markdown_()

def test_passport_is_checked_before_loading(cooked, tmp_path):
    from tqcook.passport import write_passport
    d = shutil.copytree(cooked('fp8')[0], tmp_path/'p')
    (d/'passport.json').unlink(missing_ok=True); write_passport(d, scheme='fp8')
    assert runtime.load(d, device='cpu').kind == 'engine'
    f = d/'model.safetensors'; raw = bytearray(f.read_bytes()); raw[-1] ^= 1; f.write_bytes(raw)
    with pytest.raises(CookError, match='model.safetensors'): runtime.load(d, device='cpu')

# --- parity ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('scheme', SCHEMES)
def test_parity_and_its_negative_controls(cooked, scheme):
    path, base, _ = cooked(scheme)
    p = parity.parity(path, tokens(), base, device='cpu')
    assert p.passed and p.expected == len(p.linears) == 14 and p.tokens == 128, p.failures
    assert 5e-4 < p.worst < 4e-3 # the rounding of BF16 must be seen: an error of zero would mean that nothing was compared
    controls = parity.negative_controls(path, tokens(), base, device='cpu')
    assert {'bf16 weights', 'weight'} <= set(controls)
    assert set(controls) >= ({'weight_scale'} if scheme not in ('fp8_block', 'int4_awq') else set()) | ({'input_scale'} if scheme in ('fp8', 'int8_sq') else set())
    for how, c in controls.items(): assert not c.passed and c.worst > p.bound, how
    assert abs(controls['bf16 weights'].free / p.cost - 1) < .2 # the engine without quantization is off by the scheme's cost

def test_parity_with_per_token_int8(cooked):
    path, base, _ = cooked('int8_sq')
    p = parity.parity(path, tokens(), base, device='cpu', activations='token')
    assert p.passed, p.failures
    token, static = (runtime.load(path, device='cpu', activations=a) for a in ('token', 'static'))
    assert not parity.parity(path, tokens(), base, engine=static, activations='token').passed # the two are told apart
    assert 'per token' in runtime.describe(token)._repr_markdown_()

def test_parity_sees_a_linear_that_was_skipped(cooked):
    path, base, _ = cooked('fp8')
    e = runtime.load(path, device='cpu')
    up = e.model.model.layers[1].mlp
    up.up_proj.forward = lambda x: torch.full((*x.shape[:-1], 384), float('nan'), dtype=x.dtype)
    assert not parity.parity(path, tokens(), base, e).passed
    mlp = runtime.load(path, device='cpu')
    mlp.model.model.layers[1].mlp.forward = lambda x: x # never calls its linears
    p = parity.parity(path, tokens(), base, mlp)
    assert not p.passed and 'nothing flowed through' in ' '.join(p.failures)

def test_parity_dict_is_plain_json(cooked):
    path, base, _ = cooked('fp8')
    d = parity.parity(path, tokens(), base, device='cpu').to_dict()
    assert json.loads(json.dumps(d)) == d and d['passed'] and d['linears'] == d['expected'] == 14
    assert 'cost' not in parity.parity(path, tokens(), device='cpu').to_dict() and d['cost'] > 0

def test_the_demonstration_model(demo, demo_fp8, held_out):
    "A trained model on real text, windows chosen by default and given."
    p = parity.parity(demo_fp8, held_out, demo, device='cpu', max_windows=2)
    assert p.passed and len(p.linears) == p.expected == len(models.linears(demo.model)) and p.logits < .25 * p.cost, p.failures
    assert 1e-3 < p.floor < p.cost and 0 < p.kl_floor < p.kl_cost
    wrong = parity.parity(demo_fp8, held_out, demo, parity.sabotage(runtime.load(demo_fp8, device='cpu'), 'bf16 weights', demo), max_windows=2)
    assert wrong.worst > p.bound and wrong.logits > p.cost_share * wrong.cost and len(wrong.failures) >= 2 # both tests notice
    own = parity.parity(demo_fp8, device='cpu', max_windows=1)
    assert own.passed and own.cost is None and own.tokens > 100

def test_one_more_rounding_is_gone_afterwards(cooked):
    ref = runtime.load(cooked('fp8')[0], device='cpu', kernels='reference')
    with torch.no_grad():
        a = ref.model(tokens()).logits
        with parity._reference_as(ref, noise=True): b = ref.model(tokens()).logits
        assert not torch.equal(a, b) and torch.equal(a, ref.model(tokens()).logits)

def test_float16(cooked):
    path, base, _ = cooked('fp8')
    e = runtime.load(path, device='cpu', dtype='float16')
    assert parity.parity(path, tokens(), None, e).worst < 1e-3 # float16 has three more bits than BF16

# --- the KV cache -----------------------------------------------------------------------------------------------------------

def test_wrapping_attention_changes_nothing_by_itself(cooked, monkeypatch):
    "With the rounding taken out, the FP8-cache attention is the plain one, bit for bit."
    plain, base, _ = cooked('fp8')
    path, _, _ = cooked('fp8', 'fp8')
    kv = runtime.load(path, device='cpu')
    assert kv.notes['kv'] == 'fp8'
    with torch.no_grad():
        rounded = kv.model(tokens()).logits
        monkeypatch.setattr(runtime, 'round_e4m3', lambda x: x)
        same, want = kv.model(tokens()).logits, runtime.load(plain, device='cpu').model(tokens()).logits
    assert torch.equal(same, want) and not torch.equal(rounded, want)

def test_keys_are_rounded_after_rope(cooked):
    "What attention receives lies on the E4M3 grid, and differs from rounding before RoPE."
    path, base, _ = cooked('fp8', 'fp8')
    e, seen = runtime.load(path, device='cpu'), []
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table
    name = e.model.config._attn_implementation
    wrapped = table[name]
    def spy(module, q, k, v, *a, **kw):
        seen.append((k, v)); return wrapped(module, q, k, v, *a, **kw)
    table[name] = spy
    try:
        with torch.no_grad(): e.model(tokens())
    finally: table[name] = wrapped
    k, v = seen[0]
    assert len(seen) == 2 and not torch.equal(formats.round_e4m3(k), k) # arrives unrounded, rotary embedding applied
    r = formats.round_e4m3(k); assert torch.equal(formats.round_e4m3(r), r)

def test_cached_generation_is_uncached_generation_under_fp8_kv(cooked):
    path, base, _ = cooked('fp8', 'fp8')
    e, ids = runtime.load(path, device='cpu', kernels='reference', dtype='float32'), [3, 1, 4, 1, 5, 9, 2, 6]
    got = runtime.generate(e, ids, 6).ids
    for _ in range(6):
        with torch.no_grad(): ids = ids + [int(e.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    assert got == ids[8:]

def test_parity_holds_with_fp8_kv(cooked):
    path, base, _ = cooked('fp8', 'fp8')
    p = parity.parity(path, tokens(), base, device='cpu')
    assert p.passed, p.failures

# --- text -----------------------------------------------------------------------------------------------------------------

def test_generate_is_transformers_greedy(cooked):
    path, base, _ = cooked('fp8')
    e = runtime.load(path, device='cpu')
    got = runtime.generate(e, [5, 6, 7, 8], 12).ids
    want = e.model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 4:].tolist()
    assert got == want

def test_diverge(cooked):
    path, base, _ = cooked('fp8')
    e = runtime.load(path, device='cpu')
    d = runtime.diverge(base, e, [5, 6, 7], 40)
    assert d.a.ids[:d.index] == d.b.ids[:d.index] and (d.index is None or d.a.ids[d.index] != d.b.ids[d.index])
    same = runtime.diverge(e, e, [5, 6, 7], 8)
    assert same.index is None and 'the same 8 tokens' in same._repr_markdown_()

@pytest.mark.parametrize('prompt,n,word', [([], 4, 'empty'), ([1] * 512, 4, 'context'), ('text', 4, 'tokenizer'), ([1], 0, 'max_new_tokens')])
def test_generate_bad_input(cooked, prompt, n, word):
    e = copy.copy(runtime.load(cooked('fp8')[0], device='cpu')); e.tokenizer = None
    with pytest.raises(CookError, match=word): runtime.generate(e, prompt, n)

# --- bad checkpoints ----------------------------------------------------------------------------------------------------------

def _edit(src, dst, change):
    "A copy of a checkpoint whose tensors or config were changed."
    from safetensors.torch import load_file, save_file
    shutil.copytree(src, dst)
    for f in dst.glob('passport.json'): f.unlink()
    t, c = load_file(dst/'model.safetensors'), json.loads((dst/'config.json').read_text())
    change(t, c)
    save_file(t, dst/'model.safetensors', metadata={'format': 'pt'}); (dst/'config.json').write_text(json.dumps(c))
    return dst

UP = 'model.layers.1.mlp.up_proj'
BAD = {
    'a norm is missing': (lambda t, c: t.pop('model.norm.weight'), 'model.norm.weight'),
    'a weight is missing, its scale is not': (lambda t, c: t.pop(f'{UP}.weight'), 'up_proj'),
    'a scale is missing': (lambda t, c: t.pop(f'{UP}.weight_scale'), 'up_proj'),
    'a tensor too many': (lambda t, c: t.update({'model.layers.1.mlp.extra.weight': torch.ones(2, 2)}), 'extra'),
    'a layer too many': (lambda t, c: t.update({k.replace('layers.1', 'layers.2'): v.clone() for k, v in list(t.items()) if 'layers.1' in k}), 'layers.2'),
    'another width': (lambda t, c: c.update(intermediate_size=256), '384'),
    'another vocabulary': (lambda t, c: c.update(vocab_size=1000), '1000'),
    'an unknown architecture': (lambda t, c: c.update(model_type='nosuch'), 'nosuch'),
    'code of its own': (lambda t, c: c.update(auto_map={'AutoModelForCausalLM': 'x.Y'}), 'auto_map'),
    'no quantized linear': (lambda t, c: [t.pop(k) for k in list(t) if 'scale' in k], 'weight_scale'),
}

@pytest.mark.parametrize('what', BAD)
def test_bad_checkpoint_is_refused(cooked, tmp_path, what):
    change, word = BAD[what]
    with pytest.raises(CookError) as e: runtime.load(_edit(cooked('fp8')[0], tmp_path/'bad', change), device='cpu')
    assert word in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('kv', ['INT8', 'NVFP4'])
def test_other_kv_formats_are_refused(cooked, tmp_path, kv):
    d = _edit(cooked('fp8')[0], tmp_path/'kv', lambda t, c: None)
    q = json.loads((d/'hf_quant_config.json').read_text()); q['quantization']['kv_cache_quant_algo'] = kv
    (d/'hf_quant_config.json').write_text(json.dumps(q))
    with pytest.raises(CookError, match=kv.lower()): runtime.load(d, device='cpu')

def test_truncated_file(cooked, tmp_path):
    d = shutil.copytree(cooked('fp8')[0], tmp_path/'cut'); f = d/'model.safetensors'
    f.write_bytes(f.read_bytes()[:-1000])
    with pytest.raises(CookError): runtime.load(d, device='cpu')

@pytest.mark.parametrize('kw,word', [(dict(kernels='fast'), 'kernels'), (dict(dtype='int8'), 'dtype'), (dict(dtype='float32'), 'float32'), (dict(activations='dynamic'), 'activations')])
def test_bad_arguments(cooked, kw, word):
    with pytest.raises(CookError, match=word): runtime.load(cooked('fp8')[0], device='cpu', **kw)

def test_missing_directory(tmp_path):
    with pytest.raises(CookError): runtime.load(tmp_path/'none', device='cpu')

def test_ampere_is_told_that_it_cannot_run_fp8(cooked):
    a100, slots = Device('NVIDIA A100-SXM4-80GB', sm=80), [runtime.Slot('a', 'a', 'fp8')]
    with pytest.raises(CookError, match="sm80.*fake-quantized.*kernels='reference'"): runtime._can_run(slots, a100)
    runtime._can_run([runtime.Slot('a', 'a', 'int8_sq')], a100); runtime._can_run(slots, Device('NVIDIA L4', sm=89))

# --- cost -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_forward_costs_at_most_five_times_bf16_on_the_cpu(tmp_path):
    "In the shape of the demonstration model, 4 windows of 512; processor time, so that a busy machine does not count."
    path, base, _ = cook(tmp_path/'x', hidden_size=256, intermediate_size=768, num_hidden_layers=8)
    e, ids, best = runtime.load(path, device='cpu'), tokens(4, 512), [math.inf, math.inf]
    threads = torch.get_num_threads(); torch.set_num_threads(1) # threads that wait for one another count as processor time
    try:
        with torch.no_grad():
            for _ in range(4):
                for i, l in enumerate((base, e)):
                    t0 = time.process_time(); l.model(ids, use_cache=False); best[i] = min(best[i], time.process_time() - t0)
    finally: torch.set_num_threads(threads)
    print(f'engine {best[1]:.3f} s, BF16 {best[0]:.3f} s of processor time: {best[1] / best[0]:.2f} times')
    assert best[1] < 5 * best[0]
