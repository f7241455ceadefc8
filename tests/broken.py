"""Small checkpoints by contract, good ones of every scheme and deliberately broken ones, written with numpy alone.

Nothing here comes from tqcook: the writer and the quantizers are this file's own, so that a mistake in the library
cannot hide in its tests. NVFP4 and the others follow the layout that ModelOpt 0.47 exports.
"""
import copy
import functools
import json
from pathlib import Path

import numpy as np

H, F, HEADS, KV_HEADS, D, LAYERS, VOCAB = 256, 384, 4, 2, 64, 2, 512
LINEARS = {
    'self_attn.q_proj': (HEADS * D, H),
    'self_attn.k_proj': (KV_HEADS * D, H),
    'self_attn.v_proj': (KV_HEADS * D, H),
    'self_attn.o_proj': (H, HEADS * D),
    'mlp.gate_proj': (F, H),
    'mlp.up_proj': (F, H),
    'mlp.down_proj': (H, F),
}
ALGO = dict(
    fp8='FP8',
    fp8_rowwise='FP8_PER_CHANNEL_PER_TOKEN',
    fp8_block='fp8_pb_wo',
    int8_sq='W8A8_SQ_PER_CHANNEL',
    int8_wo='W8A16',
    int4_awq='W4A16_AWQ',
    nvfp4='NVFP4',
)
ONE = 'model.safetensors'
UP = 'model.layers.1.mlp.up_proj'


# ---- numbers ----------------------------------------------------------------------------------------------------

def f32(x):
    return 'F32', np.asarray(x, np.float32)

def bf16(x):
    return 'BF16', (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)

_E4M3 = np.array(
    [(m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)) for e in range(16) for m in range(8)][:127],
    np.float32,
)
_E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6], np.float32)

def _nearest(x, grid):
    return np.searchsorted((grid[1:] + grid[:-1]) / 2, np.abs(x)).astype(np.uint8)

def e4m3(x):
    return 'F8_E4M3', _nearest(np.minimum(np.abs(x), 448), _E4M3) | np.where(np.asarray(x) < 0, 128, 0).astype(np.uint8)

def quantized(w, scheme, amax_x=8., wide=None):
    "The tensors of one linear: {leaf: (dtype, array)}; `wide` is the largest weight of all that share its input."
    top = np.abs(w).max() if wide is None else wide
    rows = np.abs(w).max(1)
    if scheme == 'fp8':
        return dict(weight=e4m3(w / (top / 448)), weight_scale=f32(top / 448), input_scale=f32(amax_x / 448))
    if scheme == 'fp8_rowwise':
        return dict(weight=e4m3(w / (rows / 448)[:, None]), weight_scale=f32(rows / 448))
    if scheme == 'fp8_block':
        o, i = (-(-n // 128) for n in w.shape)
        p = np.zeros((o * 128, i * 128), np.float32)
        p[:w.shape[0], :w.shape[1]] = w
        s = np.abs(p.reshape(o, 128, i, 128)).max((1, 3)) / 448
        return dict(
            weight=e4m3(w / np.repeat(np.repeat(s, 128, 0), 128, 1)[: w.shape[0], : w.shape[1]]),
            weight_scale=f32(s[:, None, :, None]),
        )
    if scheme in ('int8_wo', 'int8_sq'):
        t = dict(weight=('I8', np.round(w / (rows / 127)[:, None]).astype(np.int8)), weight_scale=f32(rows / 127))
        return (
            t
            if scheme == 'int8_wo'
            else t | dict(input_scale=f32(amax_x / 127), pre_quant_scale=bf16(np.ones(w.shape[1])))
        )
    if scheme == 'int4_awq':
        s = np.abs(w.reshape(len(w), -1, 128)).max(-1) / 7
        q = np.round(w / np.repeat(s, 128, 1)).astype(np.int8).view(np.uint8) & 15
        return dict(weight=('U8', q[::2] | q[1::2] << 4), weight_scale=f32(s))
    s2 = np.float32(top / (6 * 448))
    b = w.reshape(len(w), -1, 16)
    code = _nearest(np.abs(b).max(-1) / 6 / s2, _E4M3)
    q = _nearest(b / (_E4M3[code] * s2)[..., None], _E2M1) | np.where(b < 0, 8, 0).astype(np.uint8)
    q = q.reshape(len(w), -1)
    return dict(
        weight=('U8', q[:, ::2] | q[:, 1::2] << 4),
        weight_scale=('F8_E4M3', code),
        weight_scale_2=f32(s2),
        input_scale=f32(amax_x / (6 * 448)),
    )


# ---- checkpoints ------------------------------------------------------------------------------------------------

@functools.cache
def weights(seed=0):
    "{module: float32 weight}"
    rng = np.random.default_rng(seed)
    return {
        f'model.layers.{layer}.{m}': (rng.standard_normal(s) * 0.05).astype(np.float32)
        for layer in range(LAYERS)
        for m, s in LINEARS.items()
    }

def once(make):
    "Made once; each call has a copy of its own to break."
    made = functools.cache(make)
    return functools.wraps(make)(lambda *args, **kw: copy.deepcopy(made(*args, **kw)))

@once
def good(scheme='fp8', kv=None):
    "A checkpoint in memory: {'json': {file: object}, 'st': {file: {tensor: (dtype, array)}}, 'raw': {file: bytes}}."
    rng, t, ws = np.random.default_rng(1), {}, weights()
    t['model.embed_tokens.weight'] = bf16(rng.standard_normal((VOCAB, H)) * .02)
    t['lm_head.weight'] = bf16(rng.standard_normal((VOCAB, H)) * .02)
    t['model.norm.weight'] = bf16(np.ones(H))
    for m, w in ws.items():
        p, _, n = m.rpartition('.')
        group = next((g for g in (('q_proj', 'k_proj', 'v_proj'), ('gate_proj', 'up_proj')) if n in g), (n,))
        wide = max(np.abs(ws[f'{p}.{x}']).max() for x in group)  # NVFP4's global scale must be one for a fused group
        leaves = dict(weight=bf16(w)) if scheme == 'none' else quantized(w, scheme, wide=wide)
        if scheme == 'int4_awq' and n in ('o_proj', 'down_proj'):
            leaves['pre_quant_scale'] = bf16(np.ones(w.shape[1]))
        if kv and n in ('k_proj', 'v_proj'):
            leaves[n[0] + '_scale'] = f32(1)
        t |= {f'{m}.{k}': v for k, v in leaves.items()}
    for layer in range(LAYERS):
        for n in ('input_layernorm', 'post_attention_layernorm'):
            t[f'model.layers.{layer}.{n}.weight'] = bf16(np.ones(H))
    config = dict(
        architectures=['LlamaForCausalLM'],
        model_type='llama',
        hidden_size=H,
        intermediate_size=F,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=D,
        num_hidden_layers=LAYERS,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
        rope_theta=500000.0,
        rope_scaling=None,
        rope_parameters=dict(rope_type='default', rope_theta=500000.0),
    )
    q = dict(quant_algo=ALGO.get(scheme), kv_cache_quant_algo=kv, exclude_modules=['lm_head', 'model.embed_tokens'])
    if scheme == 'nvfp4':
        q['group_size'] = 16
    if scheme == 'int4_awq':
        q |= dict(group_size=128, has_zero_point=False, pre_quant_scale=True)
    js = {
        'config.json': config,
        'tokenizer.json': {'version': '1.0', 'model': {}},
        'tokenizer_config.json': {'tokenizer_class': 'PreTrainedTokenizerFast'},
    }
    if scheme != 'none':
        js['hf_quant_config.json'] = dict(producer=dict(name='modelopt', version='0.47.0'), quantization=q)
    return dict(json=js, st={ONE: t}, raw={}, links={})

FUSED = {
    'attention.qkv': (512, H),
    'attention.dense': (H, H),
    'mlp.fc': (F, H),
    'mlp.gate': (F, H),
    'mlp.proj': (H, F),
}

def legacy():
    "INT8 SmoothQuant in trtllm-build's layout, as ModelOpt 0.47 writes it."
    rng, t = np.random.default_rng(2), {}
    for layer in range(LAYERS):
        for m, size in FUSED.items():
            q = quantized((rng.standard_normal(size) * .05).astype(np.float32), 'int8_sq')
            p = f'transformer.layers.{layer}.{m}'
            t |= {
                f'{p}.weight': q['weight'],
                f'{p}.weights_scaling_factor': q['weight_scale'],
                f'{p}.activation_scaling_factor': f32([8 / 127]),
                f'{p}.prequant_scaling_factor': q['pre_quant_scale'],
            }
    t['transformer.vocab_embedding.weight'] = t['lm_head.weight'] = bf16(rng.standard_normal((VOCAB, H)))
    config = dict(
        architecture='LlamaForCausalLM',
        dtype='bfloat16',
        num_hidden_layers=LAYERS,
        hidden_size=H,
        vocab_size=VOCAB,
        rotary_base=10000.0,
        position_embedding_type='rope_gpt_neox',
        mapping=dict(world_size=1, tp_size=1, pp_size=1),
        quantization=dict(quant_algo='W8A8_SQ_PER_CHANNEL', kv_cache_quant_algo=None, exclude_modules=['lm_head']),
    )
    return dict(json={'config.json': config}, st={'rank0.safetensors': t}, raw={}, links={})

def compressed(bits='float'):
    "llm-compressor's layout: quantization in config.json alone, scales of [out, 1]."
    c = good('fp8_rowwise' if bits == 'float' else 'int8_wo')
    del c['json']['hf_quant_config.json']
    args = dict(num_bits=8, type=bits, strategy='channel', symmetric=True)
    c['json']['config.json']['quantization_config'] = dict(
        quant_method='compressed-tensors',
        format='float-quantized' if bits == 'float' else 'int-quantized',
        ignore=['lm_head'],
        config_groups=dict(
            group_0=dict(
                targets=['Linear'], weights=args, input_activations=args | dict(strategy='token', dynamic=True)
            )
        ),
    )
    return c

def deepseek():
    "FP8 in blocks as DeepSeek publishes it: config in config.json alone, weight_scale_inv in two dimensions."
    c = good('fp8_block')
    t = c['st'][ONE]
    for k in [k for k in t if k.endswith('weight_scale')]:
        d, x = t.pop(k)
        t[k + '_inv'] = d, x[:, 0, :, 0]
    del c['json']['hf_quant_config.json']
    c['json']['config.json']['quantization_config'] = dict(
        quant_method='fp8', activation_scheme='dynamic', weight_block_size=[128, 128],
        modules_to_not_convert=['lm_head'])
    return c

def packed(bits):
    "compressed-tensors' small integers: unsigned, several to a word of 32 bits, the first lowest."
    c, t = good('none'), {}
    for k, (d, x) in c['st'][ONE].items():
        m = k.removesuffix('.weight')
        if m not in weights():
            t[k] = d, x
            continue
        w = weights()[m]
        groups = np.abs(w.reshape(len(w), -1, 128 if bits == 4 else w.shape[1])).max(-1) / (2**(bits - 1) - 1)
        q = np.round(w / np.repeat(groups, w.shape[1] // groups.shape[1], 1)).astype(np.int64) + 2**(bits - 1)
        words = sum(q[:, i::32 // bits] << bits * i for i in range(32 // bits)).astype(np.uint32).view(np.int32)
        t |= {f'{m}.weight_packed': ('I32', words), f'{m}.weight_scale': bf16(groups),
              f'{m}.weight_shape': ('I64', np.array(w.shape, np.int64))}
    c['st'][ONE] = t
    args = dict(num_bits=bits, type='int', symmetric=True, dynamic=False, **(
        dict(strategy='group', group_size=128) if bits == 4 else dict(strategy='channel')))
    c['json']['config.json']['quantization_config'] = dict(
        quant_method='compressed-tensors', format='pack-quantized', quantization_status='compressed',
        ignore=['lm_head'], config_groups=dict(group_0=dict(targets=['Linear'], weights=args, input_activations=None)))
    return c

def sharded():
    "FP8 in two shards with an index."
    c = good('fp8')
    t = c['st'].pop(ONE)
    for k, v in t.items():
        c['st'].setdefault(f"model-0000{2 if '.layers.1.' in k else 1}-of-00002.safetensors", {})[k] = v
    c['json']['model.safetensors.index.json'] = dict(metadata=dict(total_size=sum(v.nbytes for _, v in t.values())),
                                                     weight_map={k: f for f, ts in c['st'].items() for k in ts})
    return c

def save(path, tensors):
    "Write one safetensors file."
    head, at = {'__metadata__': {'format': 'pt'}}, 0
    for k, (dtype, x) in tensors.items():
        head[k] = dict(dtype=dtype, shape=list(x.shape), data_offsets=[at, at + x.nbytes])
        at += x.nbytes
    raw = json.dumps(head).encode()
    raw += b' ' * (-len(raw) % 8)
    Path(path).write_bytes(
        len(raw).to_bytes(8, 'little') + raw + b''.join(np.ascontiguousarray(x).tobytes() for _, x in tensors.values())
    )

def write(c, path):
    "Put a checkpoint on disk."
    path = Path(path)
    path.mkdir(parents=True)
    for n, x in c['json'].items():
        (path/n).write_text(x if isinstance(x, str) else json.dumps(x, indent=1))
    for n, t in c['st'].items():
        save(path/n, t)
    for n, b in c['raw'].items():
        (path/n).write_bytes(b)
    for n, to in c['links'].items():
        (path/n).symlink_to(to)
    for f in c.get('after', []):
        f(path)
    return path


# ---- broken ones ------------------------------------------------------------------------------------------------

# name: (code of the one finding that must appear, maker, function that breaks it, arguments of check, where)
CASES = {}

def case(code, make=good, where=None, also=(), **kw):
    "Register a fault: `make` gives a good checkpoint, the function breaks it, `also` are findings that follow from it."
    def add(f):
        CASES[f.__name__] = dict(code=code, make=make, break_=f, kw=kw, where=where, also=set(also))
        return f
    return add

def q(c):
    return c['json']['hf_quant_config.json']['quantization']
def cfg(c):
    return c['json']['config.json']
def ts(c):
    return c['st'][ONE]
@functools.cache
def of(scheme, **kw):
    return lambda: good(scheme, **kw)
def patch(name, f):
    "Edit a file's bytes after it was written."
    return lambda path: (path/name).write_bytes(f((path/name).read_bytes()))

# what the directory is
@case('gguf')
def a_gguf_file(c):
    c['raw']['model.gguf'] = b'GGUF'

@case('lora-adapter')
def a_lora_adapter(c):
    c['st'] = {'adapter_model.safetensors': {'x': f32(1)}}
    c['json'] = {'adapter_config.json': {'r': 8}}

@case('half-written')
def an_unfinished_download(c):
    c['raw']['model.safetensors.incomplete'] = b'abc'

@case('no-config')
def no_config(c):
    del c['json']['config.json']

@case('no-weights')
def no_weights(c):
    c['st'] = {}

@case('pickle-weights')
def pickle_only(c):
    c['st'] = {}
    c['raw']['pytorch_model.bin'] = b'\x80\x04.'

@case('config-json')
def config_cut_short(c):
    c['json']['config.json'] = '{"architectures": ["Llama'

@case('symlink-outside')
def link_to_elsewhere(c):
    c['links'] = {'extra.safetensors': '/etc/hostname'}

@case('foreign-quantization')
def gptq(c):
    del c['json']['hf_quant_config.json']
    cfg(c)['quantization_config'] = dict(quant_method='gptq', bits=4, group_size=128)

@case('foreign-quantization')
def autoawq(c):
    del c['json']['hf_quant_config.json']
    cfg(c)['quantization_config'] = dict(quant_method='awq', bits=4)

@case('foreign-quantization')
def bitsandbytes(c):
    del c['json']['hf_quant_config.json']
    cfg(c)['quantization_config'] = dict(load_in_4bit=True, bnb_4bit_quant_type='nf4')

# one file
@case('file-length', where=ONE)
def last_kilobyte_missing(c):
    c['after'] = [patch(ONE, lambda b: b[:-1024])]

@case('file-length', where=ONE)
def empty_file(c):
    c['after'] = [patch(ONE, lambda b: b'')]

@case('header', where=ONE)
def gigabyte_header(c):
    c['after'] = [patch(ONE, lambda b: (1 << 30).to_bytes(8, 'little') + b[8:])]

@case('header', where=ONE)
def header_garbage(c):
    c['after'] = [patch(ONE, lambda b: b[:8] + b'\xff' * 100 + b[108:])]

def _head(f):
    "Edit the parsed header of the only file, keeping its length."
    def edit(b):
        n = int.from_bytes(b[:8], 'little')
        h = json.loads(b[8:8 + n])
        f(h)
        raw = json.dumps(h).encode()
        return len(raw).to_bytes(8, 'little') + raw + b[8 + n:]
    return patch(ONE, edit)

@case('header', where=ONE)
def overlapping_tensors(c):
    def f(h):
        a, b = h[UP + '.weight']['data_offsets']
        h[UP + '.weight']['data_offsets'] = [a - 16, b - 16]
    c['after'] = [_head(f)]

@case('header', where=ONE)
def shape_that_lies(c):
    c['after'] = [_head(lambda h: h[UP + '.weight'].update(shape=[F, H + 1]))]

@case('header', where=ONE)
def negative_offset(c):
    c['after'] = [_head(lambda h: h[UP + '.weight'].update(data_offsets=[-8, 16]))]

@case('header', where=ONE)
def unknown_element_type(c):
    c['after'] = [_head(lambda h: h[UP + '.weight'].update(dtype='F7'))]

@case('file-length', where=ONE)
def bytes_after_the_end(c):
    c['after'] = [patch(ONE, lambda b: b + b'\0' * 64)]

# shards
@case('missing-shard', make=sharded, where='model-00002-of-00002.safetensors', also={'layer-missing'})
def second_shard_missing(c):
    del c['st']['model-00002-of-00002.safetensors']

@case('missing-shard', make=sharded, also={'layer-missing'})
def second_shard_missing_no_index(c):
    del c['st']['model-00002-of-00002.safetensors'], c['json']['model.safetensors.index.json']

@case('no-index', make=sharded)
def shards_without_index(c):
    del c['json']['model.safetensors.index.json']

@case('stray-shard', make=sharded, where='old.safetensors', also={'stray-tensor'})
def shard_of_an_earlier_export(c):
    c['st']['old.safetensors'] = {'model.rotary.inv_freq': f32(np.ones(4))}

@case('duplicate-tensor', make=sharded, also={'stray-shard'})
def tensor_in_two_files(c):
    c['st']['old.safetensors'] = {'model.norm.weight': bf16(np.ones(H))}

@case('index-tensor', make=sharded)
def index_names_the_wrong_shard(c):
    c['json']['model.safetensors.index.json']['weight_map']['model.norm.weight'] = 'model-00002-of-00002.safetensors'

@case('index-unlisted', make=sharded)
def index_forgets_a_tensor(c):
    del c['json']['model.safetensors.index.json']['weight_map']['model.norm.weight']

@case('index-path', make=sharded, also={'layer-missing'})
def index_leads_out_of_the_directory(c):
    wm = c['json']['model.safetensors.index.json']['weight_map']
    for k in wm:
        wm[k] = '../' + wm[k] if '.layers.1.' in k else wm[k]
    del c['st']['model-00002-of-00002.safetensors']

@case('index-json', make=sharded)
def index_without_a_map(c):
    c['json']['model.safetensors.index.json'] = {'metadata': {}}

# config and tokenizer
@case('no-architectures')
def no_architectures(c):
    del cfg(c)['architectures']

@case('rope-spelling', where='rope_theta')
def rotary_base_under_its_new_name_only(c):
    del cfg(c)['rope_theta']

@case('rope-spelling', where='rope_scaling')
def rotary_scaling_under_its_new_name_only(c):
    cfg(c)['rope_parameters'] |= dict(rope_type='llama3', factor=8.0)

@case('layer-missing')
def config_has_one_layer_more(c):
    cfg(c)['num_hidden_layers'] = 3

@case('layer-extra')
def config_has_one_layer_less(c):
    cfg(c)['num_hidden_layers'] = 1

@case('tensor-missing', where='model.layers.1.mlp.down_proj')
def a_whole_linear_missing(c):
    for k in [k for k in ts(c) if k.startswith('model.layers.1.mlp.down_proj')]:
        del ts(c)[k]

@case('tokenizer-missing')
def no_tokenizer(c):
    del c['json']['tokenizer.json'], c['json']['tokenizer_config.json']

@case('tokenizer-class')
def tokenizer_of_transformers_5(c):
    c['json']['tokenizer_config.json'] = dict(tokenizer_class='TokenizersBackend')

# quantization config
@case('quant-config-json')
def quant_config_is_a_list(c):
    c['json']['hf_quant_config.json'] = []

@case('quant-config-form')
def flat_quant_config(c):
    c['json']['hf_quant_config.json'] = q(c)

@case('quant-algo-missing')
def quant_algo_null(c):
    q(c)['quant_algo'] = None

@case('quant-algo-unknown')
def quant_algo_misspelt(c):
    q(c)['quant_algo'] = 'FP8_PER_TENSOR'

@case('quant-algo-version', make=of('nvfp4'))
def quant_algo_of_a_later_version(c):
    q(c)['quant_algo'] = 'W4A16_NVFP4'

@case('kv-algo-unknown')
def kv_algo_unknown(c):
    q(c)['kv_cache_quant_algo'] = 'FP4'

@case('kv-unsupported')
def kv_int8(c):
    q(c)['kv_cache_quant_algo'] = 'INT8'

@case('kv-scale-missing', make=of('nvfp4'))
def kv_nvfp4_without_scales(c):
    q(c)['kv_cache_quant_algo'] = 'NVFP4'

@case('kv-scale-unused', make=of('fp8', kv='FP8'))
def kv_scales_without_kv_algo(c):
    q(c)['kv_cache_quant_algo'] = None

@case('group-size', make=of('nvfp4'))
def nvfp4_in_groups_of_32(c):
    q(c)['group_size'] = 32

@case('quantized-layers', also={'excluded-but-quantized'})
def mixed_precision_without_layers(c):
    q(c)['quant_algo'] = 'MIXED_PRECISION'

@case('inline-differs')
def two_configs_disagree(c):
    cfg(c)['quantization_config'] = dict(quant_method='modelopt', quant_algo='NVFP4')

@case('inline-only')
def only_the_inline_config(c):
    cfg(c)['quantization_config'] = dict(q(c), quant_method='modelopt', ignore=['lm_head'])
    del c['json']['hf_quant_config.json']

@case('no-quant-config')
def no_quant_config_at_all(c):
    del c['json']['hf_quant_config.json']

@case('no-producer', trtllm='1.4.0rc1')
def no_producer(c):
    del c['json']['hf_quant_config.json']['producer']

@case('exclude-regex')
def regular_expression_in_exclude(c):
    q(c)['exclude_modules'].append('re:.*down_proj')

@case('exclude-nothing')
def misspelt_exclude(c):
    q(c)['exclude_modules'].append('model.layers.0.mlp.down')

@case('exclude-modules', also={'lm-head-not-excluded'})
def exclude_is_a_string(c):
    q(c)['exclude_modules'] = 'lm_head'

# compressed-tensors
@case('ct-int8-as-fp8', make=compressed, engine='trtllm', also={'algo-unsupported'})
def int8_taken_for_fp8(c):
    c |= compressed('int')

@case('ct-strategy', make=compressed, engine='trtllm', also={'scale-shape', 'dynamic-activations'})
def static_per_tensor(c):
    cfg(c)['quantization_config']['config_groups']['group_0']['weights']['strategy'] = 'tensor'

@case('ct-groups', make=compressed, engine='trtllm')
def two_groups(c):
    g = cfg(c)['quantization_config']['config_groups']
    g['group_1'] = g['group_0']

@case('scale-shape', make=compressed, engine='trtllm')
def scales_of_out_by_1(c):
    for k, (d, x) in list(ts(c).items()):
        if k.endswith('weight_scale'):
            ts(c)[k] = d, x[:, None]

# linears
@case('bf16-not-excluded', where=UP)
def bf16_layer_not_excluded(c):
    for leaf in ('weight_scale', 'input_scale'):
        del ts(c)[f'{UP}.{leaf}']
    ts(c)[f'{UP}.weight'] = bf16(weights()[UP])

@case('excluded-but-quantized', where='model.layers.0.mlp.down_proj')
def quantized_layer_excluded(c):
    q(c)['exclude_modules'].append('model.layers.0.mlp.down_proj')

@case('weight-dtype', where=f'{UP}.weight')
def int8_weight_under_fp8(c):
    ts(c)[f'{UP}.weight'] = 'I8', ts(c)[f'{UP}.weight'][1].view(np.int8)

@case('weight-dtype', where=f'{UP}.weight')
def e5m2_weight(c):
    ts(c)[f'{UP}.weight'] = 'F8_E5M2', ts(c)[f'{UP}.weight'][1]

@case('weight-shape')
def config_of_another_model(c):
    cfg(c)['intermediate_size'] = 512

@case('scale-missing', where=f'{UP}.weight_scale')
def fp8_without_weight_scale(c):
    del ts(c)[f'{UP}.weight_scale']

@case('scale-missing', make=of('nvfp4'))
def nvfp4_without_global_scale(c):
    for k in [k for k in ts(c) if k.endswith('weight_scale_2')]:
        del ts(c)[k]

@case('scale-missing', make=of('int4_awq'), where='model.layers.0.self_attn.o_proj.pre_quant_scale')
def awq_without_input_scale(c):
    del ts(c)['model.layers.0.self_attn.o_proj.pre_quant_scale']

@case('scale-dtype', make=of('nvfp4'))
def nvfp4_block_scales_in_float32(c):
    for k, (d, x) in list(ts(c).items()):
        if k.endswith('weight_scale'):
            ts(c)[k] = f32(_E4M3[x])

@case('scale-shape', make=of('fp8_rowwise'), where=f'{UP}.weight_scale')
def rowwise_with_one_scale(c):
    ts(c)[f'{UP}.weight_scale'] = f32(1e-3)

@case('scale-shape', make=of('fp8_block'))
def block_scales_in_blocks_of_64(c):
    ts(c)[f'{UP}.weight_scale'] = f32(np.full((F // 64, H // 64), 1e-3))

@case('stray-tensor')
def amax_left_behind(c):
    ts(c)[f'{UP}.input_quantizer._amax'] = f32(8)

@case('bias-dropped', make=of('int8_wo'))
def int8_with_bias(c):
    ts(c)[f'{UP}.bias'] = bf16(np.zeros(F))

# fused layers
@case('fused-mixed')
def only_k_excluded(c):
    k = 'model.layers.0.self_attn.k_proj'
    q(c)['exclude_modules'].append(k)
    del ts(c)[f'{k}.weight_scale'], ts(c)[f'{k}.input_scale']
    ts(c)[f'{k}.weight'] = bf16(weights()[k])

@case('fused-scales-differ', make=of('nvfp4'))
def nvfp4_global_scales_differ(c):
    ts(c)['model.layers.0.self_attn.q_proj.weight_scale_2'] = f32(2e-4)

@case('fused-scales-differ', make=of('nvfp4'))
def nvfp4_input_scales_differ(c):
    ts(c)['model.layers.0.mlp.gate_proj.input_scale'] = f32(2e-4)

@case('fused-requantized', deep=True)
def fp8_scales_differ(c):
    k = 'model.layers.0.self_attn.q_proj.weight_scale'
    ts(c)[k] = f32(ts(c)[k][1] * .7)

@case('input-scale-mixed', also={'dynamic-activations'})
def one_input_scale_missing(c):
    del ts(c)['model.layers.0.self_attn.v_proj.input_scale']

# values of scales
@case('scale-nonfinite', where=f'{UP}.input_scale', also={'fused-requantized'})
def nan_scale(c):
    ts(c)[f'{UP}.input_scale'] = f32(np.nan)

@case('scale-zero', make=of('int8_wo'), where=f'{UP}.weight_scale')
def zero_scale_of_one_channel(c):
    ts(c)[f'{UP}.weight_scale'][1][5] = 0

@case('scale-negative', make=of('fp8_rowwise'))
def negative_scale(c):
    ts(c)[f'{UP}.weight_scale'][1][5] *= -1

@case('scale-all-one')
def scales_never_set(c):
    for k in ts(c):
        if k.endswith('weight_scale'):
            ts(c)[k] = f32(1)

@case('scale-magnitude', where='model.layers.1.mlp.down_proj.weight_scale')
def inverted_scale(c):
    k = 'model.layers.1.mlp.down_proj.weight_scale'
    ts(c)[k] = f32(1 / ts(c)[k][1])

@case('dead-blocks', make=of('nvfp4'))
def dead_blocks(c):
    ts(c)[f'{UP}.weight_scale'][1][::8] = 0

# the ends
@case('embedding-quantized')
def quantized_embedding(c):
    ts(c)['model.embed_tokens.weight'] = e4m3(np.ones((VOCAB, H)))

@case('vocab-size', where='model.embed_tokens')
def vocabulary_of_another_model(c):
    cfg(c)['vocab_size'] = 640

@case('lm-head-missing')
def no_head(c):
    del ts(c)['lm_head.weight']

@case('lm-head-quantized')
def quantized_head(c):
    ts(c)['lm_head.weight'] = e4m3(np.ones((VOCAB, H)))
    ts(c)['lm_head.weight_scale'] = f32(1e-3)
    q(c)['exclude_modules'] = []

@case('lm-head-not-excluded')
def head_not_excluded(c):
    q(c)['exclude_modules'] = []

@case('tied-differ')
def tied_but_different(c):
    cfg(c)['tie_word_embeddings'] = True

@case('tied-twice')
def tied_and_stored_twice(c):
    cfg(c)['tie_word_embeddings'] = True
    ts(c)['lm_head.weight'] = ts(c)['model.embed_tokens.weight']

# every byte
@case('weight-nonfinite', deep=True, where=f'{UP}.weight')
def nan_in_an_fp8_weight(c):
    ts(c)[f'{UP}.weight'][1][3, 4] = 0x7f

@case('weight-nonfinite', deep=True, where='model.norm.weight')
def infinity_in_a_norm(c):
    ts(c)['model.norm.weight'][1][7] = 0x7f80

@case('scale-loose', deep=True, where='model.layers.1.mlp.down_proj.weight')
def scale_of_another_weight(c):
    m = 'model.layers.1.mlp.down_proj'
    ts(c)[f'{m}.weight'] = e4m3(weights()[m] / (np.abs(weights()[m]).max() / 100))

# version and GPU
@case('device-unsupported', device='a100')
def fp8_on_ampere(c):
    pass

@case('device-unsupported', make=of('nvfp4'), device='h100')
def nvfp4_on_hopper(c):
    pass

@case('layout', backend='tensorrt')
def hf_layout_for_an_engine(c):
    pass

@case('algo-unsupported', make=legacy, trtllm='1.4.0rc1')
def legacy_layout_after_the_engine_backend(c):
    pass

@case('rank-missing', make=legacy)
def legacy_rank_missing(c):
    cfg(c)['mapping']['world_size'] = 2

@case('rotary-base', make=legacy)
def legacy_without_rotary_base(c):
    del cfg(c)['rotary_base']

@case('scale-missing', make=legacy)
def legacy_without_activation_scale(c):
    del c['st']['rank0.safetensors']['transformer.layers.0.mlp.fc.activation_scaling_factor']

# the rest of the rules
@case('remote-code')
def own_code(c):
    cfg(c)['auto_map'] = {'AutoModelForCausalLM': 'modeling.Model'}

@case('tokenizer-json')
def tokenizer_config_cut_short(c):
    c['json']['tokenizer_config.json'] = '{"tokenizer_class'

@case('quant-config-type')
def group_size_is_text(c):
    q(c)['group_size'] = '128'

@case('kv-key-missing')
def mixed_precision_without_kv_key(c):
    q(c).update(quant_algo='MIXED_PRECISION', quantized_layers={m: dict(quant_algo='FP8') for m in weights()})
    del q(c)['kv_cache_quant_algo']

@case('inline-fp8')
def static_fp8_declared_inline(c):
    del c['json']['hf_quant_config.json']
    cfg(c)['quantization_config'] = dict(quant_method='fp8', activation_scheme='static')

@case('block-size', make=of('fp8_block'), also={'activations-too'})
def blocks_of_64(c):
    del c['json']['hf_quant_config.json']
    cfg(c)['quantization_config'] = dict(quant_method='fp8', weight_block_size=[64, 64])

@case('group-divides', make=of('int4_awq'), also={'scale-shape'})
def awq_group_does_not_divide(c):
    q(c)['group_size'] = 96

def _resize_inner(c, f):
    "Give the MLP of layer 1 another width, in a model of an architecture that the shape table does not know."
    cfg(c)['model_type'] = 'other'
    rng = np.random.default_rng(3)
    for m, s in {'gate_proj': (f, H), 'up_proj': (f, H), 'down_proj': (H, f)}.items():
        ts(c).update(
            {
                f'model.layers.1.mlp.{m}.{k}': v
                for k, v in quantized((rng.standard_normal(s) * 0.05).astype(np.float32), 'fp8', wide=0.3).items()
            }
        )

@case('dim-16')
def odd_width(c):
    _resize_inner(c, 376 + 1)

@case('dynamic-activations')
def fp8_without_input_scales(c):
    for k in [k for k in ts(c) if k.endswith('input_scale')]:
        del ts(c)[k]

@case('kv-scales-ignored', make=of('fp8', kv='FP8'))
def calibrated_kv_scales(c):
    ts(c)['model.layers.0.self_attn.k_proj.k_scale'] = f32(.07)

@case('scales-unread', make=of('fp8_rowwise'), also={'stray-tensor'})
def a_large_scale(c):
    ts(c)['model.layers.0.mlp.extra.weight_scale'] = f32(np.ones(1 << 17))


# values that no model has
@case('config-value', also={'layer-extra'})
def no_layer(c):
    cfg(c)['num_hidden_layers'] = 0

@case('config-value', also={'layer-extra'})
def less_than_no_layer(c):
    cfg(c)['num_hidden_layers'] = -1

@case('config-value', also={'weight-shape'})
def no_attention_head(c):
    cfg(c)['num_attention_heads'] = 0

@case('config-value', also={'vocab-size'})
def a_vocabulary_of_400_digits(c):
    cfg(c)['vocab_size'] = 10**400

@case('config-value')
def a_width_that_is_text(c):
    cfg(c)['hidden_size'] = 'x'

@case('config-value')
def no_position(c):
    cfg(c)['max_position_embeddings'] = 0

@case('config-value', also={'rope-spelling'})
def a_rotary_base_of_zero(c):
    cfg(c)['rope_parameters']['rope_theta'] = 0

@case('config-value', also={'rope-spelling'})
def a_rotary_base_that_is_no_number(c):
    cfg(c)['rope_theta'] = float('nan')

@case('config-json')
def a_key_twice(c):
    c['json']['config.json'] = json.dumps(cfg(c))[:-1] + ', "vocab_size": 512}'

@case('config-json')
def a_hundred_thousand_brackets(c):
    c['json']['config.json'] = '[' * 100_000

@case('generation-config')
def generation_config_cut_short(c):
    c['json']['generation_config.json'] = '{"temperature": '

@case('tokenizer-json')
def tokenizer_is_a_list(c):
    c['json']['tokenizer.json'] = []

@case('tokenizer-json')
def tokenizer_without_a_model(c):
    c['json']['tokenizer.json'] = {'version': '1.0'}

# the directory
@case('half-written')
def a_pipe_as_config(c):
    import os
    del c['json']['config.json']
    c['after'] = [lambda path: os.mkfifo(path/'config.json')]

@case('half-written')
def a_link_to_itself(c):
    c['links'] = {'model-extra.safetensors': 'model-extra.safetensors'}

@case('symlink-outside')
def weights_that_lie_elsewhere(c):
    c['after'] = [lambda path: (path/ONE).rename(path.parent/ONE), lambda path: (path/ONE).symlink_to(path.parent/ONE)]

@case('missing-shard', also={'layer-missing'})
def one_of_99999999_shards(c):
    c['st'] = {'model-00001-of-99999999.safetensors': {k: v for k, v in ts(c).items() if '.layers.1.' not in k}}

@case('index-path', make=sharded)
def index_names_an_absolute_path(c):
    c['json']['model.safetensors.index.json']['weight_map']['extra'] = '/etc/model.safetensors'

@case('index-path', make=sharded)
def index_names_a_pickle(c):
    c['json']['model.safetensors.index.json']['weight_map']['extra'] = 'pytorch_model.bin'

# what nobody reads
def _stray(leaf, module='model.layers.0.self_attn.k_proj'):
    @case('stray-tensor', where=f'{module}.{leaf}')
    def a_scale_of_another_tool(c):
        ts(c)[f'{module}.{leaf}'] = f32(.5)
    CASES[f'stray_{leaf}'] = CASES.pop('a_scale_of_another_tool')

for _leaf in (
    'kv_scale',
    'output_scale',
    'q_scale',
    'prob_scale',
    'weight_scale_2',
    'pre_quant_scale',
    'weight_zero_point',
):
    _stray(_leaf)

# labels, experts, fused products
@case('nothing-quantized')
def a_label_and_nothing_else(c):
    q(c)['exclude_modules'].append('model.layers.*')
    c['st'] = {ONE: good('none')['st'][ONE]}

def moe(names=('w1', 'w2', 'w3'), parent='block_sparse_moe', scheme='fp8'):
    "A Mixtral of two layers with four experts."
    c, rng = good(scheme), np.random.default_rng(4)
    cfg(c).update(
        architectures=['MixtralForCausalLM'], model_type='mixtral', num_local_experts=4, num_experts_per_tok=2
    )
    t = ts(c)
    for k in [k for k in t if '.mlp.' in k]:
        del t[k]
    for layer in range(LAYERS):
        t[f'model.layers.{layer}.{parent}.gate.weight'] = bf16(rng.standard_normal((4, H)))
        for e in range(4):
            for n in names:
                w = (rng.standard_normal((H, F) if n in ('w2', 'down_proj') else (F, H)) * .05).astype(np.float32)
                t |= {
                    f'model.layers.{layer}.{parent}.experts.{e}.{n}.{k}': v
                    for k, v in quantized(w, scheme, wide=0.3).items()
                }
    return c

@case('expert-names', make=moe)
def experts_under_another_name(c):
    c |= moe(('gate_proj', 'down_proj', 'up_proj'), 'mlp')

@case('input-scale-mixed', make=moe, also={'dynamic-activations'}, where='model.layers.1.block_sparse_moe.experts.2.w2')
def one_expert_without_input_scale(c):
    del ts(c)['model.layers.1.block_sparse_moe.experts.2.w2.input_scale']

def block_of(rows):
    "FP8 in blocks, with another height of the key projections."
    c = good('fp8_block')
    cfg(c)['model_type'] = 'other'
    for layer in range(LAYERS):
        w = (np.random.default_rng(layer).standard_normal((rows, H)) * .05).astype(np.float32)
        ts(c).update({f'model.layers.{layer}.self_attn.k_proj.{k}': v for k, v in quantized(w, 'fp8_block').items()})
    return c

@case('block-rows', make=of('fp8_block'))
def rows_of_another_layers_scale(c):
    c |= block_of(64)

@case('input-scale-mixed', also={'dynamic-activations'}, trtllm='1.3.0rc5')
def one_input_scale_missing_in_1_3(c):
    del ts(c)['model.layers.0.self_attn.v_proj.input_scale']

@case('pre-quant-dropped', make=of('nvfp4'))
def awq_scale_that_1_2_never_reads(c):
    q(c)['quant_algo'] = 'NVFP4_AWQ'
    ts(c)['model.layers.0.mlp.down_proj.pre_quant_scale'] = bf16(np.ones(F))

@case('kv-algo-unknown')
def kv_algo_none_as_text(c):
    q(c)['kv_cache_quant_algo'] = 'none'

@case('kv-algo-unknown')
def kv_algo_empty(c):
    q(c)['kv_cache_quant_algo'] = ''

@case('quant-algo-unknown', make=of('fp8_block'))
def alias_in_capitals(c):
    q(c)['quant_algo'] = 'FP8_PB_WO'

@case('scale-absurd', where=f'{UP}.weight_scale', also={'fused-requantized'})
def a_scale_of_1e30(c):
    ts(c)[f'{UP}.weight_scale'] = f32(1e30)

@case('scale-absurd', where='model.layers.1.mlp.down_proj.input_scale')
def an_activation_scale_of_1e30(c):
    ts(c)['model.layers.1.mlp.down_proj.input_scale'] = f32(1e30)

# other engines
@case('engine-refuses', engine='vllm', make=of('int8_wo'))
def modelopts_int8_for_vllm(c):
    pass

@case('engine-refuses', engine='sglang', make=of('fp8_rowwise'))
def modelopts_rowwise_for_sglang(c):
    pass

@case('engine-refuses', engine='vllm', make=of('fp8_block'))
def block_scales_in_two_dimensions_for_vllm(c):
    for k, (d, x) in list(ts(c).items()):
        if k.endswith('weight_scale'):
            ts(c)[k] = d, x[:, 0, :, 0]
