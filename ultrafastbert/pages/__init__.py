"""Pages to look at: self-contained HTML files with inline SVG and a little JavaScript, which fetch nothing.

`report` shows pretraining runs, `explorer` what trees do with texts. `page` puts a page together and escapes what is
in it.
"""
