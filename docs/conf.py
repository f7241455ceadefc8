"Sphinx's settings for the tree that docs/build.py assembles: notebooks as they are stored, nothing runs."
project = 'tqcook'
author = 'The tqcook authors'
copyright = '2026 onwards, The tqcook authors'

extensions = ['myst_nb']
exclude_patterns = ['_build', '**/.ipynb_checkpoints']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'  # outputs hold tables
nb_mime_priority_overrides = [('html', 'text/markdown', 5)]
myst_heading_anchors = 3
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']
pygments_style = 'friendly'
pygments_dark_style = 'github-dark'

html_theme = 'furo'
html_title = 'tqcook'
# Figures are drawn on white; in the dark theme they are turned to its background (invert .92: #141414), hues kept.
html_theme_options = {
    'light_css_variables': {'figure-filter': 'none'},
    'dark_css_variables': {'figure-filter': 'invert(.92) hue-rotate(180deg)'},
}
html_static_path = ['_static']
html_css_files = ['tqcook.css']
html_show_sourcelink = False
html_copy_source = False
