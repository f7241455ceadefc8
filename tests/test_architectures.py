"Ten architectures in miniature, each through quantize, export, check and runtime. None is named in the library's code."
from types import SimpleNamespace

import pytest
import torch

from small import Windows, edit, tokens
from test_families import family
from tqcook import contract, export, models, parity, quantize, runtime
from tqcook.checkpoint import Checkpoint
from tqcook.core import CookError

ARCHS = list(models.TINY)
WRONG_HERE = {'algo-unsupported', 'scheme-unsupported'} # INT8 SmoothQuant runs on TensorRT engines only


def quantizable(model):
    "How many weights must come out quantized: linears, and three for each expert that transformers keeps stacked."
    experts = {n.rpartition('.')[0]: p.shape[0] for n, p in models.expert_tensors(model).items()}
    router = [n for n in models.linears(model) if n.endswith('.gate') and 'mlp' in n] # routers stay in BF16
    return len(models.linears(model)) - len(router) + sum(3 * n for n in experts.values())


def cook(arch, scheme, out, kv='none', **over):
    base = models.tiny(arch, **over)
    q = quantize.quantize(base, Windows(), scheme, kv=kv, progress=False)
    with torch.no_grad():
        fake = q.loaded.model(tokens()).logits.float()
    out = export.export(q, out)
    export.make_portable(out) # the older spellings that TensorRT-LLM's transformers reads; nothing for us changes
    return base, fake, out


@pytest.mark.parametrize('scheme', ['fp8', 'int8_sq'])
@pytest.mark.parametrize('arch', ARCHS)
def test_quantize_export_check_run(arch, scheme, tmp_path, both):
    base, fake, path = cook(arch, scheme, tmp_path/'x')
    n = quantizable(base.model)
    ck = Checkpoint.open(path)
    found = contract.check(path)
    assert {f.code for f in found.errors} <= (WRONG_HERE if scheme == 'int8_sq' else set()), str(found)
    e, ref = both(path)
    p = parity.parity(e, ref, tokens(), base)
    assert p.passed and p.expected == p.linears == n, (n, p.failures)
    assert ck.scheme == p.scheme == scheme
    with parity._damaged(e, 'bf16 weights', base):
        wrong = parity.parity(e, ref, tokens(), base)
    assert not wrong.passed and wrong.worst > p.bound
    with torch.no_grad():
        r, b = ref.model(tokens()).logits.float(), base.model(tokens()).logits.float()
    assert (r - fake).norm() < (r - b).norm() # the file is nearer to what was fake-quantized than to the model before
    assert len(runtime.generate(e, [5, 6, 7], 4).ids) >= 1


@pytest.mark.parametrize('arch', ARCHS)
def test_fp8_kv_reaches_attention(arch, tmp_path, both, monkeypatch):
    "Every architecture here reads keys and values through transformers' attention interface."
    base, _, path = cook(arch, 'fp8', tmp_path/'x', kv='fp8')
    e, ref = both(path)
    assert e.notes['kv'] == 'fp8'
    calls, real = [], runtime.round_e4m3
    with monkeypatch.context() as m, torch.no_grad():
        m.setattr(runtime, 'round_e4m3', lambda x: calls.append(1) or real(x))
        e.model(tokens())
    assert len(calls) == 2 * e.config.num_hidden_layers
    assert parity.parity(e, ref, tokens(), base).passed


@pytest.mark.parametrize('arch', ['qwen2', 'gpt2', 'mixtral'])
@pytest.mark.parametrize('scheme', ['fp8_rowwise', 'int8_wo'])
def test_other_formats(arch, scheme, tmp_path, both):
    "Biases, transposed weights and experts in the remaining formats with products of their own."
    base, _, path = cook(arch, scheme, tmp_path/'x')
    p = parity.parity(*both(path), tokens(), base)
    assert p.passed and p.expected == quantizable(base.model), p.failures


def test_biases_are_not_lost(tmp_path, both):
    "Qwen2's QKV biases: random ones here, because a fresh model has zeros and would hide the loss."
    base = models.tiny('qwen2')
    with torch.no_grad():
        for n, b in base.model.named_parameters():
            if n.endswith('.bias'):
                b.normal_(generator=torch.Generator().manual_seed(len(n)))
    e, ref = both(export.export(quantize.quantize(base, Windows(), 'fp8', progress=False), tmp_path/'x'))
    p = parity.parity(e, ref, tokens(), base)
    assert p.passed, p.failures
    e.model.model.layers[0].self_attn.q_proj.bias = None
    assert not parity.parity(e, ref, tokens(), base).passed


def test_tied_embeddings_are_one_tensor(tmp_path):
    _, _, path = cook('gemma3', 'fp8', tmp_path/'x')
    m = runtime.load(path, device='cpu').model
    assert m.get_output_embeddings().weight is m.get_input_embeddings().weight
    assert 'lm_head.weight' not in Checkpoint.open(path).tensors


def test_soft_capping_is_kept(tmp_path):
    "Gemma 2 caps attention logits, which SDPA ignores: the runtime takes eager attention as transformers advises."
    _, _, path = cook('gemma2', 'fp8', tmp_path/'x')
    assert runtime.load(path, device='cpu').notes['attn'] == 'eager'


def test_an_expert_that_nothing_chose(tmp_path, both):
    "An expert that no token chose is reported, not failed."
    base, _, path = cook('mixtral', 'fp8', tmp_path/'x', num_local_experts=8, num_experts_per_tok=1)
    p = parity.parity(*both(path), torch.full((1, 3), 7), base)
    assert p.to_dict()['unseen'] and 'never chosen' in p._repr_markdown_()
    assert not [f for f in p.failures if 'flowed' in f]


# --- families that once failed


FAMILIES = ['gpt_neox', 'bamba', 'falcon_h1', 'mamba2', 'phimoe', 'granite', 'deepseek_v2', 'deepseek_v3', 'qwen3_next',
            'glm4_moe']


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['fp8', 'fp8_block'])
@pytest.mark.parametrize('name', FAMILIES)
def test_a_router_that_flips_is_no_wrong_product(name, scheme, tmp_path, both):
    "Right runtimes pass, the routing held; nothing quantized fails, by the direction of the free logits too."
    base = family(name)
    ids = torch.randint(2, 512, (2, 48), generator=torch.Generator().manual_seed(1))
    q = quantize.quantize(base, SimpleNamespace(windows=[*ids.numpy()]), scheme, progress=False)
    e, ref = both(export.export(q, tmp_path/'x'))
    p = parity.parity(e, ref, ids, base)
    assert p.passed, p.failures
    wrong = parity.negative_controls(e, ref, ids, base)['bf16 weights']
    assert not wrong.passed and wrong.lean > (1 + wrong.lean_floor) / 2


def test_experts_in_one_tensor_are_refused_by_name(tmp_path):
    "As ModelOpt writes those of Llama 4."
    _, _, path = cook('mixtral', 'fp8', tmp_path/'x')
    name = 'model.layers.0.feed_forward.experts.down_proj_weight_scale'
    with pytest.raises(CookError, match='experts are read one by one'):
        runtime.load(edit(path, tmp_path/'y', lambda t, c: t.update({name: torch.ones(4)})), device='cpu')
