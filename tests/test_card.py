"The model card: what is known and no more, and nothing from outside is live in it."
import re

import pytest
import yaml

import broken
from tqcook import card, passport
from tqcook.passport import verify, write_passport


@pytest.fixture
def ck(tmp_path):
    d = broken.write(broken.sharded(), tmp_path/'ck')
    write_passport(d, scheme='fp8', model=dict(name='tiny', weights='random'))
    return d

def test_the_card_says_what_is_known_and_no_more(ck):
    text = card.model_card(ck, base='org/model')
    assert text.startswith('---\n')
    assert 'base_model: "org/model"' in text
    assert 'Not evaluated' in text
    assert 'Random weights' in text
    passport.write_evaluation(
        ck,
        quality=dict(
            ppl_base=10.0, ppl_quant=10.1, ppl_ratio=1.01, ppl_ratio_ci95=[1.005, 1.015], verdict='FAIL', source='prose'
        ),
    )
    text = card.write_card(ck, base='org/model').read_text()
    assert '1.00500 to 1.01500' in text and 'FAIL' in text and 'trtllm-serve' in text and 'Not evaluated' not in text
    assert verify(ck).codes == []  # the card is not part of what the passport vouches for
    assert yaml.safe_load(text.split('---')[1])['tags'][0] == 'tensorrt-llm'

def test_the_card_of_what_cannot_be_served(tmp_path):
    text = card.model_card(broken.write(broken.good('int8_sq'), tmp_path/'c'))
    assert 'trtllm-serve' not in text and 'does not serve it' in text

@pytest.mark.parametrize('make, word', [
    (lambda: broken.compressed('int'), 'vllm serve'), (broken.legacy, 'trtllm-build'),
    (broken.deepseek, 'trtllm-serve')])
def test_each_layout_is_served_by_its_engine(make, word, tmp_path):
    assert word in card.model_card(broken.write(make(), tmp_path/'c'))

LIVE = '<script>alert(1)</script><img src=x onerror=alert(1)> [a](javascript:alert(1))\n# heading\n---\n'

def test_nothing_from_outside_is_live(tmp_path):
    "Names, facts, exclusions and measurements are text: no element, no link, no line of their own."
    c = broken.good()
    c['json']['hf_quant_config.json']['quantization']['exclude_modules'].append(LIVE)
    d = broken.write(c, tmp_path/'c')
    write_passport(d, scheme='fp8', recipe=LIVE, model=dict(name=LIVE), calibration=dict(source=LIVE))
    quality = dict(ppl_base=10., ppl_quant=10.1, source=LIVE, verdict=LIVE)
    passport.write_evaluation(d, quality=quality, commands=[LIVE])
    text = card.model_card(d)
    outside = '\n'.join(line for line in text.split('\n') if not line.startswith('    '))  # a block of code is text
    assert not re.search(r'<(script|img)|\]\(javascript', outside), outside
    assert text.count('\n---\n') == 1 and '\n# heading' not in text
    assert yaml.safe_load(text.split('---')[1])['library_name'] == 'transformers'
