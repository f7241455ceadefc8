"What recipes advise, cell by cell with values that stand in: no advice contradicts itself."
import itertools
import json
from pathlib import Path
from types import SimpleNamespace as Some

import pytest

RECIPES = Path(__file__).resolve().parent.parent/'recipes'


def cells(name):
    "The code cells of a recipe."
    found = json.loads((RECIPES/name).read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in found if c['cell_type'] == 'code']


def advice_of(sources, values):
    "What the cells that make a recipe's advice leave in `advice`, run with these values."
    space = dict(values, Markdown=str)
    for source in sources:
        exec(compile(source, 'recipe', 'exec'), space)
    return space['advice']


def comparison(verdict):
    "As much of a Comparison as advice reads; its own advice is no word about serving."
    judged = Some(reasons=['mean KL divergence 0.03 [0.029, 0.031] lies outside its limit 0.02'])
    now = lambda calibration=(), attribution=None: [*calibration, *(attribution.advice if attribution else [])]
    return Some(verdict=verdict, judged=judged, what_now=now, to_dict=lambda: dict(ppl_ratio=1.004))


PARTS = Some(advice=["down_proj alone does 86% of the damage: keep it in BF16 (`exclude = ['*.down_proj']`)."])


def fp8_cases():
    "(what stands in, values) of every way through the advice of recipe fp8."
    choices = itertools.product(
        (False, True), ('PASS', 'FAIL', 'INCONCLUSIVE'), (False, True), ('cpu', 'cuda'), (False, True),
        ('trtllm', 'vllm', 'sglang'), (0., .5), (8, 64)
    )
    for random, verdict, errors, kind, native, engine, leak, samples in choices:
        yield (random, verdict, errors), dict(
            random=random, cost=None if random else comparison(verdict), by_kind=PARTS, leak=leak,
            findings=Some(errors=[Some(found='a scale is missing')] * errors, about=dict(engine=engine)),
            dev=Some(kind=kind), here=Some(native=native, why='no FP8 here'), s=Some(calibrates=True),
            calib_samples=samples, model='demo', text='code', path='checkpoint', engine='TensorRT-LLM 1.2.1',
            q=Some(report=Some(late=['the range of down_proj settled late'])),
        )


def contradictions(sources):
    "Cases in which recipe fp8 says no and yes in one breath, or serves what must not be served."
    bad = []
    for case, values in fp8_cases():
        random, verdict, errors = case
        told = '\n'.join(advice_of(sources, values))
        refused = 'Do not ship' in told or 'Not enough text' in told or 'will not take' in told
        serve = 'Serve it with' in told
        if refused and serve or serve != (not errors and (random or verdict == 'PASS')):
            bad.append(case)
        if ('Do not ship' in told) != (not random and verdict == 'FAIL'):
            bad.append(case)
    return bad


FP8 = [s for s in cells('01_fp8.ipynb') if 'def judgement(' in s or 'def conditions(' in s or '*judgement()' in s]


def test_fp8_never_says_do_not_ship_and_serve_it():
    assert len(FP8) == 3 and contradictions(FP8) == []


def test_the_check_finds_a_recipe_that_does():
    wrong = [s.replace("elif random or cost.verdict == 'PASS':", 'else:') for s in FP8]
    assert wrong != FP8 and {c[1] for c in contradictions(wrong)} == {'FAIL', 'INCONCLUSIVE'}


def test_a_fail_of_fp8_begins_with_the_calibration_and_names_the_layers():
    case = next(v for (random, verdict, _), v in fp8_cases() if not random and verdict == 'FAIL')
    first = advice_of(FP8, case)[0]
    assert first.startswith('**Do not ship this.**')
    assert first.index('settled late') < first.index("exclude = ['*.down_proj']")


@pytest.mark.parametrize('verdict', ['PASS', 'FAIL', 'INCONCLUSIVE'])
def test_perplexity_says_it_may_ship_only_on_a_pass(verdict):
    source = [s for s in cells('03_perplexity.ipynb') if 'It may ship' in s]
    c = comparison(verdict)
    c.effective_blocks = 64.
    late = Some(report=Some(late=['late']))
    for quant, verified in itertools.product(('', 'x'), (None, comparison('PASS'), comparison('FAIL'))):
        told = '\n'.join(advice_of(source, dict(
            c=c, made=late, quant=quant, by_kind=PARTS, verified=verified, patterns=['*.down_proj'], base='demo',
            text='code')))
        assert ('It may ship' in told) == (verdict == 'PASS') and ('run choose' in told) == (verdict != 'PASS')
        assert 'Serve it with' not in told and "exclude = ['*.down_proj']" in told


@pytest.mark.parametrize('verdict', ['PASS', 'FAIL', 'INCONCLUSIVE'])
def test_int8_names_the_layers_where_static_int8_fails(verdict):
    source = [s for s in cells('02_int8.ipynb') if s.startswith('def advice()')]
    names = dict(STATIC='INT8, one static scale', TOKEN='INT8, a scale a token', WEIGHTS='weights', FP8='FP8')
    gap = Some(lo=.1, hi=.2)
    values = dict(names, random=False, shipped=comparison(verdict), budget=0., base=Some(name='demo'),
                  parts={names['STATIC']: PARTS} if verdict == 'FAIL' else {}, model='demo', text='code', fp8=1.,
                  q=Some(report=Some(late=[])), gaps=dict(fp8_minus_token=gap, static_minus_token=gap),
                  kl=lambda c: 1., best=lambda m, t: 1., compared={('demo', 'weights'): 1.})
    space = dict(values, Markdown=str)
    exec(source[0], space)
    told = '\n'.join(space['advice_text'])
    assert ("exclude = ['*.down_proj']" in told) == (verdict == 'FAIL') and 'Serve it with' not in told
    assert told.startswith(verdict) and ('run choose' in told) == (verdict != 'PASS')
