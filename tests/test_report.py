"The report: one file, no code, no network, nothing of the data obeyed."
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from toy import FINISH, NOWHERE, PARAMS, START, write_recipe
from tqcook import report

EVIL = ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><svg onload=alert(1)>',
        '[x](javascript:alert(1))', '`</code><iframe src=//x>', '</td></table><object data=x>',
        '![i](http://example.org/x.png)', '<style>*{display:none}']

class Nodes(HTMLParser):
    "Every element of a page with its attributes."
    def __init__(self, page):
        super().__init__()
        self.seen = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

def test_one_file_without_code_or_network(toy, cook):
    assert cook()[0] == 0
    page = (toy/'runs/toy/report.html').read_text()
    assert 'data:image/png;base64' in page and 'n is 3' in page and 'stages.skip' not in page and 'plt.plot' not in page
    assert not re.search(r'(src|href)="(https?:)?//', page) and '<script' not in page
    assert page.count('<a ') == page.count('</a>') and '<a class' not in page, 'a link is left open'
    policy = [a['content'] for t, a in Nodes(page).seen if a.get('http-equiv') == 'Content-Security-Policy']
    assert policy and policy[0].startswith("default-src 'none'") and 'script-src' not in policy[0]

@pytest.mark.parametrize('evil', EVIL)
def test_nothing_from_outside_becomes_a_node(toy, cook, evil):
    "A name in a table, in prose, in a parameter, in results, in a title, printed, and as an output in HTML."
    body = (f'from IPython.display import HTML, Markdown, display\nevil = {evil!r}\nprint(evil)\n'
            "display(Markdown(core.md_table([(evil, evil)], ['a', evil])), Markdown(evil), HTML(evil))\n'x' + evil")
    finish = ("recipe.finish(dict(model=dict(name=evil), checkpoint=evil, quality=dict(source=evil, reasons=[evil], "
              f"verdict='FAIL'), details=dict(advice=[evil]), {NOWHERE}))")
    write_recipe(toy/'recipes', START, body, finish, name='01_toy.ipynb', params=PARAMS, title=f'# {evil}\n\n> {evil}')
    code, _ = cook('-p', f'model={evil}')
    assert code == 0
    page = (toy/'runs/toy/report.html').read_text()
    nodes = Nodes(page).seen
    assert not {'script', 'iframe', 'object', 'embed', 'form', 'base', 'link'} & {t for t, _ in nodes}
    assert len([t for t, _ in nodes if t == 'style']) == 1 and not [a for t, a in nodes if t == 'svg']
    for tag, attrs in nodes:
        assert not any(k.startswith('on') for k in attrs), (tag, attrs)
        assert not str(attrs.get('href', '')).lower().startswith('javascript'), (tag, attrs)
        if tag == 'img':
            assert attrs['src'].startswith(('data:', 'http://example.org')) # the policy fetches nothing
    shown = 'alert(1)', 'example', 'iframe', 'display:none', 'object data'
    assert any(x in page for x in shown), 'it is shown as text'

def test_the_top_says_what_a_reader_wants_to_know():
    quality = dict(verdict='FAIL', ppl_ratio=1.02, ppl_ratio_ci95=[1.015, 1.025], kld_mean=.03, top1_agreement=.93,
                   source='code', budget=dict(max_ppl_ratio=1.01, max_kld=.02, min_top1=.94),
                   reasons=['kld_mean is over'])
    top = report._top(dict(recipe='fp8', quality=quality, size_bytes=dict(base=100, quantized=60),
                           details=dict(advice=['Do not ship this.'])))
    for words in ('FAIL', '<svg', '1.02', 'limit 1.01', '0.03', 'limit 0.02', 'limit 94.00%', 'code',
                  'kld_mean is over', '100 B', 'What to do', 'Do not ship this.'):
        assert words in top, words

COLORS = [([1.001, 1.004], '#1a7f4b'), ([1.005, 1.02], '#9a6700'), ([1.02, 1.03], '#c0392b')]

@pytest.mark.parametrize('ci, color', COLORS)
def test_the_interval_is_drawn_beside_the_limit(ci, color):
    svg = report.interval_svg(dict(ppl_ratio=sum(ci) / 2, ppl_ratio_ci95=ci, budget=dict(max_ppl_ratio=1.01)))
    xs = [float(x) for x in re.findall(r'[MH](-?[\d.]+)', svg)]
    assert color in svg and min(xs) >= 0 and max(xs) <= 400 and 'limit 1.01' in svg
    assert report.interval_svg(dict(ppl_ratio=1.01)) == ''

def test_no_empty_cells(toy, cook):
    body = "core.md_table([('a', ''), (None, 2)], ['', ''])"
    write_recipe(toy/'recipes', START, body, FINISH, name='01_toy.ipynb', params=PARAMS)
    assert cook()[0] == 0
    page = (toy/'runs/toy/report.html').read_text()
    assert not re.search(r'<td[^>]*>\s*</td>', page) and not re.search(r'<thead>\s*<tr>\s*<th></th>\s*<th></th>', page)

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), '')
RUNS = "document.documentElement.setAttribute('data-ran','yes');alert(1)"
ACTIVE = [f'<script>{RUNS}</script>', f'<img src=x onerror="{RUNS}">', f'<svg onload="{RUNS}">',
          f'<body onload="{RUNS}">',
          f'"><script>{RUNS}</script>', f'[x](javascript:{RUNS})', f'<iframe srcdoc="<script>parent.{RUNS}</script>">',
          f'<details open ontoggle="{RUNS}">', f'</style><script>{RUNS}</script>', f'</title><script>{RUNS}</script>',
          f'~~~\n</code></pre><script>{RUNS}</script>', f'<math><mtext></p><img src=x onerror="{RUNS}">']

def opened(page, folder):
    "What a browser makes of a page, its code run: the document that stands in it after two seconds."
    return subprocess.run([CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
                           f'--user-data-dir={folder}/profile',
                           '--virtual-time-budget=2000', '--dump-dom', page.as_uri()], capture_output=True, text=True,
                          timeout=60, check=True).stdout

@pytest.mark.heavy
@pytest.mark.skipif(not CHROMIUM, reason='no Chromium here')
def test_a_browser_finds_nothing_to_run(toy, cook, tmp_path):
    "No dialog (it would hold the browser), no code that ran; the control shows what would have been seen."
    body = (f'from IPython.display import HTML, Markdown, display\nfor evil in {ACTIVE!r}:\n    print(evil)\n'
            '    display('
            "Markdown(core.md_table([(evil, evil)], ['a', evil])), Markdown(evil), HTML(evil))")
    finish = (f'evil = {" ".join(ACTIVE)!r}\n'
              'recipe.finish(dict(model=dict(name=evil), checkpoint=evil, quality=dict('
              f"source=evil, reasons=[evil], verdict='FAIL'), details=dict(advice={ACTIVE!r}), {NOWHERE}))")
    write_recipe(toy/'recipes', START, body, finish, name='01_toy.ipynb', params=PARAMS,
                 title='# ' + ''.join(ACTIVE[:3]))
    assert cook('-p', f'model={ACTIVE[0]}')[0] == 0
    dom = opened(toy/'runs/toy/report.html', tmp_path)
    assert 'Conditions' in dom and 'data-ran="yes"' not in dom and not re.search('<(script|iframe|svg onload)', dom)
    live = '\n'.join(ACTIVE).replace(';alert(1)', '') # a dialog would wait for somebody
    (tmp_path/'control.html').write_text(f'<!doctype html><html><body>{live}')
    control = opened(tmp_path/'control.html', tmp_path)
    assert 'data-ran="yes"' in control and '<script' in control
