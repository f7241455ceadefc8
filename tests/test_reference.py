"The base model live, recorded and disturbed."

import math

import pytest

torch = pytest.importorskip('torch')
from pairs import disturbed, quiet, random_corpus, sharp
from tqcook import compare, reference


@pytest.mark.parametrize('arch', ['llama', 'gemma2'])
def test_the_ways_agree(arch, tmp_path):
    a = sharp(arch, dtype='bfloat16', factor=1.5)
    with torch.no_grad():
        a.model.get_output_embeddings().weight.mul_(20)
    b, c = disturbed(a), random_corpus(6)
    direct = compare.compare(a, b, c, **quiet)
    for way in ('hidden-memory', 'hidden-file'):
        loads = []
        o = compare.compare(
            lambda: loads.append('base') or a,
            lambda: loads.append('quant') or b,
            c,
            way=way,
            folder=str(tmp_path),
            **quiet,
        )
        assert o.way == way and loads == ['base', 'quant'] and list(tmp_path.iterdir()) == []
        for k in ('ppl_base', 'ppl_quant', 'ppl_ratio'):
            assert o.stats[k].value == pytest.approx(direct.stats[k].value, rel=1e-6)
        assert o.stats['kld_mean'].value == pytest.approx(direct.stats['kld_mean'].value, rel=1e-5)
        assert o.floor['kld_mean'].value == direct.floor['kld_mean'].value
    assert direct.way == 'lockstep' and direct.to_dict()['way'] == 'lockstep'


def test_a_noise_floor_excuses_nothing(pair):
    "A budget of zero cannot be met: BF16 rounding moves the base model itself by more, so nothing passes."
    a, _ = pair
    c = random_corpus(16)
    zero = dict(max_ppl_ratio=1.0, max_kld=0.0, min_top1=1.0)
    quant = compare.compare(a, disturbed(a, 1e-4), c, **zero, **quiet)
    assert 0 < quant.floor['kld_mean'].value < 0.1 and quant.floor['windows'] >= 4
    check = quant.judged.checks[1]
    assert (check.budget, check.noisy, check.state) == (0, True, 'undecided') and quant.verdict == 'INCONCLUSIVE'
    assert 'noise floor of mean KL divergence' in ' '.join(quant.judged.reasons) and math.isnan(quant.settle_tokens)
    assert 'More text will not settle this' in quant.what_now()[0]
    loud = compare.compare(a, disturbed(a, 0.5), c, **zero, **quiet)
    assert loud.verdict == 'FAIL'  # beyond all noise
    without = compare.compare(a, disturbed(a, 1e-4), c, **zero, noise_floor='none', **quiet)
    assert without.judged.checks[1].state == 'outside' and without.to_dict()['noise_floor'] == dict(why='not asked for')
    eager = compare.compare(a, a, c, noise_floor='attention', **quiet)
    assert eager.floor['kld_mean'].value < quant.floor['kld_mean'].value
    assert a.model.config._attn_implementation == 'sdpa'


def test_noise_moves_a_bf16_number_at_all():
    "Half a step of noise rounded away would be a floor of zero."
    x = torch.randn(20000).bfloat16()
    moved = reference.round_again(x, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.bfloat16 and 0.15 < float((moved != x).float().mean()) < 0.19
    same = reference.round_again(x, torch.Generator().manual_seed(0))
    assert (same == moved).all()
