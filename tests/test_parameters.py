"One table of parameters: recipes, commands and the library refuse the same values with the same words."
import pytest

from tqcook import compare, contract, data, models, parameters, recipe, reference
from tqcook.core import CookError


@pytest.mark.parametrize('name, call', [
    ('policy', lambda: data.corpus('prose', models.demo_tokenizer(), policy='sliced')),
    ('context', lambda: data.corpus('prose', models.demo_tokenizer(), context=1)),
    ('max_windows', lambda: data.corpus('prose', models.demo_tokenizer(), max_windows=-1)),
    ('bos', lambda: data.corpus('prose', models.demo_tokenizer(), bos='sometimes')),
    ('calib_samples', lambda: data.calibration('prose', models.demo_tokenizer(), 0)),
    ('calib_length', lambda: data.calibration('prose', models.demo_tokenizer(), 8, 1)),
    ('max_kld', lambda: compare.check_budget(max_kld=-1)),
    ('max_ppl_ratio', lambda: compare.check_budget(max_ppl_ratio=float('inf'))),
    ('min_top1', lambda: compare.check_budget(min_top1='most')),
    ('noise_floor', lambda: reference.Live(None, [], 16, False)),
    ('backend', lambda: contract.check('.', backend='jax')),
    ('engine', lambda: contract.check('.', engine='vlm')),
])
def test_the_library_keeps_the_table(name, call):
    with pytest.raises(CookError, match=f'^{name} is ') as e:
        call()
    rule = parameters.PARAMETERS[name][0]
    assert f'; expected {rule}: ' in str(e.value)


def test_every_recipe_that_scores_text_lets_bos_be_chosen():
    for name in 'fp8', 'int8', 'perplexity', 'calibration_data':
        assert recipe.find_recipe(name).parameters['bos'].default == 'auto'


def test_every_parameter_has_one_row():
    names = [line.split('  ')[0] for line in parameters._TABLE.strip().splitlines()]
    assert len(names) == len(set(names))
