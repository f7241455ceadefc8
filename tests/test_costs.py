"Bytes against tensors that were really stored, operations against products that were really counted."
import pytest

from tqcook import costs, formats
from tqcook.core import CookError
from tqcook.schemes import SCHEMES
from tqcook.shapes import shape_of

torch = pytest.importorskip('torch')
tr = pytest.importorskip('transformers')

CONFIG = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=300)
MOE = dict(CONFIG, num_local_experts=4, num_experts_per_tok=2)


def model_of(kind, config):
    torch.manual_seed(0)
    return tr.AutoModelForCausalLM.from_config(tr.AutoConfig.for_model(kind, **config)).to(torch.bfloat16).eval()


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('kind, config', [('llama', CONFIG), ('mixtral', MOE)])
def test_bytes_of_what_is_stored(kind, config, scheme):
    "Every linear of a model stored by `formats.quantize`, counted byte by byte: within 1 %."
    model, stored = model_of(kind, config), 0
    for name, p in model.named_parameters():
        weights = p if p.ndim == 3 else [p]
        if p.ndim < 2 or 'embed' in name or 'lm_head' in name or name.endswith('gate.weight'):
            continue
        for w in weights:
            leaves = formats.quantize(SCHEMES[scheme].storage, w.detach())
            stored += sum(t.numel() * t.element_size() for t in leaves.values())
    s = shape_of(model.config)
    assert costs.linear_bytes(s, scheme) == pytest.approx(stored, rel=.01)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    assert costs.linear_bytes(s) + 2 * (s.total - s.linear) == whole


def counted(model, run):
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as f, torch.no_grad():
        run(model)
    return f.get_total_flops()


@pytest.mark.parametrize('kind, config', [('llama', CONFIG),
                                          ('gpt2', dict(n_embd=64, n_layer=3, n_head=4, vocab_size=300))])
def test_operations_of_a_model(kind, config):
    "PyTorch's own counter; its attention counts the whole square, ours the half that a causal model needs."
    model = model_of(kind, config).float()
    model.set_attn_implementation('eager')
    s, n, b = shape_of(model.config), 64, 3
    ids = torch.randint(0, 300, (b, n))
    mine = costs.work_of(s, 'prefill', b, n)
    square = b * n * n * s.layers * s.pair
    want = mine.total_ops - mine.ops['cache'] + square - mine.ops['head'] + 2 * b * n * s.vocab * s.hidden
    assert counted(model, lambda m: m(ids)) == pytest.approx(want, rel=.01)
    past = model(ids, use_cache=True).past_key_values
    step = costs.work_of(s, 'decode', b, n + 1)
    got = counted(model, lambda m: m(ids[:, :1], past_key_values=past))
    assert got == pytest.approx(step.total_ops, rel=.01)


def test_cache_is_what_a_model_keeps():
    model = model_of('llama', CONFIG)
    past = model(torch.zeros(1, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in past.layers for t in (layer.keys, layer.values))
    s = shape_of(model.config)
    assert costs.cache_bytes(s, 7) == held == 2 * costs.cache_bytes(s, 7, 'fp8')


def test_experts_are_read_when_a_token_goes_there():
    s = shape_of(dict(MOE, model_type='mixtral'))
    one, many = (costs.work_of(s, 'decode', b).bytes['experts'] for b in (1, 1000))
    all_of = costs.linear_bytes(s, 'none', ('experts',))
    assert one == pytest.approx(all_of / 2, rel=.02) and many > all_of # and activations
    assert costs.work_of(s, 'decode', 1).ops['experts'] == 2 * s.layers * 2 * 3 * 256 * 512


def test_intensity_grows_with_the_batch_and_falls_with_the_context():
    s = shape_of('shape:llama-3.1-8b')
    ratio = lambda *a: costs.work_of(s, *a).total_ops / costs.work_of(s, *a).total_bytes
    assert ratio('decode', 64) > 10 * ratio('decode', 1) and ratio('decode', 64, 32768) < ratio('decode', 64, 512)
    assert ratio('prefill', 1, 2048) > 500
    with pytest.raises(CookError, match='phase'):
        costs.work_of(s, 'train')
