"One table of parameters: recipes, commands and the library refuse the same values with the same words."
import importlib
import inspect
from pathlib import Path

import pytest

from tqcook import cli, parameters, recipe, reference, runner
from tqcook.core import CookError

WRONG = dict(a='fp9', one='nosuch', like='*', off=2.)
OTHERS = { # another thing of that name, made by our own code and never by a reader
    'dtype of a product or of codes': 'linears.fp8_mm linears.reference_linear fused.widen formats.dequantize '
                                      'skeleton.bare skeleton.skeleton',
    'scales as tensors': 'formats.quantize step.norm step.quantize',
    'a Device': 'compile.check_engine passport.verify passport.verify_or_refuse serving.before_serving',
    'alpha of a test': 'stats.detectable_accuracy',
    'a limit of time for one conversation': 'texts.render_chat',
    'loops and draws within': 'roofline.time_of tuning.graph_seconds sweep.run_point ranges.settled reference.noisy '
                              'decoder.product_errors decoder.serve fused.block',
    'told by a server or a file': 'fidelity.admitted card.model_card',
}


def wrong(name):
    "A value that a parameter does not take, and the sentence that says so."
    rule = parameters.PARAMETERS[name][0]
    value = WRONG.get(rule.removeprefix('a list, each ').partition(' ')[0], -1)
    value = [value] if rule.startswith('a list') else value
    with pytest.raises(CookError, match=f'^{name} is ') as e:
        parameters.check(name, value)
    return value, str(e.value)


def functions():
    "(name, function, argument) for every public function with an argument of the table that has a default in range."
    for path in sorted(Path(parameters.__file__).parent.glob('[a-z]*.py')):
        room = importlib.import_module(f'tqcook.{path.stem}')
        mine = [getattr(room, n) for n in getattr(room, '__all__', [])]
        for f in [f for f in mine if inspect.isfunction(f) and f.__module__ == room.__name__]:
            for k, p in inspect.signature(f).parameters.items():
                if k in parameters.PARAMETERS and p.default is not p.empty and 'Device' not in str(p.annotation):
                    yield f'{path.stem}.{f.__name__}', f, k, p.default


def in_range(name, value):
    try:
        parameters.check(name, value)
    except CookError:
        return value in ('', ())
    return True


def test_every_function_refuses_with_the_sentence_of_the_table():
    "Before anything else of its arguments is looked at: the others are None here."
    others, told = ' '.join(OTHERS.values()).split(), {}
    for name, f, k, default in functions():
        if name in others or not (default is None or in_range(k, default)):
            continue
        value, sentence = wrong(k)
        needed = {n: None for n, p in inspect.signature(f).parameters.items()
                  if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        try:
            told[name, k] = f(**needed | {k: value})
        except (CookError, TypeError, AttributeError) as e:
            told[name, k] = str(e)
        told[name, k] = told[name, k] == sentence
    assert all(told.values()), [k for k, same in told.items() if not same]
    assert len(told) > 150


def test_every_recipe_refuses_with_the_sentence_of_the_table(tmp_path):
    "As `run` reads them, and in the kernel: papermill and plain Jupyter set them without asking."
    count = 0
    for r in recipe.recipes():
        for name in parameters.PARAMETERS.keys() & r.parameters.keys():
            value, sentence = wrong(name)
            with pytest.raises(runner.RunError) as e:
                runner.run(r.name, {name: value}, out_dir=str(tmp_path/'run'), quiet=True)
            assert (str(e.value), e.value.code) == (sentence, 2), r.name
            values = {k: p.default for k, p in r.parameters.items()} | {name: value}
            with pytest.raises(CookError) as e:
                recipe.start(r.name, values)
            assert str(e.value) == sentence, r.name
            count += 1
    assert count > 100 and not (tmp_path/'run').exists()


def test_every_command_refuses_with_the_sentence_of_the_table(capsys):
    needed = dict(compare=['a', 'b'], check=['x'], sweep=['fp8', 'grid.yaml'])
    count = 0
    for line in cli._USAGE.strip().splitlines():
        verb, *flags = line.split('|')[0].split()
        name = flags[-1].lstrip('-').replace('-', '_') if flags else ''
        if name not in parameters.PARAMETERS or not flags[-1].startswith('--') or name in cli._LISTS:
            continue
        value, sentence = wrong(name)
        kind = line.split('|')[1].strip()
        if kind != 'switch':
            sentence = sentence.replace('is -1;', 'is -1.0;') if kind == 'float' else sentence
            assert cli.main([verb, *needed.get(verb, []), flags[-1], str(value)]) == 2
            assert capsys.readouterr().err.strip() == 'tqcook: ' + sentence.replace(name, flags[-1], 1), line
            count += 1
    assert count > 20


def test_every_recipe_that_scores_text_lets_bos_be_chosen():
    for name in 'fp8', 'int8', 'perplexity', 'calibration_data':
        assert recipe.find_recipe(name).parameters['bos'].default == 'auto'


@pytest.mark.parametrize('name, good, bad', [
    ('context', [2, 10**9], [1, 12., True, '12']), ('max_kld', [0, .02], [-1e-9, float('nan'), float('inf'), True]),
    ('learning_rate', [1e-9], [0, 0.]), ('percentile', [1e-9, 100], [0, 100.1]), ('alpha', ['off', 0, 1.], ['on', 1.1]),
    ('scheme', ['fp8'], ['bf16', 'fp8+kv', None, 8]),
    ('schemes', [['bf16', 'fp8+kv'], ['fp8']], [['fp9'], ['+kv'], 'fp8']),
    ('keep', [['*.down_proj'], []], [['*'], ['.*.'], [''], [5], '*.down_proj']),
    ('device', ['cpu', 'cuda:1'], ['cuda:', 'gpu']),
    ('sizes', [[8, 32]], [[8, 0], [2.5], 8])])
def test_what_a_rule_says(name, good, bad):
    for value in good:
        assert parameters.check(name, value) == value
    for value in bad:
        with pytest.raises(CookError, match=f'^{name} is '):
            parameters.check(name, value)


def test_no_floor_is_called_none_and_not_false():
    with pytest.raises(CookError, match='^noise_floor is False; expected one of rounding'):
        reference.Live(None, [], 16, False)
